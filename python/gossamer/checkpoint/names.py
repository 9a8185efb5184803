"""Names of modules and tensors: those of a checkpoint must be those of the model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import nn

from .filling import own_tensors
from .manifest import Manifest


def check_names(model: nn.Module, manifest: Manifest, packed: Collection[str], file: Path) -> None:
    """Refuse a model that has other modules or tensors than a checkpoint, before it is changed.

    Parameters
    ----------
    model : nn.Module
        To be filled.
    manifest : Manifest
        What there is.
    packed : collection of str
        Names of canonical tensors.
    file : Path
        Of the manifest.

    Raises
    ------
    ValueError
        That names them.
    """
    kind = type(model).__name__
    replaced = manifest.modules.keys() | manifest.shared.keys()
    for name in replaced:
        if not exists(model, name) and not _is_inside(name, replaced):
            raise ValueError(f"load: {file}: module {name!r}: is not in the model, a {kind}")
    provided = (manifest.tensors.keys() | manifest.tied.keys()) - set(packed)
    names: dict[int, list[str]] = {}
    for name, tensor, persistent in own_tensors(model):
        if persistent and not _is_inside(name, replaced):
            names.setdefault(id(tensor), []).append(name)
    missing = [each[0] for each in names.values() if not provided & set(each)]
    if missing:
        raise ValueError(
            f"load: {file}: has no {some_names(missing)}, which the model, a {kind}, has"
        )
    slots = {name for name, _, _ in own_tensors(model, empty=True)}
    surplus = [
        name
        for name in sorted(provided - slots)
        if not _is_inside(name, replaced)
        and (name not in manifest.tensors or manifest.tensors[name].persistent)
    ]
    if surplus:
        raise ValueError(
            f"load: {file}: has {some_names(surplus)}, which the model, a {kind}, has not"
        )


def full_name(module: str, name: str) -> str:
    """The name in the model of what has one in a module."""
    return ".".join(filter(None, (module, name)))


def exists(model: nn.Module, name: str) -> bool:
    """Whether there is a module of this name."""
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def some_names(names: list[str]) -> str:
    """The first of some names, for an error."""
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _is_inside(name: str, modules: Collection[str]) -> bool:
    """Whether a module or tensor is inside one of some modules."""
    parts = name.split(".")[:-1]
    return any(".".join(parts[:count]) in modules for count in range(len(parts) + 1))
