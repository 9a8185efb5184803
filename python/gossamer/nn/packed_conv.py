"""What all convolutions share: a packed weight in groups, and the product with it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .. import _check, _ops_conv
from .._ops_conv import Geometry
from ..formats import FORMATS, Format
from ..schemes import Quantize, as_quantize, check_calibrated
from .packed_module import DENSE_DTYPES, PackedModule

Self = TypeVar("Self", bound="PackedConv")


class PackedConv(PackedModule):
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

    _dense: ClassVar[type[torch.nn.Module]]  # torch's class
    _dims: ClassVar[int]  # of the image
    _settings: ClassVar[dict[str, Any]]  # arguments that torch has too, and their usual values

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    groups: int
    input_scale: float | None

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
        if activations == "int8-group":  # pixels are rounded once, for all groups that meet them
            raise ValueError(f"{kind}: activations: got 'int8-group', wanted 'int8' or 'exact'")
        self._geometry, self._channels = geometry, channels
        self.input_scale = _check.input_scale(kind, input_scale)
        self._init_weight(weight, dtype, activations)

    @classmethod
    def from_dense(
        cls: type[Self],
        conv: torch.nn.Module,
        scheme: str | Quantize = "int8",
        *,
        input_scale: float | None = None,
    ) -> Self:
        """Quantize a dense layer.

        Parameters
        ----------
        conv : nn.Module
            The layer of torch that has the name of this class; it is left as it is. The new one
            shares its bias.
        scheme : str or Quantize
            Such as "int8", "int4" or "bf16".
        input_scale : float, optional
            As of the class.

        Returns
        -------
        Conv1d, Conv2d, ConvTranspose1d or ConvTranspose2d
            Of this class, in the training mode of `conv`.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            For another kind of layer, an unknown scheme, one with "int8-static" activations and no
            input scale, a weight with NaN or infinity, or one that is not on the CPU.
        """
        function = f"{cls.__name__}.from_dense"
        check_dense(function, conv, cls._dense)
        recipe = as_quantize(function, scheme)
        dense: Any = conv
        matrix = cls._to_matrix(dense.weight.detach(), dense.groups)
        depthwise = dense.groups == dense.in_channels == len(matrix)
        if not depthwise:  # those never round x
            check_calibrated(function, recipe, input_scale)
        weight = quantize_groups(matrix, 1 if depthwise else dense.groups, recipe.quantize)
        make: Any = cls
        layer: Self = make(
            dense.in_channels,
            dense.out_channels,
            dense.kernel_size,
            weight=weight,
            bias=dense.bias,
            dtype=dense.weight.dtype,
            activations=recipe.resolved().activations or "exact",
            input_scale=input_scale,
            **{name: getattr(dense, name) for name in cls._settings},
        )
        layer._remember_dense(matrix, weight)
        return layer.train(conv.training)

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

    def _matrix(self) -> Tensor:
        weight = _ops_conv.dequantize(self.packed, self._geometry, self._channels)
        return weight.permute(0, 2, 3, 1).reshape(self._geometry.out_channels, -1)

    @staticmethod
    @abstractmethod
    def _to_matrix(dense: Tensor, groups: int) -> Tensor:
        """From the shape of torch's layer to the rows and columns of the packed weight."""

    @abstractmethod
    def _from_matrix(self, matrix: Tensor) -> Tensor:
        """The other way."""

    @property
    def _parts(self) -> int:
        """Packed weights in the buffer: one for each group, or one for a depthwise layer."""
        return 1 if self._geometry.is_depthwise(self._channels) else self._geometry.groups

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

    def extra_repr(self) -> str:
        """The settings, for ``repr``.

        Returns
        -------
        str
            Without those that have their usual value.
        """
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        for name, usual in self._settings.items():
            value = getattr(self, name)
            if value not in (usual, (usual,) * self._dims):
                text += f", {name}={value}"
        text += self._format_repr()
        return text if self.input_scale is None else f"{text}, input_scale={self.input_scale:g}"

    # --- a weight in groups, for PackedModule ---

    @property
    def _matrix_shape(self) -> tuple[int, int]:
        height, width = self._geometry.kernel_size
        columns = height * width * self._channels // self._geometry.groups
        return self._geometry.out_channels, columns

    def _new_handle(self) -> _ops_conv.Handle:
        return _ops_conv.Handle(self.packed, self._geometry, self._channels)

    def _dense_matrix(self, state: Mapping[str, Tensor]) -> Tensor | None:
        dense = state.get("weight")
        if dense is None or dense.dim() != self._dims + 2 or dense.dtype not in DENSE_DTYPES:
            return None
        return self._to_matrix(dense, self.groups)

    def _pack(self, weight: Format) -> Tensor:
        rows = self._geometry.out_channels // self._parts
        parts = [weight.rows(i * rows, i * rows + rows) for i in range(self._parts)]
        return torch.cat([PackedModule._pack(self, part) for part in parts])

    def _quantize(self, matrix: Tensor) -> Format:
        return quantize_groups(matrix, self._parts, super()._quantize)

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


def quantize_groups(matrix: Tensor, parts: int, quantize: Callable[[Tensor], Format]) -> Format:
    """Round the rows of each group by themselves, so that nothing is shared between groups."""
    weights = [quantize(rows) for rows in matrix.chunk(parts)]
    return weights[0] if parts == 1 else type(weights[0]).cat(weights)


def check_dense(function: str, module: object, kind: type[torch.nn.Module]) -> None:
    """The argument must be a layer of torch that computes what its class says."""
    if not isinstance(module, kind) or type(module).forward is not kind.forward:
        raise TypeError(
            f"{function}: conv: got {type(module).__name__}, wanted nn.{kind.__name__} with the "
            "forward of that class"
        )
    weight = module.weight
    _check.floating(function, "conv: weight", weight)  # type: ignore[arg-type]
