"""Weights of any format, of any canonical tensors, and whether two are the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.formats import BF16, FP8, FP32, MXFP4, Format, Int4, Int8, LowRank
from gossamer.formats.dense_float import DenseFloat
from gossamer.formats.low_rank_sum import LowRankSum, SparseLowRankSum
from gossamer.formats.sparse import Sparse
from gossamer.formats.sparse_mask import split

SCALES = [torch.float16, torch.bfloat16, torch.float32]


def numbers(tensor: Tensor) -> Tensor:
    """The bits of a float8 tensor; others as they are."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def same(a: Format, b: Format) -> bool:
    """Equal bits in all canonical tensors, and equal settings."""
    left, right = a.state(), b.state()
    return (
        (type(a), a.shape, a.group_size, list(left))
        == (type(b), b.shape, b.group_size, list(right))
        and all(left[name].dtype == right[name].dtype for name in left)
        and all(torch.equal(numbers(left[name]), numbers(right[name])) for name in left)
    )


def random_weight(form: type[Any], N: int, K: int, group_size: int | None, seed: int) -> Any:
    """Any canonical tensors that the format accepts: all codes, scales of any dtype."""
    if issubclass(form, Sparse):
        return random_sparse_weight(form, N, K, group_size, seed)
    if issubclass(form, LowRankSum):
        base = random_weight(form.base_format, N, K, group_size, seed)
        return form(base, random_low_rank(N, K, seed % 33 + 1, seed))
    random = torch.Generator().manual_seed(seed)
    groups = 1 if group_size is None else -(-K // group_size)
    values = torch.randint(0, 256, (N, K), generator=random, dtype=torch.uint8)
    scales = torch.randn(N, groups, generator=random)
    if form is Int8:
        return Int8(values.view(torch.int8), scales.abs(), group_size)
    if issubclass(form, DenseFloat):
        return form(torch.randn(N, K, generator=random).to(form.value_dtype))
    if form is FP8:
        dtype = (torch.float8_e4m3fn, torch.float8_e5m2)[seed % 2]
        blocks = (N, 1) if group_size is None else (-(-N // 128), groups)
        return FP8(values.view(dtype), torch.randn(blocks, generator=random), group_size)
    codes = values[:, : -(-K // 2)].clone()
    if K % 2:
        codes[:, -1] &= 15
    if form is MXFP4:
        exponents = torch.randint(0, 255, (N, groups), generator=random)
        return MXFP4(codes, exponents.byte(), 32, K)
    scales = scales.to(SCALES[seed % 3])
    if form is Int4 and seed % 5 < 2:
        points = torch.randint(0, 16, (N, groups), generator=random, dtype=torch.uint8)
        return Int4(codes, scales, group_size, K, points)
    return form(codes, scales, group_size, K)


def random_sparse_weight(form: type[Any], N: int, K: int, group_size: int | None, seed: int) -> Any:
    """Any canonical tensors of a sparse format, from none of the weights to all."""
    random = torch.Generator().manual_seed(seed)
    kept = torch.rand(N, K, generator=random) < (0.5, 0.1, 0.0, 0.9, 1.0)[seed % 5]
    if form.scale_dtypes:
        twin = Int8 if form.name == "sparse-int8" else Int4
        dense = random_weight(twin, N, K, group_size, 5 * seed + 2)  # int4: without zero points
        levels = form.from_dense(dense)._all_levels() * kept
    else:
        levels = (torch.randn(N, K, generator=random) * kept).to(form.value_dtype)
        dense = None
    mask, values = split(levels)
    scales = None if dense is None else dense.scales
    return form(mask, form._stored(values), scales, group_size, K)


def random_low_rank(N: int, K: int, R: int, seed: int, factors: type[Any] | None = None) -> LowRank:
    """Any factors of rank R; None takes any format for them."""
    form = factors or (FP32, BF16, Int8)[seed % 3]
    return LowRank(random_weight(form, N, R, None, seed), random_weight(form, R, K, None, seed + 1))


def low_rank_weight(form: type[Any], N: int, K: int, R: int, seed: int, factors: Any = None) -> Any:
    """Random canonical tensors, with numbers of ordinary size, so that sums are comparable."""
    low_rank = random_low_rank(N, K, R, seed, factors)
    if form is LowRank:
        return low_rank
    W = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    if issubclass(form, SparseLowRankSum):
        W = W.where(W.abs() > 0.8, 0.0)
    sizes = form.group_sizes
    return form(form.base_format.quantize(W, sizes[seed % len(sizes)]), low_rank)
