"""Filling the parameters and buffers of a model that are not packed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

from .._progress import Progress
from ..placing import is_packed
from .manifest import Manifest, StoredTensor
from .reading import Shards


def own_tensors(model: nn.Module, empty: bool = False) -> Iterator[tuple[str, Any, bool]]:
    """All parameters and buffers by all their names, and whether a ``state_dict`` has them.

    With `empty`, names that are registered without a tensor are listed too.
    """
    for prefix, module in model.named_modules(remove_duplicate=False):
        start = f"{prefix}." if prefix else ""
        for name, parameter in module._parameters.items():
            if parameter is not None or empty:
                yield start + name, parameter, True
        for name, buffer in module._buffers.items():
            if buffer is not None or empty:
                yield start + name, buffer, name not in module._non_persistent_buffers_set


def fill(
    model: nn.Module,
    manifest: Manifest,
    shards: Shards,
    packed: Collection[str],
    shown: Progress,
) -> None:
    """Read all tensors that are not of packed weights into a model.

    Parameters
    ----------
    model : nn.Module
        Its packed modules are those of the checkpoint already.
    manifest, shards : Manifest, Shards
        The checkpoint.
    packed : collection of str
        Names of the tensors that are left out.
    shown : Progress
        Counts bytes.

    Raises
    ------
    ValueError
        Where a tensor does not fit what the model has, or a part of that stays on meta.
    """
    filling = _Filling(model, manifest, f"load: {shards.folder}")
    for name, stored in manifest.tensors.items():
        if name not in packed:
            value = shards.tensor(name)
            filling.put(name, stored, value)
            shown.advance(value.numel() * value.element_size())
    left = [name for name, tensor, _ in own_tensors(model) if tensor.device.type == "meta"]
    if left:
        raise ValueError(f"{filling.start}: has no {left[0]!r}, which is on meta in the model")


class _Filling:
    """Where the tensors of a model are."""

    def __init__(self, model: nn.Module, manifest: Manifest, start: str) -> None:
        self.start = start  # of errors
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.names: dict[int, list[str]] = defaultdict(list)
        for name, tensor, _ in own_tensors(model):
            self.names[id(tensor)].append(name)
        self.mentioned = manifest.tensors.keys() | manifest.tied.keys()
        self.tied: dict[str, list[str]] = defaultdict(list)
        for name, first in manifest.tied.items():
            self.tied[first].append(name)

    def put(self, name: str, stored: StoredTensor, value: Tensor) -> None:
        """Give the model a tensor, under its own name and those that are tied to it."""
        slots = self._slots(name)
        if slots is None or name.rpartition(".")[2] not in slots:
            if stored.persistent:
                raise ValueError(f"{self.start}: has {name!r}, which the model has not")
            return
        old = slots[name.rpartition(".")[2]]
        if old is not None and old.shape != value.shape:
            if not stored.persistent and old.device.type != "meta":
                return  # the model has computed its own
            raise ValueError(
                f"{self.start}: {name!r}: has shape {list(value.shape)}, in the model "
                f"{list(old.shape)}"
            )
        # A tensor that the model has under several names stays one, but for names that have
        # another one in the checkpoint.
        known = [] if old is None else self.names[id(old)]
        unmentioned = [other for other in known if other not in self.mentioned]
        names = [name, *self.tied[name], *unmentioned]
        if old is not None and old.is_floating_point() != value.is_floating_point():
            raise ValueError(
                f"{self.start}: {name!r}: has dtype {value.dtype}, in the model {old.dtype}"
            )
        new = _filled(old, value, keep=set(known) <= set(names))
        for each in names:
            found = self._slots(each)
            if found is None or each.rpartition(".")[2] not in found:
                raise ValueError(f"{self.start}: {each!r}, tied to {name!r}, is not in the model")
            found[each.rpartition(".")[2]] = new

    def _slots(self, name: str) -> Any:
        """The parameters or the buffers of the module that a tensor belongs to."""
        module = self.modules.get(name.rpartition(".")[0])
        if module is None:
            return None
        if is_packed(module) or name.rpartition(".")[2] in module._parameters:
            return module._parameters
        return module._buffers


def _filled(old: Tensor | None, value: Tensor, keep: bool) -> Tensor:
    """The tensor of the model with a value, or a new one of the same kind."""
    if old is None:
        return nn.Parameter(value.clone(), requires_grad=value.is_floating_point())
    if keep and old.dtype is value.dtype and old.device.type != "meta" and not old.is_inference():
        old.copy_(value)
        return old
    device = "cpu" if old.device.type == "meta" else old.device
    new = value.clone() if device == "cpu" else value.to(device)
    if not isinstance(old, nn.Parameter):
        return new
    return nn.Parameter(new, requires_grad=old.requires_grad and new.is_floating_point())
