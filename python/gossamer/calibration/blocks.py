"""Finding the blocks of a model: modules that hand their output to the next one as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .batches import call as run
from .calls import Call, first_tensor, hidden_first, same, tensors_of, without_cache
from .rows import tensor_version

_CONTAINERS = (nn.ModuleList, nn.Sequential)
# A chain with a smaller share of the weights is not worth running the model up to it once more.
_SHARE_OF_CHAIN = 0.05


@dataclass(frozen=True)
class Chain:
    """Modules that are called once each, in this order, each with the output of the one before.

    Attributes
    ----------
    names : tuple of str
        Of the modules in the model.
    layers : tuple of dict of str to nn.Module
        The layers asked for in each of them, by name.
    own_arguments : bool
        Whether the arguments beside the hidden states differ from module to module.
    writes_input : tuple of bool
        Whether each of them changes its hidden states in place.
    """

    names: tuple[str, ...]
    layers: tuple[dict[str, nn.Module], ...]
    own_arguments: bool
    writes_input: tuple[bool, ...]


def find_chains(
    function: str, model: nn.Module, layers: Mapping[str, nn.Module], batch: Any
) -> list[Chain]:
    """The chains that hold the layers, in the order of their calls; the model runs once.

    They come from the children of every nn.ModuleList and nn.Sequential, the outermost first; a
    module that holds more than half of all weights is divided once more. What is in no chain is
    left to the caller.

    Parameters
    ----------
    function : str
        For errors.
    model : nn.Module
        In eval mode.
    layers : mapping of str to nn.Module
        Those that weights are counted of, by name.
    batch : Tensor, tuple, list or dict
        What the model is called with.

    Returns
    -------
    list of Chain
        Empty where there is none.
    """
    finder = _Finder(model, layers, _trace(function, model, batch))
    chains = sorted(finder.inside("", model), key=lambda names: finder.seen[names[0]].order)
    return [finder.chain(names) for names in chains]


@dataclass
class _Seen:
    """How a module was called."""

    order: int
    calls: int
    call: Call
    source: tuple[Tensor, int]  # its hidden states and their version
    result: tuple[Tensor, int] | None = None
    writes_input: bool = False


def _trace(function: str, model: nn.Module, batch: Any) -> dict[str, _Seen]:
    """Run the model on a batch and note the calls of all children of containers."""
    seen: dict[str, _Seen] = {}
    hooks: list[RemovableHandle] = []
    try:
        for name, module in _children_of_containers(model):
            before, after = _hooks(seen, name)
            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.append(module.register_forward_hook(after))
        with torch.no_grad():
            run(function, model, batch)
    finally:
        for handle in hooks:
            handle.remove()
    return seen


def _hooks(seen: dict[str, _Seen], name: str) -> tuple[Any, Any]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in seen:
            seen[name].calls += 1
            return
        call = hidden_first(module, args, kwargs)
        if call is not None:
            source = call.args[0]
            call = without_cache(module, call)
            seen[name] = _Seen(len(seen), 1, call, (source, tensor_version(source)))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if name in seen:
            source, version = seen[name].source
            seen[name].writes_input = tensor_version(source) != version
            result = first_tensor(output)
            seen[name].result = None if result is None else (result, tensor_version(result))

    return before, after


def _children_of_containers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, _CONTAINERS):
            for key, child in module.named_children():
                yield _join(name, key), child


class _Finder:
    """Chains among the modules that were seen."""

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], seen: dict[str, _Seen]
    ) -> None:
        self.seen = seen
        self._model = model
        self._layers = layers
        self._sizes = {id(layer): _weights(layer) for layer in layers.values()}
        self._total = sum(self._sizes.values())

    def inside(self, name: str, module: nn.Module) -> list[list[str]]:
        """Chains below a module, without those inside of others."""
        runs = list(self._runs(name, module)) if isinstance(module, _CONTAINERS) else []
        units = [unit for run in runs for unit in run]
        found = [part for run in runs for part in self._divided(run)]
        for key, child in module.named_children():
            full = _join(name, key)
            if not any(unit == full or unit.startswith(f"{full}.") for unit in units):
                found += self.inside(full, child)
        return found

    def chain(self, names: list[str]) -> Chain:
        """What is known about a chain."""
        calls = [self.seen[name].call for name in names]
        return Chain(
            tuple(names),
            tuple(self._layers_in(name) for name in names),
            any(not same(call.rest(), calls[0].rest()) for call in calls),
            tuple(self.seen[name].writes_input for name in names),
        )

    def _runs(self, name: str, container: nn.Module) -> Iterator[list[str]]:
        """The longest runs of linked children that are worth a chain."""
        run: list[str] = []
        for unit in _units(name, container):
            if run and not self._follows(unit, run):
                yield from self._worth(run)
                run = []
            if self._is_called_once(unit):
                run.append(unit)
        yield from self._worth(run)

    def _is_called_once(self, unit: str) -> bool:
        return unit in self.seen and self.seen[unit].calls == 1

    def _follows(self, unit: str, run: list[str]) -> bool:
        """Whether a module gets the output of the last of a run, and nothing of those before."""
        last = self.seen[run[-1]].result
        if last is None or not self._is_called_once(unit):
            return False
        source, version = self.seen[unit].source
        results = [self.seen[name].result for name in run]
        outputs = {id(result[0]) for result in results if result is not None}
        others = tensors_of(self.seen[unit].call.rest())
        return source is last[0] and version == last[1] and outputs.isdisjoint(map(id, others))

    def _worth(self, run: list[str]) -> Iterator[list[str]]:
        """A run from its first module with a layer to its last, if there are two and some size."""
        filled = [index for index, unit in enumerate(run) if self._size(unit)]
        size = sum(self._size(unit) for unit in run)
        if len(filled) > 1 and size >= _SHARE_OF_CHAIN * self._total:
            yield run[filled[0] : filled[-1] + 1]

    def _divided(self, run: list[str]) -> Iterator[list[str]]:
        """A run, or what is left of it around the chains in a module with most of the weights."""
        for index, unit in enumerate(run):
            size = self._size(unit)
            if 2 * size <= self._total:
                continue
            inner = self.inside(unit, self._model.get_submodule(unit))
            if 2 * sum(self._size(name) for names in inner for name in names) > size:
                yield from self._worth(run[:index])
                yield from inner
                yield from self._worth(run[index + 1 :])
                return
        yield run

    def _size(self, name: str) -> int:
        return sum(self._sizes[id(layer)] for layer in self._layers_in(name).values())

    def _layers_in(self, name: str) -> dict[str, nn.Module]:
        inside = {id(module) for module in self._model.get_submodule(name).modules()}
        return {key: layer for key, layer in self._layers.items() if id(layer) in inside}


def _units(name: str, container: nn.Module) -> Iterator[str]:
    """The children of a container; those of an nn.Sequential among them in its place."""
    for key, child in container.named_children():
        if type(child).forward is nn.Sequential.forward and len(list(child.children())):
            yield from _units(_join(name, key), child)
        else:
            yield _join(name, key)


def _weights(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
