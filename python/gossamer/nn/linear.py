"""The linear layer on packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _check, _ops, _ops_packing
from ..formats import Format
from ..schemes import Quantize, as_quantize, check_calibrated
from .packed_module import DENSE_DTYPES, PackedModule
from .weight import PackedWeight

Self = TypeVar("Self", bound="Linear")


class Linear(PackedModule):
    """``y = activation(x · Ŵᵀ + bias)``, with a packed weight Ŵ.

    With ``activations="int8"`` each row of x is rounded to int8, with a scale of its own or that of
    the layer, and products are summed in integers; with "exact" only the weight is rounded. The
    output has the dtype of x. The weight is kept in one buffer, laid out for the kernels.

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
    input_scale : float, optional
        For int8 activations: ``q = round(x / input_scale)``, clamped to [-127, 127], for all rows.
        None: each row has a scale of its own, ``max |x| / 127``.

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
    input_scale : float or None
        As it was given; it cannot be assigned, and is not in the ``state_dict``.
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

    _kind = "Linear"  # in errors; subclasses are of no concern to users
    _handle: _ops.Handle

    in_features: int
    out_features: int
    activation: str
    _input_scale: float | None = None
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
        input_scale: float | None = None,
    ) -> None:
        super().__init__()
        _check.activation(self._kind, activation)
        _check.bias(self._kind, bias, out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self._input_scale = _check.input_scale(self._kind, input_scale)
        self._init_weight(weight, dtype, activations)
        self._set_bias(bias)

    @classmethod
    def from_dense(
        cls: type[Self],
        linear: torch.nn.Module,
        scheme: str | Quantize = "int8",
        *,
        activation: str = "none",
        input_scale: float | None = None,
    ) -> Self:
        """Quantize a dense layer.

        Parameters
        ----------
        linear : nn.Linear or transformers Conv1D
            The layer; it is left as it is. The new one shares its bias.
        scheme : str or Quantize
            Such as "int8" or ``gs.Quantize("int8", group_size=64)``.
        activation : str
            As of the class.
        input_scale : float, optional
            As of the class. A scheme with "int8-static" activations needs one.

        Returns
        -------
        Linear
            In the training mode of `linear`.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            For an unknown scheme, one with "int8-static" activations and no input scale, a weight
            with NaN or infinity, or one that is not on the CPU.

        Examples
        --------
        >>> scheme = gs.Quantize("int8", group_size=64)
        >>> layer = gs.nn.Linear.from_dense(torch.nn.Linear(256, 8), scheme)
        >>> layer.weight_error < 0.01
        True
        """
        dense, bias = dense_weight(linear), linear.bias
        recipe = as_quantize("Linear.from_dense", scheme)
        check_calibrated("Linear.from_dense", recipe, input_scale)
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
            input_scale=input_scale,
        )
        layer._remember_dense(dense, weight)
        layer._from_conv1d = is_conv1d(linear)
        return layer.train(linear.training)

    @property
    def input_scale(self) -> float | None:
        """The scale of all rows of x; None where each has its own."""
        return self._input_scale

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
        return self._product(x, self._parameters["bias"], self.activation)

    def _product(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        # Past nn.Module.__getattr__, which costs as much as a small layer.
        packed: Tensor = self._buffers["packed"]  # type: ignore[assignment]
        if torch.compiler.is_compiling():
            return _ops.linear_op(x, packed, bias, self.out_features, activation)
        return _ops.linear(x, packed, bias, activation, self._handle)

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

    def extra_repr(self) -> str:
        """The settings, for ``repr``.

        Returns
        -------
        str
            Without those that have their usual value.
        """
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        text += self._format_repr()
        if self.input_scale is not None:
            text += f", input_scale={self.input_scale:g}"
        if self.activation != "none":
            text += f", activation={self.activation}"
        return text

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and isinstance(value, PackedWeight) and value._packed is self.packed:
            return  # transformers' tie_weights() gives the head the weight that it has
        super().__setattr__(name, value)

    @property
    def _matrix_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def _new_handle(self) -> _ops.Handle:
        return _ops.Handle(self.packed)

    def _pack(self, weight: Format) -> Tensor:
        packed = super()._pack(weight)
        if self._input_scale is None:
            return packed
        if self.activations != "int8":
            raise ValueError(
                f"{self._kind}: input_scale: got {self._input_scale} with activations "
                f"{self.activations!r}, wanted it with 'int8' only"
            )
        _ops_packing.set_input_scale(packed, self._input_scale)
        return packed

    def _dense_matrix(self, state: Mapping[str, Tensor]) -> Tensor | None:
        dense = state.get("weight")
        if len(state) > 1 or dense is None or dense.dtype not in DENSE_DTYPES:
            return None
        return dense.T if self._from_conv1d else dense


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
