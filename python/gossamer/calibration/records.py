"""Which modules of a block a run calls, with what, and what they make."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from .calls import tensors_of
from .sample import Run
from .scaling import out_channels, parameters_of
from .stream import Block


class Record(NamedTuple):
    """The first call of a module."""

    place: str
    name: str
    module: nn.Module
    x: Tensor
    y: Tensor


def records_of(block: Block, run: Run) -> list[Record]:
    """First calls of what may be a producer or a consumer, in the order in which they end."""
    names = {id(module): name for name, module in block.layers.items()}
    records: dict[int, Record] = {}
    hooks = []

    def hook_of(place: str) -> Any:
        def after(module: nn.Module, args: Any, kwargs: Any, y: Any) -> None:
            x = next(tensors_of([args, kwargs]), None)
            if x is not None and isinstance(y, Tensor) and id(module) not in records:
                name = names.get(id(module), full_name(block, place))
                records[id(module)] = Record(place, name, module, x, y)

        return after

    for place, module in block.module.named_modules():
        if out_channels(module):
            hooks.append(module.register_forward_hook(hook_of(place), with_kwargs=True))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(records.values())


def unreached(block: Block, run: Run) -> list[str]:
    """Places of modules with parameters that neither are called nor are in one that is."""
    called: set[int] = set()

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if all(x.numel() for x in tensors_of([args, kwargs])):
            called.add(id(module))

    hooks = [
        module.register_forward_pre_hook(before, with_kwargs=True)
        for module in block.module.modules()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [
        f"{place}.{name}" if place else name
        for place, parent in block.module.named_modules()
        for name, child in parent._modules.items()
        if child is not None
        and not {id(parent), id(child)} & called
        and next(parameters_of(child), None) is not None
    ]


def full_name(block: Block, place: str) -> str:
    """Of a module in a block."""
    return f"{block.name}.{place}" if block.name else place
