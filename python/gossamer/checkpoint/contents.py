"""What there is to save of a model: its tensors one by one, and what the manifest says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import _check
from ..factorization import FactorizedLayer, LayerCorrection
from ..fits import CalibrationRecord, LayerFit
from ..fusion import Fusion
from ..nn.packed_table import PackedTable
from ..placing import is_packed
from ..selection import KeptDense, LeftAlone
from .fusing import fused_activations, fused_modules
from .kinds import KINDS, kind_of, packed_parts, settings_of, stored_weight, tensor_name
from .manifest import StoredModule

# What is remembered for the report: by the name in the manifest, the type; the attribute of the
# model has the prefix "_gossamer_".
RECORDS: dict[str, Any] = {
    "left_alone": tuple[LeftAlone, ...],
    "kept_dense": tuple[KeptDense, ...],
    "fusions": tuple[Fusion, ...],
    "corrections": tuple[LayerCorrection, ...],
    "factorized": tuple[FactorizedLayer, ...],
    "fits": tuple[LayerFit, ...],
    "calibration": CalibrationRecord,
}

# As safetensors names them.
DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Part:
    """A module of a model.

    Attributes
    ----------
    name : str
        Its first name.
    module : nn.Module
        Itself.
    kind : str or None
        A name in ``KINDS``; None where only its tensors are held.
    same_as : str or None
        Its first name, where this is a further one.
    """

    name: str
    module: nn.Module
    kind: str | None
    same_as: str | None = None


class Contents:
    """What a checkpoint of a model holds.

    Parameters
    ----------
    model : nn.Module
        Any.

    Raises
    ------
    ValueError, TypeError
        For a module that holds more than tensors, and for tensors that cannot be stored; the name
        is in the error.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        parts = list(_parts(model))
        self.parts = [part for part in parts if part.same_as is None]
        self.shared = {part.name: part.same_as for part in parts if part.same_as is not None}
        self._names = {id(part.module): part.name for part in self.parts}
        self.fused = tuple(name for name, _, _ in fused_modules(model))
        self.tied: dict[str, str] = {}
        self._first: dict[int, str] = {}  # names of parameters and buffers, by identity
        for part in self.parts:
            _check_state(part)
            for name, tensor, _ in _own_tensors(part):
                _check_tensor(name, tensor)
                first = self._first.setdefault(id(tensor), name)
                if first != name:
                    self.tied[name] = first

    def tensors(self) -> Iterator[tuple[str, Tensor, bool]]:
        """Every tensor once: its name, itself, and whether the ``state_dict`` has it.

        Packed weights are unpacked one at a time.
        """
        for part in self.parts:
            if self._tied_to(part) is None:
                prefix = f"{part.name}." if part.name else ""
                for weight, holder in packed_parts(part.module).items():
                    for key, tensor in holder.quantized().state().items():
                        yield prefix + tensor_name(weight, key), tensor, True
            for name, tensor, persistent in _own_tensors(part):
                if self._first[id(tensor)] == name:
                    yield name, tensor, persistent

    def modules(self) -> dict[str, StoredModule]:
        """What the manifest says of modules, parents first."""
        activations = fused_activations(self.model)
        found = {}
        for part in self.parts:
            if part.kind is None:
                continue
            settings = settings_of(part.module, KINDS[part.kind])
            if part.name in activations:
                settings["activation"] = "none"  # it is fused again after it was loaded
            tied_to = self._tied_to(part)
            parts = {} if tied_to else packed_parts(part.module)
            weights = {name: stored_weight(holder) for name, holder in parts.items()}
            found[part.name] = StoredModule(part.kind, settings, weights, tied_to)
        return found

    def records(self) -> dict[str, dict[str, Any]]:
        """What compress() and factorize() remember for the report, by module."""
        found = {}
        for part in self.parts:
            named = {name: getattr(part.module, f"_gossamer_{name}", None) for name in RECORDS}
            named = {name: items for name, items in named.items() if items}
            if named:
                found[part.name] = named
        return found

    def _tied_to(self, part: Part) -> str | None:
        """The layer whose packed weight an embedding reads, if that is in the model, too."""
        if not isinstance(part.module, PackedTable) or not part.module._tied:
            return None
        return self._names.get(id(part.module._tied[0]))


def _parts(model: nn.Module) -> Iterator[Part]:
    """The modules of a model in order; those inside packed ones belong to these."""
    names: dict[int, str] = {}

    def walk(name: str, module: nn.Module, parent: str | None) -> Iterator[Part]:
        kind = kind_of(module, parent)
        if id(module) in names:
            yield Part(name, module, kind, names[id(module)])
            return
        names[id(module)] = name
        yield Part(name, module, kind)
        for child, inner in module._modules.items():
            if inner is not None and not (kind and _is_inside(inner)):
                yield from walk(f"{name}.{child}" if name else child, inner, kind)

    return walk("", model, None)


def _is_inside(module: nn.Module) -> bool:
    """Whether a module is how a packed one holds its weights."""
    return is_packed(module) and kind_of(module, None) is None


def _own_tensors(part: Part) -> Iterator[tuple[str, Tensor, bool]]:
    """Parameters and buffers, packed ones apart: name, tensor, and whether they are persistent."""
    prefix, module = f"{part.name}." if part.name else "", part.module
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter, True
    for name, buffer in module._buffers.items():
        if buffer is not None and not (part.kind and name == "packed"):
            yield prefix + name, buffer, name not in module._non_persistent_buffers_set


def _check_state(part: Part) -> None:
    """A module must hold its state in parameters and buffers, or be one that is known."""
    module, kind = part.module, type(part.module)
    start = f"save: model: {part.name!r}" if part.name else "save: model"
    if is_packed(module):
        if part.kind is None:
            raise TypeError(f"{start}: checkpoints know no {kind.__name__}")
        return
    own = kind._save_to_state_dict is not nn.Module._save_to_state_dict
    if own or kind.get_extra_state is not nn.Module.get_extra_state:
        raise TypeError(
            f"{start}: a {kind.__name__} has a state that is more than parameters and buffers"
        )


def _check_tensor(name: str, tensor: Tensor) -> None:
    start = f"save: model: {name!r}"
    if type(tensor.detach()) is not Tensor or tensor.layout is not torch.strided:
        raise TypeError(f"{start}: is a {type(tensor).__name__}, wanted a plain, dense tensor")
    if tensor.device.type == "meta":
        raise ValueError(f"{start}: is on meta and has no values")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{start}: got {_check.describe(tensor)}; files have no such dtype")
