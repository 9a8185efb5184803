"""What methods that scale input channels share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..calibration.statistics import Statistics
from ..formats import FORMATS, Format
from ..formats.grids import fit_grid, has_grid
from ..formats.groups import group_count, in_groups
from ..schemes import Scheme

_ROWS = 128
_LEAST, _MOST = 1e-4, 1e4  # factors beyond would only move the error into the producer's dtype


def check_scaling(function: str, weights: Sequence[Tensor], statistics: Statistics) -> None:
    """Weights must be finite [N_i, K], with statistics of K finite numbers."""
    if not weights:
        raise ValueError(f"{function}: weights: is empty, wanted at least one weight")
    K = len(statistics.squares)
    for W in weights:
        if W.dim() != 2 or W.shape[1] != K:
            raise ValueError(f"{function}: weights: got shape {list(W.shape)}, wanted [N, {K}]")
        if not bool(W.isfinite().all()):
            raise ValueError(f"{function}: weights: NaN or infinity in a weight")
    known = (statistics.peak, statistics.squares, statistics.moment)
    if not all(bool(values.isfinite().all()) for values in known if values is not None):
        raise ValueError(f"{function}: statistics: NaN or infinity in the inputs of the layers")


def over_ties(values: Tensor, tie: Tensor | None) -> Tensor:
    """The largest of the values of columns that must have the same factor, for each column."""
    if tie is None:
        return values
    largest = values.new_zeros(int(tie.max()) + 1).scatter_reduce_(0, tie, values, "amax")
    return largest[tie]


def centred(s: Tensor, lives: Tensor) -> Tensor:
    """Factors whose largest and smallest have the product 1; 1 where a channel is dead."""
    if not bool(lives.any()):
        return torch.ones_like(s)
    some = s[lives]
    middle = (some.max().double() * some.min().double()).sqrt().to(s.dtype)
    return torch.where(lives, s / middle, 1.0).clamp_(_LEAST, _MOST)


def some_rows(W: Tensor) -> Tensor:
    """Up to 128 rows, spread evenly: what factors of columns do to them they do to all."""
    return W[:: -(-len(W) // _ROWS)]


def rounded_weight(W: Tensor, scheme: Scheme, squares: Tensor) -> Tensor:
    """Ŵ [N, K], as "rtn" rounds it for inputs of which E[x²] is known.

    Zeros that a sparse format would leave out stay zeros.
    """
    form = scheme.format.removeprefix("sparse-")
    if has_grid(form):
        grid = fit_grid(form, scheme.group_size, scheme.settings, W, importance=squares)
        return grid.dequantize(grid.round(W))
    quantize: Callable[..., Format] = FORMATS[form].quantize
    return quantize(W, scheme.group_size, **scheme.settings).dequantize()


def rounded_rows(x: Tensor, group_size: int | None) -> Tensor:
    """Rows [R, K] as the kernels round them: int8, one scale for each row or group of a row."""
    R, K = x.shape
    groups = in_groups(x, group_size)
    scales = groups.abs().amax(2, keepdim=True) / 127
    values = torch.where(scales > 0, groups / scales, 0).round_().clamp_(-127, 127) * scales
    return values.view(R, group_count(K, group_size) * (group_size or K))[:, :K]
