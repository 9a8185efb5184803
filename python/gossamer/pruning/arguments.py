"""Checks of what the pruning methods are given: numbers, and statistics of inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _check
from ..calibration.statistics import Statistics


def share(function: str, name: str, value: object) -> None:
    """The argument must be a number in [0, 1]."""
    if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{function}: {name}: got {value!r}, wanted a number in [0, 1]")


def above_zero(function: str, name: str, value: object) -> None:
    """The argument must be a number above 0, and finite."""
    if not _is_number(value) or not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{function}: {name}: got {value!r}, wanted a number above 0")


def count(function: str, name: str, value: object) -> None:
    """The argument must be a whole number from 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{function}: {name}: got {value!r}, wanted a whole number >= 0")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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


def _known(function: str, statistics: Statistics | None) -> Statistics:
    if statistics is None:
        raise ValueError(
            f"{function}: statistics: got None, wanted those of the inputs of the layer: the "
            "method needs a calibration"
        )
    return statistics
