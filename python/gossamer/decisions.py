"""What compress() will do to each layer: everything that can fail, before anything changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from . import _check, selection
from .folding import folded
from .nn.linear import dense_weight, is_conv1d
from .nn.packed_conv import quantize_groups
from .placing import is_packed
from .recipe import Recipe, Step, as_recipe
from .recipe_files import is_recipe, load_recipe
from .replacing import REPLACEMENTS, naming
from .schemes import Quantize
from .selection import Layer, Pattern, Patterns
from .sparse_choice import Batch

Steps: TypeAlias = Step | Sequence[Step]
Overrides: TypeAlias = Mapping[Pattern, Steps]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Request:
    """What compress() was asked for; see there."""

    scheme: Steps | Path
    targets: Patterns = None
    ignore: Patterns = None
    overrides: Overrides | None = None
    batch: Batch | None = None

    def read(self) -> Request:
        """The same with what a recipe file says, where the scheme is one."""
        if not is_recipe(self.scheme):
            return self
        file = load_recipe(self.scheme)  # type: ignore[arg-type]  # is_recipe() saw to it
        overrides: dict[Pattern, Steps] = {}
        overrides.update(file.overrides)
        overrides.update(self.overrides or {})
        return Request(
            file.steps,
            file.targets if self.targets is None else self.targets,
            file.ignore if self.ignore is None else self.ignore,
            overrides,
            file.batch if self.batch is None else self.batch,
        )


@dataclass(frozen=True)
class Decisions:
    """What is done to the layers of a model.

    Attributes
    ----------
    layers : list of Layer
        All that could be replaced, with the reasons of those that are not.
    recipes : dict
        By layer, by its identity: what is done to it.
    """

    layers: list[Layer]
    recipes: dict[int, Recipe]

    @property
    def chosen(self) -> list[Layer]:
        """Those that are replaced."""
        return [layer for layer in self.layers if not layer.reason]

    def recipe_of(self, layer: Layer) -> Recipe:
        """What is done to a layer."""
        return self.recipes[id(layer)]


def decide(model: nn.Module, request: Request) -> Decisions:
    """Find the layers, and what is done to each; the model is left as it is.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As compress() does, but for what concerns the calibration.
    """
    request = request.read()
    recipe = as_recipe("compress", request.scheme, request.batch)
    kinds = _check_model(model)
    layers = selection.choose(model, kinds, request.targets, request.ignore)
    if not layers and not any(map(is_packed, model.modules())):
        names = ", ".join(f"nn.{kind.__name__}" for kind in kinds)
        raise ValueError(f"compress: model: has no layer that can be packed: {names} or Conv1D")
    decisions = Decisions(layers, _recipes(model, layers, recipe, request))
    for layer in layers:
        layer.reason = layer.reason or _why_not(layer, decisions.recipe_of(layer))
    for layer in decisions.chosen:
        _check_layer(layer, decisions.recipe_of(layer))
    return decisions


def _check_model(model: object) -> tuple[type[nn.Module], ...]:
    """The kinds of layers that are replaced, if the model is one that can hold them."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: model: got {_check.describe(model)}, wanted nn.Module")
    kinds = tuple(REPLACEMENTS)
    if isinstance(model, kinds) or is_conv1d(model):
        raise ValueError(
            f"compress: model: is itself a layer ({type(model).__name__}) and cannot be replaced "
            "in place; use from_dense of its class in gs.nn"
        )
    return kinds


def _recipes(
    model: nn.Module,
    layers: Sequence[Layer],
    recipe: Recipe,
    request: Request,
) -> dict[int, Recipe]:
    """What is done to each layer, by its identity."""
    overrides = request.overrides
    if overrides is not None and not isinstance(overrides, Mapping):
        got = _check.describe(overrides)
        raise TypeError(f"compress: overrides: got {got}, wanted a mapping of patterns to schemes")
    recipes = {id(layer): recipe for layer in layers}
    for pattern, scheme in (overrides or {}).items():
        other = as_recipe(f"compress: overrides: {pattern!r}", scheme, request.batch)
        for layer in selection.matching(model, layers, "overrides", pattern):
            recipes[id(layer)] = other
            if layer.partner:
                recipes[id(layer.partner)] = other
    return recipes


def _why_not(layer: Layer, recipe: Recipe) -> str:
    """Why the recipe has nothing for a layer."""
    if recipe.store is None:
        return selection.why_not_pruned(layer)
    dense = recipe.forms(next(selection.weights(layer.module)).dtype)[1]
    return _why_groups(layer.module, dense) if dense else ""


def _why_groups(module: Any, scheme: Quantize) -> str:
    """Why a format cannot hold the groups of a convolution: its blocks of rows lie across them."""
    if not isinstance(module, _CONVOLUTIONS) or module.groups == 1:
        return ""
    rows = module.out_channels // module.groups
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        rows *= math.prod(module.kernel_size)
    elif module.groups == module.in_channels == module.out_channels:
        return ""  # depthwise: all rows are one weight
    try:
        quantize_groups(torch.zeros(2 * rows, 1), 2, scheme.quantize)
    except ValueError as error:
        return str(error)
    return ""


def _check_layer(layer: Layer, recipe: Recipe) -> None:
    """Raises what replacing the layer would raise, without the memory that replacing it takes."""
    module, start = layer.module, f"compress: model: layer {layer.names[0]!r}"
    for parameter in module.parameters():
        if parameter.device.type != "cpu":
            raise RuntimeError(f"{start} is on {parameter.device}; move the model to the CPU first")
    module = folded(module)
    with naming(layer):
        for name, parameter in module.named_parameters():
            if "bias" in name.rpartition(".")[2]:
                _check.floating(type(module).__name__, name, parameter)
        for weight in _matrices(module):
            if isinstance(module, nn.Linear) or is_conv1d(module):
                _check.bias("Linear", module.bias, len(weight))  # type: ignore[arg-type]
            low, high = weight.aminmax(dim=1)  # NaN if one is
            bad = (~(low.isfinite() & high.isfinite())).nonzero().flatten().tolist()
            if bad:
                shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
                raise ValueError(f"weight: NaN or infinity in row(s) {shown}")
            for form in recipe.forms(weight.dtype):
                if form is not None:
                    form.quantize(weight[:1])


def _matrices(module: nn.Module) -> Iterator[Tensor]:
    """The weights of a layer, of two dimensions each."""
    if isinstance(module, nn.Linear) or is_conv1d(module):
        yield dense_weight(module)
    else:
        yield from (weight.detach().flatten(1) for weight in selection.weights(module))
