"""Transposed convolutions on packed weights.

A product, then its columns added up: each pixel of x is multiplied with all taps at once, by the
1x1 convolution of :mod:`gossamer.nn.conv` with ``out_channels * taps`` channels, and each tap's
part is added to the output where it belongs. Nothing is multiplied with the zeros between pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import _check
from .._ops_conv import Geometry, memory_format_of
from ..formats import Format
from .conv import check_groups, in_two_dimensions, lengths
from .packed_conv import PackedConv


class ConvTranspose2d(PackedConv):
    """A two-dimensional transposed convolution with a packed weight Ŵ.

    Each sample of x is rounded to int8 with one scale, dynamic or given; products over the channels
    are summed in integers, those of different taps in float32. The output has the dtype of x.

    Parameters
    ----------
    in_channels, out_channels : int
        C and N.
    kernel_size : int or tuple of int
        (height, width).
    weight : Format
        The weight of shape (N * height * width, C / groups), its rows in the order
        (group, height, width, out channel of the group).
    bias : Tensor or Parameter, optional
        Shape (N,), float32, bfloat16 or float16.
    stride, padding, output_padding, dilation, groups
        As of torch.nn.ConvTranspose2d.
    dtype, activations, input_scale
        As of :class:`Conv2d`.

    Attributes
    ----------
    weight : Tensor
        Shape (C, N / groups, height, width), expanded at every access.
    packed, weight_error, dense_bytes
        As of :class:`Conv2d`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As of :class:`Conv2d`.

    Notes
    -----
    Every tap has scales of its own, so int8 weights are closer to the dense ones than those of
    :class:`Conv2d`. With many groups the cost is that of one product for each.

    Examples
    --------
    >>> dense = torch.nn.ConvTranspose2d(32, 16, 2, stride=2)
    >>> layer = gs.nn.ConvTranspose2d.from_dense(dense, "int8")
    >>> layer(torch.randn(1, 32, 5, 7)).shape
    torch.Size([1, 16, 10, 14])
    """

    _dense: ClassVar[type[torch.nn.Module]] = torch.nn.ConvTranspose2d
    _dims: ClassVar[int] = 2
    _settings: ClassVar[dict[str, Any]] = {
        "stride": 1,
        "padding": 0,
        "output_padding": 0,
        "dilation": 1,
        "groups": 1,
    }

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        *,
        weight: Format,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        dtype: torch.dtype = torch.float32,
        activations: str | None = None,
        input_scale: float | None = None,
    ) -> None:
        kind, dims = type(self).__name__, self._dims
        check_groups(kind, groups, in_channels, out_channels)
        kernel = lengths(kind, "kernel_size", kernel_size, dims, 1)
        strides = lengths(kind, "stride", stride, dims, 1)
        dilations = lengths(kind, "dilation", dilation, dims, 1)
        columns = out_channels
        for length in kernel:
            columns *= length
        geometry = Geometry(columns, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), groups)
        _check.bias(kind, bias, out_channels)
        super().__init__(weight, geometry, in_channels, dtype, activations, input_scale)
        self._set_bias(bias)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride, self.dilation, self.groups = strides, dilations, groups
        self.padding = lengths(kind, "padding", padding, dims, 0)
        self.output_padding = lengths(kind, "output_padding", output_padding, dims, 0)
        for extra, s, d in zip(self.output_padding, strides, dilations, strict=True):
            if extra >= max(s, d):
                raise ValueError(
                    f"{kind}: output_padding: got {output_padding!r}, wanted less than the stride "
                    f"{strides} or the dilation {dilations}"
                )

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the layer.

        Parameters
        ----------
        x : Tensor
            Shape (batch, in_channels, height, width), float32, bfloat16 or float16.
        output_size : sequence of int, optional
            Height and width of the output, in place of ``output_padding``; leading dimensions are
            accepted, and ignored.

        Returns
        -------
        Tensor
            Shape (batch, out_channels, out_height, out_width), in the dtype and the memory format
            of x.
        """
        self._check_input(x)
        return self._transposed(x, self._out_size(x, output_size))

    def _out_size(self, x: Tensor, wanted: Sequence[int] | None) -> tuple[int, ...]:
        sizes = []
        for i, size in enumerate(x.shape[2:]):
            reach = self.dilation[i] * (self.kernel_size[i] - 1)
            least = (size - 1) * self.stride[i] + reach + 1 - 2 * self.padding[i]
            if wanted is None:
                sizes.append(least + self.output_padding[i])
                continue
            sizes.append(int(wanted[len(wanted) - self._dims + i]))
            most = least + max(self.stride[i], self.dilation[i]) - 1
            if not least <= sizes[i] <= most:
                raise ValueError(
                    f"{type(self).__name__}: output_size: got {list(wanted)}, wanted {least} to "
                    f"{most} in dimension {i}"
                )
        if min(sizes) < 1:
            raise ValueError(
                f"{type(self).__name__}: x: got {_check.describe(x)}, which the padding leaves "
                f"without an output"
            )
        return tuple(sizes)

    def _transposed(self, x: Tensor, out_size: tuple[int, ...]) -> Tensor:
        """On images: the product of every pixel with every tap, added up where each belongs."""
        kernel = in_two_dimensions(self.kernel_size, 1)
        stride, dilation = in_two_dimensions(self.stride, 1), in_two_dimensions(self.dilation, 1)
        top, left = in_two_dimensions(self.padding, 0)
        out_h, out_w = in_two_dimensions(out_size, 1)
        batch, _, height, width = x.shape
        dtype = torch.get_autocast_dtype("cpu") if _autocasts(x) else x.dtype
        product = self._convolve(x.to(memory_format=torch.channels_last), None, torch.float32)
        parts = product.permute(0, 2, 3, 1).view(batch, height, width, self.groups, *kernel, -1)
        whole_h = max((height - 1) * stride[0] + dilation[0] * (kernel[0] - 1) + 1, top + out_h)
        whole_w = max((width - 1) * stride[1] + dilation[1] * (kernel[1] - 1) + 1, left + out_w)
        whole = product.new_zeros(batch, whole_h, whole_w, self.groups, parts.shape[-1])
        for r in range(kernel[0]):
            rows = whole[:, r * dilation[0] :: stride[0]][:, :height]
            for t in range(kernel[1]):
                rows[:, :, t * dilation[1] :: stride[1]][:, :, :width] += parts[:, :, :, :, r, t]
        y = whole.flatten(3)[:, top : top + out_h, left : left + out_w]
        if self.bias is not None:
            y = y + self.bias.to(torch.float32)
        return y.permute(0, 3, 1, 2).to(dtype).contiguous(memory_format=memory_format_of(x))

    @staticmethod
    def _to_matrix(dense: Tensor, groups: int) -> Tensor:
        """[C, N / groups, *kernel] to rows (group, *kernel, n), columns channels."""
        parts = dense.view(groups, -1, *dense.shape[1:])
        return parts.movedim((1, 2), (-1, -2)).flatten(0, -2)

    def _from_matrix(self, matrix: Tensor) -> Tensor:
        taps = matrix.view(self.groups, *self.kernel_size, self.out_channels // self.groups, -1)
        return taps.movedim((-1, -2), (1, 2)).flatten(0, 1)


class ConvTranspose1d(ConvTranspose2d):
    """A one-dimensional transposed convolution: :class:`ConvTranspose2d` on images of height 1.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, weight, bias, stride, padding, output_padding, \
dilation, groups, dtype, activations, input_scale
        As of :class:`ConvTranspose2d`, with one length in place of two; the rows of the weight are
        in the order (group, tap, out channel of the group).

    Examples
    --------
    >>> dense = torch.nn.ConvTranspose1d(32, 16, 4, stride=2, padding=1)
    >>> gs.nn.ConvTranspose1d.from_dense(dense, "int8")(torch.randn(1, 32, 10)).shape
    torch.Size([1, 16, 20])
    """

    _dense: ClassVar[type[torch.nn.Module]] = torch.nn.ConvTranspose1d
    _dims: ClassVar[int] = 1

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the layer.

        Parameters
        ----------
        x : Tensor
            Shape (batch, in_channels, length), float32, bfloat16 or float16.
        output_size : sequence of int, optional
            Length of the output, in place of ``output_padding``.

        Returns
        -------
        Tensor
            Shape (batch, out_channels, out_length), in the dtype of x.
        """
        self._check_input(x)
        return self._transposed(x.unsqueeze(2), self._out_size(x, output_size)).squeeze(2)


def _autocasts(x: Tensor) -> bool:
    """Whether autocast makes this input another dtype."""
    return torch.is_autocast_enabled("cpu") and x.dtype is not torch.float64
