"""Samples of what a block is called with, to try things on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .batches import evaluating
from .calls import Call, tensors_of
from .rows import input_rows, without_padding
from .stream import Block

_ROWS = 8  # of a sample that is a matrix
_CALLS = 4  # that rows are taken from

Run: TypeAlias = Callable[[], list[Tensor]]


def sample_of(block: Block) -> Run:
    """Run the block on a part of its first call."""
    if not block.calls:
        raise ValueError("find_scalable: block: has no calls")

    def run(call: Call) -> list[Tensor]:
        args = [x.clone() if isinstance(x, Tensor) else x for x in call.args]  # it may write to x
        return list(tensors_of(block.module(*args, **call.kwargs)))

    part = _first_sample(block.calls[0])
    try:
        run(part)
    except Exception:  # what is not the batch was cut, too
        part = block.calls[0]
    return lambda: run(part)


def _first_sample(call: Call) -> Call:
    """The call with the first sample of what seems to be the batch only."""
    first = next(tensors_of([call.args, call.kwargs]), None)
    if first is None or first.dim() < 2:
        return call
    batch = first.shape[0]
    rows = _ROWS if first.dim() == 2 and first.is_floating_point() else 1

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == batch:
            return value[:rows]
        if type(value) in (tuple, list):
            return type(value)(map(cut, value))
        return {key: cut(item) for key, item in value.items()} if type(value) is dict else value

    return Call(cut(call.args), cut(call.kwargs))


def is_unchanged(
    after: list[Tensor], alone: list[Tensor], outputs: list[Tensor], tolerance: float
) -> bool:
    """Whether outputs are the same after a change and what makes up for it.

    They are compared with what the change alone does to them, which must be something.
    """
    effects = [_distance(x, y) for x, y in zip(alone, outputs, strict=True)]
    return any(effect > 0 for effect in effects) and all(
        _distance(x, y) <= tolerance * effect
        for x, y, effect in zip(after, outputs, effects, strict=True)
    )


def rounding_tolerance(weight: Tensor) -> float:
    """For :func:`is_unchanged`, where rounded weights leave about eps and a mistake about 1."""
    return math.sqrt(torch.finfo(weight.dtype).eps) / 4


def _distance(x: Tensor, y: Tensor) -> float:
    return math.inf if x.shape != y.shape else float((x.double() - y.double()).norm())


def sample_rows(block: Block, count: int = 256) -> dict[str, Tensor]:
    """Some of the rows that each layer of a block is given.

    Parameters
    ----------
    block : Block
        Runs, as it is now, over up to four of its calls.
    count : int
        Rows of each layer, if there are so many.

    Returns
    -------
    dict of str to Tensor
        By layer, shape (R, K), spread evenly over the tokens (positions) of these calls. Layers
        that are not called are missing. Padding is left out.
    """
    found: dict[str, list[Tensor]] = {}
    calls = range(0, len(block.calls), -(-len(block.calls) // _CALLS))
    share = -(-count // len(calls))
    mask: Tensor | None = None

    def hook_of(name: str) -> Any:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = without_padding(next(tensors_of([args, kwargs])), mask)
            rows = torch.cat(list(input_rows(module, x)))
            found.setdefault(name, []).append(rows[:: -(-max(1, len(rows)) // share)].clone())

        return before

    hooks = [
        layer.register_forward_pre_hook(hook_of(name), with_kwargs=True)
        for name, layer in block.layers.items()
    ]
    try:
        with evaluating(block.module):
            for index in calls:
                mask = block.masks[index] if block.masks else None
                block.output(block.calls[index])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}
