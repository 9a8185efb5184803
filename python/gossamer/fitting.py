"""How compress() fits layers to calibration data: block by block, and each layer in turn.

The blocks of a model are passed through in order. Of each: the statistics of what its layers are
given are taken, by running it over the outputs of the blocks before it as they are now stored;
scales are moved between its layers; each layer is pruned, rounded and packed; and the block, now
packed, computes what the next one is given.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import cast

from torch import Tensor, nn

from ._progress import Progress
from .calibration import (
    Batches,
    Block,
    Statistics,
    block_names,
    cached_bytes,
    stream,
    whole_model,
)
from .calibration.precision import in_bf16
from .calibration.sample import sample_rows
from .calibration.scalable import find_scalable, fold, scaled
from .fits import CalibrationRecord
from .fitting_layers import Fitting, learn, matrix, prepare, round_and_pack
from .folding import folded
from .nn.linear import is_conv1d
from .pruning import Weighed, layer_sparsity
from .recipe import Recipe
from .replacing import find_cuts, replace
from .resuming import Finished
from .selection import Layer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_ROWS_TO_START = 8192  # of x, by which the scales that learning begins with are searched


def why_not_fitted(layer: Layer) -> str:
    """Why a layer is rounded to nearest, whatever the method; "" where it is not."""
    module = layer.module
    if layer.partner:
        return f"shares its packed weight with {layer.partner.names[0]}"
    if isinstance(module, _CONVOLUTIONS) and module.groups > 1:
        return "convolutions in groups are rounded to nearest"
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or is_conv1d(module):
        return ""
    return f"{type(module).__name__} is rounded to nearest"


def fit_alone(chosen: Sequence[Layer], fitting: Fitting, progress: bool | None) -> None:
    """Replace layers by methods that look at weights only. All checks have been passed."""
    find_cuts(chosen, fitting.replacing, progress)
    with Progress("rounding layers", len(chosen), progress) as shown:
        for layer in chosen:
            if layer.names[0] in fitting.layers:
                round_and_pack(prepare(layer, fitting, None), None, fitting)
            else:
                replace(layer, fitting.replacing)
            shown.advance(1)


def fit_blocks(
    model: nn.Module,
    chosen: Sequence[Layer],
    fitting: Fitting,
    batches: Batches,
    finished: Finished,
    progress: bool | None,
) -> CalibrationRecord:
    """Replace layers by what fits what they are given. All checks have been passed."""
    start, cached, largest, count, model_seconds = time.perf_counter(), 0, 0, 0, 0.0
    replacing, layers = fitting.replacing, fitting.layers
    find_cuts(chosen, replacing, progress)
    modules = {name: layer.module for name, layer in layers.items()}
    _compare_layers(model, fitting, batches, progress)
    learns = any(replacing.recipe_of(layer).learns for layer in layers.values())
    # Closed in any case, so that the model gets its modes back.
    with contextlib.closing(
        _named(
            stream(
                model,
                modules,
                batches,
                keep_dense=learns,
                bf16=in_bf16(modules.values()),
                progress=progress,
            )
        )
    ) as blocks:
        for block in blocks:
            count = len(block.calls)
            if block.name:
                cached = max(cached, cached_bytes(block.calls) * (3 if learns else 1))
                largest = max(largest, sum(it.nbytes for it in block.module.parameters()))
            if finished.load(block, fitting):
                for name in block.layers:
                    layers[name].module = model.get_submodule(name)
                    replacing.done.add(id(layers[name]))
            else:
                _fit_block(block, fitting)
                finished.save(block, fitting)
            model_seconds = max(model_seconds, block.clock.total)
    for layer in chosen:
        replace(layer, replacing)
    return CalibrationRecord(count, cached, largest, time.perf_counter() - start, model_seconds)


def _fit_block(block: Block, fitting: Fitting) -> None:
    """Scale, prune, round and pack the layers of one block."""
    layers = [fitting.layers[name] for name in block.layers]
    recipes = {fitting.recipe_of(layer) for layer in layers}
    needs = {recipe.needs for recipe in recipes}

    def measured() -> dict[str, Statistics]:
        with _telling_of_compress():
            return block.statistics(
                moments="moment" in needs,
                histograms=any(recipe.scales_inputs for recipe in recipes),
                rows=_ROWS_TO_START if all(it.only_learns for it in recipes) else None,
            )

    statistics = {} if needs == {"nothing"} else _scale(block, fitting, measured())
    if any(recipe.scalings and recipe.scales_inputs for recipe in recipes):
        statistics = measured()  # histograms cannot be scaled
    ready = {
        layer.names[0]: prepare(layer, fitting, statistics.get(layer.names[0])) for layer in layers
    }
    learn(block, ready, fitting, statistics)
    for name in list(ready):
        round_and_pack(ready.pop(name), statistics.pop(name, None), fitting)


def _scale(
    block: Block, fitting: Fitting, statistics: dict[str, Statistics]
) -> dict[str, Statistics]:
    """Move scales from what layers are given into their weights; the statistics afterwards."""
    recipes = {name: fitting.replacing.recipe_of(fitting.layers[name]) for name in block.layers}
    if not any(recipe.scalings for recipe in recipes.values()):
        return statistics
    after, samples = dict(statistics), sample_rows(block)
    for scalable in find_scalable(block, fitting.scalables):
        names = list(scalable.consumers)
        recipe = recipes.get(names[0])
        if recipe is None or any(recipes.get(name) != recipe for name in names):
            continue  # what helps one would be lost on the others
        assert recipe.store is not None
        for scaling in recipe.scalings:
            tie = scalable.columns
            if tie is None or names[0] not in samples:
                continue
            weights = [matrix(block.layers[name]).float() for name in names]
            given, x = after[names[0]], samples[names[0]]
            s = scaling.scales(weights, given, recipe.store.resolved(), tie=tie, x=x)
            fold(scalable, s)
            after.update(dict.fromkeys(names, scaled(given, s)))
            samples.update({name: samples[name] / s for name in names if name in samples})
    for name, x in samples.items():
        if recipes[name].wants_exact(matrix(block.layers[name]), x):
            fitting.exact.add(name)
    return after


def _compare_layers(
    model: nn.Module, fitting: Fitting, batches: Batches, progress: bool | None
) -> None:
    """What the zeros of one layer depend on the others for, which takes a pass of the model."""
    by_recipe: dict[Recipe, list[str]] = {}
    for name, layer in fitting.layers.items():
        recipe = fitting.replacing.recipe_of(layer)
        if recipe.compares_layers:
            by_recipe.setdefault(recipe, []).append(name)
    for recipe, names in by_recipe.items():
        assert recipe.prune is not None
        modules = {name: fitting.layers[name].module for name in names}
        with _telling_of_compress():
            statistics = whole_model(model, modules, batches, progress=progress).statistics(
                moments=False
            )
        readers = {name: partial(_read, module) for name, module in modules.items()}
        if recipe.prune.allocation_settings:
            weighed = {name: Weighed(readers[name], statistics[name].squares) for name in names}
            blocks = block_names(model, modules, batches)
            fitting.sparsity |= layer_sparsity(recipe.prune, weighed, blocks)
            continue
        scores = [partial(_score, recipe, readers[name], statistics[name]) for name in names]
        for name, cut in zip(names, recipe.prune.cuts(scores), strict=True):
            fitting.replacing.cuts[id(fitting.layers[name])] = {"weight": cut}


def _read(module: nn.Module) -> Tensor:
    return matrix(folded(module))


def _score(recipe: Recipe, read: partial[Tensor], statistics: Statistics) -> Tensor:
    assert recipe.prune is not None
    return recipe.prune.scores(read(), statistics)


@contextlib.contextmanager
def _telling_of_compress() -> Iterator[None]:
    """Errors of the calibration name the argument of compress() that they come from."""
    try:
        yield
    except (TypeError, ValueError) as error:
        own = str(error).removeprefix("stream: ")
        if own == str(error):  # of the model
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"compress: calibration: {own.removeprefix('calibration: ')}") from error


def _named(blocks: Iterator[Block]) -> Generator[Block, None, None]:
    with contextlib.closing(cast(Generator[Block, None, None], blocks)):
        while True:
            with _telling_of_compress():
                block = next(blocks, None)
            if block is None:
                return
            yield block
