"""Layers that follow each other in nn.Sequential, read off the order of its modules."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

from ..calibration.scaling import Scalable, in_channels, out_channels, unshared
from .batch_norm import can_fold, fold_batch_norm

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
# f(c x) = c f(x) for c > 0, in each channel by itself.
_HOMOGENEOUS = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
)
_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
}

Named = tuple[str, nn.Module]


def fold_norms_in_sequences(model: nn.Module) -> None:
    """Fold batch norms into the convolutions right before them, and put identities there."""
    places, usable = places_of(model), unshared(model)
    for sequence in _sequences(model):
        for (_, layer), (_, norm) in pairwise(sequence):
            follows = type(norm) is _NORMS.get(type(layer))
            once = len(places[id(layer)]) == len(places[id(norm)]) == 1
            if follows and once and usable(layer) and can_fold(layer, norm):
                fold_batch_norm(layer, norm)
                parent, child = places[id(norm)][0]
                parent._modules[child] = nn.Identity()


def scalable_in_sequences(model: nn.Module) -> list[Scalable]:
    """Pairs of layers with nothing but homogeneous modules between them."""
    places, usable = places_of(model), unshared(model)
    found = []
    for sequence in _sequences(model):
        producer: Named | None = None
        flat = False
        for name, module in sequence:
            C = in_channels(module)
            if C is not None and producer is not None:
                scalable = _pair(producer, (name, module), flat)
                both = (producer[1], module)
                once = all(len(places[id(one)]) == 1 and usable(one) for one in both)
                if scalable is not None and once:
                    found.append(scalable)
            if C is not None:
                producer, flat = (name, module), False
            elif type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
                flat = True
            elif type(module) not in _HOMOGENEOUS:
                producer = None
    return found


def places_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """The parents of each module, with the names that it has there."""
    places: dict[int, list[tuple[nn.Module, str]]] = {id(model): []}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(id(child), []).append((parent, name))
    return places


def _pair(producer: Named, consumer: Named, flat: bool) -> Scalable | None:
    """The two as a Scalable, where channels of the one are features of the other."""
    N, C = out_channels(producer[1]) or 0, in_channels(consumer[1]) or 0
    are_convolutions = [isinstance(module, _CONVOLUTIONS) for _, module in (producer, consumer)]
    flattens = are_convolutions == [True, False] and flat
    if C % N or not (flattens or (are_convolutions[0] == are_convolutions[1] and N == C)):
        return None
    channels = torch.arange(C) // (C // N)
    return Scalable(producer[1], dict([consumer]), channels, False, (producer[0], consumer[0]))


def _sequences(model: nn.Module) -> Iterator[list[Named]]:
    """The modules of each outermost nn.Sequential in order, with those inside it in place."""
    inner: set[str] = set()
    for name, module in model.named_modules():
        if _is_sequence(module) and name not in inner:
            modules = list(_in_order(name, module))
            yield modules
        if _is_sequence(module):
            inner.update(f"{name}.{child}" if name else child for child in module._modules)


def _in_order(name: str, module: nn.Module) -> Iterator[Named]:
    if not _is_sequence(module):
        yield name, module
        return
    for child, inside in module._modules.items():
        if inside is not None:
            yield from _in_order(f"{name}.{child}" if name else child, inside)


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
