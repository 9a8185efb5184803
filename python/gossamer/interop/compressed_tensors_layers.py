"""How compressed-tensors holds a packed layer: its tensors, and its scheme in the config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..formats import FP8, Format, Int4, Int8
from ..formats.four_bit import join_halves

_SMALLEST_GROUP = 16  # that the groups of a weight with a short last one are divided into


@dataclass(frozen=True)
class LayerScheme:
    """The settings of a layer, equal for layers that share a config group.

    Attributes
    ----------
    form : str
        "pack-quantized", "int-quantized" or "float-quantized".
    bits : int
        Of a weight.
    kind : str
        "int" or "float".
    symmetric : bool
        Whether there are no zero points.
    group_size : int or None
        Consecutive k that share a scale; None: the row.
    block : int or None
        Rows and columns of blocks that share a scale.
    activations : str
        "exact", "int8" or "int8-group".
    static : bool
        Whether int8 activations have one scale for all rows.
    """

    form: str
    bits: int
    kind: str = "int"
    symmetric: bool = True
    group_size: int | None = None
    block: int | None = None
    activations: str = "exact"
    static: bool = False

    def config_group(self, targets: list[str]) -> dict[str, Any]:
        """A group in the ``config_groups`` of a quantization_config."""
        weights = {**_arguments(self.bits, self.kind, self.symmetric), **self._strategy()}
        return {
            "targets": targets,
            "weights": weights,
            "input_activations": self._input_activations(),
            "output_activations": None,
            "format": self.form,
        }

    def _strategy(self) -> dict[str, Any]:
        if self.block is not None:
            return {"strategy": "block", "block_structure": [self.block, self.block]}
        if self.group_size is not None:
            return {"strategy": "group", "group_size": self.group_size}
        return {"strategy": "channel"}

    def _input_activations(self) -> dict[str, Any] | None:
        if self.activations == "exact":
            return None
        if self.static:
            return {**_arguments(8, "int", True), "strategy": "tensor"}
        arguments = {**_arguments(8, "int", True), "dynamic": True}
        if self.activations == "int8-group" and self.group_size is not None:
            return {**arguments, "strategy": "group", "group_size": self.group_size}
        return {**arguments, "strategy": "token"}


def _arguments(bits: int, kind: str, symmetric: bool) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "symmetric": symmetric, "dynamic": False}


def stored_layer(weight: Format, activations: str) -> tuple[LayerScheme, dict[str, Tensor]]:
    """The scheme of a layer, and its tensors by their names in the layer.

    Parameters
    ----------
    weight : Format
        Int4, Int8 or FP8 of float8_e4m3fn.
    activations : str
        What the layer does to x.

    Raises
    ------
    ValueError
        For another format, or groups that cannot be made to divide K.
    """
    if isinstance(weight, Int4):
        return _int4(weight, activations)
    if isinstance(weight, Int8):
        return _int8(weight, activations)
    if isinstance(weight, FP8) and weight.values.dtype is torch.float8_e4m3fn:
        block = weight.group_size
        scheme = LayerScheme("float-quantized", 8, "float", block=block)
        return scheme, {"weight": weight.values, "weight_scale": weight.scales}
    name = f"{weight.name} of float8_e5m2" if isinstance(weight, FP8) else weight.name
    raise ValueError(
        f"compressed-tensors has no {name}, wanted int4, int8 or fp8; expand=True writes such "
        "weights dense"
    )


def _int4(weight: Int4, activations: str) -> tuple[LayerScheme, dict[str, Tensor]]:
    N, K = weight.shape
    size = _dividing_size(K, weight.group_size)
    zeros = weight.zero_points
    tensors = {
        "weight_packed": _words(weight.codes),
        "weight_scale": _by_size(weight.scales, weight.group_size, size, K),
        "weight_shape": torch.tensor([N, K]),
    }
    if zeros is not None:
        by_group = _by_size(zeros, weight.group_size, size, K).T
        packed = _words(join_halves(by_group.contiguous(), N))
        tensors["weight_zero_point"] = packed.T.contiguous()
    symmetric = zeros is None
    return LayerScheme(
        "pack-quantized", 4, symmetric=symmetric, group_size=size, activations=activations
    ), tensors


def _int8(weight: Int8, activations: str) -> tuple[LayerScheme, dict[str, Tensor]]:
    """As llm-compressor writes them: packed where x is not rounded, int8 otherwise."""
    N, K = weight.shape
    size = _dividing_size(K, weight.group_size)
    tensors = {"weight_scale": _by_size(weight.scales, weight.group_size, size, K)}
    if activations == "exact":
        tensors["weight_packed"] = _words(weight.values.view(torch.uint8).bitwise_xor(128))
        tensors["weight_shape"] = torch.tensor([N, K])
    else:
        tensors["weight"] = weight.values
    form = "pack-quantized" if activations == "exact" else "int-quantized"
    return LayerScheme(form, 8, group_size=size, activations=activations), tensors


def _dividing_size(K: int, group_size: int | None) -> int | None:
    """A group size that divides K and the own one: compressed-tensors has no short groups."""
    if group_size is None or group_size >= K:
        return None
    size = math.gcd(K, group_size)
    if size < _SMALLEST_GROUP:
        raise ValueError(
            f"compressed-tensors has no short groups, and no size from {_SMALLEST_GROUP} divides "
            f"both group_size {group_size} and in_features {K}; expand=True writes such weights "
            "dense"
        )
    return size


def _by_size(by_group: Tensor, group_size: int | None, size: int | None, K: int) -> Tensor:
    """What belongs to groups, for groups of a size that divides theirs."""
    if group_size is None or size is None or size == group_size:
        return by_group
    return by_group.repeat_interleave(group_size // size, 1)[:, : K // size].contiguous()


def _words(rows: Tensor) -> Tensor:
    """Rows of bytes as rows of int32, the lowest byte first, with zeros after them."""
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 4))
    return padded.contiguous().view(torch.int32)
