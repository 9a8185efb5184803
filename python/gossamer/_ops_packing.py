"""Packing and unpacking of every format: canonical tensors to the pointers of the extension.

Beside the other ``_ops`` files, the only one that turns tensors into pointers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _C, _check

_SCALE_TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "e8m0": torch.uint8,
}
_SCALE_NAMES = {dtype: name for name, dtype in _SCALE_TYPES.items()}
_FP8_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
_FP8_NAMES = {dtype: name for name, dtype in _FP8_DTYPES.items()}
_VALUE_DTYPES = {
    "int8": torch.int8,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "sparse-int8": torch.int8,
    "sparse-bf16": torch.bfloat16,
    "sparse-fp32": torch.float32,
    **_FP8_DTYPES,
}


@dataclass(frozen=True)
class SparseInfo:
    """What is known of a packed sparse weight only."""

    nnz: int  # values stored; the zeros of blocks are not counted
    pattern: str
    parts: tuple[str, ...]
    value_bytes: int  # of the part "bitmask"


@dataclass(frozen=True)
class PackedInfo:
    """What the header of a packed weight says."""

    format: str  # as in gossamer.formats.FORMATS
    out_features: int
    in_features: int
    group_size: int | None
    activations: str  # "int8", "int8-group" or "exact"
    values_dtype: torch.dtype
    scale_dtype: torch.dtype
    zero_points: bool
    sparse: SparseInfo | None = None
    input_scale: float | None = None  # of all rows of x, for "int8"; None: each has its own
    rank: int | None = None  # of low-rank and of sums, of which the rest says what the base is


@dataclass(frozen=True)
class Canonical:
    """The canonical tensors of a packed weight; scales are left unset where there are none."""

    values: Tensor
    scales: Tensor
    zero_points: Tensor | None
    in_features: int
    group_size: int | None


def packed_info(packed: Tensor) -> PackedInfo:
    """Read the header of a packed weight."""
    _check.packed_bytes("packed_info", packed)
    info = _C.packed_info(packed.data_ptr(), packed.numel())
    name = info["format"]
    form = "fp8" if name in _FP8_DTYPES else name
    if "rank" in info and form != "low-rank":
        form += "+low-rank"  # of a sum the header of the base is given
    return PackedInfo(
        form,
        info["N"],
        info["K"],
        info["group_size"] or None,
        info["activations"],
        _VALUE_DTYPES.get(name, torch.uint8),
        _SCALE_TYPES[info["scale_type"]],
        info["zero_points"],
        _sparse_info(info),
        info["input_scale"] or None,
        info.get("rank"),
    )


def set_input_scale(packed: Tensor, input_scale: float) -> None:
    """Have the kernels round all rows of x with one scale; in the header, in place."""
    _check.packed_bytes("set_input_scale", packed)
    _C.set_input_scale(packed.data_ptr(), packed.numel(), input_scale)


def _sparse_info(info: _C.PackedInfo) -> SparseInfo | None:
    if "nnz" not in info:
        return None
    return SparseInfo(info["nnz"], info["pattern"], tuple(info["parts"]), info["value_bytes"])


def unpack(packed: Tensor, name: str) -> Canonical:
    """Packed bytes of the format of this name to canonical tensors."""
    info = _info_of(packed, name)
    N, K, G = info.out_features, info.in_features, info.group_size
    groups = (N, 1 if G is None else -(-K // G))
    if name == "fp8" and G is not None:
        groups = (-(-N // G), groups[1])
    columns = -(-K // 2) if info.values_dtype is torch.uint8 else K
    values = torch.empty(N, columns, dtype=info.values_dtype)
    scales = torch.empty(groups, dtype=info.scale_dtype)
    zero_points = torch.empty(groups, dtype=torch.uint8) if info.zero_points else None
    _C.unpack(
        packed.data_ptr(),
        packed.numel(),
        values.data_ptr(),
        scales.data_ptr(),
        0 if zero_points is None else zero_points.data_ptr(),
        torch.get_num_threads(),
    )
    return Canonical(values, scales, zero_points, K, G)


def _info_of(packed: Tensor, name: str) -> PackedInfo:
    info = packed_info(packed)
    if info.format != name:
        raise ValueError(f"unpack: packed: is a weight of format {info.format}, wanted {name}")
    return info


def int8_packed_bytes(shape: tuple[int, int], group_size: int | None) -> int:
    """Bytes of a packed int8 weight [N, K]."""
    return _C.int8_packed_bytes(*shape, group_size or 0)


def int8_pack(values: Tensor, scales: Tensor, group_size: int | None, activations: str) -> Tensor:
    """Canonical tensors (int8 [N, K] and float32 [N, groups]) to packed bytes."""
    shape = (values.shape[0], values.shape[1])
    values, scales = values.contiguous(), scales.contiguous()
    packed = _empty_bytes(int8_packed_bytes(shape, group_size))
    _C.int8_pack(
        values.data_ptr(),
        scales.data_ptr(),
        *shape,
        group_size or 0,
        activations,
        packed.data_ptr(),
        torch.get_num_threads(),
    )
    return packed


def int4_best_scales(W: Tensor, group_size: int | None) -> Tensor:
    """Of a few symmetric scales for each group, the best: float32 [N, groups] for float32 W."""
    N, K = W.shape
    G = group_size or K
    scales = torch.empty(N, -(-K // G))
    threads = torch.get_num_threads()
    _C.int4_best_scales(W.data_ptr(), N, K, W.stride(0), G, scales.data_ptr(), threads)
    return scales


def int4_codes(
    W: Tensor, group_size: int | None, scales: Tensor, zero_points: Tensor | None
) -> Tensor:
    """Round float32 W to codes, two to a byte: uint8 [N, ceil(K / 2)]."""
    N, K = W.shape
    scales = scales.to(torch.float32).contiguous()
    zero_points = None if zero_points is None else zero_points.contiguous()
    codes = torch.empty(N, -(-K // 2), dtype=torch.uint8)
    _C.int4_codes(
        W.data_ptr(),
        N,
        K,
        W.stride(0),
        group_size or K,
        scales.data_ptr(),
        0 if zero_points is None else zero_points.data_ptr(),
        codes.data_ptr(),
        torch.get_num_threads(),
    )
    return codes


def four_bit_packed_bytes(
    name: str,
    shape: tuple[int, int],
    scales: Tensor,
    zero_points: Tensor | None,
    group_size: int | None,
) -> int:
    """Bytes of a packed weight [N, K] of a 4-bit format."""
    scale_type, asymmetric = _SCALE_NAMES[scales.dtype], zero_points is not None
    return _C.four_bit_packed_bytes(name, *shape, group_size or 0, scale_type, asymmetric)


def four_bit_pack(
    name: str,
    shape: tuple[int, int],
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    group_size: int | None,
    activations: str,
) -> Tensor:
    """Canonical tensors of a 4-bit format to packed bytes."""
    packed = _empty_bytes(four_bit_packed_bytes(name, shape, scales, zero_points, group_size))
    codes, scales = codes.contiguous(), scales.contiguous()
    zero_points = None if zero_points is None else zero_points.contiguous()
    _C.four_bit_pack(
        name,
        codes.data_ptr(),
        scales.data_ptr(),
        0 if zero_points is None else zero_points.data_ptr(),
        *shape,
        group_size or 0,
        _SCALE_NAMES[scales.dtype],
        activations,
        packed.data_ptr(),
        torch.get_num_threads(),
    )
    return packed


def fp8_packed_bytes(shape: tuple[int, int], group_size: int | None) -> int:
    """Bytes of a packed fp8 weight [N, K]."""
    return _C.fp8_packed_bytes(*shape, group_size or 0)


def fp8_pack(values: Tensor, scales: Tensor, group_size: int | None) -> Tensor:
    """Canonical tensors (float8 [N, K] and float32 scales) to packed bytes."""
    shape = (values.shape[0], values.shape[1])
    values, scales = values.contiguous(), scales.contiguous()
    packed = _empty_bytes(fp8_packed_bytes(shape, group_size))
    _C.fp8_pack(
        _FP8_NAMES[values.dtype],
        values.data_ptr(),
        scales.data_ptr(),
        *shape,
        group_size or 0,
        packed.data_ptr(),
        torch.get_num_threads(),
    )
    return packed


def float_packed_bytes(shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Bytes of a packed dense weight [N, K] of bfloat16 or float32."""
    return (_C.bf16_packed_bytes if dtype is torch.bfloat16 else _C.fp32_packed_bytes)(*shape)


def float_pack(values: Tensor) -> Tensor:
    """The canonical tensor ([N, K], bfloat16 or float32) to packed bytes."""
    shape, values = (values.shape[0], values.shape[1]), values.contiguous()
    packed = _empty_bytes(float_packed_bytes(shape, values.dtype))
    pack = _C.bf16_pack if values.dtype is torch.bfloat16 else _C.fp32_pack
    pack(values.data_ptr(), *shape, packed.data_ptr(), torch.get_num_threads())
    return packed


def two_parts_bytes(first_bytes: int, second_bytes: int) -> int:
    """Bytes of a packed weight that is made of two packed weights."""
    return _C.two_parts_bytes(first_bytes, second_bytes)


def low_rank_pack(V: Tensor, U: Tensor) -> Tensor:
    """Packed factors V [R, K] and U [N, R] to the packed bytes of their product."""
    return _pack_two(_C.low_rank_pack, V, U)


def sum_pack(base: Tensor, low_rank: Tensor) -> Tensor:
    """A packed weight and a packed low-rank weight to the packed bytes of their sum."""
    return _pack_two(_C.sum_pack, base, low_rank)


def _pack_two(
    pack: Callable[[int, int, int, int, int, int], None], first: Tensor, second: Tensor
) -> Tensor:
    packed = _empty_bytes(two_parts_bytes(first.numel(), second.numel()))
    pack(
        first.data_ptr(),
        first.numel(),
        second.data_ptr(),
        second.numel(),
        packed.data_ptr(),
        packed.numel(),
    )
    return packed


def two_parts(packed: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The two packed weights, not copied, of packed bytes of the format of this name."""
    _info_of(packed, name)
    parts = _C.packed_parts(packed.data_ptr(), packed.numel())
    first, second = (packed[offset : offset + size] for offset, size in parts)
    return first, second


class SparseSource:
    """Canonical tensors of a sparse weight, checked, from which packed bytes are made."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        group_size: int | None,
        activations: str,
        mask: Tensor,
        values: Tensor,
        nnz: int,
        scales: Tensor | None,
    ) -> None:
        # The extension reads them in place.
        self._mask, self._values = mask.contiguous(), values.contiguous()
        self._scales = None if scales is None else scales.contiguous()
        self._source = _C.SparseSource(
            name,
            *shape,
            group_size or 0,
            "float32" if scales is None else _SCALE_NAMES[scales.dtype],
            activations,
            self._mask.data_ptr(),
            self._values.data_ptr(),
            nnz,
            0 if self._scales is None else self._scales.data_ptr(),
        )

    def best_pattern(self) -> str:
        """The pattern that takes the fewest bytes."""
        return self._source.best_pattern()

    def packed_bytes(self, pattern: str, parts: tuple[str, ...]) -> int:
        """Bytes of the packed weight with this pattern and these parts."""
        return self._source.packed_bytes(pattern, list(parts))

    def pack(self, pattern: str, parts: tuple[str, ...]) -> Tensor:
        """Packed bytes with this pattern and these parts."""
        packed = _empty_bytes(self.packed_bytes(pattern, parts))
        size, threads = packed.numel(), torch.get_num_threads()
        self._source.pack(pattern, list(parts), packed.data_ptr(), size, threads)
        return packed


@dataclass(frozen=True)
class SparseCanonical:
    """The canonical tensors of a packed sparse weight."""

    mask: Tensor
    values: Tensor
    scales: Tensor | None
    in_features: int
    group_size: int | None


def sparse_unpack(packed: Tensor, name: str, scaled: bool) -> SparseCanonical:
    """Packed bytes of the sparse format of this name, with scales or without, to tensors."""
    info = _info_of(packed, name)
    N, K, G = info.out_features, info.in_features, info.group_size
    nnz = 0 if info.sparse is None else info.sparse.nnz
    halves = info.values_dtype is torch.uint8
    mask = torch.empty(N, -(-K // 8), dtype=torch.uint8)
    values = torch.empty(-(-nnz // 2) if halves else nnz, dtype=info.values_dtype)
    groups = 1 if G is None else -(-K // G)
    scales = torch.empty(N, groups, dtype=info.scale_dtype) if scaled else None
    _C.unpack(
        packed.data_ptr(),
        packed.numel(),
        values.data_ptr(),
        0 if scales is None else scales.data_ptr(),
        0,
        torch.get_num_threads(),
        mask.data_ptr(),
    )
    return SparseCanonical(mask, values, scales, K, G)


def _empty_bytes(size_bytes: int) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be saved for a later backward
        return torch.empty(size_bytes, dtype=torch.uint8)
