"""The inverse of second moments, factored: what the OBS column update reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check
from ..svd import algebra

_ATTEMPTS = 8  # each with ten times the damping
# What elimination may leave of a diagonal entry: below, rounding is seen in the factor.
_LEAST_LEFT = {torch.float32: 1e-4, torch.float64: 1e-12}
_LEAF = 128  # of a triangular matrix, inverted by LAPACK


@dataclass(frozen=True)
class Factor:
    """The inverse of damped second moments, factored: ``H^-1 = L Lᵀ``.

    Attributes
    ----------
    lower : Tensor
        L, float32 [K, K], lower triangular. Its transpose is GPTQ's "Cholesky inverse".
    dead : Tensor
        bool [K]: inputs that were always zero.
    damping : float
        The one that was used, as a share of the mean diagonal.
    order : Tensor or None
        int64 [K]: L is of H[order][:, order], and columns are updated in this order.
    """

    lower: Tensor
    dead: Tensor
    damping: float
    order: Tensor | None = None


def factor(moment: Tensor, *, damping: float = 0.01, order: bool = False) -> Factor:
    """Factor the inverse of second moments for :func:`gossamer.calibration.obs.update`.

    Parameters
    ----------
    moment : Tensor
        E[x xᵀ], float32 or float64 [K, K], symmetric, positive semidefinite up to rounding.
    damping : float
        H = moment + damping * mean(diagonal) * I. Where this has no Cholesky factor, in float32 nor
        in float64, damping grows tenfold until it has. The mean leaves out dead inputs.
    order : bool
        Update columns by falling diagonal (GPTQ's act-order) instead of from first to last.

    Returns
    -------
    Factor
        The same for every number of threads.

    Raises
    ------
    ValueError
        For NaN or infinity, another shape, a negative damping, or a matrix that is far from
        positive semidefinite.
    TypeError
        For another dtype.

    Examples
    --------
    >>> moment = torch.tensor([[4.0, 2.0], [2.0, 2.0]])
    >>> L = factor(moment, damping=0.0).lower
    >>> torch.allclose(L @ L.T, moment.inverse())
    True
    """
    _check_moment(moment, damping)
    diagonal = moment.diagonal()
    dead = diagonal <= 0
    H = moment.detach().clone()
    H.diagonal()[dead] = 1.0
    permutation = None
    if order:
        permutation = diagonal.argsort(descending=True, stable=True)
        H = H[permutation][:, permutation]
    mean = float(diagonal[~dead].double().mean()) if not bool(dead.all()) else 1.0
    share = damping
    for _ in range(_ATTEMPTS):
        lower = _inverse_factor(H, share * mean)
        if lower is not None:
            return Factor(lower, dead, share, permutation)
        share = share * 10 if share > 0 else 1e-6
    raise ValueError(
        f"factor: moment: has no Cholesky factor with a damping of {share / 10:g} of its mean "
        "diagonal, wanted a positive semidefinite matrix"
    )


def _check_moment(moment: Tensor, damping: float) -> None:
    if moment.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"factor: moment: got dtype {moment.dtype}, wanted float32 or float64")
    _check.on_cpu("factor", "moment", moment)
    if moment.dim() != 2 or moment.shape[0] != moment.shape[1] or not len(moment):
        raise ValueError(f"factor: moment: got {_check.describe(moment)}, wanted [K, K]")
    if not is_finite(moment):
        raise ValueError("factor: moment: holds NaN or infinity")
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"factor: damping: got {damping!r}, wanted a number >= 0")


def is_finite(matrix: Tensor) -> bool:
    """Whether there is no NaN and no infinity: several times faster than isfinite().all()."""
    return all(math.isfinite(end) for end in matrix.aminmax())


def _inverse_factor(H: Tensor, shift: float) -> Tensor | None:
    """L of (H + shift I)^-1 = L Lᵀ, float32; None where H has no Cholesky factor."""
    for dtype, least in _LEAST_LEFT.items():
        # H = R Rᵀ with an upper R, from the last column back: then L = R^-ᵀ, and no inverse of H is
        # ever formed.
        backward = H.flip(0, 1).to(dtype)
        backward.diagonal().add_(shift)
        with algebra.one_thread():
            R, failed = torch.linalg.cholesky_ex(backward)
        left = R.diagonal().square() / backward.diagonal()
        if not failed.item() and float(left.min()) > least:
            return _inverse_of_lower(R).flip(0, 1).T.float().contiguous()
    return None


def _inverse_of_lower(R: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix, by halves."""
    K = len(R)
    if K <= _LEAF:
        with algebra.one_thread():
            unit = torch.eye(K, dtype=R.dtype)
            leaf: Tensor = torch.linalg.solve_triangular(R, unit, upper=False)
        return leaf
    half = K // 2
    inverse = torch.zeros_like(R)
    inverse[:half, :half] = first = _inverse_of_lower(R[:half, :half])
    inverse[half:, half:] = second = _inverse_of_lower(R[half:, half:])
    inverse[half:, :half] = algebra.times(second, algebra.times(R[half:, :half], first)).neg_()
    return inverse
