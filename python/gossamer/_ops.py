"""Torch ops over the C++ extension: the only file that turns tensors into pointers.

Every linear layer of every format is one op::

    gossamer::linear(Tensor x, Tensor packed, Tensor? bias, int out_features,
                     str activation="none", Tensor? addend=None) -> Tensor
        y = activation(x · Ŵᵀ + bias + addend)

It exists twice over one implementation, :func:`run`. :func:`linear` calls that directly where
nothing but numbers is wanted: a plain eager call, no gradient. Everywhere else it calls the
torch.library op, which torch.compile, torch.export, autograd, autocast, vmap and subclasses see.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _ExcludeDispatchKeyGuard,
    _get_tracing_state,
    _is_torch_function_mode_enabled,
    _len_torch_dispatch_stack,
)
from torch._C._functorch import maybe_current_level
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.nn import Parameter

from . import _C, _check
from ._check import ACTIVATIONS, DTYPES

_CHUNK_ELEMENTS = 1 << 20  # of a weight expanded at a time: 4 MiB of fp32, which stays in L2 and L3


class Handle:
    """A checked view of a packed weight, and the address it was made for.

    It does not own the bytes: whoever holds it holds the packed tensor too, and compares
    ``address`` before using ``kernel``.
    """

    __slots__ = ("address", "in_features", "kernel", "out_features")

    def __init__(self, packed: Tensor) -> None:
        _check.packed_bytes("linear", packed)
        self.address = packed.data_ptr()
        self.kernel = _C.PackedLinear(self.address, packed.numel())
        self.out_features = self.kernel.N
        self.in_features = self.kernel.K


# By id: a lookup costs a quarter of that of torch's dictionary of weak keys.
_handles: dict[int, tuple[weakref.ref[Tensor], int, Handle]] = {}


def checked_handle(packed: Tensor) -> Handle:
    """The handle of packed bytes, made once for as long as they stay where and what they are.

    Checking all masks of a sparse weight costs as much as a product with one row. Bytes that are
    changed past torch, as through a numpy array, are not noticed.
    """
    kept = _handles.get(id(packed))
    if (
        kept is not None
        and kept[0]() is packed
        and kept[1] == packed._version
        and kept[2].address == packed.data_ptr()
    ):
        return kept[2]
    handle, key = Handle(packed), id(packed)
    if not packed.is_inference():  # inference tensors have no version
        forget = weakref.ref(packed, lambda _: _handles.pop(key, None))
        _handles[key] = (forget, packed._version, handle)
    return handle


def linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, activation: str, handle: Handle
) -> Tensor:
    """Compute activation(x · Ŵᵀ + bias), directly where possible, else through the op."""
    if _direct(x, bias) and packed.data_ptr() == handle.address:
        return run(handle, x, bias, activation)
    if forward_ad._current_level >= 0 and _has_tangent(x):
        raise RuntimeError("linear: x: forward-mode differentiation is not supported")
    return linear_op(x, packed, bias, handle.out_features, activation)


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def _direct(x: Tensor, bias: Tensor | None) -> bool:
    """Whether nothing but the numbers is wanted of this call.

    False for subclasses and other devices, under torch.jit tracing, dispatch and function modes,
    functorch transforms, autocast and forward-mode differentiation, and where a gradient is needed.
    """
    return (
        (type(x) is Tensor or type(x) is Parameter)
        and (bias is None or type(bias) is Parameter or type(bias) is Tensor)
        and not (
            _len_torch_dispatch_stack()
            or _is_torch_function_mode_enabled()
            or maybe_current_level() is not None
            or _get_tracing_state() is not None
            or torch.is_autocast_enabled("cpu")
            or forward_ad._current_level >= 0
        )
        and not (
            torch.is_grad_enabled()
            and (x.requires_grad or (bias is not None and bias.requires_grad))
        )
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_neg()
    )


def run(
    handle: Handle,
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    addend: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """Run the kernel: x [..., K] to [..., N] in the dtype of x, or in `out_dtype`."""
    K, N = handle.in_features, handle.out_features
    shape = x.shape
    x_code = DTYPES.get(x.dtype)
    if x_code is None or not shape or shape[-1] != K:
        raise _check.rows_error("linear", "x", x, K)
    if x.is_contiguous():
        M, row_stride = x.numel() // K, K
    else:
        x, M, row_stride = _strided_rows(x)
    # Slicing a torch.Size costs as much as the kernel of a small layer.
    out = x.new_empty(M, N) if len(shape) == 2 else x.new_empty(*shape[:-1], N)
    out_code = x_code
    if out_dtype is not None:
        out, out_code = out.new_empty(out.shape, dtype=out_dtype), DTYPES[out_dtype]
    bias_address = bias_code = addend_address = 0
    if bias is not None:
        if bias.numel() != N or bias.dtype not in DTYPES:
            raise _check.rows_error("linear", "bias", bias, N)
        bias = bias.contiguous()
        bias_address, bias_code = bias.data_ptr(), DTYPES[bias.dtype]
    if addend is not None:
        addend = addend.contiguous()
        addend_address = addend.data_ptr()
    handle.kernel.run(
        x.data_ptr(),
        x_code,
        M,
        row_stride,
        bias_address,
        bias_code,
        ACTIVATIONS[activation],
        addend_address,
        out.data_ptr(),
        out_code,
        threads or torch.get_num_threads(),
        isa,
    )
    return out


def _strided_rows(x: Tensor) -> tuple[Tensor, int, int]:
    """View x as M rows of unit stride: rows, M, row stride. Copies where no one stride fits."""
    columns = x.shape[-1]
    M = x.numel() // columns
    x = x.reshape(M, columns)
    if columns > 1 and x.stride(1) != 1:
        x = x.contiguous()
    return x, M, x.stride(0)


# --- the torch.library ops ---

_library: Any = torch.library.Library("gossamer", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "linear(Tensor x, Tensor packed, Tensor? bias, int out_features, str activation='none', "
    "Tensor? addend=None) -> Tensor"
)
_library.define("linear_backward_input(Tensor grad, Tensor packed, int in_features) -> Tensor")
_library.define(
    "dequantize(Tensor packed, int out_features, int in_features, ScalarType dtype) -> Tensor"
)

linear_op: OpOverload[..., Tensor] = torch.ops.gossamer.linear.default
linear_backward_input_op: OpOverload[..., Tensor] = torch.ops.gossamer.linear_backward_input.default
dequantize_op: OpOverload[..., Tensor] = torch.ops.gossamer.dequantize.default


def _linear_cpu(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str = "none",
    addend: Tensor | None = None,
) -> Tensor:
    _check.linear(x, packed, bias, out_features, activation, addend)
    handle = checked_handle(packed)
    if handle.out_features != out_features:
        raise ValueError(
            f"linear: out_features: got {out_features}, the packed weight has {handle.out_features}"
        )
    return run(handle, x, bias, activation, addend)


def _linear_fake(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str = "none",
    addend: Tensor | None = None,
) -> Tensor:
    _check.linear(x, packed, bias, out_features, activation, addend)
    return x.new_empty(*x.shape[:-1], out_features)


def _linear_autocast(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str = "none",
    addend: Tensor | None = None,
) -> Tensor:
    """As F.linear, x and so the output take the autocast dtype; the bias is added as it is."""
    if x.is_floating_point() and x.dtype is not torch.float64:
        x = x.to(torch.get_autocast_dtype("cpu"))
    with _ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.AutocastCPU)):
        return linear_op(x, packed, bias, out_features, activation, addend)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, bias, ctx.out_features, ctx.activation, addend = inputs
    ctx.in_features = x.shape[-1]
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.has_addend = addend is not None
    # Only the derivative of an activation needs the input again.
    ctx.save_for_backward(packed, *((x, bias, addend) if ctx.activation != "none" else ()))


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Compute dX = dZ · Ŵ, dbias = Σ_rows dZ, daddend = dZ, where dZ = dY · activation'(Z)."""
    packed, *saved = ctx.saved_tensors
    if ctx.activation != "none":
        x, bias, addend = saved
        z = linear_op(x, packed, bias, ctx.out_features, "none", addend)
        grad = _activation_backward(ctx.activation, grad, z)
    dx = dbias = daddend = None
    if ctx.needs_input_grad[0]:
        dx = linear_backward_input_op(grad, packed, ctx.in_features)
    if ctx.needs_input_grad[2]:
        dbias = grad.reshape(-1, ctx.out_features).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    if ctx.has_addend:
        daddend = grad.to(torch.float32)
    return dx, None, dbias, None, None, daddend


def _activation_backward(activation: str, grad: Tensor, z: Tensor) -> Tensor:
    aten = torch.ops.aten
    if activation == "relu":
        gradient = aten.threshold_backward(grad, z, 0)
    elif activation == "silu":
        gradient = aten.silu_backward(grad, z)
    else:
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        gradient = aten.gelu_backward(grad, z, approximate=approximate)
    return gradient  # type: ignore[no-any-return]


def dequantize_rows(handle: Handle, first: int, last: int, out: Tensor | None = None) -> Tensor:
    """Expand rows to fp32 [last - first, K], into the first rows of out where that is given."""
    if out is None:
        out = torch.empty(last - first, handle.in_features, dtype=torch.float32)
    handle.kernel.dequantize(first, last, out.data_ptr(), torch.get_num_threads())
    return out[: last - first]


def dense_chunks(handle: Handle) -> Iterator[tuple[int, int, Tensor]]:
    """The dense weight, some rows at a time: first row, last row, and fp32 [last - first, K].

    The rows are overwritten in the next step.
    """
    N, K = handle.out_features, handle.in_features
    step = max(1, _CHUNK_ELEMENTS // K)
    buffer = torch.empty(min(step, N), K, dtype=torch.float32)
    for first in range(0, N, step):
        last = min(first + step, N)
        yield first, last, dequantize_rows(handle, first, last, buffer)


def _backward_input_cpu(grad: Tensor, packed: Tensor, in_features: int) -> Tensor:
    """Expand the weight by blocks of rows and sum their products in fp32."""
    handle = checked_handle(packed)
    N, K = handle.out_features, handle.in_features
    _check.rows("linear_backward_input", "grad", grad, N)
    if in_features != K:
        raise ValueError(
            f"linear_backward_input: in_features: got {in_features}, the packed weight has {K}"
        )
    rows = grad.reshape(-1, N).to(torch.float32)
    total = rows.new_zeros(rows.shape[0], K)
    for first, last, chunk in dense_chunks(handle):
        total.addmm_(rows[:, first:last], chunk)
    return total.to(grad.dtype).view(*grad.shape[:-1], K)


def _backward_input_fake(grad: Tensor, packed: Tensor, in_features: int) -> Tensor:
    _check.floating("linear_backward_input", "grad", grad)
    _check.packed("linear_backward_input", packed)
    return grad.new_empty(*grad.shape[:-1], in_features)


def _backward_input_backward(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError("linear: second derivatives of a layer with a packed weight do not exist")


def _dequantize_cpu(packed: Tensor, N: int, K: int, dtype: torch.dtype) -> Tensor:
    handle = checked_handle(packed)
    found = (handle.out_features, handle.in_features)
    if found != (N, K):
        raise ValueError(f"dequantize: got {N} x {K}, the packed weight is {found[0]} x {found[1]}")
    out = torch.empty(N, K, dtype=dtype)
    for first, last, chunk in dense_chunks(handle):
        out[first:last] = chunk
    return out


def _dequantize_fake(packed: Tensor, N: int, K: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty(N, K, dtype=dtype)


def _linear_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str = "none",
    addend: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Make the batch one more leading dimension of x."""
    x_dim, packed_dim, bias_dim, *_ = in_dims
    addend_dim: int | None = in_dims[5] if len(in_dims) == 6 else None
    if packed_dim is not None or bias_dim is not None:
        raise RuntimeError("linear: vmap over the packed weight or the bias is not supported")
    x = x.expand(info.batch_size, *x.shape) if x_dim is None else x.movedim(x_dim, 0)
    if addend is not None:
        batched = addend_dim is not None
        addend = addend.movedim(addend_dim or 0, 0) if batched else addend.expand(*x.shape[:-1], -1)
    return linear_op(x, packed, bias, out_features, activation, addend), 0


def _backward_input_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    grad, packed, in_features = args
    if in_dims[0] is None or in_dims[1] is not None:
        raise RuntimeError("linear: vmap over the packed weight is not supported")
    return linear_backward_input_op(grad.movedim(in_dims[0], 0), packed, in_features), 0


_library.impl("linear", _linear_cpu, "CPU")
_library.impl("linear", _linear_autocast, "AutocastCPU")
_library.impl("linear_backward_input", _backward_input_cpu, "CPU")
_library.impl("dequantize", _dequantize_cpu, "CPU")
torch.library.register_fake(linear_op, _linear_fake, lib=_library)
torch.library.register_fake(linear_backward_input_op, _backward_input_fake, lib=_library)
torch.library.register_fake(dequantize_op, _dequantize_fake, lib=_library)
torch.library.register_autograd(
    linear_op, _linear_backward, setup_context=_linear_setup, lib=_library
)
torch.library.register_autograd(linear_backward_input_op, _backward_input_backward, lib=_library)
torch.library.register_vmap(linear_op, _linear_vmap, lib=_library)
torch.library.register_vmap(linear_backward_input_op, _backward_input_vmap, lib=_library)


# --- the research surface ---


def quantize_rows(
    x: Tensor, isa: str, group_size: int | None, input_scale: float | None
) -> tuple[Tensor, Tensor]:
    """Quantize x [M, K] as the kernels do: int8 values, float32 scales [M] or [M, groups]."""
    rows, M, row_stride = _strided_rows(x)
    K = x.shape[1]
    values = torch.empty(M, K, dtype=torch.int8)
    shape = (M,) if group_size is None else (M, -(-K // group_size))
    scales = torch.empty(shape, dtype=torch.float32)
    _C.quantize_rows(
        rows.data_ptr(),
        DTYPES[x.dtype],
        M,
        K,
        row_stride,
        group_size or 0,
        values.data_ptr(),
        scales.data_ptr(),
        isa,
        input_scale or 0.0,
    )
    return values, scales


def accumulate(handle: Handle, a: Tensor, threads: int, isa: str) -> Tensor:
    """The integer sums of a [M, K] int8 with the packed values: int64 [M, N]."""
    rows, M, row_stride = _strided_rows(a)
    out = torch.empty(M, handle.out_features, dtype=torch.int64)
    handle.kernel.accumulate(rows.data_ptr(), M, row_stride, out.data_ptr(), threads, isa)
    return out
