"""The best values for weights that stay, once it is known which do.

With the mask fixed, each row v of a weight is a least-squares problem of its own: the minimum of
``(w - v) H (w - v)ᵀ`` over the v that are zero outside the mask. Conjugate gradients come close to
it in few steps, each of them one matrix product for all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..svd import algebra

_ROWS = 1024  # at a time: temporaries are five times their size


def refined(W: Tensor, values: Tensor, keep: Tensor, H: Tensor, steps: int) -> Tensor:
    """Move the weights that stay towards the least error of the outputs.

    Parameters
    ----------
    W : Tensor
        float32 [N, K], what is to be approximated.
    values : Tensor
        float32 [N, K], where to start: zero where the mask is False.
    keep : Tensor
        bool [N, K], the mask.
    H : Tensor
        float32 [K, K], symmetric, positive definite.
    steps : int
        Of conjugate gradients, preconditioned by the diagonal of H.

    Returns
    -------
    Tensor
        float32 [N, K]: ``tr((W - V) H (W - V)ᵀ)`` does not grow in a step, up to rounding.
    """
    parts = (slice(first, first + _ROWS) for first in range(0, len(W), _ROWS))
    done = [_refined_rows(W[rows], values[rows], keep[rows], H, steps) for rows in parts]
    return torch.cat(done)


def _refined_rows(W: Tensor, values: Tensor, keep: Tensor, H: Tensor, steps: int) -> Tensor:
    V, diagonal = values.clone(), H.diagonal()
    left = algebra.times(W - V, H).mul_(keep)  # half of the falling slope
    direction = left / diagonal
    before = (left * direction).sum(1, keepdim=True)
    for _ in range(steps):
        change = algebra.times(direction, H).mul_(keep)
        length = _divided(before, (direction * change).sum(1, keepdim=True))
        V += length * direction
        left -= length * change
        scaled = left / diagonal
        after = (left * scaled).sum(1, keepdim=True)
        direction = scaled + _divided(after, before) * direction
        before = after
    return V


def _divided(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``; 0 where nothing is left to divide by: that row has arrived."""
    return torch.where(b > 0, a / b, 0.0)
