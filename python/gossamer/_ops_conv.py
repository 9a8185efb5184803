"""The torch op of convolutions with packed weights.

::

    gossamer::conv2d(Tensor x, Tensor packed, Tensor? bias, SymInt out_channels,
                     int[2] kernel_size, int[2] stride, int[4] padding, int[2] dilation,
                     int groups, float input_scale=0., ScalarType? dtype=None) -> Tensor
        y = x * Ŵ + bias        x [batch, channels, height, width], zero outside

``padding`` is (top, bottom, left, right), ``input_scale`` 0 gives every sample its own scale, and
``dtype`` is that of y where it is not the one of x. The memory format is kept. As in ``_ops.py`` a
plain eager call passes by the op; its gradient is written in torch's own operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.grad import conv2d_input

from . import _C, _check, _ops
from ._check import DTYPES


@dataclass(frozen=True)
class Geometry:
    """Everything about a convolution but its weight; lengths are (vertical, horizontal)."""

    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: tuple[int, int]
    groups: int

    def out_size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the output."""
        sizes = []
        for i in range(2):
            padded = x.shape[2 + i] + self.padding[2 * i] + self.padding[2 * i + 1]
            reach = self.dilation[i] * (self.kernel_size[i] - 1)
            sizes.append((padded - reach - 1) // self.stride[i] + 1)
            if sizes[i] < 1:
                raise ValueError(
                    f"conv2d: x: got {list(x.shape)}, padded to {padded} along dimension {2 + i}, "
                    f"wanted at least {reach + 1}, the reach of the kernel"
                )
        return sizes[0], sizes[1]

    def check(self, x: Tensor, bias: Tensor | None, channels: int | None = None) -> None:
        """The arguments must fit; `channels` is what the packed weight says."""
        _check.floating("conv2d", "x", x)
        if x.dim() != 4 or channels not in (None, x.shape[1]):
            wanted = "channels" if channels is None else channels
            raise ValueError(
                f"conv2d: x: got {_check.describe(x)}, wanted [batch, {wanted}, height, width]"
            )
        _check.bias("conv2d", bias, self.out_channels)

    def is_depthwise(self, channels: int) -> bool:
        """Whether each channel is filtered by itself, with one filter."""
        return self.groups > 1 and self.groups == self.out_channels == channels


class Handle:
    """A checked view of a packed convolution, and the address it was made for.

    It does not own the bytes, as :class:`gossamer._ops.Handle`.
    """

    __slots__ = ("address", "channels", "kernel")

    def __init__(self, packed: Tensor, geometry: Geometry, channels: int) -> None:
        _check.packed("conv2d", packed)
        _check.on_cpu("conv2d", "packed", packed)
        if not packed.is_contiguous():
            raise ValueError("conv2d: packed: is not contiguous")
        depthwise = geometry.is_depthwise(channels)
        self.address = packed.data_ptr()
        self.kernel = _C.PackedConv(self.address, packed.numel(), geometry.groups, depthwise)
        self.channels = channels
        taps = geometry.kernel_size[0] * geometry.kernel_size[1]
        wanted = (geometry.out_channels, taps * channels // geometry.groups)
        if wanted != (self.kernel.N, self.kernel.K):
            raise ValueError(
                f"conv2d: packed: is {self.kernel.N} x {self.kernel.K}, but {channels} channels in "
                f"{geometry.groups} groups with this kernel want {wanted[0]} x {wanted[1]}"
            )


def conv2d(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    input_scale: float,
    handle: Handle,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Convolve, directly where possible, else through the op."""
    if _ops._direct(x, bias) and packed.data_ptr() == handle.address:
        return run(handle, x, bias, geometry, input_scale, dtype)
    if forward_ad._current_level >= 0 and _ops._has_tangent(x):
        raise RuntimeError("conv2d: x: forward-mode differentiation is not supported")
    return call_op(x, packed, bias, geometry, input_scale, dtype)


def call_op(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    input_scale: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The torch.library op, with its many arguments."""
    g = geometry
    return conv2d_op(
        x,
        packed,
        bias,
        g.out_channels,
        g.kernel_size,
        g.stride,
        g.padding,
        g.dilation,
        g.groups,
        input_scale,
        dtype,
    )


def run(
    handle: Handle,
    x: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    input_scale: float = 0.0,
    dtype: torch.dtype | None = None,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """Run the kernel, on NHWC; x in another memory format is copied, and so is y."""
    geometry.check(x, bias, handle.channels)
    out_h, out_w = geometry.out_size(x)
    memory_format = memory_format_of(x)
    x = x.contiguous(memory_format=torch.channels_last)
    N, (batch, channels, height, width) = geometry.out_channels, x.shape
    out = x.new_empty(batch, out_h, out_w, N, dtype=dtype or x.dtype)
    bias = None if bias is None else bias.contiguous()
    shape = [batch, height, width, channels, out_h, out_w, *geometry.kernel_size, *geometry.stride]
    shape += [geometry.padding[0], geometry.padding[2], *geometry.dilation]
    handle.kernel.run(
        x.data_ptr(),
        DTYPES[x.dtype],
        shape,
        input_scale,
        0 if bias is None else bias.data_ptr(),
        0 if bias is None else DTYPES[bias.dtype],
        out.data_ptr(),
        DTYPES[out.dtype],
        threads or torch.get_num_threads(),
        isa,
    )
    return out.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The format of the output: channels last where x has that and no other."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def dequantize(packed: Tensor, geometry: Geometry, channels: int) -> Tensor:
    """The weight as torch has it, float32 [out_channels, channels / groups, *kernel_size]."""
    N, (height, width) = geometry.out_channels, geometry.kernel_size
    parts = 1 if geometry.is_depthwise(channels) else geometry.groups
    K = height * width * (channels // geometry.groups)
    rows = [
        _ops.dequantize_op(part, N // parts, K, torch.float32)
        for part in packed.view(parts, -1).unbind()
    ]
    return torch.cat(rows).view(N, height, width, -1).permute(0, 3, 1, 2)


# --- the torch.library op ---

_library: Any = torch.library.Library("gossamer", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "conv2d(Tensor x, Tensor packed, Tensor? bias, SymInt out_channels, int[2] kernel_size, "
    "int[2] stride, int[4] padding, int[2] dilation, int groups, float input_scale=0., "
    "ScalarType? dtype=None) -> Tensor"
)
conv2d_op: OpOverload[..., Tensor] = torch.ops.gossamer.conv2d.default


def _geometry(args: tuple[Any, ...]) -> Geometry:
    """From the op's arguments after the bias."""
    out_channels, kernel_size, stride, padding, dilation, groups = args[:6]
    return Geometry(
        out_channels, tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), groups
    )


def _dtype(args: tuple[Any, ...]) -> torch.dtype | None:
    return args[7] if len(args) > 7 else None


def _input_scale(args: tuple[Any, ...]) -> float:
    return args[6] if len(args) > 6 else 0.0


def _conv2d_cpu(x: Tensor, packed: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    geometry = _geometry(args)
    geometry.check(x, bias)
    handle = Handle(packed, geometry, x.shape[1])
    return run(handle, x, bias, geometry, _input_scale(args), _dtype(args))


def _conv2d_fake(x: Tensor, packed: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    geometry = _geometry(args)
    geometry.check(x, bias)
    shape = (x.shape[0], geometry.out_channels, *geometry.out_size(x))
    memory_format = memory_format_of(x)
    return x.new_empty(shape, dtype=_dtype(args)).contiguous(memory_format=memory_format)


def _conv2d_autocast(x: Tensor, packed: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    """As torch does, x and so the output take the autocast dtype; the bias is added as it is."""
    if x.is_floating_point() and x.dtype is not torch.float64:
        x = x.to(torch.get_autocast_dtype("cpu"))
    with _ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.AutocastCPU)):
        return conv2d_op(x, packed, bias, *args)


def _conv2d_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, bias, *args = inputs
    ctx.geometry = _geometry(tuple(args))
    ctx.x_shape, ctx.x_dtype = x.shape, x.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.arguments = len(args)
    ctx.save_for_backward(packed)


def _conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Compute dX, as torch does from the dense weight, and dbias = Σ dY over samples and pixels."""
    (packed,) = ctx.saved_tensors
    g = ctx.geometry
    dx = dbias = None
    if ctx.needs_input_grad[0]:
        batch, channels, height, width = ctx.x_shape
        top, bottom, left, right = g.padding
        # Of the padded image: conv2d_input knows only padding that is the same on both sides.
        dx = conv2d_input(  # type: ignore[no-untyped-call]
            (batch, channels, height + top + bottom, width + left + right),
            dequantize(packed, g, channels).contiguous(),
            grad.to(torch.float32),
            stride=g.stride,
            dilation=g.dilation,
            groups=g.groups,
        )
        dx = functional.pad(dx, (-left, -right, -top, -bottom)).to(ctx.x_dtype)
    if ctx.needs_input_grad[2]:
        dbias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype)
    return dx, None, dbias, *([None] * ctx.arguments)


def _conv2d_vmap(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, packed: Tensor, bias: Tensor | None, *args: Any
) -> tuple[Tensor, int]:
    """More samples, each with a scale of its own as before."""
    if any(dim is not None for dim in in_dims[1:3]):
        raise RuntimeError("conv2d: vmap over the packed weight or the bias is not supported")
    x = x.movedim(in_dims[0], 0)
    y = conv2d_op(x.flatten(0, 1), packed, bias, *args)
    return y.view(*x.shape[:2], *y.shape[1:]), 0


_library.impl("conv2d", _conv2d_cpu, "CPU")
_library.impl("conv2d", _conv2d_autocast, "AutocastCPU")
torch.library.register_fake(conv2d_op, _conv2d_fake, lib=_library)
torch.library.register_autograd(
    conv2d_op, _conv2d_backward, setup_context=_conv2d_setup, lib=_library
)
torch.library.register_vmap(conv2d_op, _conv2d_vmap, lib=_library)
