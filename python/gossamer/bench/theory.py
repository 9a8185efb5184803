r"""How far rounding should move Gaussian weights, from the definitions of the formats alone.

A group holds G weights with standard deviation 1. Its largest magnitude a sets its scale, and has
the distribution function :math:`F(a)^G`, :math:`F(a) = \operatorname{erf}(a/\sqrt2)`. The others
are Gaussian, cut off at a, and each moves by :math:`w - Q_a(w)`. The relative error (root mean
square, over that of the weights) is

.. math:: \sqrt{\mathrm{E}_a\Big[\tfrac{G-1}{G}\,\mathrm{E}_{|w|<a}\big[(w - Q_a(w))^2\big]
          + \tfrac1G (a - Q_a(a))^2\Big]}

which is also the relative error of :math:`Wx` for x that does not depend on W. Both expectations
are computed on a grid. For a uniform step :math:`a/127` this is the familiar
:math:`\mathrm{step}/\sqrt{12}` with the expected square of the maximum. For p bits of mantissa it
is :math:`2^{-p}\sqrt{c/12}`: the step is :math:`2^{\lfloor\log_2 w\rfloor - p}`, and c the mean of
:math:`4^{\lfloor\log_2 w\rfloor}` over that of :math:`w^2`: 3/7 were w evenly distributed between
two powers of two, 0.54 for Gaussian weights, which are denser towards the lower one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

# What a format makes of weights [n], given the largest magnitude of their group; of several, that
# with the least sum of cubed errors is taken.
Rounding = Callable[[torch.Tensor, float], list[torch.Tensor]]

MAXIMA = 32  # quantiles of the largest magnitude
POINTS = 8001  # weights between minus and plus the largest
INT4_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)  # of the scale that fits the largest weight
NORMAL_FLOAT = (
    *(-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0),
    *(0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0),
)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def expected_error(name: str, group_size: int) -> float | None:
    """Relative error of a format on Gaussian weights of standard deviation 1.

    Parameters
    ----------
    name
        A key of ``ROUNDINGS``, such as "int8", or "int4-asym".
    group_size
        Weights that share a scale: K where a row does.

    Returns
    -------
    float or None
        None for a format that nothing is known of.

    Examples
    --------
    >>> round(expected_error("int8", 4096), 4)
    0.0087
    """
    if name == "int4-asym":
        return _range_error(group_size, steps=15)
    rounding = ROUNDINGS.get(name)
    if rounding is None:
        return None
    maxima = _largest_magnitudes(group_size).tolist()
    total = sum(_error_sum(rounding, amax, group_size) for amax in maxima)
    return math.sqrt(total / group_size / MAXIMA)


def _error_sum(rounding: Rounding, amax: float, group_size: int) -> float:
    """Expected sum of the squared errors of a group whose largest magnitude is known."""
    weights = torch.linspace(-amax, amax, POINTS, dtype=torch.float64)
    density = torch.exp(-weights.square() / 2)
    edge = torch.tensor([amax], dtype=torch.float64)

    def moment(choice: tuple[torch.Tensor, torch.Tensor], power: int) -> float:
        rounded, largest = choice
        inner = (density * (weights - rounded).abs() ** power).sum() / density.sum()
        return (group_size - 1) * float(inner) + float((edge - largest).abs() ** power)

    choices = zip(rounding(weights, amax), rounding(edge, amax), strict=True)
    return moment(min(choices, key=lambda choice: moment(choice, 3)), 2)


def _largest_magnitudes(group_size: int) -> torch.Tensor:
    """Quantiles of the largest of ``group_size`` magnitudes."""
    return math.sqrt(2) * torch.erfinv(_quantiles() ** (1 / group_size))


def _quantiles() -> torch.Tensor:
    return (torch.arange(MAXIMA, dtype=torch.float64) + 0.5) / MAXIMA


def _range_error(group_size: int, steps: int) -> float:
    """``step / sqrt(12)`` with the expected square of the range, which holds 0.

    The largest of G Gaussians has the distribution function Phi^G, the smallest is the negative of
    such a one, and they are taken as independent.
    """
    maxima = math.sqrt(2) * torch.erfinv(2 * _quantiles() ** (1 / group_size) - 1)
    ends = maxima.clamp(min=0)
    squared_range = 2 * ends.square().mean() + 2 * ends.mean() ** 2
    return math.sqrt(squared_range.item() / 12) / steps


def _int8(w: torch.Tensor, amax: float) -> list[torch.Tensor]:
    step = amax / 127
    return [(w / step).round() * step]


def _int4(w: torch.Tensor, amax: float) -> list[torch.Tensor]:
    """The largest weight, here a positive one, is 8 steps: 16 codes reach from -7 to 8."""
    steps = [share * amax / 8 for share in INT4_SHARES]
    return [(w / step).round().clamp(-7, 8) * step for step in steps]


def _nf4(w: torch.Tensor, amax: float) -> list[torch.Tensor]:
    return [_nearest(w / amax, torch.tensor(NORMAL_FLOAT, dtype=w.dtype)) * amax]


def _fp4(w: torch.Tensor, amax: float) -> list[torch.Tensor]:
    step = amax / E2M1[-1]
    return [_nearest((w / step).abs(), torch.tensor(E2M1, dtype=w.dtype)) * step * w.sign()]


def _mxfp4(w: torch.Tensor, amax: float) -> list[torch.Tensor]:
    """Scales are powers of two, so that the largest weight is between 4 and 8: above 6 is cut."""
    step = 2.0 ** (math.floor(math.log2(amax)) - 2)
    return [_nearest((w / step).abs(), torch.tensor(E2M1, dtype=w.dtype)) * step * w.sign()]


def _fp8(w: torch.Tensor, amax: float, dtype: torch.dtype) -> list[torch.Tensor]:
    step = amax / torch.finfo(dtype).max
    return [(w / step).to(dtype).to(w.dtype) * step]


def _bf16(w: torch.Tensor, amax: float) -> list[torch.Tensor]:
    return [w.to(torch.bfloat16).to(w.dtype)]


def _nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return levels[torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)]


ROUNDINGS: dict[str, Rounding] = {
    "int8": _int8,
    "int4": _int4,
    "nf4": _nf4,
    "fp4": _fp4,
    "mxfp4": _mxfp4,
    "fp8": partial(_fp8, dtype=torch.float8_e4m3fn),
    "fp8-e5m2": partial(_fp8, dtype=torch.float8_e5m2),
    "bf16": _bf16,
}
