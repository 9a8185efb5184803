"""Reader of GGUF files, as llama.cpp writes them, for models of the Llama family.

Rows of a quantized tensor are blocks along K. Q4_0: a float16 d and 32 codes of 4 bits, ``w =
d * (code - 8)``. Q4_1: d, a float16 m and 32 codes, ``w = d * code + m``. Q8_0: d and 32 int8,
``w = d * value``. Byte j of the codes holds those of k = j and, in its high half, of k = j + 16.

In files of architecture "llama" the rows of q and k are in the order that rotates neighbours; they
are given in the order of transformers, which rotates halves.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..formats.four_bit import join_halves
from .entries import Entry, naming_layer
from .gguf_config import CLASSES
from .gguf_file import GGUFFile
from .integer_codes import Converted, eight_bit, four_bit, rounded

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_GROUP = 32
_MODEL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_IGNORED = ("rope_freqs.weight",)  # load() multiplies them into the frequencies


def read(file: GGUFFile) -> Iterator[Entry]:
    """The weights of a GGUF file.

    Parameters
    ----------
    file : GGUFFile
        Of architecture "llama" (which Mistral and SmolLM2 have, too), "qwen2" or "qwen3".

    Yields
    ------
    Entry
        Q4_0 as Int4 and Q8_0 as Int8, in groups of 32, bit for bit; Q4_1 as Int4 with zero points
        where every -m / d is a whole number from 0 to 15; F32, F16 and BF16 as tensors. All other
        types, and Q4_1 otherwise, are expanded and rounded to int8 in groups of 32.

    Raises
    ------
    ValueError
        For another architecture, and a tensor whose name or type is not known; it names it.
    RuntimeError
        Where a type needs the package gguf, which is not installed.
    """
    architecture = checked_architecture(file)
    for name, info in file.tensors.items():
        if name in _IGNORED:
            continue
        with naming_layer(file.path, name):
            own_name = _transformers_name(name)
            rows = file.rows(name)
            if architecture == "llama" and re.search(r"\.attn_[qk]\.", name):
                rows = rows.view(len(rows), -1)
                rows = _in_halves(rows, info.shape, _heads(file.metadata, name))
            found = _value(rows, info.type, info.shape)
        if isinstance(found, Tensor):
            yield Entry(own_name, found)
        else:
            yield Entry(own_name, found.weight, error=found.error)


def checked_architecture(file: GGUFFile) -> str:
    """The architecture of a file; ValueError where it is not one that is read."""
    found = file.metadata.get("general.architecture")
    if not isinstance(found, str) or found not in CLASSES:
        wanted = ", ".join(CLASSES)
        raise ValueError(
            f"{file.path}: general.architecture: got {found!r}, wanted one of {wanted}"
        )
    return found


def _transformers_name(name: str) -> str:
    """The name of a parameter in the Llama family of transformers."""
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    own = _LAYER_NAMES.get(layer[2]) if layer else _MODEL_NAMES.get(stem)
    if own is None or kind not in ("weight", "bias"):
        raise ValueError("this tensor is not one of the Llama family")
    return f"model.layers.{int(layer[1])}.{own}.{kind}" if layer else f"{own}.{kind}"


def _heads(metadata: dict[str, Any], name: str) -> int:
    heads = metadata.get("llama.attention.head_count")
    if ".attn_k." in name:
        heads = metadata.get("llama.attention.head_count_kv", heads)
    if type(heads) is not int or heads < 1:
        raise ValueError(f"llama.attention.head_count: got {heads!r}, wanted a number >= 1")
    return heads


def _in_halves(rows: Tensor, shape: tuple[int, ...], heads: int) -> Tensor:
    """Rows (of a bias: values) of q or k, from the order of neighbours to that of halves."""
    N = shape[0]
    if N % (2 * heads):
        raise ValueError(f"got {N} rows for {heads} heads")
    order = torch.arange(N).view(heads, N // heads // 2, 2).transpose(1, 2).flatten()
    return rows.view(N, -1)[order].view(rows.shape)


def _value(rows: Tensor, kind: str, shape: tuple[int, ...]) -> Tensor | Converted:
    if kind in _PLAIN:
        return rows.contiguous().view(_PLAIN[kind]).view(shape)
    if len(shape) != 2:
        raise ValueError(f"got {kind} of shape {list(shape)}, wanted two dimensions")
    if kind == "Q4_0":
        return _q4_0(rows, shape[1])
    if kind == "Q4_1":
        return _q4_1(rows, shape[1])
    if kind == "Q8_0":
        return _q8_0(rows)
    return rounded(_expanded(rows, kind))


def _blocks(rows: Tensor, size: int, numbers: int) -> tuple[list[Tensor], Tensor]:
    """The float16 numbers at the start of each block [N, groups], and the bytes after them."""
    blocks = rows.reshape(len(rows), -1, size)
    heads = blocks[:, :, : 2 * numbers].contiguous().view(torch.float16)
    return [heads[:, :, i].contiguous() for i in range(numbers)], blocks[:, :, 2 * numbers :]


def _in_order(codes: Tensor) -> Tensor:
    """The codes of blocks [N, groups, 16], one to a byte, by k: uint8 [N, groups, 32]."""
    return torch.cat((codes & 15, codes >> 4), 2)


def _q4_0(rows: Tensor, K: int) -> Converted:
    (d,), codes = _blocks(rows, 18, 1)
    return four_bit(join_halves(_in_order(codes), K), d, None, _GROUP, K)


def _q4_1(rows: Tensor, K: int) -> Converted:
    (d, m), halves = _blocks(rows, 20, 2)
    codes, scales, least = _in_order(halves), d.to(torch.float32), m.to(torch.float32)
    zeros = torch.where(scales == 0, 0.0, -least / scales).round_()
    if bool(((zeros >= 0) & (zeros <= 15) & (zeros * scales == -least)).all()):
        return four_bit(join_halves(codes, K), d, zeros.to(torch.uint8), _GROUP, K)
    dense = codes.to(torch.float32).mul_(scales[:, :, None]).add_(least[:, :, None])
    return rounded(dense.flatten(1))


def _q8_0(rows: Tensor) -> Converted:
    (d,), values = _blocks(rows, 34, 1)
    return eight_bit(values.flatten(1).bitwise_xor(128), d, None, _GROUP)


def _expanded(rows: Tensor, kind: str) -> Tensor:
    """What rows of another type mean, by the package gguf: float32 [N, K]."""
    try:
        package: Any = importlib.import_module("gguf")
    except ImportError as error:
        raise RuntimeError(
            f"tensors of type {kind} need the package gguf: pip install 'gossamer[hf]'"
        ) from error
    dense = package.dequantize(rows.numpy(), package.GGMLQuantizationType[kind])
    return torch.from_numpy(dense)
