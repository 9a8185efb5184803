"""Linear layers that read the same x, such as q, k and v of attention, as one product."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level

from .. import _ops
from ..formats import Format
from .linear import Linear
from .weight import PackedWeight


class Projection(Linear):
    """One of several linear layers that share a packed weight: ``y = x · Ŵᵀ[first:last] + bias``.

    The first to be called with an x multiplies it with the weights of all, in one call of the
    kernel. The others, called with the same tensor, return their part of that, a view whose rows
    are as far apart as those of the whole. So nothing needs to be known of the module that holds
    the layers; one that calls only some of them, or each with another x, works and is slow. Under
    ``torch.compile`` they are one call in the graph.

    To everything else each is a :class:`Linear`: names, shapes and tensors in the ``state_dict``,
    ``weight``, ``bias``, loading, copying and pickling. Loading weights that do not fit together,
    such as with other group sizes, takes the layers apart: each computes its own.

    See Also
    --------
    share : Makes them.
    """

    _shared: _Shared
    _first: int

    @property
    def siblings(self) -> tuple[Projection, ...]:
        """All layers that share the weight, this one included, in the order of its rows."""
        return self._shared.members

    @property
    def shares(self) -> bool:
        """Whether the layers share a packed weight now."""
        return self._shared.joined

    @property
    def weight(self) -> Tensor:
        """The weight as a tensor, expanded where its values are read."""
        if not self.shares or torch.compiler.is_compiling():
            return super().weight
        return _PackedRows(self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Parameters
        ----------
        x : Tensor
            Shape (..., in_features), float32, bfloat16 or float16, any strides.

        Returns
        -------
        Tensor
            Shape (..., out_features), in the dtype of x, with unit last stride.
        """
        shared = self._shared
        if not shared.joined:
            return super().forward(x)
        if torch.compiler.is_compiling():
            return shared.trace(self, x)
        return shared.take(self, x)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the layer multiplies with, as a new dense tensor.

        Parameters
        ----------
        dtype : torch.dtype
            Dtype of the result.

        Returns
        -------
        Tensor
            Shape (out_features, in_features).
        """
        if not self.shares:
            return super().dequantize(dtype)
        N = self._shared.out_features
        whole = _ops.dequantize_op(self.packed, N, self.in_features, dtype)
        return whole.narrow(0, self._first, self.out_features).clone()

    def quantized(self) -> Format:
        """The canonical tensors of the weight.

        Returns
        -------
        Format
            Newly unpacked.
        """
        weight = super().quantized()
        return weight.rows(self._first, self._first + self.out_features) if self.shares else weight

    def _set_weight(self, weight: Format) -> None:
        self._shared.part()
        super()._set_weight(weight)
        self._shared.join()


class _Shared:
    """What the projections of a group have in common.

    The packed weight itself is a buffer of each of them, the same tensor, so that moving, counting
    and copying buffers needs no care here.
    """

    members: tuple[Projection, ...] = ()  # as the class says until a group is unpickled
    joined = False
    out_features = 0
    traced: tuple[Tensor, Tensor, tuple[Projection, ...]] | None = None

    def __init__(self, members: tuple[Projection, ...]) -> None:
        self.members = members
        self._pending = threading.local()

    def take(self, member: Projection, x: Tensor) -> Tensor:
        """The output of a member for x, computed now or when a sibling was called with x."""
        index = self.members.index(member)
        key = _context(x)
        found = getattr(self._pending, "value", None)
        if found is not None:
            source, known, outputs = found
            if source() is x and known == key and outputs[index] is not None:
                out: Tensor = outputs[index]
                outputs[index] = None
                if not any(output is not None for output in outputs):
                    self._pending.value = None
                return out
        outputs = list(self.product(member, x))
        out, outputs[index] = outputs[index], None
        self._pending.value = (weakref.ref(x, _clearer(outputs)), key, outputs)
        return out

    def trace(self, member: Projection, x: Tensor) -> Tensor:
        """The same where torch.compile or torch.export follows, which know no weak references.

        Traced, the calls for one x become one call of the op, and nothing is kept after it, unless
        a sibling is not called with x at all.
        """
        if self.traced is None or self.traced[0] is not x or member in self.traced[2]:
            packed: Tensor = member._buffers["packed"]  # type: ignore[assignment]
            whole = _ops.linear_op(x, packed, self.bias(), self.out_features, "none")
            self.traced = (x, whole, ())
        source, whole, done = self.traced
        done = (*done, member)
        self.traced = None if len(done) == len(self.members) else (source, whole, done)
        return whole.narrow(-1, member._first, member.out_features)

    def product(self, member: Projection, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all members for x."""
        packed: Tensor = member._buffers["packed"]  # type: ignore[assignment]
        whole = _ops.linear(x, packed, self.bias(), "none", member._handle)
        sizes = [each.out_features for each in self.members]
        if maybe_current_level() is not None:
            return whole.split_with_sizes(sizes, -1)  # vmap has no rule for the other
        # "Unsafe" leaves it to us not to write to `whole`. The parts may then be written to, as
        # the outputs of separate layers may.
        return whole.unsafe_split_with_sizes(sizes, -1)

    def bias(self) -> Tensor | None:
        """The biases of all, with zeros for those that are missing."""
        biases = [member._parameters["bias"] for member in self.members]
        given = next((bias for bias in biases if bias is not None), None)
        if given is None:
            return None
        parts: list[Tensor] = [
            given.new_zeros(member.out_features) if bias is None else bias
            for member, bias in zip(self.members, biases, strict=True)
        ]
        return torch.cat(parts)

    def part(self) -> None:
        """Give each member a packed weight of its own."""
        if not self.joined:
            return
        weights = [member.quantized() for member in self.members]
        self.joined = False
        self._pending = threading.local()
        self.traced = None
        for member, weight in zip(self.members, weights, strict=True):
            Linear._set_weight(member, weight)

    def join(self) -> None:
        """Give the members one packed weight, if all have theirs and these fit together."""
        if not self.members or not all("_handle" in vars(member) for member in self.members):
            return
        try:
            packed = _pack_together(self.members)
        except ValueError:
            return
        self.adopt(packed)

    def adopt(self, packed: Tensor) -> None:
        """Make `packed` the weight of all members."""
        first = 0
        for member in self.members:
            member._buffers["packed"] = packed
            member._handle = _ops.Handle(packed)
            member._first = first
            first += member.out_features
        self.out_features = first
        self._pending = threading.local()
        self.traced = None
        self.joined = True

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        new = _Shared.__new__(_Shared)
        memo[id(self)] = new  # before the members, which refer to it
        new.__setstate__({"joined": self.joined, "out_features": self.out_features})
        new.members = copy.deepcopy(self.members, memo)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {"members": self.members}  # unpickled, they have weights of their own, and join

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pending = threading.local()


class _PackedRows(PackedWeight):
    """The ``weight`` of a projection: packed by itself where its values are read."""

    _projection: Projection

    @staticmethod
    def __new__(cls, projection: Projection) -> _PackedRows:
        shape = (projection.out_features, projection.in_features)
        weight: _PackedRows = Tensor._make_wrapper_subclass(cls, shape, dtype=projection.dtype)
        weight._projection = projection
        return weight

    def __init__(self, projection: Projection) -> None:
        Tensor.__init__(self)

    @property
    def _packed(self) -> Tensor:  # type: ignore[override]
        return self._projection._pack(self._projection.quantized())


def share(layers: Sequence[Linear]) -> list[Projection]:
    """Make layers that read the same x compute as one.

    Parameters
    ----------
    layers : sequence of Linear
        With the same in_features, format, group size and input scale, and no activation; they are
        left as they are. The new ones share their biases.

    Returns
    -------
    list of Projection
        One for each layer.

    Raises
    ------
    ValueError
        Where their weights do not fit together, or one has an activation.

    Examples
    --------
    >>> from gossamer.nn.projections import share
    >>> layers = [gs.nn.Linear.from_dense(torch.nn.Linear(64, N)) for N in (64, 16, 16)]
    >>> x = torch.randn(1, 64)
    >>> all(bool((a(x) == b(x)).all()) for a, b in zip(share(layers), layers))
    True
    """
    for layer in layers:
        if layer.activation != "none":
            raise ValueError(f"share: layers: one has the activation {layer.activation!r}")
    packed = _pack_together(layers)
    members = [Projection.__new__(Projection) for _ in layers]
    shared = _Shared(tuple(members))
    for layer, member in zip(layers, members, strict=True):
        for name, value in vars(layer).items():
            member.__dict__[name] = value.copy() if isinstance(value, dict) else value
        member.__dict__["_shared"] = shared
    shared.adopt(packed)
    return members


def _pack_together(layers: Sequence[Linear]) -> Tensor:
    """The weights of layers, one after the other, as one; ValueError where they do not fit."""
    kinds = {(layer.format, layer.activations) for layer in layers}
    if len(kinds) > 1:
        raise ValueError(f"share: layers: got {sorted(kinds)}, wanted one format for all")
    scales = list(dict.fromkeys(layer.input_scale for layer in layers))
    if len(scales) > 1:
        raise ValueError(f"share: layers: got input scales {scales}, wanted one for all")
    weights = [layer.quantized() for layer in layers]
    return layers[0]._pack(type(weights[0]).cat(weights))


def _clearer(outputs: list[Tensor | None]) -> Callable[[object], None]:
    """Drops outputs that nobody asked for when the x they belong to is gone."""

    def clear(_: object) -> None:
        outputs.clear()

    return clear


def _context(x: Tensor) -> tuple[Any, ...]:
    """What must be the same for an output computed earlier to be the output now, beside x."""
    return (
        -1 if x.is_inference() else x._version,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
    )
