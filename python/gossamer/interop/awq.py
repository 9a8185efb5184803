"""Reader of AWQ checkpoints of version "gemm", as AutoAWQ and auto-round write them.

A layer has ``qweight``, int32 [K, N / 8], ``qzeros``, int32 [groups, N / 8], and ``scales``
[groups, N]. The eight 4-bit fields of a word, the lowest first, are those of n = 0, 2, 4, 6, 1, 3,
5 and 7 of its eight columns. The weight is ``W[n, k] = (code - zero) * scale``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..formats.four_bit import join_halves
from .entries import Entry, group_size, layers_with, naming_layer, setting
from .integer_codes import Converted, four_bit, halves, words_as_bytes
from .tensor_files import SCALE_DTYPES, TensorFiles

_FIELD_OF_COLUMN = [0, 4, 1, 5, 2, 6, 3, 7]
_PARTS = ("qweight", "qzeros", "scales")


def read(files: TensorFiles, config: Mapping[str, Any]) -> Iterator[Entry]:
    """The weights of an AWQ checkpoint.

    Parameters
    ----------
    files : TensorFiles
        Its tensors.
    config : mapping
        The quantization_config: ``bits`` (4), ``group_size``, ``version`` ("gemm").

    Yields
    ------
    Entry
        Int4, bit for bit, but for group sizes that no size of ours divides: these weights are
        rounded to int8 in groups of 32.

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
            found = _weight(files, layer, config)
        yield Entry(f"{layer}.weight", found.weight, error=found.error)


def _weight(files: TensorFiles, layer: str, config: Mapping[str, Any]) -> Converted:
    size = _checked_group_size(config)
    words = files.get(f"{layer}.qweight", (torch.int32,), 2)
    K, N = words.shape[0], 8 * words.shape[1]
    groups = 1 if size is None else -(-K // size)
    scales = files.get(f"{layer}.scales", SCALE_DTYPES, 2)
    files.shaped(f"{layer}.scales", scales, (groups, N))
    zeros = files.get(f"{layer}.qzeros", (torch.int32,), 2)
    files.shaped(f"{layer}.qzeros", zeros, (groups, N // 8))
    codes = join_halves(_columns(words).T, K)
    return four_bit(codes, scales.T, _columns(zeros).T, size, K)


def _checked_group_size(config: Mapping[str, Any]) -> int | None:
    bits = setting(config, "bits", int, 4)
    if bits != 4:
        raise ValueError(f"bits: got {bits}, wanted 4")
    version = config.get("version", config.get("format", "gemm"))
    if str(version).lower() != "gemm":
        raise ValueError(f"version: got {version!r}, wanted 'gemm'")
    return group_size(config)


def _columns(words: Tensor) -> Tensor:
    """Fields of words [rows, N / 8], in the order of the columns: uint8 [rows, N]."""
    fields = halves(words_as_bytes(words)).view(len(words), -1, 8)
    return fields[:, :, _FIELD_OF_COLUMN].flatten(1)
