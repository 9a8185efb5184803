"""The levels that a format rounds to, in ascending order, and how the format stores them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .four_bit import rounded_scales
from .fp4 import FP4, MXFP4
from .fp8 import DTYPES, FP8
from .int4 import Int4
from .int8 import Int8
from .nf4 import NF4

GRID_FORMATS: dict[str, type[Any]] = {
    form.name: form for form in (Int8, Int4, NF4, FP4, MXFP4, FP8)
}
_INT8_LARGEST = 127
_E8M0_BIAS = 127


@dataclass(frozen=True, eq=False)
class Codebook:
    """The numbers, times a scale, that one format can stand for.

    Attributes
    ----------
    levels : Tensor
        Float32 [L], ascending, L <= 256. The floats have -0.0 and then 0.0.
    thresholds : Tensor or None
        Float32 [L - 1]: a value has the level with the index of how many thresholds lie below it.
        None where levels are consecutive whole numbers, to the nearest of which a value is rounded,
        halves to even.
    stored : Tensor
        uint8 [L]: the bits that the format stores for each level.
    """

    levels: Tensor
    thresholds: Tensor | None
    stored: Tensor


def codebook(form: str, settings: Mapping[str, Any]) -> Codebook:
    """The levels of a format of :data:`GRID_FORMATS`."""
    if form == "int8":
        values = torch.arange(-_INT8_LARGEST, _INT8_LARGEST + 1)
        return Codebook(values.float(), None, values.to(torch.int8).view(torch.uint8))
    if form == "int4":
        values = torch.arange(16)
        return Codebook(values.float(), None, values.to(torch.uint8))
    if form == "nf4":
        levels = torch.tensor(NF4.codebook)
        lower_of_halves = (levels[1:] + levels[:-1]) / 2
        return Codebook(levels, lower_of_halves, torch.arange(16, dtype=torch.uint8))
    if form == "fp8":
        codes = torch.arange(256, dtype=torch.uint8)
        values = codes.view(settings.get("dtype", DTYPES[0])).float()
        return _floats(values[values.isfinite()], codes[values.isfinite()])
    return _floats(torch.tensor(FP4.codebook), torch.arange(16, dtype=torch.uint8))


def _floats(values: Tensor, codes: Tensor) -> Codebook:
    """Sign and magnitude: halves go to the level whose code is even, both zeros to 0.0."""
    half = len(values) // 2  # the upper half of the codes has the sign
    levels = torch.cat([values[half:].flip(0), values[:half]])
    stored = torch.cat([codes[half:].flip(0), codes[:half]])
    thresholds = (levels[1:] + levels[:-1]) / 2
    up = stored[1:] % 2 == 0
    up[half - 1] = True  # between the zeros
    below = torch.nextafter(thresholds, torch.tensor(-torch.inf))
    return Codebook(levels, torch.where(up, below, thresholds), stored)


def nearest_codes(values: Tensor, book: Codebook, zeros: Tensor | None) -> Tensor:
    """Index of the level nearest to each value plus zero; may write into `values`."""
    if book.thresholds is not None:
        return torch.bucketize(values.contiguous(), book.thresholds, out_int32=True)
    values.round_().sub_(book.levels[0])
    if zeros is not None:
        values.add_(zeros)
    return values.clamp_(0, len(book.levels) - 1)


def nearest_levels(values: Tensor, book: Codebook, zeros: Tensor | None) -> Tensor:
    """The level nearest to each value plus zero, less zero; may write into `values`."""
    if book.thresholds is not None:
        return book.levels[nearest_codes(values, book, zeros)]
    low, high = book.levels[0], book.levels[-1]
    if zeros is None:
        return values.round_().clamp_(low, high)
    return values.round_().clamp_(low - zeros, high - zeros)


def storable(
    form: str, settings: Mapping[str, Any], group_size: int | None, scales: Tensor
) -> Tensor:
    """Scales [n, groups] as a format can hold them; of blocks, all rows must be given."""
    if form == "int8":
        return scales.clamp(min=0)
    if form == "mxfp4":
        powers = torch.tensor([2.0**e for e in range(-_E8M0_BIAS, _E8M0_BIAS + 1)])
        exponents = scales.abs().log2().round_().clamp_(-_E8M0_BIAS, _E8M0_BIAS)
        return powers[exponents.int() + _E8M0_BIAS]
    if form == "fp8":
        return scales
    return rounded_scales("storable", scales, settings.get("scale_dtype")).float()
