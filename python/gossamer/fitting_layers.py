"""How compress() fits one layer: pruned, rounded to what its inputs tell, and packed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from .calibration import Block, Statistics
from .calibration.output_error import root, squared_norm, weighted_square
from .calibration.scalable import Known
from .correcting import Prepared
from .fits import LayerFit
from .folding import assign_values, folded, from_matrix, matrices, with_values
from .formats import Format
from .formats.grids import fit_grid
from .placing import is_packed
from .quantization import RTN, corrected_bias, static_scale
from .recipe import Recipe
from .replacing import Replacing, finish, naming, pruned, storage
from .schemes import Quantize
from .selection import Layer


@dataclass
class Fitting:
    """What is known while the layers of a model are fitted.

    Attributes
    ----------
    replacing : Replacing
        Recipes, and what they have led to so far.
    layers : dict
        By name: those that are fitted; all others are rounded by themselves.
    results : list of LayerFit
        Is told of every layer.
    sparsity : dict
        By name: the share of zeros, where layers differ.
    scalables : dict
        What find_scalable() knows from the blocks before.
    exact : set of str
        Layers that lose too much where x is rounded.
    """

    replacing: Replacing
    layers: dict[str, Layer]
    results: list[LayerFit] = field(default_factory=list)
    sparsity: dict[str, float] = field(default_factory=dict)
    scalables: Known = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)

    def recipe_of(self, layer: Layer) -> Recipe:
        """What is done to a layer."""
        return self.replacing.recipe_of(layer)


@dataclass
class Ready:
    """A layer that is pruned and about to be rounded.

    Attributes
    ----------
    prepared : Prepared
        The layer, as it was and with zeros, and how it will be stored.
    W : Tensor
        Float32 [N, K]: what is rounded.
    keep : Tensor or None
        Bool [N, K]: which weights stay; None: all.
    rounded : Format or None
        What it is rounded to, where that is known already.
    """

    prepared: Prepared
    W: Tensor
    keep: Tensor | None = None
    rounded: Format | None = None


@dataclass(frozen=True)
class Rounded(Quantize):
    """A scheme that says by itself how it rounds."""

    rounds: Callable[[Tensor], Format] | None = None

    def quantize(self, W: Tensor) -> Format:
        """Round a weight."""
        assert self.rounds is not None
        return self.rounds(W)


def matrix(layer: nn.Module) -> Tensor:
    """The weight of a layer that is fitted, as [N, K]."""
    return next(W for _, W in matrices(layer))


def prepare(layer: Layer, fitting: Fitting, statistics: Statistics | None) -> Ready:
    """Prune a layer, and decide how it will be stored."""
    replacing, recipe, original = fitting.replacing, fitting.recipe_of(layer), folded(layer.module)
    if recipe.prune is None or recipe.prunes_by_magnitude:
        dense, norms = pruned(layer, original, replacing)
        W = matrix(dense).float()
        keep = W != 0 if recipe.looks_at_zeros else None
        how = storage(layer, [W], replacing)
        return Ready(Prepared(layer, original, dense, how, norms), W, keep)
    W = matrix(original)
    form = recipe.joint_form
    with naming(layer):
        grid = None
        if form is not None:
            grid = fit_grid(form.format, form.group_size, form.settings, W.float())
        found = recipe.prune.apply(
            W,
            statistics,
            sparsity=fitting.sparsity.get(layer.names[0]),
            cut=replacing.cuts.get(id(layer), {}).get("weight"),
            grid=grid,
        )
    how = storage(layer, [found.values], replacing)
    shape = layer.module.get_parameter("weight").shape
    values = {"weight": from_matrix(original, found.values.to(W.dtype), shape)}
    lost, kept = (math.sqrt(squared_norm(part)) for part in (W - found.values, found.values))
    prepared = Prepared(
        layer, original, with_values(original, values), how, {"weight": (lost, kept)}
    )
    ready = Ready(prepared, found.values, found.keep)
    if found.codes is not None and how.scheme:
        sparse = how.scheme.resolved().format.startswith("sparse-")
        ready.rounded = found.to_format(sparse=sparse)
    return ready


def learn(
    block: Block,
    ready: Mapping[str, Ready],
    fitting: Fitting,
    statistics: Mapping[str, Statistics],
) -> None:
    """Round together the layers that are, by what the block computes."""
    by_recipe: dict[Recipe, dict[str, Ready]] = {}
    for name, item in ready.items():
        recipe = fitting.recipe_of(item.prepared.layer)
        if recipe.learns and item.prepared.storage.scheme is not None:
            by_recipe.setdefault(recipe, {})[name] = item
    first = block.calls[0].args
    if not by_recipe or not first or not first[0].is_floating_point():
        return  # what is given to the model as a whole is no hidden state: each layer by itself
    # The block that is the whole model has no dense twin.
    targets = block.dense_outputs or block.outputs(block.calls)
    for recipe, items in by_recipe.items():
        layers, keep = {}, {}
        for name, item in items.items():
            prepared, module = item.prepared, item.prepared.layer.module
            scheme = prepared.storage.scheme
            assert scheme is not None
            if prepared.dense is not prepared.original:  # the block is to run with the zeros
                weight = module.get_parameter("weight").detach().clone()
                prepared.original = with_values(prepared.original, {"weight": weight})
                assign_values(module, {"weight": prepared.dense.get_parameter("weight").detach()})
            layers[name] = module, scheme.resolved()
            if item.keep is not None:
                keep[name] = item.keep
        found = recipe.rounding.learn(
            block.module,
            layers,
            block.calls,
            targets,
            keep=keep,
            masks=block.masks,
            statistics=statistics,
        )
        for name, item in items.items():
            item.rounded = found[name]


def round_and_pack(item: Ready, statistics: Statistics | None, fitting: Fitting) -> None:
    """Round a layer, pack it, and put it in its places."""
    prepared, layer = item.prepared, item.prepared.layer
    recipe, original = fitting.recipe_of(layer), matrix(item.prepared.original)
    if prepared.storage.scheme is None:  # zeros are written into the layer, which stays
        original = original.clone()
    method = recipe.method
    if recipe.learns and item.rounded is None:
        method = method.replace(recipe.rounding.name, RTN.name)
    if prepared.storage.scheme is not None and recipe.rounding is not None:
        scheme = _rounded(item, recipe, statistics)
        if layer.names[0] in fitting.exact:
            scheme = replace(scheme, activations="exact")
        prepared.storage = replace(prepared.storage, scheme=scheme)
        static = scheme.resolved().static_scale
        if statistics is not None and static is not None:
            prepared.input_scale = static_scale(statistics, static) / 127
    moment = statistics.moment if statistics else None
    if recipe.correction and moment is not None:
        fitting.replacing.moments[id(layer)] = moment
    finish(prepared, fitting.replacing)
    error = None
    if statistics is not None and (moment is not None or recipe.corrects_bias):
        error = _compare(layer.module, original.float(), statistics, recipe)
    fitting.results.append(LayerFit(layer.names[0], method, error))


def _compare(new: Any, W: Tensor, statistics: Statistics, recipe: Recipe) -> float | None:
    """Correct the bias of a new layer by what it makes of W, and tell the error of its outputs."""
    stored = new.quantized().dequantize() if is_packed(new) else matrix(new).float()
    E = W - stored
    if is_packed(new):
        new.weight_error = root(squared_norm(E), squared_norm(W))
    if recipe.corrects_bias and new.bias is not None:
        with torch.no_grad():
            new.bias.copy_(corrected_bias(W, stored, new.bias, statistics.mean))
    moment = statistics.moment
    if moment is None:
        return None
    return root(weighted_square(E, moment), weighted_square(W, moment))


def _rounded(item: Ready, recipe: Recipe, statistics: Statistics | None) -> Rounded:
    """How the weight is rounded; a correction may ask again, for what it leaves."""
    how = item.prepared.storage.scheme
    assert how is not None
    rounding = RTN() if recipe.learns else recipe.rounding  # of what was not learned
    scheme, keep = how.resolved(), item.keep
    known = [] if item.rounded is None else [item.rounded]

    def rounds(W: Tensor) -> Format:  # knows no item, which knows it: both are freed at once
        return known.pop() if known else rounding.round(W.float(), scheme, statistics, keep)

    settings = {each.name: getattr(how, each.name) for each in fields(Quantize)}
    return Rounded(**settings, rounds=rounds)
