"""How compress() swaps layers: pruned, folded and packed one by one, each in all its places."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import nn as packed_nn
from . import selection
from ._progress import Progress
from .correcting import Correcting
from .folding import assign_values, folded, from_matrix, matrices, with_values
from .nn.linear import is_conv1d
from .packed_names import packed_weights
from .placing import place
from .pruning import Prune
from .pruning.selecting import Cut
from .recipe import Recipe, share_of_zeros
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
    recipe : Recipe
        What is done to each.
    cuts : dict
        By layer, by identity, and name of a weight: where it is divided into what stays and what
        becomes zero. Layers that are not pruned are not in it.
    kept_dense : list of KeptDense
        Is told of the layers that could have been sparse.
    correcting : Correcting or None
        What adds the corrections, and is told of all layers.
    """

    recipe: Recipe
    cuts: dict[int, dict[str, Cut | None]]
    kept_dense: list[KeptDense]
    correcting: Correcting | None
    done: set[int] = field(default_factory=set)  # layers, by identity


def replace_all(
    chosen: Sequence[Layer],
    recipe: Recipe,
    kept_dense: list[KeptDense],
    correcting: Correcting | None,
    progress: bool | None,
) -> None:
    """Replace layers, and list those that could have been sparse. All checks have been passed."""
    prune = recipe.prune
    cuts = {} if prune is None else _find_cuts(chosen, prune, progress)
    replacing = Replacing(recipe, cuts, kept_dense, correcting)
    sizes = [sum(weight.numel() for weight in selection.weights(it.module)) for it in chosen]
    doing = "fitting corrections" if correcting else "packing layers"
    with Progress(doing, sum(sizes), progress) as shown:
        for layer, size in zip(chosen, sizes, strict=True):
            _replace(layer, replacing)
            shown.advance(size)


@contextlib.contextmanager
def naming(layer: Layer) -> Iterator[None]:
    """Says in an error which layer it comes from."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        raise type(error)(f"compress: model: layer {layer.names[0]!r}: {error}") from error


def _find_cuts(
    chosen: Sequence[Layer], prune: Prune, progress: bool | None
) -> dict[int, dict[str, Cut | None]]:
    """Where all weights that are pruned are divided. Each is read alone; none is changed."""
    found: list[tuple[Layer, str]] = []
    total = 0
    for layer in chosen:
        if not selection.why_not_pruned(layer):
            for name, weight in matrices(folded(layer.module)):
                found.append((layer, name))
                total += weight.numel()

    def reader(layer: Layer, name: str) -> Callable[[], Tensor]:
        return lambda: dict(matrices(folded(layer.module)))[name]

    with Progress("looking for the smallest weights", 2 * total, progress) as shown:
        cuts = prune.cuts([reader(*weight) for weight in found], shown.advance)
    by_layer: dict[int, dict[str, Cut | None]] = {}
    for (layer, name), cut in zip(found, cuts, strict=True):
        by_layer.setdefault(id(layer), {})[name] = cut
    return by_layer


def _replace(layer: Layer, replacing: Replacing) -> None:
    """Swap a layer in all its places. Nothing refers to the dense one afterwards."""
    if id(layer) in replacing.done:
        return  # a head, replaced with the embedding that is tied to it
    replacing.done.add(id(layer))
    old, recipe = layer.module, replacing.recipe
    kind = nn.Linear if is_conv1d(old) else selection.base_kind(old, tuple(REPLACEMENTS))
    shared = {}
    if layer.partner and kind is nn.Embedding:
        _replace(layer.partner, replacing)
        shared = {"head": layer.partner.module}
    original = folded(old)
    dense, lost = _pruned(layer, original, replacing)
    weights = [weight for _, weight in matrices(dense)]
    both = (layer, layer.partner) if layer.partner else (layer,)
    insist = any(each.named_in_full for each in both)
    storage = recipe.storage(weights, selection.why_not_sparse(layer), insist)
    if storage.reason and not shared:
        form = storage.scheme.resolved().format if storage.scheme else _dtype_name(weights[0])
        zeros = share_of_zeros(weights)
        replacing.kept_dense.append(KeptDense(layer.names[0], form, zeros, storage.reason))
    new: nn.Module | None = None
    if replacing.correcting:
        with naming(layer):
            new = replacing.correcting.replacement(layer, original, dense, storage.scheme)
            lost = lost if new is None else {}  # counted in its error already
    if storage.scheme is None:
        if dense is not old:
            assign_values(old, {name: value.detach() for name, value in dense.named_parameters()})
        return
    if new is None:
        with naming(layer):
            new = REPLACEMENTS[kind](dense, storage.scheme, **shared)  # type: ignore[index]  # selection saw to it
    _remember(new, lost, recipe)
    place(layer, new)


def _pruned(
    layer: Layer, dense: nn.Module, replacing: Replacing
) -> tuple[nn.Module, dict[str, tuple[float, float]]]:
    """A copy with zeros, and by weight the norms of what became zero and of what is left."""
    cuts, prune = replacing.cuts.get(id(layer)), replacing.recipe.prune
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
