"""What all convolutions share: a packed weight in groups, and how it is copied, moved and saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import _check, _ops_conv
from .._ops_conv import Geometry
from ..formats import FORMATS, Format
from ..schemes import Quantize, as_quantize
from .pickling import from_pickle, to_pickle

Self = TypeVar("Self", bound="PackedConv")
_DENSE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class PackedConv(torch.nn.Module):
    """A packed weight Ŵ [N, K] whose rows fall into groups, and a bias.

    Parameters
    ----------
    weight : Format
        The rows of all groups, in the order that the class says.
    geometry : Geometry
        Of the product with Ŵ.
    channels : int
        Of x.
    dtype : torch.dtype
        What ``layer.weight.dtype`` says.
    activations : str, optional
        "int8" or "exact"; None: the first that the format offers.
    input_scale : float, optional
        Scale of x for all samples; None: each sample has its own.
    """

    _version = 1
    _dense: ClassVar[type[torch.nn.Module]]  # torch's class
    _dims: ClassVar[int]  # of the image

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    groups: int
    format: str
    group_size: int | None
    packed: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    activations: str
    input_scale: float | None
    weight_error: float | None
    dense_bytes: int | None

    def __init__(
        self,
        weight: Format,
        geometry: Geometry,
        channels: int,
        dtype: torch.dtype,
        activations: str | None,
        input_scale: float | None,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        if type(weight) not in FORMATS.values():
            raise TypeError(
                f"{kind}: weight: got {_check.describe(weight)}, wanted a format such as "
                f"gs.formats.Int8.quantize(W); for a dense layer use {kind}.from_dense"
            )
        if input_scale is not None and not 0 < input_scale < float("inf"):
            raise ValueError(f"{kind}: input_scale: got {input_scale}, wanted None or a number > 0")
        self._geometry, self._channels = geometry, channels
        self.dtype, self.input_scale = dtype, input_scale
        if (
            activations == "int8-group"
        ):  # pixels are rounded once, for all the groups that meet them
            raise ValueError(f"{kind}: activations: got 'int8-group', wanted 'int8' or 'exact'")
        self.activations = _check.activations(kind, activations, weight.activation_kinds)
        self.weight_error = self.dense_bytes = None
        self.register_buffer("packed", None, persistent=False)
        self._set_weight(weight)

    def _set_bias(self, bias: Tensor | None, out_channels: int) -> None:
        _check.bias(type(self).__name__, bias, out_channels)
        if bias is not None and not isinstance(bias, Parameter):
            bias = Parameter(bias)
        self.register_parameter("bias", bias)

    # --- the weight ---

    @property
    def weight(self) -> Tensor:
        """The weight in the shape torch has it, expanded at every access."""
        return self.dequantize(self.dtype)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the layer multiplies with, as a new dense tensor.

        Parameters
        ----------
        dtype : torch.dtype
            Dtype of the result.

        Returns
        -------
        Tensor
            In the shape of torch's layer.
        """
        return self._from_matrix(self._matrix()).to(dtype).contiguous()

    def quantized(self) -> Format:
        """The canonical tensors of the weight, a matrix.

        Returns
        -------
        Format
            Newly unpacked.
        """
        form = FORMATS[self.format]
        parts = [form.unpack(part) for part in self.packed.view(self._parts, -1).unbind()]
        return parts[0] if len(parts) == 1 else form.cat(parts)

    def _matrix(self) -> Tensor:
        weight = _ops_conv.dequantize(self.packed, self._geometry, self._channels)
        return weight.permute(0, 2, 3, 1).reshape(self._geometry.out_channels, -1)

    def _to_matrix(self, dense: Tensor) -> Tensor:
        """From the shape of torch's layer to the rows and columns of the packed weight."""
        raise NotImplementedError

    def _from_matrix(self, matrix: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def _parts(self) -> int:
        """Packed weights in the buffer: one for each group, or one for a depthwise layer."""
        return 1 if self._geometry.is_depthwise(self._channels) else self._geometry.groups

    def _set_weight(self, weight: Format) -> None:
        N, kernel = self._geometry.out_channels, self._geometry.kernel_size
        wanted = (N, kernel[0] * kernel[1] * self._channels // self._geometry.groups)
        if weight.shape != wanted:
            raise ValueError(
                f"{type(self).__name__}: weight: got shape {weight.shape}, wanted {wanted}"
            )
        self.format, self.group_size = weight.name, weight.group_size
        self.settings = weight.settings
        self._own_names = tuple(weight.state())
        rows = N // self._parts
        parts = [weight.rows(i * rows, i * rows + rows) for i in range(self._parts)]
        self.packed = torch.cat([part.pack(self.activations) for part in parts])
        self._make_handle()

    def _make_handle(self) -> None:
        self._handle = _ops_conv.Handle(self.packed, self._geometry, self._channels)

    def _remember_dense(self, matrix: Tensor, weight: Format) -> None:
        difference = weight.dequantize().sub_(matrix)
        norm = torch.linalg.vector_norm(matrix, dtype=torch.float32).item()
        error = torch.linalg.vector_norm(difference).item()
        self.weight_error = error / norm if norm > 0 else 0.0
        self.dense_bytes = matrix.numel() * matrix.element_size()

    def _convolve(self, x: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        scale = self.input_scale or 0.0
        if torch.compiler.is_compiling():
            return _ops_conv.call_op(x, self.packed, bias, self._geometry, scale, dtype)
        return _ops_conv.conv2d(x, self.packed, bias, self._geometry, scale, self._handle, dtype)

    def _check_input(self, x: Tensor) -> None:
        """The argument of forward must be [batch, channels, *image]."""
        if x.dim() != self._dims + 2 or x.shape[1] != self.in_channels:
            image = ["length"] if self._dims == 1 else ["height", "width"]
            wanted = ", ".join(["batch", str(self.in_channels), *image])
            raise ValueError(
                f"{type(self).__name__}: x: got {_check.describe(x)}, wanted [{wanted}]"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            kind = type(self).__name__
            raise AttributeError(
                f"{kind}: weight: is packed and cannot be assigned; make a new layer with "
                f"gs.nn.{kind}.from_dense, or use load_state_dict"
            )
        super().__setattr__(name, value)

    def _format_repr(self) -> str:
        text = f", bias={self.bias is not None}, format={self.format}"
        if self.group_size is not None:
            text += f", group_size={self.group_size}"
        for name, value in self.settings.items():
            text += f", {name}={value}".replace("torch.", "")
        if self.activations != FORMATS[self.format].activation_kinds[0]:
            text += f", activations={self.activations}"
        if self.input_scale is not None:
            text += f", input_scale={self.input_scale:g}"
        return text

    # --- moving, copying, saving ---

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kind = type(self).__name__
        probe = fn(torch.empty(0, dtype=self.dtype))
        if probe.device.type != "cpu":
            raise RuntimeError(f"{kind}.to: device: got {probe.device}; packed weights run on CPU")
        if probe.dtype not in _check.DTYPES:
            raise TypeError(
                f"{kind}.to: dtype: got {probe.dtype}, wanted float32, bfloat16 or float16"
            )
        packed = self.packed
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers["packed"] = packed  # bytes stay bytes, whatever dtype was asked for
        self._make_handle()  # share_memory() moves them
        self.dtype = probe.dtype
        return self

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        state = {name: value for name, value in self.__dict__.items() if name != "_handle"}
        new.__dict__.update(copy.deepcopy(state, memo))
        new._make_handle()
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

    def _from_state(self, state: Mapping[str, Tensor]) -> Format:
        kernel = self._geometry.kernel_size
        columns = kernel[0] * kernel[1] * self._channels // self._geometry.groups
        return FORMATS[self.format].from_state(state, self.group_size, columns)

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
        names = FORMATS[self.format].state_names
        found = {name: state_dict.pop(prefix + name, None) for name in names}
        state = {name: tensor for name, tensor in found.items() if tensor is not None}
        try:
            self._load_weight(state, prefix, missing_keys)
        except (TypeError, ValueError, RuntimeError) as error:
            error_msgs.append(f"{prefix}weight: {error}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _load_weight(self, state: dict[str, Tensor], prefix: str, missing_keys: list[str]) -> None:
        """Packs what a state_dict holds: canonical tensors, or torch's weight to be quantized."""
        dense = state.get("weight")
        if dense is not None and dense.dim() == self._dims + 2 and dense.dtype in _DENSE_DTYPES:
            scheme = {"group_size": self.group_size, **self.settings}
            quantize: Callable[..., Format] = FORMATS[self.format].quantize
            self._quantize(self._to_matrix(dense), lambda W: quantize(W, **scheme))
        elif tuple(state) in FORMATS[self.format].state_forms:
            self._set_weight(self._from_state(state))
            self.weight_error = None
        else:
            missing_keys += [prefix + name for name in self._own_names if name not in state]

    def _quantize(self, matrix: Tensor, quantize: Callable[[Tensor], Format]) -> None:
        weight = quantize_groups(matrix, self._parts, quantize)
        self._set_weight(weight)
        self._remember_dense(matrix, weight)


def quantize_groups(matrix: Tensor, parts: int, quantize: Callable[[Tensor], Format]) -> Format:
    """Round the rows of each group by themselves, so that nothing is shared between groups."""
    weights = [quantize(rows) for rows in matrix.chunk(parts)]
    return weights[0] if parts == 1 else type(weights[0]).cat(weights)


def scheme_of(function: str, scheme: str | Quantize) -> tuple[Quantize, str]:
    """The settings, and what happens to activations."""
    recipe = as_quantize(function, scheme)
    return recipe, recipe.resolved().activations or "exact"


def check_dense(function: str, module: object, kind: type[torch.nn.Module]) -> None:
    """The argument must be a layer of torch that computes what its class says."""
    if not isinstance(module, kind) or type(module).forward is not kind.forward:
        raise TypeError(
            f"{function}: conv: got {type(module).__name__}, wanted nn.{kind.__name__} with the "
            "forward of that class"
        )
    weight = module.weight
    _check.floating(function, "conv: weight", weight)  # type: ignore[arg-type]
