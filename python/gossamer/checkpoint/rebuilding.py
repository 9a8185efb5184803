"""A model from what gs.save wrote, packed tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _check
from .._progress import Progress
from ..formats import FORMATS
from ..nn.linear import Linear, is_conv1d
from ..placing import disable_transformer_fast_path, place
from ..selection import Layer
from .contents import RECORDS
from .filling import fill
from .fusing import fuse_again, fused_activations, fused_modules
from .kinds import (
    DENSE,
    KINDS,
    SEQUENTIAL,
    Kind,
    Weight,
    checked_settings,
    tensor_name,
    tied_table,
    why_different,
)
from .manifest import FILE, Manifest, StoredModule, read_manifest
from .names import check_names, exists, full_name, some_names
from .pretrained import empty_model
from .reading import Shards
from .typed import from_plain


def load(
    folder: str | Path, model: nn.Module | None = None, *, progress: bool | None = None
) -> nn.Module:
    """Read what :func:`gossamer.save` wrote; :func:`gossamer.load` documents it."""
    if not isinstance(folder, str | Path):
        raise TypeError(f"load: folder: got {_check.describe(folder)}, wanted a path")
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"load: model: got {_check.describe(model)}, wanted nn.Module or None")
    folder = Path(folder)
    manifest = read_manifest(folder)
    shards = Shards(folder, manifest)
    if model is None and "" not in manifest.modules:
        if manifest.architecture is None:
            raise ValueError(
                f"load: {folder}: holds a model that is not of transformers; make one and give it "
                "as load(folder, model)"
            )
        model = empty_model(manifest.architecture, folder)
    total = sum(stored.bytes for stored in manifest.files.values())
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        Progress("loading", total, progress) as shown,
    ):
        return _Rebuilding(folder, manifest, shards, model, shown).run()


class _Rebuilding:
    """What is known while a model is filled."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        shards: Shards,
        model: nn.Module | None,
        shown: Progress,
    ) -> None:
        self.file = folder / FILE
        self.manifest, self.shards, self.shown = manifest, shards, shown
        self.model = model
        self.packed = self._packed_tensors()

    def run(self) -> nn.Module:
        """Replace modules, fill the rest and restore what was fused and remembered."""
        fused: list[str] = list(self.manifest.fused)
        activations: dict[str, str] = {}
        if self.model is not None:
            check_names(self.model, self.manifest, self.packed, self.file)
            fused += [name for name, _, _ in fused_modules(self.model)]
            activations = fused_activations(self.model)
        tied_last = sorted(
            self.manifest.modules.items(), key=lambda item: item[1].tied_to is not None
        )
        for name, stored in tied_last:
            try:
                self._replace(name, stored)
            except Exception as error:  # whatever wrong settings make of it
                raise _named(error, f"load: {self.file}: module {name!r}") from error
        assert self.model is not None  # "" is among the modules, or it was given
        model = self.model
        self._share(model)
        fill(model, self.manifest, self.shards, self.packed, self.shown)
        self._remember(model)
        there = [name for name in dict.fromkeys(fused) if exists(model, name)]
        done = fuse_again(model, there, activations)
        _correct_fusions(model, set(self.manifest.fused) - set(done))
        disable_transformer_fast_path(model)
        return model

    def _share(self, model: nn.Module) -> None:
        """Put modules that have several names in all their places."""
        for name, first in self.manifest.shared.items():
            parent, _, child = name.rpartition(".")
            if not exists(model, parent) or not exists(model, first):
                raise ValueError(f"load: {self.file}: shared: {name!r}: is not in the model")
            model.get_submodule(parent)._modules[child] = model.get_submodule(first)

    # --- what must be there ---

    def _packed_tensors(self) -> set[str]:
        """The names of all canonical tensors."""
        found: set[str] = set()
        for name, module in self.manifest.modules.items():
            for weight, stored in module.weights.items():
                form = FORMATS.get(stored.format)
                if form is None:
                    raise ValueError(
                        f"load: {self.file}: module {name!r}: format: got {stored.format!r}, "
                        f"wanted one of {', '.join(FORMATS)}"
                    )
                found.update(full_name(name, tensor_name(weight, key)) for key in form.state_names)
        return found & self.manifest.tensors.keys()

    # --- packed modules ---

    def _replace(self, name: str, stored: StoredModule) -> None:
        """Put a module of the checkpoint in the place of that of the model."""
        kind = KINDS.get(stored.kind)
        if kind is None:
            raise ValueError(f"kind: got {stored.kind!r}, wanted one of {', '.join(KINDS)}")
        stored = dataclasses.replace(stored, settings=checked_settings(stored, kind))
        old = self._module(name)
        if old is not None:
            self._check_old(name, old, kind, stored)
            if isinstance(old, kind.module) and stored.kind in DENSE:
                self._check_parameters(name, old)
                return  # its tensors are filled
        if stored.tied_to is None:
            new = kind.build(stored, self._weights(name, stored))
        else:
            new = tied_table(stored, self._module(stored.tied_to))  # type: ignore[arg-type]  # checked by it
        self._take_parameters(name, new, old)
        self._take_inner_biases(name, new, old)
        self._put(name, old, new.train(old is not None and old.training))

    def _module(self, name: str) -> nn.Module | None:
        """A module as it is now; None for the whole model where there is none yet."""
        if self.model is None and not name:
            return None
        if self.model is None or not exists(self.model, name):
            raise ValueError(f"there is no module {name!r}")
        return self.model.get_submodule(name)

    def _put(self, name: str, old: nn.Module | None, new: nn.Module) -> None:
        if not name:
            self.model = new
            return
        assert self.model is not None  # _module has seen to it
        assert old is not None
        parent, _, child = name.rpartition(".")
        place(Layer(old, [name], [(self.model.get_submodule(parent), child)]), new)

    def _check_old(self, name: str, old: nn.Module, kind: Kind, stored: StoredModule) -> None:
        """What the model has must be what the checkpoint replaces."""
        if type(old) is nn.Identity and self._is_in_sequential(name):
            return  # a place in what has just been made
        is_linear = stored.kind == "Linear" and is_conv1d(old)
        if not is_linear and not isinstance(old, (*kind.replaces, kind.module)):
            raise ValueError(f"is a {type(old).__name__} in the model, wanted a {stored.kind}")
        why = why_different(old, stored.settings)
        if is_linear:
            K, N = old.weight.shape  # type: ignore[misc]
            found, wanted = (
                (K, N),
                (stored.settings["in_features"], stored.settings["out_features"]),
            )
            why = "" if found == wanted else f"is {found} in the model, {wanted} in the checkpoint"
        if stored.kind == SEQUENTIAL and isinstance(old, nn.Conv2d):
            why = self._why_other_channels(name, old, stored.settings["length"])
        if why:
            raise ValueError(f"does not fit the model: {why}")

    def _is_in_sequential(self, name: str) -> bool:
        parent = self.manifest.modules.get(name.rpartition(".")[0])
        return parent is not None and parent.kind == SEQUENTIAL

    def _why_other_channels(self, name: str, old: nn.Conv2d, length: int) -> str:
        first = self.manifest.modules.get(f"{name}.0")
        last = self.manifest.modules.get(f"{name}.{length - 1}")
        if first is None or last is None:
            return f"has no modules {name}.0 to {length - 1}"
        found = old.in_channels, old.out_channels
        wanted = first.settings.get("in_channels"), last.settings.get("out_channels")
        return "" if found == wanted else f"has {found} channels, in the checkpoint {wanted}"

    def _weights(self, name: str, stored: StoredModule) -> dict[str, Weight]:
        """Read the packed weights of a module."""
        found = {}
        for weight, item in stored.weights.items():
            form = FORMATS[item.format]
            names = {key: full_name(name, tensor_name(weight, key)) for key in form.state_names}
            present = tuple(key for key in names if names[key] in self.packed)
            if present not in form.state_forms:
                missing = min((set(keys) - set(present) for keys in form.state_forms), key=len)
                lacking = some_names([names[key] for key in names if key in missing])
                raise ValueError(
                    f"{weight}: format {item.format}: has no {lacking or 'tensors that fit'}"
                )
            state = {key: self._read(names[key]) for key in present}
            try:
                unpacked = form.from_state(state, item.group_size, item.in_features)
            except (TypeError, ValueError, RuntimeError) as error:
                raise _named(error, f"tensor {names[present[0]]!r}") from error
            if unpacked.group_size != item.group_size:
                raise ValueError(
                    f"{weight}: group_size: got {item.group_size}, but the tensors have "
                    f"{unpacked.group_size}"
                )
            found[weight] = Weight(unpacked, item)
        return found

    def _read(self, name: str) -> Tensor:
        tensor = self.shards.tensor(name)
        self.shown.advance(tensor.numel() * tensor.element_size())
        return tensor

    def _check_parameters(self, name: str, module: nn.Module) -> None:
        """The checkpoint has all parameters of a module that stays."""
        provided = self.manifest.tensors.keys() | self.manifest.tied.keys()
        for key, parameter in module._parameters.items():
            if parameter is not None and full_name(name, key) not in provided:
                raise ValueError(f"has no tensor {full_name(name, key)!r}")

    def _take_parameters(self, name: str, new: nn.Module, old: nn.Module | None) -> None:
        """Give a new module the parameters of the old one, or empty ones, to be filled."""
        manifest = self.manifest
        for key, parameter in new._parameters.items():
            full = full_name(name, key)
            stored = manifest.tensors.get(manifest.tied.get(full, full))
            before = None if old is None else old._parameters.get(key)
            if stored is None:
                if parameter is not None or before is not None:
                    raise ValueError(f"has no tensor {full!r}")
                continue
            shape = (_rows(new),) if parameter is None else tuple(parameter.shape)
            if stored.shape != shape or stored.dtype not in ("F32", "BF16", "F16"):
                raise ValueError(
                    f"tensor {full!r}: got {stored.dtype} of shape {list(stored.shape)}, wanted "
                    f"{list(shape)} in F32, BF16 or F16"
                )
            if before is None or before.shape != shape:
                before = nn.Parameter(torch.empty(shape, device="meta"))
            new._parameters[key] = before

    def _take_inner_biases(self, name: str, new: nn.Module, old: nn.Module | None) -> None:
        """Give layers in a new module that are replaced next the biases that those before have."""
        for child, inner in new._modules.items():
            if isinstance(inner, Linear) and full_name(name, child) in self.manifest.modules:
                before = None if old is None else old._modules.get(child)
                inner._parameters["bias"] = (
                    None if before is None else before._parameters.get("bias")
                )

    # --- what is remembered for the report ---

    def _remember(self, model: nn.Module) -> None:
        for name, records in self.manifest.records.items():
            where = f"load: {self.file}: records: {name!r}"
            if not exists(model, name):
                raise ValueError(f"{where}: is not in the model")
            for key, items in records.items():
                if key not in RECORDS:
                    raise ValueError(f"{where}: got {key!r}, wanted one of {', '.join(RECORDS)}")
                found = from_plain(RECORDS[key], items, f"{where}: {key}")
                setattr(model.get_submodule(name), f"_gossamer_{key}", found)


def _correct_fusions(model: nn.Module, lost: Iterable[str]) -> None:
    """Say in the records which layers are not fused any more."""
    names = set(lost)
    for name, module in model.named_modules():
        items: Any = getattr(module, "_gossamer_fusions", ())
        if names and items:
            module._gossamer_fusions = tuple(
                dataclasses.replace(item, reason="not fused when it was loaded")
                if full_name(name, item.module) in names and not item.reason
                else item
                for item in items
            )


def _rows(module: nn.Module) -> int:
    rows: Any = getattr(module, "out_features", None) or getattr(module, "out_channels", 0)
    return int(rows)


def _named(error: Exception, where: str) -> ValueError:
    """The error, saying where it comes from."""
    text = str(error)
    return ValueError(text if text.startswith("load: ") else f"{where}: {text}")
