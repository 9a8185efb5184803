"""The linear layer on packed weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import _check, _ops
from ..formats import FORMATS, Format
from ..formats.groups import relative_error
from ..schemes import Quantize, as_quantize
from .pickling import from_pickle, to_pickle
from .weight import PackedWeight

_DENSE_DTYPES = (*_check.DTYPES, torch.float64)


class Linear(torch.nn.Module):
    """``y = activation(x · Ŵᵀ + bias)``, with a packed weight Ŵ.

    With ``activations="int8"`` each row of x is rounded to int8, with a scale of its own, and
    products are summed in integers; with "exact" only the weight is rounded. The output has the
    dtype of x. The weight is kept in one buffer, laid out for the kernels.

    Parameters
    ----------
    in_features : int
        K.
    out_features : int
        N.
    weight : Format
        The weight of shape (N, K), such as ``gs.formats.Int8.quantize(W)``.
    bias : Tensor or Parameter, optional
        Shape (N,), float32, bfloat16 or float16. A Parameter is used as it is (and stays tied and
        trainable), a Tensor becomes one.
    activation : str
        "none", "relu", "gelu" (exact), "gelu_tanh" or "silu", applied before the output is rounded.
    dtype : torch.dtype
        What ``layer.weight.dtype`` says; ``.to(dtype)`` changes it. It does not change the output.
    activations : str, optional
        "int8", "int8-group" (each group of a row has a scale of its own, the groups being those of
        the weight) or "exact", as far as the format offers it; None takes its usual kind: "int8"
        for int8, int4, nf4, fp4 and mxfp4, "exact" for fp8 and bf16.

    Attributes
    ----------
    weight : Tensor
        Answers shape, dtype and device for free, and expands to dense, warning once per process,
        where its values are read. It has no gradient and cannot be assigned.
    packed : Tensor
        uint8, shape (bytes,): the packed weight, a buffer outside the ``state_dict``.
    format : str
        Name of the format.
    group_size : int or None
        Input features that share a scale.
    settings : dict
        What else ``quantize`` of the format is told when a dense weight is loaded.
    activations : str
        "int8", "int8-group" or "exact".
    weight_error : float or None
        ``|W - Ŵ| / |W|`` (Frobenius), where the layer was made from a dense one.
    dense_bytes : int or None
        Bytes of the dense weight this layer was made from.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Where an argument does not fit; by ``forward`` where x does not; by ``.to`` for another
        device than the CPU or a dtype other than float32, bfloat16 and float16.

    Notes
    -----
    ``state_dict`` and pickle hold the canonical tensors of the format, such as ``weight`` (int8)
    and ``weight_scale``, and ``bias``. Loading also accepts a ``weight`` of float32, bfloat16,
    float16 or float64 without a scale, as in the checkpoint of the dense model, and quantizes it;
    a layer made from a Conv1D of transformers takes it as that has it, (K, N).
    The gradients of x and of the bias exist, that of the weight does not. ``torch.func.grad`` and
    forward-mode differentiation are errors.

    Examples
    --------
    >>> dense = torch.nn.Linear(64, 32)
    >>> layer = gs.nn.Linear.from_dense(dense, "int8")
    >>> layer
    Linear(in_features=64, out_features=32, bias=True, format=int8)
    >>> layer(torch.randn(5, 64)).shape
    torch.Size([5, 32])
    """

    _version = 1

    in_features: int
    out_features: int
    activation: str
    format: str
    group_size: int | None
    packed: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    weight_error: float | None
    dense_bytes: int | None
    _from_conv1d = False  # a dense weight in a state_dict is [K, N] then

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        weight: Format,
        bias: Tensor | None = None,
        activation: str = "none",
        dtype: torch.dtype = torch.float32,
        activations: str | None = None,
    ) -> None:
        super().__init__()
        if type(weight) not in FORMATS.values():
            raise TypeError(
                f"Linear: weight: got {_check.describe(weight)}, wanted a format such as "
                "gs.formats.Int8.quantize(W); for a dense layer use Linear.from_dense"
            )
        if weight.shape != (out_features, in_features):
            raise ValueError(
                f"Linear: weight: got shape {weight.shape}, wanted {(out_features, in_features)}"
            )
        _check.activation("Linear", activation)
        _check.bias("Linear", bias, out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self.dtype = dtype
        self.activations = _check.activations("Linear", activations, weight.activation_kinds)
        self.weight_error = self.dense_bytes = None
        self.register_buffer("packed", None, persistent=False)
        self._set_weight(weight)
        if bias is not None and not isinstance(bias, Parameter):
            bias = Parameter(bias)
        self.register_parameter("bias", bias)

    @classmethod
    def from_dense(
        cls,
        linear: torch.nn.Module,
        scheme: str | Quantize = "int8",
        *,
        activation: str = "none",
    ) -> Linear:
        """Quantize a dense layer.

        Parameters
        ----------
        linear : nn.Linear or transformers Conv1D
            The layer; it is left as it is. The new one shares its bias.
        scheme : str or Quantize
            Such as "int8" or ``gs.Quantize("int8", group_size=64)``.
        activation : str
            As of the class.

        Returns
        -------
        Linear
            In the training mode of `linear`.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            For an unknown scheme, a weight with NaN or infinity, or one that is not on the CPU.

        Examples
        --------
        >>> scheme = gs.Quantize("int8", group_size=64)
        >>> layer = gs.nn.Linear.from_dense(torch.nn.Linear(256, 8), scheme)
        >>> layer.weight_error < 0.01
        True
        """
        dense, bias = dense_weight(linear), linear.bias
        recipe = as_quantize("Linear.from_dense", scheme)
        weight, activations = recipe.quantize(dense), recipe.resolved().activations
        N, K = weight.shape
        layer = cls(
            K,
            N,
            weight=weight,
            bias=bias,  # type: ignore[arg-type]
            activation=activation,
            dtype=dense.dtype,
            activations=activations,
        )
        layer._remember_dense(dense, weight)
        layer._from_conv1d = is_conv1d(linear)
        return layer.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """The weight as a tensor, expanded where its values are read."""
        if torch.compiler.is_compiling():  # dead code wherever only the dtype or shape is used
            return self.dequantize(self.dtype)
        return PackedWeight(self.packed, (self.out_features, self.in_features), self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Parameters
        ----------
        x : Tensor
            Shape (..., in_features), float32, bfloat16 or float16, any strides. Rows that share one
            stride are read in place.

        Returns
        -------
        Tensor
            Shape (..., out_features), contiguous, in the dtype of x.
        """
        # Past nn.Module.__getattr__, which costs as much as a small layer.
        packed: Tensor = self._buffers["packed"]  # type: ignore[assignment]
        bias = self._parameters["bias"]
        if torch.compiler.is_compiling():
            return _ops.linear_op(x, packed, bias, self.out_features, self.activation)
        return _ops.linear(x, packed, bias, self.activation, self._handle)

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
        return _ops.dequantize_op(self.packed, self.out_features, self.in_features, dtype)

    def quantized(self) -> Format:
        """The canonical tensors of the weight.

        Returns
        -------
        Format
            Newly unpacked.
        """
        return FORMATS[self.format].unpack(self.packed)

    def extra_repr(self) -> str:
        """The settings, for ``repr``.

        Returns
        -------
        str
            Without those that have their usual value.
        """
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        text += f", bias={self.bias is not None}, format={self.format}"
        if self.group_size is not None:
            text += f", group_size={self.group_size}"
        for name, value in self.settings.items():
            text += f", {name}={value}".replace("torch.", "")
        if self.activations != FORMATS[self.format].activation_kinds[0]:
            text += f", activations={self.activations}"
        if self.activation != "none":
            text += f", activation={self.activation}"
        return text

    def _set_weight(self, weight: Format) -> None:
        self.format, self.group_size = weight.name, weight.group_size
        self.settings = weight.settings
        self.packed = weight.pack(self.activations)
        self._handle = _ops.Handle(self.packed)
        self._own_names = tuple(weight.state())

    def _remember_dense(self, dense: Tensor, weight: Format) -> None:
        self.weight_error = relative_error(dense, weight)
        self.dense_bytes = dense.numel() * dense.element_size()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            if isinstance(value, PackedWeight) and value._packed is self.packed:
                return  # transformers' tie_weights() gives the head the weight that it has
            raise AttributeError(
                "Linear: weight: is packed and cannot be assigned; make a new layer with "
                "gs.nn.Linear.from_dense, or use load_state_dict"
            )
        super().__setattr__(name, value)

    # --- moving, copying, saving ---

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear:
        probe = fn(torch.empty(0, dtype=self.dtype))
        if probe.device.type != "cpu":
            raise RuntimeError(f"Linear.to: device: got {probe.device}; packed weights run on CPU")
        if probe.dtype not in _check.DTYPES:
            raise TypeError(
                f"Linear.to: dtype: got {probe.dtype}, wanted float32, bfloat16 or float16"
            )
        packed = self.packed
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers["packed"] = packed  # bytes stay bytes, whatever dtype was asked for
        self._handle = _ops.Handle(packed)  # share_memory() moves them
        self.dtype = probe.dtype
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Linear:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        state = {name: value for name, value in self.__dict__.items() if name != "_handle"}
        new.__dict__.update(copy.deepcopy(state, memo))
        new._handle = _ops.Handle(new.packed)
        return new

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "_handle"}
        state["_buffers"] = {**self._buffers, "packed": None}
        state["_canonical"] = to_pickle(self.quantized().state())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        canonical = from_pickle(state.pop("_canonical"))
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        form = FORMATS[self.format]
        self._set_weight(form.from_state(canonical, self.group_size, self.in_features))

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
        found = {name: state_dict.pop(prefix + name, None) for name in self._state_names()}
        try:
            self._load_weight(found, prefix + "weight", missing_keys)
        except (TypeError, ValueError, RuntimeError) as error:
            error_msgs.append(f"{prefix}weight: {error}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _load_weight(
        self, found: dict[str, Tensor | None], key: str, missing_keys: list[str]
    ) -> None:
        """Packs what a state_dict holds: canonical tensors, or a dense weight to be quantized."""
        form = FORMATS[self.format]
        state = {name: tensor for name, tensor in found.items() if tensor is not None}
        dense = state.get("weight")
        if len(state) == 1 and dense is not None and dense.dtype in _DENSE_DTYPES:
            dense = dense.T if self._from_conv1d else dense
            quantize: Callable[..., Format] = form.quantize
            weight = quantize(dense, self.group_size, **self.settings)
        elif tuple(state) in form.state_forms and not set(state) < set(self._own_names):
            dense = None
            weight = form.from_state(state, self.group_size, self.in_features)
        else:
            missing = [name for name in self._own_names if name not in state]
            if not missing:
                raise ValueError(f"got {', '.join(state)}, wanted one of {form.state_forms}")
            missing_keys += [key[: -len("weight")] + name for name in missing]
            return
        if weight.shape != (self.out_features, self.in_features):
            raise ValueError(
                f"got shape {list(weight.shape)}, wanted {[self.out_features, self.in_features]}"
            )
        self._set_weight(weight)
        self.weight_error = None
        if dense is not None:
            self._remember_dense(dense, weight)

    def _state_names(self) -> tuple[str, ...]:
        return FORMATS[self.format].state_names


def is_conv1d(module: torch.nn.Module) -> bool:
    """Whether this is the Conv1D of transformers (GPT-2): linear, with its weight as [K, N]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.split(".")[0] == "transformers"


def dense_weight(module: torch.nn.Module) -> Tensor:
    """The [N, K] weight of an nn.Linear or a Conv1D, detached."""
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise TypeError(
            f"Linear.from_dense: linear: got {type(module).__name__}, wanted nn.Linear or Conv1D"
        )
    return weight.detach().T if is_conv1d(module) else weight.detach()
