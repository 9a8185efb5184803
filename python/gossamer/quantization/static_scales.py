"""One scale for the activations of a layer, fixed ahead of time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..calibration import Statistics

_LARGEST = 127
_CANDIDATES = 100
_METHODS = ("min-max", "percentile", "mse")


def static_scale(
    statistics: Statistics, method: str = "percentile", *, percentile: float = 99.99
) -> float:
    """The magnitude that static int8 activations map to 127.

    Parameters
    ----------
    statistics : Statistics
        Of the inputs of a layer, gathered with histograms unless `method` is "min-max".
    method : str
        "min-max": the largest magnitude seen. "percentile": the magnitude that `percentile` percent
        of all numbers do not exceed. "mse": the one with the smallest mean squared error of
        rounding and clipping together.
    percentile : float
        In (0, 100].

    Returns
    -------
    float
        amax > 0, in the unit of x: ``q = clamp(round(127 x / amax), -127, 127)``. 1.0 where all
        inputs were zero.

    Raises
    ------
    ValueError
        For another method or percentile, numbers that are not finite, or statistics without a
        histogram.

    Notes
    -----
    Magnitudes are known to a bin of the histogram, 1/2048 of its limit: percentiles are rounded up
    to the end of a bin, errors are those of its middle.

    References
    ----------
    Wu et al., "Integer Quantization for Deep Learning Inference", 2020, section 5.

    Examples
    --------
    >>> from gossamer.calibration import Statistics
    >>> from gossamer.quantization import static_scale
    >>> one = torch.ones(1)
    >>> static_scale(Statistics(1, one, one, one, None, low=-3.0, high=2.0), "min-max")
    3.0
    """
    if method not in _METHODS:
        raise ValueError(
            f"static_scale: method: got {method!r}, wanted one of {', '.join(_METHODS)}"
        )
    if not 0 < percentile <= 100:
        raise ValueError(f"static_scale: percentile: got {percentile!r}, wanted (0, 100]")
    peak = max(-statistics.low, statistics.high)
    if not torch.tensor([statistics.low, statistics.high]).isfinite().all():
        raise ValueError("static_scale: statistics: low or high is NaN or infinity")
    if peak <= 0:
        return 1.0
    if method == "min-max":
        return float(peak)
    histogram = statistics.histogram
    if histogram is None or histogram.sum() <= 0:
        raise ValueError(
            f"static_scale: statistics: have no histogram, which {method!r} needs: gather them "
            "with histograms"
        )
    width = statistics.limit / len(histogram)
    if method == "percentile":
        share = histogram.cumsum(0) / histogram.sum()
        found = int((share < percentile / 100).sum()) + 1
        return min(float(peak), found * width)
    return _least_error(histogram, width, float(peak))


def _least_error(histogram: Tensor, width: float, peak: float) -> float:
    middles = (torch.arange(len(histogram), dtype=torch.float64) + 0.5) * width
    candidates = peak * torch.arange(1, _CANDIDATES + 1, dtype=torch.float64) / _CANDIDATES
    steps = candidates[:, None] / _LARGEST
    rounded = (middles / steps).round_().clamp_(max=_LARGEST) * steps
    errors = ((rounded - middles).square() * histogram).sum(1)
    return float(candidates[errors.argmin()])
