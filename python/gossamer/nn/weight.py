"""What ``layer.weight`` answers: a tensor that costs nothing until its values are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.utils._pytree import tree_map

from .. import _ops

_STORAGE = frozenset(
    {"__array__", "data_ptr", "numpy", "storage", "tolist", "untyped_storage", "__dlpack__"}
)
_GRADIENT = frozenset({"grad", "_grad", "backward", "retain_grad", "register_hook"})
_ACCESS = ("__get__", "__set__", "__delete__")
_warned = False


class PackedWeight(Tensor):
    """The weight of a layer whose values are packed, as a tensor of its dense shape and dtype.

    ``shape``, ``dtype``, ``device`` and the like are free. Anything that needs values expands the
    packed weight, with one warning per process, into a new dense tensor; ``detach()`` and ``.data``
    do not. Writing to it, and asking for a gradient, are errors.

    Parameters
    ----------
    packed : Tensor
        uint8, from ``Format.pack``; shared, not copied.
    shape : tuple of int
        (N, K): out_features and in_features.
    dtype : torch.dtype
        The dtype that the values are given in.
    """

    _packed: Tensor

    @staticmethod
    def __new__(  # noqa: D102
        cls, packed: Tensor, shape: tuple[int, int], dtype: torch.dtype
    ) -> PackedWeight:
        weight: PackedWeight = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)
        weight._packed = packed
        return weight

    def __init__(self, packed: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        descriptor = getattr(func, "__self__", None)  # of a property, whose getter is "__get__"
        attribute = getattr(descriptor, "__name__", name) if name in _ACCESS else name
        _refuse_gradient(name, attribute, args, kwargs)
        if attribute == "__setitem__" or (attribute == "data" and name == "__set__"):
            raise _cannot_write(attribute)
        if attribute in ("detach", "data"):
            return args[0]
        if attribute in _STORAGE:
            args, kwargs = tree_map(_values, (args, kwargs))
        with DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch types it as a static method
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for index, argument in enumerate(func._schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, PackedWeight):
                raise _cannot_write(func.__name__)
        args, kwargs = tree_map(_values, (args, kwargs))
        return func(*args, **kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedWeight(shape={list(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        return PackedWeight(self._packed.clone(), (self.shape[0], self.shape[1]), self.dtype)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _values(self).__reduce_ex__(protocol)


def _refuse_gradient(
    name: str, attribute: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    asked = attribute in _GRADIENT
    if attribute in ("requires_grad", "requires_grad_") and name != "__get__":
        asked = bool(args[1] if len(args) > 1 else kwargs.get("requires_grad", True))
    if asked:
        raise RuntimeError("layer.weight: packed weights have no gradient")


def _cannot_write(function: str) -> RuntimeError:
    return RuntimeError(f"{function}: a packed weight cannot be written to")


def _values(value: Any) -> Any:
    """The dense tensor in place of a packed weight; anything else as it is."""
    global _warned
    if not isinstance(value, PackedWeight):
        return value
    if not _warned:
        _warned = True
        warnings.warn(
            "the values of a packed weight were read: it was expanded to a dense tensor, which is "
            "slow. layer.dequantize() does so without this warning, shown once.",
            stacklevel=2,
        )
    return _ops.dequantize_op(value._packed, value.shape[0], value.shape[1], value.dtype)
