"""Integer codes, zero points and scales from other people's files, as formats of ours.

Where a format of ours can hold the same numbers, it does, bit for bit. Where none can, the weight
is rounded once more, to int8 in groups of 32, and the relative error of that is returned with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import Format, Int4, Int8
from ..formats.groups import over_k, relative_error, row_chunks

_ROUNDED_GROUP = 32  # of what no format of ours can hold
MIDDLE = {4: 8, 8: 128}  # by bits: the zero point of symmetric weights


@dataclass(frozen=True)
class Converted:
    """A weight in a format of ours.

    Attributes
    ----------
    weight : Format
        Shape (N, K).
    error : float
        ``|W - Ŵ| / |W|`` (Frobenius) against the numbers that the file means; 0 where they are the
        same.
    """

    weight: Format
    error: float = 0.0


def words_as_bytes(words: Tensor) -> Tensor:
    """Rows of int32 words as rows of bytes, the lowest first: uint8 [n, 4 * words]."""
    return words.contiguous().view(torch.uint8)


def halves(codes: Tensor) -> Tensor:
    """Codes two to a byte, uint8 [n, bytes], as uint8 [n, 2 * bytes]; the low half comes first."""
    return torch.stack((codes & 15, codes >> 4), 2).flatten(1)


def rounded(dense: Tensor) -> Converted:
    """Round a dense float32 [N, K] to int8 in groups of 32."""
    weight = Int8.quantize(dense, _ROUNDED_GROUP)
    return Converted(weight, relative_error(dense, weight))


def four_bit(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, group_size: int | None, K: int
) -> Converted:
    """A weight ``(code[n, k] - zeros[n, k // G]) * scales[n, k // G]`` of codes of 4 bits.

    Parameters
    ----------
    codes : Tensor
        Shape (N, ceil(K / 2)), uint8, as :class:`Int4` has them.
    scales : Tensor
        Shape (N, groups), float16, bfloat16 or float32.
    zeros : Tensor, optional
        Shape (N, groups), uint8, 0 to 15; None is 8 everywhere.
    group_size : int, optional
        G, any; None: a scale for each row.
    K : int
        In_features.
    """
    if zeros is not None and bool((zeros == MIDDLE[4]).all()):
        zeros = None
    group_size = _below(K, group_size)
    finer = _finer_size(group_size, Int4.group_sizes)
    if finer == 0:
        return rounded(scaled(halves(codes)[:, :K], scales, zeros, group_size, MIDDLE[4]))
    scales = _repeated(scales, group_size, finer, K)
    zeros = None if zeros is None else _repeated(zeros, group_size, finer, K)
    return Converted(Int4(codes, scales, finer, K, zeros))


def eight_bit(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, group_size: int | None
) -> Converted:
    """A weight ``(code[n, k] - zeros[n, k // G]) * scales[n, k // G]`` of codes of 8 bits.

    Parameters
    ----------
    codes : Tensor
        Shape (N, K), uint8.
    scales : Tensor
        Shape (N, groups), floating point.
    zeros : Tensor, optional
        Shape (N, groups), uint8; None is 128 everywhere.
    group_size : int, optional
        G, any; None: a scale for each row.
    """
    scales = scales.to(torch.float32)
    K = codes.shape[1]
    group_size = _below(K, group_size)
    finer = _finer_size(group_size, Int8.group_sizes)
    values = None if finer == 0 else _signed(codes, scales, zeros, group_size)
    if values is None:
        return rounded(scaled(codes, scales, zeros, group_size, MIDDLE[8]))
    return Converted(Int8(values, _repeated(scales.abs(), group_size, finer, K), finer))


def scaled(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, group_size: int | None, middle: int
) -> Tensor:
    """What codes mean, uint8 [N, K], one to a byte: float32 [N, K]."""
    dense = torch.empty(codes.shape, dtype=torch.float32)
    for rows in row_chunks(*codes.shape):
        levels = _levels(codes[rows], None if zeros is None else zeros[rows], group_size, middle)
        dense[rows] = levels * over_k(scales[rows].to(torch.float32), group_size, codes.shape[1])
    return dense


def _signed(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, group_size: int | None
) -> Tensor | None:
    """Codes less their zeros, for scales made positive: int8 [N, K]; None where some leave int8."""
    values = torch.empty(codes.shape, dtype=torch.int8)
    for rows in row_chunks(*codes.shape):
        levels = _levels(codes[rows], None if zeros is None else zeros[rows], group_size, MIDDLE[8])
        signs = torch.where(scales[rows] < 0, -1, 1).to(torch.int16)
        levels *= over_k(signs, group_size, codes.shape[1])
        if bool(((levels < -128) | (levels > 127)).any()):
            return None
        values[rows] = levels.to(torch.int8)
    return values


def _levels(codes: Tensor, zeros: Tensor | None, group_size: int | None, middle: int) -> Tensor:
    """Codes less their zero points: int16 [n, K]."""
    levels = codes.to(torch.int16)
    if zeros is None:
        return levels.sub_(middle)
    return levels.sub_(over_k(zeros.to(torch.int16), group_size, codes.shape[1]))


def _below(K: int, group_size: int | None) -> int | None:
    """The group size, or None where there is only one group."""
    return None if group_size is None or group_size >= K else group_size


def _finer_size(group_size: int | None, allowed: tuple[int | None, ...]) -> int | None:
    """The largest of the allowed sizes that divides G; None for None; 0 where none does."""
    if group_size is None:
        return None
    sizes = [size for size in allowed if size is not None and group_size % size == 0]
    return max(sizes, default=0)


def _repeated(by_group: Tensor, group_size: int | None, finer: int | None, K: int) -> Tensor:
    """What belongs to groups of G [N, groups], for groups of a size that divides G."""
    if group_size is None or finer is None or group_size == finer:
        return by_group.contiguous()
    return by_group.repeat_interleave(group_size // finer, 1)[:, : -(-K // finer)].contiguous()
