"""Layers that compute as one: a checkpoint holds them as they were before, and says where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from ..fusion import ARCHITECTURES
from ..fusion.patterns import Activated, Gated, Pattern, Places, find_places
from ..nn.projections import share


def fused_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, Pattern]]:
    """The modules that hold fused layers, by name, and the patterns that they match."""
    for name, module in model.named_modules():
        for pattern in ARCHITECTURES:
            if pattern.matches(module) and pattern.is_fused(module):
                yield name, module, pattern


def fused_activations(model: nn.Module) -> dict[str, str]:
    """By the name of each layer that computes the activation after it: which."""
    found = {}
    for name, module, pattern in fused_modules(model):
        if isinstance(pattern, Activated):
            layer = pattern.layers[0]
            full = f"{name}.{layer}" if name else layer
            found[full] = module.get_submodule(layer).activation
    return found  # type: ignore[return-value]  # Linear.activation is a string


def fuse_again(model: nn.Module, names: Iterable[str], activations: dict[str, str]) -> list[str]:
    """Fuse the layers in modules of these names, which have been replaced by others.

    Parameters
    ----------
    model : nn.Module
        With packed layers.
    names : iterable of str
        Where layers were fused when they were saved, or in the model before it was loaded into.
    activations : dict
        What :func:`fused_activations` gave for the model before it was loaded into.

    Returns
    -------
    list of str
        The names of those that are fused now.
    """
    places, done = find_places(model), []
    for full, activation in activations.items():
        model.get_submodule(full).activation = activation  # type: ignore[assignment]
    for name in names:
        module = model.get_submodule(name)
        for pattern in ARCHITECTURES:
            if pattern.matches(module) and _fuse(name, module, pattern, places):
                done.append(name)
    return done


def _fuse(name: str, module: nn.Module, pattern: Pattern, places: Places) -> bool:
    if isinstance(pattern, Activated) and pattern.is_fused(module):
        return True  # its activation has been set
    try:
        if isinstance(pattern, Gated) and pattern.is_fused(module):
            layers = [module.get_submodule(layer) for layer in pattern.layers]
            module._modules.update(zip(pattern.layers, share(layers), strict=True))  # type: ignore[arg-type]
        elif pattern.why_not(name, module, dict.fromkeys(pattern.layers, ""), places):
            return False
        else:
            pattern.apply(module, places)
    except ValueError:  # a format whose rows cannot be joined; nothing has changed
        return False
    return True
