"""The weights of a compressed model in the places of those of the dense one, scales to be tuned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..folding import from_matrix, to_matrix
from ..formats import FP4, NF4, Format, Int4, Int8, SparseInt4, SparseInt8
from ..formats.groups import in_groups
from ..nn.packed_module import PackedModule
from ..placing import is_packed

# Each weight is a level times a scale of its row and group, which may be any number.
_TUNABLE = (Int8, Int4, NF4, FP4, SparseInt8, SparseInt4)
_FACTORS = (0.5, 1.5)
_ELEMENTS = 1 << 20  # at a time


class TunedWeight:
    """``Ŵ[n, k] = a[n, k // G] W[n, k]`` for the weight W of a packed layer; a begins at 1.

    Parameters
    ----------
    layer : nn.Module
        The packed one.
    weight : Format
        What it holds.
    dense : nn.Module
        Its twin in the dense model, which tells the layout.
    dtype : torch.dtype
        That Ŵ is computed with.
    """

    def __init__(self, layer: Any, weight: Format, dense: nn.Module, dtype: torch.dtype) -> None:
        self._layer, self._dense, self._dtype = layer, dense, dtype
        self._K = weight.shape[1]
        self._group_size = weight.group_size
        # Float32: bf16 times a factor near 1 would round back to itself.
        self._values = in_groups(weight.dequantize(), self._group_size)
        self.factors = torch.ones(self._values.shape[:2])

    def dense(self) -> Tensor:
        """Ŵ in the layout of the dense layer."""
        out = torch.empty(self._values.shape, dtype=self._dtype)
        for rows in self._chunks():
            out[rows] = self._values[rows] * self.factors[rows].unsqueeze(2)
        matrix = out.flatten(1)[:, : self._K]
        return from_matrix(self._dense, matrix, self._dense.get_parameter("weight").shape)

    def gradient(self, by_weight: Tensor) -> Tensor:
        """The gradient of the factors, from that of Ŵ in the layout of the dense layer."""
        by_matrix = to_matrix(self._dense, by_weight)
        out = torch.empty_like(self.factors)
        for rows in self._chunks():
            parts = in_groups(by_matrix[rows], self._group_size)
            out[rows] = (parts * self._values[rows]).sum(2)
        return out

    def clamp(self) -> None:
        """Keep the factors within their range."""
        self.factors.clamp_(*_FACTORS)

    def store(self) -> None:
        """Give the layer the scales that were found."""
        weight = self._layer.quantized()
        scales = (weight.scales.float() * self.factors).to(weight.scales.dtype)
        self._layer._set_weight(replace(weight, scales=scales))
        self._layer.weight_error = None  # the dense weight is not what it stands for any more

    def _chunks(self) -> Iterator[slice]:
        N, groups, size = self._values.shape
        step = max(1, _ELEMENTS // (groups * size))
        return (slice(first, first + step) for first in range(0, N, step))


def counterparts(
    function: str, body: nn.Module, compressed: nn.Module, dtype: torch.dtype
) -> tuple[dict[str, TunedWeight], dict[str, Tensor]]:
    """By the names of the dense body's parameters: weights to be tuned, and all other values.

    Raises
    ------
    ValueError
        Where the compressed model has no such layer, or one of another shape.
    """
    tuned: dict[str, TunedWeight] = {}
    fixed: dict[str, Tensor] = {}
    for prefix, dense in body.named_modules():
        for name, parameter in dense.named_parameters(recurse=False):
            full = f"{prefix}.{name}".lstrip(".")
            layer = _twin(function, compressed, prefix)
            if not is_packed(layer) or name != "weight":
                fixed[full] = _value(function, layer, full, parameter)
                continue
            weight = _weight(function, layer, full)
            if isinstance(layer, PackedModule) and isinstance(weight, _TUNABLE):
                tuned[full] = TunedWeight(layer, weight, dense, dtype)
            else:
                fixed[full] = from_matrix(dense, weight.dequantize(), parameter.shape)
    return tuned, fixed


def _twin(function: str, compressed: nn.Module, name: str) -> nn.Module:
    try:
        return compressed.get_submodule(name)
    except AttributeError:
        raise _other_model(function, name) from None


def _weight(function: str, layer: Any, name: str) -> Format:
    if not hasattr(layer, "quantized"):
        raise _other_model(function, name)
    weight: Format = layer.quantized()
    return weight


def _value(function: str, layer: nn.Module, name: str, like: Tensor) -> Tensor:
    value = layer._parameters.get(name.rpartition(".")[2])
    if value is None or value.shape != like.shape:
        raise _other_model(function, name)
    return value.detach()


def _other_model(function: str, name: str) -> ValueError:
    return ValueError(
        f"{function}: student: has nothing in the place of {name!r} of the teacher: wanted what "
        "gs.compress made of the same model"
    )
