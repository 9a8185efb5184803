"""Block Krylov search for the leading eigenvectors of a positive semidefinite matrix M.

``S = [X_0, X_1, ...]`` has orthonormal columns; ``X_{i+1}`` spans what ``M X_i`` adds to S. Among
all methods that multiply M with as many columns, the best approximation out of span(S) converges
fastest (Musco and Musco, 2015). With ``G = Sᵀ M S = Hᵀ H`` and ``G = E diag(energies) Eᵀ``, ``S
E`` are the Ritz vectors, and ``energies`` what each of them captures of ``trace(M)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import algebra
from .operators import Operator

CHEAP_EIGENVALUES = 512  # columns: below 10 ms

# What one round of orthogonalisation in float32 leaves below 1e-5: overlaps and spreads up to
# these.
_LITTLE, _WELL_CONDITIONED = 0.3, 10.0


class Basis:
    """A Krylov basis that grows by blocks of columns.

    Parameters
    ----------
    operator : Operator
        M, in a lane.
    start : Tensor
        [size, b], the first block; any columns.
    columns : int
        For how many columns memory is taken at first.
    """

    def __init__(self, operator: Operator, start: Tensor, columns: int) -> None:
        self.operator = operator
        self.block = start.shape[1]
        self.width = 0  # columns whose halves are known
        self._S = torch.empty(operator.size, columns, dtype=operator.dtype)
        self._H = torch.empty(operator.half_size, columns, dtype=operator.dtype)
        self._G = torch.zeros(columns, columns, dtype=torch.float64)
        self._next = algebra.orthonormal(start.to(operator.dtype))[0]
        self._image: Tensor | None = None  # M times the last block, where known

    def grow(self, last: bool) -> None:
        """Add a block; `last` leaves out the second half of its product until it is needed."""
        self._reserve()
        if self.width:
            self._prepare_next()
        here = slice(self.width, self.width + self.block)
        self._S[:, here] = self._next
        if last:
            H, self._image = self.operator.first(self._next), None
        else:
            H, self._image = self.operator.both(self._next)
        self._H[:, here] = H
        self.width += self.block
        new = self.operator.inner(self._H[:, : self.width], H).double()
        self._G[: self.width, here] = new
        self._G[here, : self.width] = new.T

    def _reserve(self) -> None:
        columns = self._S.shape[1]
        if self.width + self.block <= columns:
            return
        more = max(self.block, columns // 2)
        self._S = torch.nn.functional.pad(self._S, (0, more))
        self._H = torch.nn.functional.pad(self._H, (0, more))
        self._G = torch.nn.functional.pad(self._G, (0, more, 0, more))

    def _prepare_next(self) -> None:
        """Make the part of M X_i that is orthogonal to S the next block.

        In exact arithmetic M X_i overlaps with the last two blocks only, and by G; what rounding
        leaves of the others goes in the rounds after that.
        """
        if self._image is None:
            start = self.width - self.block
            self._image = self.operator.second(self._H[:, start : self.width])
        S = self._S[:, : self.width]
        near = slice(max(0, self.width - 2 * self.block), self.width)
        overlap = self._G[near, self.width - self.block : self.width]
        X = self._image - algebra.times(S[:, near], overlap)
        for _ in range(
            6
        ):  # a block of rounding only, where M has no further directions, takes most
            X, exact = self._orthogonal_to_basis(X)
            if exact:
                break
        self._next = X

    def _orthogonal_to_basis(self, X: Tensor) -> tuple[Tensor, bool]:
        """Orthonormal columns that span what X adds to S, and whether another round is needless.

        One product ``[S X]ᵀ X`` gives the overlap with S and the Gram matrix of X; that of
        ``X - S overlap`` differs by ``overlapᵀ overlap``; and one product with [S X] applies both.
        """
        width = self.width + self.block
        self._S[:, self.width : width] = X
        both = self._S[:, :width]
        products = algebra.cross(both, X).double()
        overlap, gram = products[: self.width], products[self.width :]
        inverse, spread = algebra.inverse_factor(gram - overlap.T @ overlap)
        if inverse is None:
            return algebra.orthonormal(X - algebra.times(both[:, : self.width], overlap))[0], False
        X = algebra.times(both, torch.cat([-overlap @ inverse, inverse]))
        lost = float(overlap.square().sum() / gram.trace())
        return X, lost < _LITTLE**2 and spread < _WELL_CONDITIONED

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Energies, largest first, and the eigenvectors of G, in float64.

        Where inner products were in float32, so may the eigensolver be, which takes half the time.
        """
        energies, vectors = algebra.eigen(self._leading(self.width))
        return energies.double().clamp_min(0), vectors.double()

    def _leading(self, width: int) -> Tensor:
        G = self._G[:width, :width]
        return G if self.operator.fine else G.float()

    def energies_before(self, blocks: int) -> Tensor:
        """The energies of some blocks ago, largest first."""
        width = self.width - blocks * self.block
        return algebra.eigenvalues(self._leading(width)).double().clamp_min(0)

    def captured_before(self, blocks: int, energies: Tensor, vectors: Tensor) -> float:
        """A lower bound of what as many Ritz vectors had captured some blocks ago.

        Parameters
        ----------
        blocks : int
            How many blocks ago.
        energies, vectors : Tensor
            [r] and [width, r], the leading eigenpairs of G now.

        Returns
        -------
        float
            Energy, at least minus infinity.

        Notes
        -----
        The Ritz vectors without their last rows F span a subspace of the earlier S. Its energy is
        ``trace((I - FᵀF)⁻¹ Pᵀ G P)`` with P the other rows, which costs products of F only: no
        second eigendecomposition.
        """
        first = self.width - blocks * self.block
        F = vectors[first:]
        corner = self._G[first : self.width, first : self.width]
        weighted = F * energies
        overlap, share = F @ F.T, weighted @ F.T
        inner = share - overlap @ share - share @ overlap + overlap @ corner @ overlap
        kept = energies.sum() - 2 * share.trace() + (corner * overlap).sum()
        identity = torch.eye(len(F), dtype=torch.float64)
        with algebra.one_thread():
            L, failed = torch.linalg.cholesky_ex(identity - overlap)
            if failed.item():
                return -math.inf
            return float(kept + torch.cholesky_solve(inner, L).trace())

    def left_vectors(self, energies: Tensor, vectors: Tensor) -> Tensor:
        """An orthonormal basis [m, r] of the left vectors that belong to Ritz vectors."""
        least = energies[0].sqrt() * torch.finfo(self.operator.dtype).eps
        scaled = vectors / energies.sqrt().clamp_min(least.clamp_min(1e-300))
        return algebra.orthonormal(self.operator.left(self._times(self._H, scaled)))[0]

    def search_vectors(self, vectors: Tensor) -> Tensor:
        """The Ritz vectors themselves, [size, r]."""
        return self._times(self._S, vectors)

    def _times(self, A: Tensor, vectors: Tensor) -> Tensor:
        return algebra.times(A[:, : self.width], vectors.to(A.dtype))
