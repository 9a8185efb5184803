"""Reader of compressed-tensors checkpoints, as llm-compressor writes them.

Formats "pack-quantized" (``weight_packed``, int32 [N, K / c] with c = 32 / bits codes of
consecutive k in each word, the first in the lowest bits, a code being the signed number plus
2^(bits - 1)), "int-quantized" (``weight``, int8 [N, K]) and "float-quantized" (``weight``,
float8_e4m3fn [N, K]), with ``weight_scale`` and sometimes ``weight_zero_point``: one for the
tensor, each row, each group along K or each block. The weight is ``W[n, k] = (code - zero) *
scale``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..formats import FP8
from ..formats.four_bit import join_halves
from .activation_order import activation_order, in_activation_order
from .compressed_tensors_config import Scheme, scheme_of
from .entries import Entry, layers_with, naming_layer
from .integer_codes import Converted, eight_bit, four_bit, halves, rounded, words_as_bytes
from .tensor_files import SCALE_DTYPES, TensorFiles

_BLOCK = 128  # of FP8
_SIGN = {4: 8, 8: 128}  # by bits: what is added to signed numbers
# What belongs to a quantized layer.
_PARTS = (
    *("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"),
    *("weight_g_idx", "input_scale", "input_zero_point", "output_scale", "output_zero_point"),
)
_CACHE_PARTS = (".k_scale", ".v_scale", ".k_zero_point", ".v_zero_point")


def read(files: TensorFiles, config: Mapping[str, Any]) -> Iterator[Entry]:
    """The weights of a compressed-tensors checkpoint.

    Parameters
    ----------
    files : TensorFiles
        Its tensors.
    config : mapping
        The quantization_config, with ``config_groups``.

    Yields
    ------
    Entry
        Int4, Int8 or FP8, bit for bit. Rounded to int8 in groups of 32 is what none of these can
        hold: activation order by groups, int8 whose values less their zeros leave int8, and groups
        or blocks that no size of ours divides.

    Raises
    ------
    ValueError
        Where settings or tensors are missing, wrong, or of a format that is not read; it names
        them.
    """
    layers = layers_with(files, ".weight_scale")
    layers = list(dict.fromkeys([*layers, *layers_with(files, ".weight_packed")]))
    taken = {f"{layer}.{part}" for layer in layers for part in _PARTS}
    for name in files:
        if name not in taken and not name.endswith(_CACHE_PARTS):
            yield Entry(name, files.get(name))
    for layer in layers:
        with naming_layer(files.folder, layer):
            scheme = scheme_of(config, layer)
            read_weight = _float_weight if scheme.kind == "float" else _int_weight
            found = read_weight(files, layer, scheme)
            kinds = found.weight.activation_kinds
            activations = scheme.activations if scheme.activations in kinds else kinds[0]
            is_static = scheme.static and activations == "int8"
            scale = _input_scale(files, layer) if is_static else None
        yield Entry(f"{layer}.weight", found.weight, activations, found.error, scale)


def _input_scale(files: TensorFiles, layer: str) -> float:
    name = f"{layer}.input_scale"
    scale = float(files.shaped(name, files.get(name, SCALE_DTYPES).flatten(), (1,)))
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"input_scale: got {scale}, wanted a finite number > 0")
    return scale


def _float_weight(files: TensorFiles, layer: str, scheme: Scheme) -> Converted:
    values = files.get(f"{layer}.weight", (torch.float8_e4m3fn,), 2)
    N, K = values.shape
    block = scheme.block or (1, scheme.group_size or K)
    rows, columns = min(block[0], N), min(block[1], K)
    shape = (-(-N // rows), -(-K // columns))
    scales = _shaped(files, f"{layer}.weight_scale", SCALE_DTYPES, shape).to(torch.float32)
    if columns == K and rows == 1:
        return Converted(FP8(values, scales))
    if block == (_BLOCK, _BLOCK):
        return Converted(FP8(values, scales, _BLOCK))
    scales = scales.repeat_interleave(rows, 0)[:N].repeat_interleave(columns, 1)[:, :K]
    return rounded(values.to(torch.float32) * scales)


def _int_weight(files: TensorFiles, layer: str, scheme: Scheme) -> Converted:
    """Its codes become unsigned, as if they were packed."""
    if scheme.block is not None:
        raise ValueError("strategy: got 'block' for integers, wanted tensor, channel or group")
    packed = f"{layer}.weight_packed" in files
    codes, K = (_packed if packed else _plain)(files, layer, scheme.bits)
    size = scheme.group_size
    shape = (len(codes), 1 if size is None else -(-K // size))
    scales = _shaped(files, f"{layer}.weight_scale", SCALE_DTYPES, shape)
    zeros = _zeros(files, f"{layer}.weight_zero_point", scheme, shape)
    order = activation_order(files, f"{layer}.weight_g_idx", K, shape[1], size)
    if order is not None:
        codes = halves(codes)[:, :K] if scheme.bits == 4 else codes
        return in_activation_order(codes, scales, zeros, order, scheme.bits)
    if scheme.bits == 4:
        return four_bit(codes, scales, zeros, size, K)
    return eight_bit(codes, scales, zeros, size)


def _packed(files: TensorFiles, layer: str, bits: int) -> tuple[Tensor, int]:
    """Unsigned codes, uint8 [N, ceil(K / 2)] or [N, K], and K."""
    words = files.get(f"{layer}.weight_packed", (torch.int32,), 2)
    shape = files.get(f"{layer}.weight_shape", (torch.int32, torch.int64), 1).tolist()
    N, columns = words.shape
    K = shape[1] if len(shape) == 2 else 0
    if len(shape) != 2 or shape[0] != N or K < 1 or -(-K * bits // 32) != columns:
        raise ValueError(f"weight_shape: got {shape} for weight_packed {list(words.shape)}")
    codes = words_as_bytes(words)[:, : -(-K * bits // 8)].contiguous()
    if bits == 4 and K % 2:
        codes[:, -1] &= 15
    return codes, K


def _plain(files: TensorFiles, layer: str, bits: int) -> tuple[Tensor, int]:
    """The same of numbers that are signed, one to a byte."""
    values = files.get(f"{layer}.weight", (torch.int8,), 2)
    codes = _unsigned(values, bits)
    return (join_halves(codes, values.shape[1]) if bits == 4 else codes), values.shape[1]


def _zeros(files: TensorFiles, name: str, scheme: Scheme, shape: tuple[int, int]) -> Tensor | None:
    """Unsigned zero points, uint8 [N, groups]; None where there are none."""
    if name not in files and scheme.symmetric:
        return None
    bits = scheme.bits
    found = files.get(name, (torch.int8, torch.int32))
    if found.dtype is torch.int8:
        return _unsigned(_shaped(files, name, (torch.int8,), shape), bits)
    N, groups = shape
    words = files.shaped(name, found, (-(-N * bits // 32), groups)).T
    fields = words_as_bytes(words)
    return (halves(fields) if bits == 4 else fields)[:, :N].T


def _unsigned(values: Tensor, bits: int) -> Tensor:
    """Signed numbers, int8, plus 2^(bits - 1): uint8."""
    half = _SIGN[bits]
    if bits == 4 and bool(((values < -half) | (values >= half)).any()):
        raise ValueError("weight: got numbers of more than 4 bits")
    return (values.to(torch.int16) + half).to(torch.uint8)


def _shaped(
    files: TensorFiles, name: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, int]
) -> Tensor:
    """A tensor with a number for each row and group, for each row, or for all of them."""
    found = files.get(name, dtypes)
    if found.numel() == 1:
        return found.reshape(1, 1).expand(shape).contiguous()
    if found.dim() == 1 and shape[1] == 1:
        found = found[:, None]
    return files.shaped(name, found, shape)
