"""Calibration batches, and the state that a model is run over them in."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from .. import _check

Batches: TypeAlias = Iterable[Any]


def sized(function: str, batches: Batches) -> Collection[Any]:
    """The batches, of which there must be some, with their number: without it there is no ETA.

    Those that have no ``len()`` are read into a list.
    """
    if isinstance(batches, Tensor | str | Mapping) or not isinstance(batches, Iterable):
        raise TypeError(
            f"{function}: calibration: got {_check.describe(batches)}, wanted an iterable of "
            "batches: tensors, tuples of arguments or dicts of keyword arguments"
        )
    found = batches if isinstance(batches, Collection) else list(batches)
    if len(found) == 0:
        raise ValueError(f"{function}: calibration: is empty, wanted at least one batch")
    return found


def call(function: str, model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch: a tensor, a tuple of arguments or a dict of keyword arguments."""
    args, kwargs = arguments(function, batch)
    return model(*args, **kwargs)


def arguments(function: str, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with for a batch: positional and keyword arguments."""
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    raise TypeError(
        f"{function}: calibration: got a batch of {type(batch).__name__}, wanted a tensor, a tuple "
        "of arguments or a dict of keyword arguments"
    )


def token_mask(model: nn.Module, batch: Any) -> Tensor | None:
    """False where a token is padding, bool [B, S]; None where the batch has no padding."""
    if isinstance(batch, Mapping):
        mask = batch.get("attention_mask")
    elif isinstance(batch, tuple | list):
        names = list(inspect.signature(model.forward).parameters)[: len(batch)]
        mask = dict(zip(names, batch, strict=False)).get("attention_mask")
    else:
        mask = None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    kept = mask != 0
    return None if kept.all() else kept


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards each module is in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
