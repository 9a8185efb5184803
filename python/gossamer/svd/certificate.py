"""How far the factors are from the matrix at most.

With Q, and ``T = Wᵀ Q + D`` as computed,

    |W - Q Tᵀ|² = |W|² - |T|² - 2 <D, T> + <Tᵀ T, QᵀQ - I>

exactly, so what the columns capture tells the error, up to D and the defect of Q. Both are
bounded, and added. Where these bounds are no longer small against what is left (in float32 below
a relative error of about 2e-2), the residual itself is computed in float64. With a weight C the
inner product of two rows x and y is ``x C yᵀ``, and nothing else changes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .finish import Approximation
from .problem import Problem, squares

# Bounds may make up this share of the squared error; beyond, the residual is computed.
_SHARE = 0.01
_CHUNK = 1 << 19  # elements of the residual that are computed at once, in float64


def squared_errors(problem: Problem, found: Approximation) -> Tensor:
    """Upper bounds of the squared error of the first 1, 2, ..., p columns: [p], float64.

    Sums of the accurate lane have at most 256 terms in float32, whose errors behave like a random
    walk (Higham and Mary, 2019): ``|D|² <= 256 u² sum_k |q_k|² |w_k|²``, with rows q_k of Q of
    length 1 at most. ``|D| <= 32 u |W|`` doubles that.
    """
    unit = torch.finfo(problem.factors).eps / 2
    rounding = 32 * unit * math.sqrt(problem.size)
    captured = float(found.energies.sum())
    inner = 2 * rounding * math.sqrt(captured) + found.defect * captured
    if problem.C is not None:
        inner += 2 * rounding * math.sqrt(squares(found.CT))
        inner += 32 * unit * math.sqrt(squares(problem.C)) * squares(found.T)
    left, off = max(problem.energy - captured, 0.0), problem.uncertainty + inner
    if off > _SHARE * left:
        left, off = residual(problem, found.Q, found.T), 0.0
    # The columns behind the first r are orthogonal to the residual, up to D and the defect again.
    behind = after(found.energies)
    size = math.sqrt(captured) or 1.0
    return left + off + behind + 2 * (inner / size) * (behind.sqrt() + unit * size)


def after(energies: Tensor) -> Tensor:
    """The sum of all energies behind the first 1, 2, ..., p."""
    sums = energies.flip(0).cumsum(0).flip(0)
    return torch.cat([sums[1:], sums.new_zeros(1)])


def of_factors(problem: Problem, squared: float, rank: int) -> float:
    """An upper bound of ``|W - U S Vᵀ|`` from that of ``|W - Q Tᵀ|²``."""
    return math.sqrt(squared) + rounding(problem, rank, problem.energy)


def rounding(problem: Problem, rank: int, energy: float) -> float:
    """What the products that turn Q and T into U, S and V add to an error at most."""
    unit = torch.finfo(problem.factors).eps / 2
    return (8 + 4 * math.sqrt(rank)) * unit * math.sqrt(energy)


def residual(problem: Problem, Q: Tensor, T: Tensor) -> float:
    """``|W - Q Tᵀ|²`` in float64, chunk of rows by chunk."""
    right = T.double().T.contiguous()
    C = None if problem.C is None else problem.C.double()
    total = 0.0
    rows = max(1, _CHUNK // problem.W.shape[1])
    for first in range(0, len(Q), rows):
        here = slice(first, first + rows)
        rest = problem.W[here].double() - Q[here].double() @ right
        weighted = rest if C is None else rest @ C
        total += float((rest * weighted).sum(1).sum())
    return max(total, 0.0)
