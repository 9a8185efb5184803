"""Convolutions on packed weights."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .. import _check
from .._ops_conv import Geometry, memory_format_of
from ..formats import Format
from .packed_conv import PackedConv

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class Conv2d(PackedConv):
    """A two-dimensional convolution, ``y = x * Ŵ + bias``, with a packed weight Ŵ.

    Each sample of x is rounded to int8 with one scale, dynamic or given; products are summed in
    integers, and the output has the dtype of x. The kernels read and write images with channels
    last: x in that memory format (``x.to(memory_format=torch.channels_last)``) is read in place and
    gives such an output, x in any other is copied, and so is its output.

    Parameters
    ----------
    in_channels, out_channels : int
        C and N.
    kernel_size : int or tuple of int
        (height, width).
    weight : Format
        The weight of shape (N, height * width * C / groups), each row in the order
        (height, width, channel), such as
        ``gs.formats.Int8.quantize(W.permute(0, 2, 3, 1).flatten(1))``.
    bias : Tensor or Parameter, optional
        Shape (N,), float32, bfloat16 or float16. A Parameter is used as it is, a Tensor becomes
        one.
    stride, padding, dilation, groups, padding_mode
        As of torch.nn.Conv2d; padding may be "same" or "valid".
    dtype : torch.dtype
        What ``layer.weight.dtype`` says; ``.to(dtype)`` changes it. It does not change the output.
    activations : str, optional
        "int8": x is rounded; "exact": it is multiplied as it is. None: the first that the format
        offers.
    input_scale : float, optional
        For int8 activations: ``q = round(x / input_scale)`` in [-127, 127], for all samples. None:
        ``max |x| / 127`` of each sample.

    Attributes
    ----------
    weight : Tensor
        Shape (N, C / groups, height, width), expanded at every access.
    packed : Tensor
        uint8, shape (bytes,): the packed weight of all groups, a buffer outside the ``state_dict``.
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
    With ``groups == in_channels == out_channels`` (depthwise) the image is the whole cost: it is
    never rounded, whatever the scheme says, and is multiplied with the weight's values in float32.

    A NaN or an infinity in a sample makes the whole output of that sample NaN where activations are
    int8.

    ``state_dict`` and pickle hold the canonical tensors of the format, matrices as `weight` is;
    loading also accepts the weight of the dense layer, and quantizes it. The gradients of x and of
    the bias exist, that of the weight does not.

    Examples
    --------
    >>> dense = torch.nn.Conv2d(16, 32, 3, padding=1)
    >>> layer = gs.nn.Conv2d.from_dense(dense, "int8")
    >>> layer
    Conv2d(16, 32, kernel_size=(3, 3), padding=(1, 1), bias=True, format=int8)
    >>> layer(torch.randn(1, 16, 8, 8)).shape
    torch.Size([1, 32, 8, 8])
    """

    _dense: ClassVar[type[torch.nn.Module]] = torch.nn.Conv2d
    _dims: ClassVar[int] = 2
    _settings: ClassVar[dict[str, Any]] = {
        "stride": 1,
        "padding": 0,
        "dilation": 1,
        "groups": 1,
        "padding_mode": "zeros",
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
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        dtype: torch.dtype = torch.float32,
        activations: str | None = None,
        input_scale: float | None = None,
    ) -> None:
        kind, dims = type(self).__name__, self._dims
        check_groups(kind, groups, in_channels, out_channels)
        if padding_mode not in PADDING_MODES:
            wanted = ", ".join(PADDING_MODES)
            raise ValueError(f"{kind}: padding_mode: got {padding_mode!r}, wanted one of {wanted}")
        kernel = lengths(kind, "kernel_size", kernel_size, dims, 1)
        strides = lengths(kind, "stride", stride, dims, 1)
        dilations = lengths(kind, "dilation", dilation, dims, 1)
        sides = _sides(kind, padding, kernel, strides, dilations)
        geometry = Geometry(
            out_channels,
            in_two_dimensions(kernel, 1),
            in_two_dimensions(strides, 1),
            sides if padding_mode == "zeros" else (0, 0, 0, 0),
            in_two_dimensions(dilations, 1),
            groups,
        )
        _check.bias(kind, bias, out_channels)
        super().__init__(weight, geometry, in_channels, dtype, activations, input_scale)
        self._set_bias(bias)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride, self.dilation, self.groups = strides, dilations, groups
        self.padding_mode = padding_mode
        self.padding = (
            padding if isinstance(padding, str) else lengths(kind, "padding", padding, dims, 0)
        )
        self._pad_first = None if padding_mode == "zeros" else (*sides[2:], *sides[:2])[: 2 * dims]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Parameters
        ----------
        x : Tensor
            Shape (batch, in_channels, height, width), float32, bfloat16 or float16.

        Returns
        -------
        Tensor
            Shape (batch, out_channels, out_height, out_width), in the dtype and the memory format
            of x.
        """
        self._check_input(x)
        if self._pad_first is not None:
            padded = functional.pad(x, self._pad_first, mode=self.padding_mode)
            x = padded.contiguous(memory_format=memory_format_of(x))
        return self._convolve(x, self.bias)

    @staticmethod
    def _to_matrix(dense: Tensor, groups: int) -> Tensor:
        """[N, C / groups, *kernel] to rows in the order (*kernel, channel)."""
        return dense.movedim(1, -1).flatten(1)

    def _from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.out_channels, *self.kernel_size, -1).movedim(-1, 1)


class Conv1d(Conv2d):
    """A one-dimensional convolution: :class:`Conv2d` on images of height 1.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, weight, bias, stride, padding, dilation, groups, \
padding_mode, dtype, activations, input_scale
        As of :class:`Conv2d`, with one length in place of two; the rows of the weight are in the
        order (tap, channel).

    Notes
    -----
    x of shape (batch, channels, length) is copied, unless it is the transpose of a contiguous
    (batch, length, channels); then the output is such a transpose, too.

    Examples
    --------
    >>> layer = gs.nn.Conv1d.from_dense(torch.nn.Conv1d(80, 32, 3, padding="same"), "int8")
    >>> layer(torch.randn(2, 80, 100)).shape
    torch.Size([2, 32, 100])
    """

    _dense: ClassVar[type[torch.nn.Module]] = torch.nn.Conv1d
    _dims: ClassVar[int] = 1

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Parameters
        ----------
        x : Tensor
            Shape (batch, in_channels, length), float32, bfloat16 or float16.

        Returns
        -------
        Tensor
            Shape (batch, out_channels, out_length), in the dtype of x.
        """
        self._check_input(x)
        if self._pad_first is not None:
            x = functional.pad(x, self._pad_first, mode=self.padding_mode)
        return self._convolve(x.unsqueeze(2), self.bias).squeeze(2)


def lengths(
    kind: str, name: str, value: int | tuple[int, ...], dims: int, least: int
) -> tuple[int, ...]:
    """One length for each dimension, from one for all or a sequence of them."""
    found = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(found) != dims or any(length < least for length in found):
        raise ValueError(f"{kind}: {name}: got {value!r}, wanted {dims} of at least {least}")
    return found


def in_two_dimensions(value: tuple[int, ...], height: int) -> tuple[int, int]:
    """(vertical, horizontal), of which a one-dimensional layer has only the second."""
    return (height, value[0]) if len(value) == 1 else (value[0], value[1])


def check_groups(kind: str, groups: int, in_channels: int, out_channels: int) -> None:
    """Both numbers of channels must be multiples of the number of groups."""
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"{kind}: groups: got {groups}, wanted a divisor of in_channels {in_channels} and "
            f"out_channels {out_channels}"
        )


def _sides(
    kind: str,
    padding: str | int | tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[int, int, int, int]:
    """Padding at the top, bottom, left and right."""
    dims = len(kernel)
    if padding == "same":
        if any(length != 1 for length in stride):
            raise ValueError(f"{kind}: padding: got 'same' with stride {stride}, wanted stride 1")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pairs = [(length // 2, length - length // 2) for length in total]
    elif isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f"{kind}: padding: got {padding!r}, wanted 'same', 'valid' or numbers")
        pairs = [(0, 0)] * dims
    else:
        pairs = [(length, length) for length in lengths(kind, "padding", padding, dims, 0)]
    vertical, horizontal = ((0, 0), pairs[0]) if dims == 1 else pairs
    return *vertical, *horizontal
