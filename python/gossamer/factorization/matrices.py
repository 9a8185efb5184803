"""Weights that are factorized as one matrix: linear layers, 1x1 convolutions, separated ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..svd import truncated_svd
from .sensitivity import Measure


@dataclass(frozen=True)
class Subspace:
    """What a matrix W [n, k] is projected on: its best approximations of all ranks up to some.

    Attributes
    ----------
    basis : Tensor
        Orthonormal columns, by energy: of the outputs, (n, R), or of the inputs, (k, R).
    of_outputs : bool
        Which.
    energies : Tensor
        float64, shape (R,): σ², which each column adds.
    total : float
        Sum of all σ².
    """

    basis: Tensor
    of_outputs: bool
    energies: Tensor
    total: float

    @property
    def rank(self) -> int:
        """R."""
        return self.basis.shape[1]

    def kept(self, rank: int) -> float:
        """Share of the energy that a rank keeps."""
        if self.total == 0:
            return 1.0
        return min(1.0, float(self.energies[:rank].sum()) / self.total)

    def factors(self, W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """U [n, rank], with columns of length 1, and V [rank, k], both float32."""
        W, basis = W.float(), self.basis[:, :rank].float()
        if self.of_outputs:
            return basis, basis.T @ W
        U = W @ basis
        lengths = U.norm(dim=0)
        lengths[lengths == 0] = 1.0
        return U / lengths, lengths[:, None] * basis.T


def solve(
    W: Tensor,
    measure: Measure,
    *,
    rank: int | None = None,
    rel_error: float | None = None,
    seed: int = 0,
    all_ranks: bool = False,
) -> Subspace:
    """The subspace that a matrix is projected on, of a rank or as large as an error wants it.

    Without a measure it is that of the largest singular values. With C the outputs are projected on
    the top eigenvectors of W C Wᵀ; with D the inputs on the top right singular vectors of D W,
    which weights the rows without dividing by them.

    Parameters
    ----------
    W : Tensor
        Shape (n, k).
    measure : Measure
        Of the error, for this matrix.
    rank, rel_error : int, float
        Either.
    seed : int
        Of the solver.
    all_ranks : bool
        Whether the curve is needed, and not only the largest rank.
    """
    C, D = measure.columns, measure.rows
    weighted = W.contiguous() if D is None else D.float()[:, None] * W.float()
    U, S, V, _ = truncated_svd(
        weighted, rank, rel_error=rel_error, weight=C, seed=seed, progress=False
    )
    if C is not None:
        energies, U = _by_energy(W, U, C, rotate=all_ranks)
        total = (W.float() @ C).mul_(W).sum(dtype=torch.float64)
        return Subspace(U, True, energies, float(total))
    of_outputs = D is None and len(U) <= len(V)  # the smaller one, where both would do
    total = torch.linalg.vector_norm(weighted, dtype=torch.float64).square()
    return Subspace(U if of_outputs else V, of_outputs, S.double().square(), float(total))


def _by_energy(W: Tensor, U: Tensor, C: Tensor, rotate: bool) -> tuple[Tensor, Tensor]:
    """σ² in a subspace of the outputs (Rayleigh-Ritz for W C Wᵀ), and a basis in their order."""
    B = U.T.float() @ W.float()
    captured = (B @ C).double() @ B.T.double()
    if not rotate:
        return captured.diagonal().clone(), U
    values, vectors = torch.linalg.eigh(captured)
    return values.flip(0).clamp_min_(0), U @ vectors.flip(1).to(U.dtype)
