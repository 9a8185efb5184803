"""How compress() swaps layers: pruned, folded and packed one by one, each in all its places."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import nn as packed_nn
from . import selection
from ._progress import Progress
from .correcting import Prepared, corrected
from .factorization.correction import LayerCorrection
from .folding import assign_values, folded, from_matrix, matrices, with_values
from .nn.linear import is_conv1d
from .packed_names import packed_weights
from .placing import place
from .pruning.selecting import Cut
from .recipe import Recipe, Storage, share_of_zeros
from .selection import KeptDense, Layer
from .sparse_choice import USUAL_BATCH

# What replaces a layer of torch, for compress(). A new layer is a line here. The Conv1D of
# transformers, which may not be installed, is replaced as nn.Linear is.
REPLACEMENTS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: packed_nn.Linear.from_dense,
    nn.Conv1d: packed_nn.Conv1d.from_dense,
    nn.Conv2d: packed_nn.Conv2d.from_dense,
    nn.ConvTranspose1d: packed_nn.ConvTranspose1d.from_dense,
    nn.ConvTranspose2d: packed_nn.ConvTranspose2d.from_dense,
    nn.Embedding: packed_nn.Embedding.from_dense,
    nn.EmbeddingBag: packed_nn.EmbeddingBag.from_dense,
    nn.LSTM: packed_nn.LSTM.from_dense,
    nn.GRU: packed_nn.GRU.from_dense,
    nn.RNN: packed_nn.RNN.from_dense,
    nn.LSTMCell: packed_nn.LSTMCell.from_dense,
    nn.GRUCell: packed_nn.GRUCell.from_dense,
    nn.RNNCell: packed_nn.RNNCell.from_dense,
    nn.MultiheadAttention: packed_nn.MultiheadAttention.from_dense,
}


@dataclass
class Replacing:
    """What is known while layers are replaced.

    Attributes
    ----------
    recipes : dict
        By layer, by identity: what is done to it.
    kept_dense : list of KeptDense
        Is told of the layers that could have been sparse.
    corrections : list of LayerCorrection
        Is told of all layers that are to be corrected.
    cuts : dict
        By layer and name of a weight: where it is divided into what stays and what becomes zero.
        Layers that are not pruned by magnitude are not in it.
    moments : dict
        By layer: E[x xᵀ] of its inputs, for its correction.
    done : set
        Layers that were replaced.
    """

    recipes: dict[int, Recipe]
    kept_dense: list[KeptDense]
    corrections: list[LayerCorrection]
    cuts: dict[int, dict[str, Cut | None]] = field(default_factory=dict)
    moments: dict[int, Tensor] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def recipe_of(self, layer: Layer) -> Recipe:
        """What is done to a layer."""
        return self.recipes[id(layer)]


def replace_all(chosen: Sequence[Layer], replacing: Replacing, progress: bool | None) -> None:
    """Replace layers by what is known of them alone. All checks have been passed."""
    find_cuts(chosen, replacing, progress)
    sizes = [sum(weight.numel() for weight in selection.weights(it.module)) for it in chosen]
    corrected = any(replacing.recipe_of(layer).correction for layer in chosen)
    doing = "fitting corrections" if corrected else "packing layers"
    with Progress(doing, sum(sizes), progress) as shown:
        for layer, size in zip(chosen, sizes, strict=True):
            replace(layer, replacing)
            shown.advance(size)


@contextlib.contextmanager
def naming(layer: Layer) -> Iterator[None]:
    """Says in an error which layer it comes from."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        raise type(error)(f"compress: model: layer {layer.names[0]!r}: {error}") from error


def find_cuts(chosen: Sequence[Layer], replacing: Replacing, progress: bool | None) -> None:
    """Where weights pruned by magnitude are divided. Each is read alone; none is changed."""
    by_recipe: dict[Recipe, list[tuple[Layer, str]]] = {}
    total = 0
    for layer in chosen:
        recipe = replacing.recipe_of(layer)
        if recipe.prunes_by_magnitude and not selection.why_not_pruned(layer):
            for name, weight in matrices(folded(layer.module)):
                by_recipe.setdefault(recipe, []).append((layer, name))
                total += weight.numel()

    def reader(layer: Layer, name: str) -> Callable[[], Tensor]:
        return lambda: dict(matrices(folded(layer.module)))[name]

    if not total:
        return
    with Progress("looking for the smallest weights", 2 * total, progress) as shown:
        for recipe, found in by_recipe.items():
            assert recipe.prune is not None
            cuts = recipe.prune.cuts([reader(*weight) for weight in found], shown.advance)
            for (layer, name), cut in zip(found, cuts, strict=True):
                replacing.cuts.setdefault(id(layer), {})[name] = cut


def replace(layer: Layer, replacing: Replacing) -> None:
    """Swap a layer in all its places, rounded to nearest. Nothing refers to the dense one after."""
    if id(layer) in replacing.done:
        return  # a head, replaced with the embedding that is tied to it
    original = folded(layer.module)
    dense, norms = pruned(layer, original, replacing)
    how = storage(layer, [weight for _, weight in matrices(dense)], replacing)
    if how.scheme is not None and how.scheme.resolved().static_scale:
        # Of what it is given nothing is known: each row has a scale of its own.
        how = dataclasses.replace(how, scheme=dataclasses.replace(how.scheme, activations="int8"))
    finish(Prepared(layer, original, dense, how, norms), replacing)


def storage(layer: Layer, weights: Sequence[Tensor], replacing: Replacing) -> Storage:
    """How a layer will be stored, which is noted where it could have been sparse and is not."""
    recipe = replacing.recipe_of(layer)
    both = (layer, layer.partner) if layer.partner else (layer,)
    insist = any(each.named_in_full for each in both)
    found = recipe.storage(weights, selection.why_not_sparse(layer), insist)
    if found.reason and not _is_tied_table(layer):
        form = found.scheme.resolved().format if found.scheme else _dtype_name(weights[0])
        zeros = share_of_zeros(weights)
        replacing.kept_dense.append(KeptDense(layer.names[0], form, zeros, found.reason))
    return found


def finish(prepared: Prepared, replacing: Replacing) -> None:
    """Pack a layer, add what corrects it, and put it in its places."""
    layer, scheme, norms = prepared.layer, prepared.storage.scheme, prepared.norms
    replacing.done.add(id(layer))
    shared: dict[str, Any] = {}
    if prepared.input_scale is not None:
        shared = {"input_scale": prepared.input_scale}
    if layer.partner and _is_tied_table(layer):
        replace(layer.partner, replacing)
        shared = {"head": layer.partner.module}
    new: nn.Module | None = None
    recipe = replacing.recipe_of(layer)
    if recipe.correction:
        moment = replacing.moments.pop(id(layer), None)
        with naming(layer):
            new, result = corrected(prepared, recipe.correction, moment)
        replacing.corrections.append(result)
        norms = norms if new is None else {}  # counted in its error already
    if scheme is None:
        if prepared.dense is not layer.module:
            parameters = prepared.dense.named_parameters()
            assign_values(layer.module, {name: value.detach() for name, value in parameters})
        return
    if new is None:
        with naming(layer):
            new = REPLACEMENTS[_kind(layer.module)](prepared.dense, scheme, **shared)
    _remember(new, norms, recipe)
    place(layer, new)


def _kind(module: nn.Module) -> type[nn.Module]:
    """Which of the replaced kinds a module is."""
    if is_conv1d(module):
        return nn.Linear
    return selection.base_kind(module, tuple(REPLACEMENTS))  # type: ignore[return-value]  # selection saw to it


def _is_tied_table(layer: Layer) -> bool:
    """Whether this is the embedding of the two layers that share a weight."""
    return layer.partner is not None and _kind(layer.module) is nn.Embedding


def pruned(
    layer: Layer, dense: nn.Module, replacing: Replacing
) -> tuple[nn.Module, dict[str, tuple[float, float]]]:
    """A copy with zeros, and by weight the norms of what became zero and of what is left."""
    cuts, prune = replacing.cuts.get(id(layer)), replacing.recipe_of(layer).prune
    if cuts is None or prune is None:
        return dense, {}
    values, norms = {}, {}
    shapes = {name: parameter.shape for name, parameter in dense.named_parameters()}
    for name, weight in matrices(dense):
        mask = prune.mask(weight, cuts[name])
        lost = torch.linalg.vector_norm(weight.masked_fill(mask, 0), dtype=torch.float32)
        left = weight.masked_fill(mask.logical_not_(), 0)
        kept = torch.linalg.vector_norm(left, dtype=torch.float32)
        values[name] = from_matrix(dense, left, shapes[name])
        norms[name] = float(lost), float(kept)
    return with_values(dense, values), norms


def _remember(new: nn.Module, norms: dict[str, tuple[float, float]], recipe: Recipe) -> None:
    """Count what pruning lost as an error of the weight, and pack for the batch that is wanted."""
    for name, weight in packed_weights(new):
        full = name if name in norms else f"{name}.weight".removeprefix(".")
        if full in norms and weight.weight_error is not None:
            lost, kept = norms[full]
            total = math.hypot(lost, kept)
            error = math.hypot(lost, weight.weight_error * kept)
            weight.weight_error = error / total if total else 0.0
        if recipe.batch != USUAL_BATCH and weight.format.startswith("sparse-"):
            weight._pack_for(recipe.batch)


def _dtype_name(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")
