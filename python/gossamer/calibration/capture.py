"""What the blocks of a chain are called with, by running a model only as far as needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batches import call as run
from .blocks import Chain
from .calls import Call, Shared, hidden_first, without_cache


@dataclass
class Captured:
    """The calls of a chain.

    Attributes
    ----------
    calls : list of Call
        Of its first block, one for each batch.
    rests : list of list of Call
        For each batch, the arguments beside the hidden states: those of each block, or one for all.
    """

    calls: list[Call]
    rests: list[list[Call]]

    def call(self, batch: int, block: int, hidden: Tensor) -> Call:
        """The call of a block, given the output of the one before."""
        rests = self.rests[batch]
        return rests[block if len(rests) > 1 else 0].after(hidden)

    def copy(self) -> Captured:
        """With a list of calls of its own."""
        return Captured(list(self.calls), self.rests)


def capture(function: str, model: nn.Module, batches: Iterable[Any], chain: Chain) -> Captured:
    """Run a model, as it is now, over batches up to the first block of a chain.

    Where the arguments differ from block to block, it runs up to the last one.
    """
    names = chain.names if chain.own_arguments else chain.names[:1]
    shared = Shared()
    calls, rests = [], []
    with _restored(model) as restore:
        for batch in batches:
            found = _calls_of(function, model, batch, names)
            restore()
            rests.append([shared.call(call.rest()) for call in found])
            calls.append(rests[-1][0].after(found[0].args[0]))
    return Captured(calls, rests)


class _Reached(BaseException):
    """Ends a forward; no Exception, as models may handle those."""


def _calls_of(function: str, model: nn.Module, batch: Any, names: tuple[str, ...]) -> list[Call]:
    found: list[Call] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = hidden_first(module, args, kwargs)
        if call is None:
            raise ValueError(
                f"{function}: calibration: {names[len(found)]!r} got no tensor as its first "
                "argument for one batch, and did for another"
            )
        call = without_cache(module, call)
        if not found:  # these hidden states stay, and may be a part of something larger
            call = call.rest().after(call.args[0].detach().clone())
        found.append(call)
        if len(found) == len(names):
            raise _Reached

    hooks = []
    try:
        for name in names:
            module = model.get_submodule(name)
            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        with torch.no_grad(), contextlib.suppress(_Reached):
            run(function, model, batch)
    finally:
        for handle in hooks:
            handle.remove()
    if len(found) < len(names):
        raise ValueError(
            f"{function}: calibration: the model does not call {names[len(found)]!r} for one "
            "batch, and did for another"
        )
    return found


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[Any]:
    """Attributes and buffers of modules are set back: a forward that is cut off may not do it."""
    before = [
        (module, dict(vars(module)), dict(module._buffers)) for module in list(model.modules())
    ]

    def restore() -> None:
        for module, attributes, buffers in before:
            _set_back(vars(module), attributes)
            _set_back(module._buffers, buffers)

    try:
        yield restore
    finally:
        restore()


def _set_back(values: dict[str, Any], before: Mapping[str, Any]) -> None:
    for name in values.keys() - before.keys():
        del values[name]
    values.update(before)
