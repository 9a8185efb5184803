"""Reader of GPTQ checkpoints, as AutoGPTQ, gptqmodel and auto-round write them.

A layer has ``qweight``, int32 [K / c, N] with c = 32 / bits codes of consecutive k in each word,
the first in the lowest bits; ``qzeros``, int32 [groups, N / c], c consecutive n in each word;
``scales`` [groups, N]; and often ``g_idx``, int32 [K], the group of each k. The weight is
``W[n, k] = (code - zero) * scale``.

Format "gptq" (v1) stores zeros less one, "gptq_v2" as they are. One is taken from each field of a
whole word: a zero of 0 borrows from the next one, and adding one to the fields of the word gives
all of them back, as gptqmodel does. (AutoGPTQ's kernels add it to each field by itself, and read
such a zero as 16.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .activation_order import activation_order, in_activation_order
from .entries import Entry, group_size, layers_with, matches, naming_layer, setting
from .integer_codes import Converted, eight_bit, four_bit, halves, words_as_bytes
from .tensor_files import SCALE_DTYPES, TensorFiles

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_ONES = {4: 0x11111111, 8: 0x01010101}  # by bits: one in each field of a word


def read(files: TensorFiles, config: Mapping[str, Any]) -> Iterator[Entry]:
    """The weights of a GPTQ checkpoint.

    Parameters
    ----------
    files : TensorFiles
        Its tensors.
    config : mapping
        The quantization_config: ``bits`` (4 or 8), ``group_size``, ``checkpoint_format``,
        ``dynamic`` (other settings for layers that match a pattern).

    Yields
    ------
    Entry
        Int4 for 4 bits, Int8 for 8. Bit for bit, but for layers with activation order
        (``desc_act``), whose groups are not consecutive k; group sizes that no size of ours
        divides; and zeros of 8 bits that are not 128. These are rounded to int8 in groups of 32.

    Raises
    ------
    ValueError
        Where settings or tensors are missing or wrong; it names them.
    """
    layers = layers_with(files, ".qweight")
    taken = {f"{layer}.{part}" for layer in layers for part in _PARTS}
    for name in files:
        if name not in taken:
            yield Entry(name, files.get(name))
    for layer in layers:
        with naming_layer(files.folder, layer):
            found = _weight(files, layer, _settings(config, layer))
        yield Entry(f"{layer}.weight", found.weight, error=found.error)


def _settings(config: Mapping[str, Any], layer: str) -> Mapping[str, Any]:
    """Those of a layer: of the first pattern in ``dynamic`` that fits it, over those of all."""
    for pattern, own in setting(config, "dynamic", dict, {}).items():
        if not isinstance(own, dict):
            raise ValueError(f"dynamic: {pattern!r}: got {own!r}, wanted an object")
        if not pattern.startswith("-:") and matches(pattern.removeprefix("+:"), layer):
            return {**config, **own}
    return config


def _weight(files: TensorFiles, layer: str, config: Mapping[str, Any]) -> Converted:
    bits = setting(config, "bits", int, 4)
    if bits not in _ONES:
        raise ValueError(f"bits: got {bits}, wanted 4 or 8")
    words = files.get(f"{layer}.qweight", (torch.int32,), 2)
    K, N = words.shape[0] * (32 // bits), words.shape[1]
    size = group_size(config)
    groups = 1 if size is None else -(-K // size)
    scales = files.get(f"{layer}.scales", SCALE_DTYPES, 2)
    scales = files.shaped(f"{layer}.scales", scales, (groups, N)).T
    zeros = _zeros(files, layer, (N, groups), bits, _is_v1(config))
    order = activation_order(files, f"{layer}.g_idx", K, groups, size)
    codes = words_as_bytes(words.T)  # [N, K / 2] or [N, K]
    if order is not None:
        codes = halves(codes) if bits == 4 else codes
        return in_activation_order(codes, scales, zeros, order, bits)
    if bits == 4:
        return four_bit(codes, scales, zeros, size, K)
    return eight_bit(codes, scales, zeros, size)


def _zeros(
    files: TensorFiles, layer: str, shape: tuple[int, int], bits: int, is_v1: bool
) -> Tensor:
    """Zero points, uint8 [N, groups]."""
    N, groups = shape
    words = files.get(f"{layer}.qzeros", (torch.int32,), 2)
    files.shaped(f"{layer}.qzeros", words, (groups, -(-N * bits // 32)))
    if is_v1:
        words = words + _ONES[bits]  # int32 wraps around, as it should
    fields = words_as_bytes(words)
    return (halves(fields) if bits == 4 else fields)[:, :N].T


def _is_v1(config: Mapping[str, Any]) -> bool:
    found = config.get("checkpoint_format", config.get("format", "gptq"))
    if found not in ("gptq", "gptq_v2"):
        raise ValueError(f"checkpoint_format: got {found!r}, wanted 'gptq' or 'gptq_v2'")
    return bool(found == "gptq")
