"""Checks of the numbers that the pruning methods are given."""

from __future__ import annotations

import math


def share(function: str, name: str, value: object) -> None:
    """The argument must be a number in [0, 1]."""
    if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{function}: {name}: got {value!r}, wanted a number in [0, 1]")


def above_zero(function: str, name: str, value: object) -> None:
    """The argument must be a number above 0, and finite."""
    if not _is_number(value) or not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{function}: {name}: got {value!r}, wanted a number above 0")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
