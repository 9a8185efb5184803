"""preview(): what compress() would do, without doing it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import selection
from .decisions import Decisions, Overrides, Request, Steps, decide
from .fitting import why_not_fitted
from .folding import folded, matrices
from .recipe import Recipe
from .reporting.table import shape_text, size_text, table
from .selection import LeftAlone, Patterns
from .sparse_choice import Batch


@dataclass(frozen=True)
class LayerPreview:
    """What would be done to one layer.

    Attributes
    ----------
    name : str
        In the model.
    shape : tuple of int
        Of its weight.
    format : str
        What it would be stored in, with the group size after a colon.
    method : str
        How it would be pruned and rounded.
    sparsity : float or None
        The share of zeros that is asked for; None without pruning.
    rank : int or None
        Of the correction.
    bytes_before, bytes_after : int
        Of its weights; packed, in a dense format: what zeros save depends on where they are.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    method: str
    sparsity: float | None
    rank: int | None
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Preview:
    """What :func:`preview` found; ``str()`` is a plain table.

    Attributes
    ----------
    layers : tuple of LayerPreview
        That would be replaced.
    left_alone : tuple of LeftAlone
        Layers that would not be, and why.
    wants_calibration : str
        The method that cannot do without one; "" where all can.
    """

    layers: tuple[LayerPreview, ...]
    left_alone: tuple[LeftAlone, ...]
    wants_calibration: str

    def to_dict(self) -> dict[str, Any]:
        """The preview as plain dicts, tuples, strings and numbers.

        Returns
        -------
        dict
            With the attributes as keys; ``json.dumps`` takes it.
        """
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        header = ["layer", "shape", "format", "method", "zeros", "rank", "before", "after"]
        rows = [_line(layer) for layer in self.layers]
        parts = [table(header, rows, 1)]
        if self.left_alone:
            alone = [
                [item.name, item.kind, shape_text(item.shape), item.reason]
                for item in self.left_alone
            ]
            parts.append("left alone:\n" + table(["layer", "class", "shape", "reason"], alone, 4))
        before = sum(layer.bytes_before for layer in self.layers)
        after = sum(layer.bytes_after for layer in self.layers)
        needs = self.wants_calibration
        last = f"{len(self.layers)} layers: {size_text(before)} -> about {size_text(after)}"
        parts.append(f"{last}; {needs} needs a calibration" if needs else last)
        return "\n\n".join(parts)


def preview(
    model: nn.Module,
    scheme: Steps | Path,
    targets: Patterns = None,
    ignore: Patterns = None,
    *,
    overrides: Overrides | None = None,
    batch: Batch | None = None,
) -> Preview:
    """Say what :func:`gossamer.compress` would do; nothing is changed.

    Parameters
    ----------
    model : nn.Module
        On the CPU.
    scheme : str, path, Quantize, Prune, or a list
        As of :func:`gossamer.compress`.
    targets, ignore : pattern or sequence of patterns, optional
        As there.
    overrides : mapping of patterns to schemes, optional
        As there.
    batch : int, "large" or a tuple of these, optional
        As there.

    Returns
    -------
    Preview
        ``print`` it for a table, ``.to_dict()`` for JSON.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        Whatever compress() would raise before it changes anything.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    >>> found = gs.preview(model, gs.Quantize("int4-g32", method="gptq"), ignore="1")
    >>> found.layers[0].format, found.layers[0].method, found.wants_calibration
    ('int4:32', 'gptq', 'gptq')
    """
    decisions = decide(model, Request(scheme, targets, ignore, overrides, batch))
    wanting = (decisions.recipe_of(layer).wants_calibration for layer in decisions.chosen)
    return Preview(
        tuple(_layers(decisions)),
        tuple(selection.left_alone(layer) for layer in decisions.layers if layer.reason),
        next(filter(None, wanting), ""),
    )


def _layers(decisions: Decisions) -> list[LayerPreview]:
    found = []
    for layer in decisions.chosen:
        recipe = decisions.recipe_of(layer)
        fitted = not why_not_fitted(layer)
        weights = [weight for _, weight in matrices(folded(layer.module))]
        pruned = recipe.prune if not selection.why_not_pruned(layer) else None
        store = recipe.store.resolved() if recipe.store else None
        suffix = f":{store.group_size}" if store and store.group_size else ""
        found.append(
            LayerPreview(
                layer.names[0],
                tuple(next(selection.weights(layer.module)).shape),
                f"{store.format}{suffix}" if store else str(weights[0].dtype).split(".")[1],
                recipe.method if fitted else "rtn",
                pruned.sparsity if pruned else None,
                recipe.correction.rank if recipe.correction else None,
                sum(weight.nbytes for weight in weights),
                sum(_bytes_after(weight, recipe) for weight in weights),
            )
        )
    return found


def _bytes_after(weight: torch.Tensor, recipe: Recipe) -> int:
    dense = recipe.forms(weight.dtype)[1]
    return weight.nbytes if dense is None else dense.quantize(torch.zeros(weight.shape)).nbytes


def _line(layer: LayerPreview) -> list[str]:
    return [
        layer.name,
        shape_text(layer.shape),
        layer.format,
        layer.method,
        "-" if layer.sparsity is None else f"{layer.sparsity:.0%}",
        str(layer.rank or "-"),
        size_text(layer.bytes_before),
        size_text(layer.bytes_after),
    ]
