"""Calls of a module: their hidden states, and the arguments beside them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_CACHES = ("past_key_values", "past_key_value", "layer_past")


class Call(NamedTuple):
    """The arguments of one call of a block.

    Attributes
    ----------
    args : tuple
        The hidden states come first, also where the model passes them by name.
    kwargs : dict
        Arguments that several calls have in common are the same objects.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def rest(self) -> Call:
        """The arguments beside the hidden states."""
        return Call(self.args[1:], self.kwargs)

    def after(self, hidden: Tensor) -> Call:
        """A call with these arguments behind the hidden states."""
        return Call((hidden, *self.args), self.kwargs)


def hidden_first(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Call | None:
    """A call with its hidden states first; None where its first argument is no tensor."""
    rest = dict(kwargs)
    if not args:
        first = next(iter(inspect.signature(module.forward).parameters), None)
        args = (rest.pop(first, None),) if first is not None else (None,)
    return Call(args, rest) if isinstance(args[0], Tensor) else None


def first_tensor(output: Any) -> Tensor | None:
    """An output, or the first element of one that has several, if that is a tensor."""
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    elif isinstance(output, tuple | list):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None


def without_cache(module: nn.Module, call: Call) -> Call:
    """The same call without the keys and values of earlier tokens, which would grow."""
    names = list(inspect.signature(module.forward).parameters)
    names += [""] * (len(call.args) - len(names))
    args = (_uncached(name, value) for name, value in zip(names, call.args, strict=False))
    return Call(tuple(args), {name: _uncached(name, value) for name, value in call.kwargs.items()})


def _uncached(name: str, value: Any) -> Any:
    if name in _CACHES or type(value).__name__.endswith("Cache"):
        return None
    return False if name == "use_cache" and value is not None else value


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_of(part)


def same(left: Any, right: Any) -> bool:
    """Whether two arguments are the same object or have the same values."""
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    return isinstance(left, bool | int | float | str) and bool(left == right)


class Shared:
    """Keeps arguments that are equal to those of the call before only once."""

    def __init__(self) -> None:
        self._last: dict[tuple[Any, ...], Tensor] = {}  # by place in the call, and shape

    def call(self, call: Call) -> Call:
        """The same call with tensors of earlier calls in the places of equal ones."""
        args = tuple(self._value((index,), value) for index, value in enumerate(call.args))
        kwargs = {name: self._value((name,), value) for name, value in call.kwargs.items()}
        return Call(args, kwargs)

    def _value(self, place: tuple[Any, ...], value: Any) -> Any:
        if isinstance(value, Tensor):
            before = self._last.get((*place, value.shape))
            if before is None or not same(before, value):
                before = self._last[(*place, value.shape)] = value.detach()
            return before
        if type(value) in (tuple, list):
            parts = enumerate(value)
            return type(value)(self._value((*place, index), part) for index, part in parts)
        if type(value) is dict:
            return {name: self._value((*place, name), part) for name, part in value.items()}
        return value


def cached_bytes(calls: Iterable[Call]) -> int:
    """Bytes of all tensors in calls, each counted once.

    Parameters
    ----------
    calls : iterable of Call
        Of one or several blocks.

    Returns
    -------
    int
        Of the memory that the tensors are in, however little of it they use.
    """
    storages = {}
    for tensor in tensors_of(list(calls)):
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())
