"""Layers of known architectures that compute as one, found by named patterns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from .._progress import Progress
from .architectures import ARCHITECTURES
from .patterns import Pattern, Places, find_places

__all__ = ["ARCHITECTURES", "Fusion", "fuse"]


@dataclass(frozen=True)
class Fusion:
    """Layers that match a pattern, and whether they compute as one.

    Attributes
    ----------
    module : str
        Name in the model of the module that holds them.
    layers : tuple of str
        Their names in that module; none where a model has no pattern at all.
    result : str
        What they are together, such as "query, key, value".
    reason : str
        Why they are not fused; "" where they are.
    """

    module: str
    layers: tuple[str, ...]
    result: str
    reason: str = ""


def fuse(
    model: nn.Module, left_alone: Mapping[str, str], progress: bool | None = None
) -> tuple[Fusion, ...]:
    """Fuse the packed layers of a model that match a pattern, in place.

    Parameters
    ----------
    model : nn.Module
        After its layers were packed.
    left_alone : mapping of str to str
        Full names of the layers that were not packed, and why.
    progress : bool, optional
        As of :func:`gossamer.compress`.

    Returns
    -------
    tuple of Fusion
        One for each place that matches a pattern, those fused earlier included; where there is
        none, one that says so.
    """
    places = find_places(model)
    found = [
        (name, module, pattern)
        for name, module in model.named_modules()
        for pattern in ARCHITECTURES
        if pattern.matches(module)
    ]
    fusions = []
    with Progress("fusing layers", len(found), progress) as shown:
        for name, module, pattern in found:
            fusions.append(_fuse_one(name, module, pattern, places, left_alone))
            shown.advance(1)
    nothing = Fusion("", (), "", f"no pattern for {type(model).__name__}")
    return tuple(fusions) or (nothing,)


def _fuse_one(
    name: str, module: nn.Module, pattern: Pattern, places: Places, left_alone: Mapping[str, str]
) -> Fusion:
    reason, result = "", pattern.result(module)
    if not pattern.is_fused(module):
        inside = {
            layer: left_alone.get(f"{name}.{layer}" if name else layer, "")
            for layer in pattern.layers
        }
        reason = pattern.why_not(name, module, inside, places)
        try:
            if not reason:
                pattern.apply(module, places)
        except ValueError as error:  # a format whose rows cannot be joined; nothing has changed
            reason = str(error)
    return Fusion(name, pattern.layers, result, reason)
