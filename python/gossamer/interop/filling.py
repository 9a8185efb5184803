"""Putting the weights of a checkpoint into a model whose parameters are on meta."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as packed_nn
from ..formats import Format
from ..nn.linear import Linear, is_conv1d
from ..nn.packed_module import DENSE_DTYPES
from .entries import Entry

_SHOWN = 5  # names in a message
_ALWAYS_IGNORED = r"rotary_emb\.inv_freq$"  # of old checkpoints: computed by the model


class Filling:
    """A model that is being filled.

    Parameters
    ----------
    path : Path
        Where the weights come from, for errors.
    model : nn.Module
        With its parameters on meta.
    dtype : torch.dtype
        Of everything that is not quantized.
    activations : str, optional
        What quantized layers do to x, where their format offers it, each row having a scale of its
        own; None: what each entry says.

    Attributes
    ----------
    places : dict
        By name of a parameter: the modules that hold it, and how they call it; where it is tied,
        these are several.
    packed : dict of str to module
        The packed layers, by name; they replace those of the model at the end.
    errors : dict of str to float
        Of the layers that were rounded once more.
    unused : list of str
        Tensors that the model has no place for.
    """

    def __init__(
        self, path: Path, model: nn.Module, dtype: torch.dtype, activations: str | None
    ) -> None:
        self.path, self.model, self.dtype, self.activations = path, model, dtype, activations
        self.places = _places(model)
        self.packed: dict[str, Linear | packed_nn.Embedding] = {}
        self.errors: dict[str, float] = {}
        self.unused: list[str] = []
        self._buffers = dict(model.named_buffers())
        ignored: Any = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
        self._ignored = [re.compile(pattern) for pattern in (*ignored, _ALWAYS_IGNORED)]

    def take(self, entry: Entry) -> None:
        """Put an entry where it belongs.

        Parameters
        ----------
        entry : Entry
            One of the checkpoint.

        Raises
        ------
        ValueError
            Where it does not fit there; it names the entry.
        """
        name, value, buffers = entry.name, entry.value, self._buffers
        try:
            if name in self.places:
                if isinstance(value, Tensor):
                    self._set_parameter(name, value)
                else:
                    self._pack(entry, value)
            elif name in buffers and isinstance(value, Tensor):
                _check_shape(tuple(value.shape), tuple(buffers[name].shape))
                buffers[name].copy_(value)
            elif not any(pattern.search(name) for pattern in self._ignored):
                self.unused.append(name)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{self.path}: {name}: {error}") from error

    def _set_parameter(self, name: str, value: Tensor) -> None:
        if value.dtype not in DENSE_DTYPES:  # float8 among them: it would need a scale
            raise TypeError(f"got {value.dtype}, wanted floating point of 16 bits or more")
        module, own = self.places[name][0]
        old = module.get_parameter(own)
        _check_shape(tuple(value.shape), tuple(old.shape))
        copied = value.to(self.dtype, copy=True)  # the file may change, the model must not
        new = nn.Parameter(copied, requires_grad=old.requires_grad)
        for module, own in self.places[name]:
            module._parameters[own] = new

    def _pack(self, entry: Entry, weight: Format) -> None:
        layer = entry.name.removesuffix(".weight")
        module = self.model.get_submodule(layer)
        if type(module).forward is nn.Embedding.forward:
            assert isinstance(module, nn.Embedding)  # whose forward it has
            shape = (module.num_embeddings, module.embedding_dim)
            _check_shape(weight.shape, shape)
            self.packed[layer] = packed_nn.Embedding(
                *shape, weight=weight, padding_idx=module.padding_idx, dtype=self.dtype
            )
        elif isinstance(module, nn.Embedding):  # one that scales its output, as Gemma has it
            self._set_parameter(entry.name, weight.dequantize())
        else:
            self.packed[layer] = self._linear(module, weight, entry.activations, entry.input_scale)
        if entry.error:
            self.errors[layer] = entry.error

    def _linear(
        self, module: nn.Module, weight: Format, activations: str, input_scale: float | None = None
    ) -> Linear:
        """A packed layer in the place of a dense one; its bias comes at the end."""
        dense: Tensor = module.get_parameter("weight")
        if is_conv1d(module):
            dense = dense.T
        elif type(module).forward is not nn.Linear.forward:
            raise TypeError(f"got a quantized weight for {type(module).__name__}, wanted nn.Linear")
        _check_shape(weight.shape, tuple(dense.shape))
        if self.activations in weight.activation_kinds:
            activations, input_scale = self.activations, None
        N, K = weight.shape
        new = Linear(
            K,
            N,
            weight=weight,
            dtype=self.dtype,
            activations=activations,
            input_scale=input_scale,
        )
        new._from_conv1d = is_conv1d(module)
        return new

    def finish(self) -> None:
        """Put the packed layers into the model.

        Raises
        ------
        ValueError
            Where a parameter has got no value.
        """
        for name in [n for n, m in self.packed.items() if isinstance(m, packed_nn.Embedding)]:
            self._tie_heads(name)
        for name, layer in self.packed.items():
            parent, _, child = name.rpartition(".")
            dense = self.model.get_submodule(name)
            if isinstance(layer, Linear):
                layer._set_bias(dense.bias)  # type: ignore[arg-type]
            self.model.get_submodule(parent)._modules[child] = layer.train(dense.training)
        missing = [name for name, p in self.model.named_parameters() if p.device.type == "meta"]
        if missing:
            surplus = f"; there is no place for {some(self.unused)}" if self.unused else ""
            raise ValueError(
                f"{self.path}: {len(missing)} tensors are missing: {some(missing)}{surplus}"
            )

    def _tie_heads(self, table: str) -> None:
        """Let an output head that is tied to a packed embedding have its weight."""
        packed = self.packed[table]
        for module, own in self.places[f"{table}.weight"]:
            parameter = module._parameters[own]
            filled = parameter is None or parameter.device.type != "meta"
            name = next(name for name, found in self.model.named_modules() if found is module)
            if filled or name in self.packed or not isinstance(module, nn.Linear):
                continue
            head = self._linear(module, packed.quantized(), "exact")
            self.packed[name] = head
            dense: Any = self.model.get_submodule(table)
            self.packed[table] = packed_nn.Embedding(
                *packed.weight.shape, weight=head, padding_idx=dense.padding_idx
            )


def _places(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """By name of a parameter: all modules that hold it, and how they call it."""
    holders: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    names: dict[str, int] = {}
    for prefix, module in model.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                holders[id(parameter)].append((module, own))
                names[f"{prefix}.{own}" if prefix else own] = id(parameter)
    return {name: holders[key] for name, key in names.items()}


def _check_shape(got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if got != wanted:
        raise ValueError(f"got shape {list(got)}, wanted {list(wanted)}")


def some(names: list[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
