"""What layers with one packed weight share: how it is packed, copied, moved, saved and loaded."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import _check
from ..formats import FORMATS, Format
from ..formats.groups import relative_error
from ..sparse_choice import Batch
from .pickling import from_pickle, to_pickle

Self = TypeVar("Self", bound="PackedModule")
DENSE_DTYPES = (*_check.DTYPES, torch.float64)  # of a dense weight that may be loaded


class PackedModule(torch.nn.Module, ABC):
    """A layer that holds a weight Ŵ [N, K] in one buffer, laid out for the kernels, and a bias.

    ``state_dict`` and pickle hold the canonical tensors of the format; loading packs them, or
    quantizes the weight of torch's layer. ``deepcopy`` copies the packed form. A subclass sets what
    :attr:`_matrix_shape` reads, then calls :meth:`_init_weight` and :meth:`_set_bias`.
    """

    _version = 1

    format: str
    group_size: int | None
    settings: dict[str, Any]
    packed: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    activations: str
    weight_error: float | None
    dense_bytes: int | None
    _handle: Any  # a checked view of `packed` for the kernels, made again wherever that moves
    _own_names: tuple[str, ...]  # of the canonical tensors
    _batch: Batch | None = None  # rows of x that a sparse weight is laid out for

    # --- what each kind of layer says ---

    @property
    def _kind(self) -> str:
        """What errors call the layer."""
        return type(self).__name__

    @property
    @abstractmethod
    def _matrix_shape(self) -> tuple[int, int]:
        """(N, K) of the packed weight."""

    @abstractmethod
    def _new_handle(self) -> Any:
        """What the kernels are called with, for ``packed`` as it is now."""

    @abstractmethod
    def _dense_matrix(self, state: Mapping[str, Tensor]) -> Tensor | None:
        """The weight of torch's layer as [N, K], where `state` holds that; else None."""

    # --- the weight and the bias ---

    def _init_weight(self, weight: Format, dtype: torch.dtype, activations: str | None) -> None:
        if type(weight) not in FORMATS.values():
            raise TypeError(
                f"{self._kind}: weight: got {_check.describe(weight)}, wanted a format such as "
                f"gs.formats.Int8.quantize(W); for a dense layer use {self._kind}.from_dense"
            )
        if weight.shape != self._matrix_shape:
            raise ValueError(
                f"{self._kind}: weight: got shape {weight.shape}, wanted {self._matrix_shape}"
            )
        self.dtype = dtype
        self.activations = _check.activations(self._kind, activations, weight.activation_kinds)
        self.weight_error = self.dense_bytes = None
        self.register_buffer("packed", None, persistent=False)
        self._set_weight(weight)

    def _set_bias(self, bias: Tensor | None) -> None:
        if bias is not None and not isinstance(bias, Parameter):
            bias = Parameter(bias)
        self.register_parameter("bias", bias)

    def _set_weight(self, weight: Format) -> None:
        self.format, self.group_size = weight.name, weight.group_size
        self.settings = weight.settings
        self.packed = self._pack(weight)
        self._handle = self._new_handle()
        self._own_names = tuple(weight.state())

    def _pack(self, weight: Format) -> Tensor:
        pack: Callable[..., Tensor] = weight.pack
        return pack(self.activations, **({} if self._batch is None else {"batch": self._batch}))

    def _pack_for(self, batch: Batch) -> None:
        """Lay a sparse weight out again, for products with so many rows of x."""
        self._batch = batch
        self._set_weight(self.quantized())

    def _quantize(self, matrix: Tensor) -> Format:
        """Round a dense weight [N, K] as the present one was rounded."""
        quantize: Callable[..., Format] = FORMATS[self.format].quantize
        return quantize(matrix, self.group_size, **self.settings)

    def _remember_dense(self, matrix: Tensor, weight: Format) -> None:
        self.weight_error = relative_error(matrix, weight)
        self.dense_bytes = matrix.numel() * matrix.element_size()

    def quantized(self) -> Format:
        """The canonical tensors of the weight, a matrix.

        Returns
        -------
        Format
            Newly unpacked.
        """
        return FORMATS[self.format].unpack(self.packed)

    def _format_repr(self) -> str:
        text = f", bias={self.bias is not None}, format={self.format}"
        if self.group_size is not None:
            text += f", group_size={self.group_size}"
        for name, value in self.settings.items():
            text += f", {name}={value}".replace("torch.", "")
        if self.activations != FORMATS[self.format].activation_kinds[0]:
            text += f", activations={self.activations}"
        return text

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                f"{self._kind}: weight: is packed and cannot be assigned; make a new layer with "
                f"gs.nn.{self._kind}.from_dense, or use load_state_dict"
            )
        super().__setattr__(name, value)

    # --- moving and copying ---

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        probe = fn(torch.empty(0, dtype=self.dtype))
        if probe.device.type != "cpu":
            raise RuntimeError(
                f"{self._kind}.to: device: got {probe.device}; packed weights run on CPU"
            )
        if probe.dtype not in _check.DTYPES:
            raise TypeError(
                f"{self._kind}.to: dtype: got {probe.dtype}, wanted float32, bfloat16 or float16"
            )
        packed = self.packed
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers["packed"] = packed  # bytes stay bytes, whatever dtype was asked for
        self._handle = self._new_handle()  # share_memory() moves them
        self.dtype = probe.dtype
        return self

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        state = {name: value for name, value in self.__dict__.items() if name != "_handle"}
        new.__dict__.update(copy.deepcopy(state, memo))
        new._handle = new._new_handle()
        return new

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "_handle"}
        state["_buffers"] = {**self._buffers, "packed": None}
        state["_canonical"] = to_pickle(self.quantized().state())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        canonical = from_pickle(state.pop("_canonical"))
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._set_weight(self._from_state(canonical))

    # --- saving and loading ---

    def _from_state(self, state: Mapping[str, Tensor]) -> Format:
        return FORMATS[self.format].from_state(state, self.group_size, self._matrix_shape[1])

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, tensor in self.quantized().state().items():
            destination[prefix + name] = tensor
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._take_weight(state_dict, prefix, missing_keys, error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _state_names(self) -> tuple[str, ...]:
        """The names of the canonical tensors, and that of a dense weight."""
        return tuple(dict.fromkeys((*FORMATS[self.format].state_names, "weight")))

    def _take_weight(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        missing_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take the tensors of the weight out of a state_dict, and pack them."""
        found = {name: state_dict.pop(prefix + name, None) for name in self._state_names()}
        state = {name: tensor for name, tensor in found.items() if tensor is not None}
        try:
            missing_keys += [prefix + name for name in self._load_weight(state)]
        except (TypeError, ValueError, RuntimeError) as error:
            error_msgs.append(f"{prefix}weight: {error}")

    def _load_weight(self, state: dict[str, Tensor]) -> list[str]:
        """Pack canonical tensors, or a dense weight to be quantized; the names that are missing."""
        forms = FORMATS[self.format].state_forms
        dense = self._dense_matrix(state)
        if dense is not None:
            weight = self._quantize(dense)
        elif tuple(state) in forms and not set(state) < set(self._own_names):
            weight = self._from_state(state)
        else:
            missing = [name for name in self._own_names if name not in state]
            if not missing:
                raise ValueError(f"got {', '.join(state)}, wanted one of {forms}")
            return missing
        if weight.shape != self._matrix_shape:
            raise ValueError(f"got shape {list(weight.shape)}, wanted {list(self._matrix_shape)}")
        self._set_weight(weight)
        self.weight_error = None
        if dense is not None:
            self._remember_dense(dense, weight)
        return []
