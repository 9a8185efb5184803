"""Torch ops of embeddings with packed weights.

Two ops, without a gradient for the weight; that of per_sample_weights exists::

    gossamer::embedding(Tensor indices, Tensor packed, int embedding_dim, ScalarType dtype)
            -> Tensor
        y[..., k] = Ŵ[indices[...], k]

    gossamer::embedding_bag(Tensor indices, Tensor packed, Tensor offsets,
                            Tensor? per_sample_weights, int embedding_dim, ScalarType dtype,
                            str mode, int? padding_idx) -> Tensor
        y[b, k] = reduce of w[i] * Ŵ[indices[i], k] over offsets[b] <= i < offsets[b + 1]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from . import _C, _check, _ops

MODES: dict[str, int] = {"sum": 0, "mean": 1, "max": 2}  # the codes of _C.pyi
INDEX_DTYPES = (torch.int64, torch.int32)

_library: Any = torch.library.Library("gossamer", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "embedding(Tensor indices, Tensor packed, SymInt embedding_dim, ScalarType dtype) -> Tensor"
)
_library.define(
    "embedding_bag(Tensor indices, Tensor packed, Tensor offsets, Tensor? per_sample_weights, "
    "SymInt embedding_dim, ScalarType dtype, str mode, int? padding_idx) -> Tensor"
)
embedding_op: OpOverload[..., Tensor] = torch.ops.gossamer.embedding.default
embedding_bag_op: OpOverload[..., Tensor] = torch.ops.gossamer.embedding_bag.default


def check_indices(function: str, name: str, value: Tensor) -> None:
    """The argument must be int64 or int32, on the CPU."""
    if value.dtype not in INDEX_DTYPES:
        raise TypeError(
            f"{function}: {name}: got {_check.describe(value)}, wanted dtype int64 or int32"
        )
    _check.on_cpu(function, name, value)


def _check_table(function: str, packed: Tensor, embedding_dim: int, dtype: torch.dtype) -> None:
    found = _ops.Handle(packed).in_features
    if found != embedding_dim:
        raise ValueError(
            f"{function}: embedding_dim: got {embedding_dim}, the packed weight has {found}"
        )
    if dtype not in _check.DTYPES:
        raise TypeError(f"{function}: dtype: got {dtype}, wanted float32, bfloat16 or float16")


def _int64(indices: Tensor) -> Tensor:
    return indices.to(torch.int64).contiguous()


def embedding(indices: Tensor, packed: Tensor, embedding_dim: int, dtype: torch.dtype) -> Tensor:
    """Look rows up in a table of that width, directly where possible, else through the op."""
    if _ops._direct(indices, None):
        return _look_up(indices, packed, embedding_dim, dtype)
    return embedding_op(indices, packed, embedding_dim, dtype)


def _embedding_cpu(
    indices: Tensor, packed: Tensor, embedding_dim: int, dtype: torch.dtype
) -> Tensor:
    _check_table("embedding", packed, embedding_dim, dtype)
    return _look_up(indices, packed, embedding_dim, dtype)


def _look_up(indices: Tensor, packed: Tensor, embedding_dim: int, dtype: torch.dtype) -> Tensor:
    check_indices("embedding", "input", indices)
    out = torch.empty(*indices.shape, embedding_dim, dtype=dtype)
    flat = _int64(indices)
    _C.embedding(
        packed.data_ptr(),
        packed.numel(),
        flat.data_ptr(),
        flat.numel(),
        out.data_ptr(),
        _check.DTYPES[dtype],
        torch.get_num_threads(),
    )
    return out


def _embedding_fake(
    indices: Tensor, packed: Tensor, embedding_dim: int, dtype: torch.dtype
) -> Tensor:
    check_indices("embedding", "input", indices)
    return indices.new_empty(*indices.shape, embedding_dim, dtype=dtype)


def _embedding_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    if in_dims[0] is None or in_dims[1] is not None:
        raise RuntimeError("embedding: vmap over the packed weight is not supported")
    return embedding_op(*args), in_dims[0]


def _check_bag(
    indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, mode: str
) -> None:
    check_indices("embedding_bag", "input", indices)
    check_indices("embedding_bag", "offsets", offsets)
    if indices.dim() != 1 or offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(
            "embedding_bag: input, offsets: got "
            f"{_check.describe(indices)} and {_check.describe(offsets)}, wanted one dimension, and "
            "one offset more than there are bags"
        )
    if mode not in MODES:
        raise ValueError(f"embedding_bag: mode: got {mode!r}, wanted one of {', '.join(MODES)}")
    if per_sample_weights is None:
        return
    _check.floating("embedding_bag", "per_sample_weights", per_sample_weights)
    if mode != "sum":
        raise ValueError(
            f"embedding_bag: per_sample_weights: got mode {mode!r}, they exist for 'sum' only"
        )
    if per_sample_weights.shape != indices.shape:
        raise ValueError(
            f"embedding_bag: per_sample_weights: got {_check.describe(per_sample_weights)}, wanted "
            f"the shape of input, {list(indices.shape)}"
        )


def _embedding_bag_cpu(
    indices: Tensor,
    packed: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    embedding_dim: int,
    dtype: torch.dtype,
    mode: str,
    padding_idx: int | None,
) -> Tensor:
    _check_bag(indices, offsets, per_sample_weights, mode)
    _check_table("embedding_bag", packed, embedding_dim, dtype)
    weights = None
    if per_sample_weights is not None:
        weights = per_sample_weights.to(torch.float32).contiguous()
    bags = offsets.shape[0] - 1
    out = torch.empty(bags, embedding_dim, dtype=dtype)
    indices, offsets = _int64(indices), _int64(offsets)
    _C.embedding_bag(
        packed.data_ptr(),
        packed.numel(),
        indices.data_ptr(),
        indices.numel(),
        offsets.data_ptr(),
        bags,
        0 if weights is None else weights.data_ptr(),
        MODES[mode],
        -1 if padding_idx is None else padding_idx,
        out.data_ptr(),
        _check.DTYPES[dtype],
        torch.get_num_threads(),
    )
    return out


def _embedding_bag_fake(
    indices: Tensor,
    packed: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    embedding_dim: int,
    dtype: torch.dtype,
    mode: str,
    padding_idx: int | None,
) -> Tensor:
    _check_bag(indices, offsets, per_sample_weights, mode)
    return indices.new_empty(offsets.shape[0] - 1, embedding_dim, dtype=dtype)


def _bag_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, packed, offsets, weights, _, _, _, ctx.padding_idx = inputs
    ctx.weights_dtype = None if weights is None else weights.dtype
    ctx.save_for_backward(indices, packed, offsets)


def _bag_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Compute dw[i] = dY[b] · Ŵ[indices[i]], where i lies in bag b and is no padding."""
    if not ctx.needs_input_grad[3]:
        return (None,) * 8
    indices, packed, offsets = ctx.saved_tensors
    rows = embedding_op(indices, packed, grad.shape[1], torch.float32)
    bags = torch.searchsorted(offsets.to(torch.int64), torch.arange(len(indices)), right=True) - 1
    if ctx.padding_idx is not None:
        bags = bags.masked_fill(indices == ctx.padding_idx, len(grad))
    # Bag len(grad) is none: padding, and what comes after the last offset.
    of_bag = torch.nn.functional.pad(grad.to(torch.float32), (0, 0, 0, 1))[bags]
    products = (rows * of_bag).sum(1).masked_fill(bags == len(grad), 0.0)
    return None, None, None, products.to(ctx.weights_dtype), None, None, None, None


_library.impl("embedding", _embedding_cpu, "CPU")
_library.impl("embedding_bag", _embedding_bag_cpu, "CPU")
torch.library.register_fake(embedding_op, _embedding_fake, lib=_library)
torch.library.register_fake(embedding_bag_op, _embedding_bag_fake, lib=_library)
torch.library.register_vmap(embedding_op, _embedding_vmap, lib=_library)
torch.library.register_autograd(
    embedding_bag_op, _bag_backward, setup_context=_bag_setup, lib=_library
)
