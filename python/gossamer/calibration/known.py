"""Statistics that a method cannot do without, checked."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .. import _check
from .inverse_factor import Factor, factor
from .statistics import Statistics

# Of the last statistics only: layers that share their inputs come one after the other.
_factors: WeakKeyDictionary[Statistics, dict[tuple[float, bool], Factor]] = WeakKeyDictionary()


def squares_of(function: str, statistics: Statistics | None, K: int) -> Tensor:
    """E[x_k²], float32 [K], finite and not negative."""
    squares = _known(function, statistics).squares
    if tuple(squares.shape) != (K,):
        raise ValueError(
            f"{function}: statistics: squares: got {_check.describe(squares)}, wanted [{K}]"
        )
    if not bool(((squares >= 0) & squares.isfinite()).all()):
        raise ValueError(
            f"{function}: statistics: squares: got NaN, infinity or a negative number, wanted the "
            "means of x²"
        )
    return squares.float()


def moment_of(function: str, statistics: Statistics | None, K: int) -> Tensor:
    """E[x xᵀ], float32 [K, K], finite."""
    moment = _known(function, statistics).moment
    if moment is None or tuple(moment.shape) != (K, K):
        came = "None" if moment is None else _check.describe(moment)
        raise ValueError(f"{function}: statistics: moment: got {came}, wanted [{K}, {K}]")
    low, high = torch.aminmax(moment)  # NaN where one is
    if not bool(low.isfinite() & high.isfinite()):
        raise ValueError(f"{function}: statistics: moment: got NaN or infinity, wanted E[x xᵀ]")
    return moment


def factor_of(
    function: str, statistics: Statistics | None, K: int, *, damping: float, order: bool = False
) -> tuple[Tensor, Factor]:
    """E[x xᵀ] as of `moment_of`, and the factor of its inverse, which is not computed twice."""
    moment = moment_of(function, statistics, K)
    assert statistics is not None  # moment_of has seen it
    if statistics not in _factors:
        _factors.clear()
    known = _factors.setdefault(statistics, {})
    if (damping, order) not in known:
        known[damping, order] = factor(moment, damping=damping, order=order)
    return moment, known[damping, order]


def _known(function: str, statistics: Statistics | None) -> Statistics:
    if statistics is None:
        raise ValueError(
            f"{function}: statistics: got None, wanted those of the inputs of the layer: the "
            "method needs a calibration"
        )
    return statistics
