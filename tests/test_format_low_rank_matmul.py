"""Products with low-rank weights and with sums, against float64 references from their factors."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import gossamer as gs
from gossamer.formats import BF16, FORMATS, FP32, Int8, LowRank
from gossamer.formats.low_rank_sum import LowRankSum

from .random_weights import low_rank_weight, random_low_rank

EPS = torch.finfo(torch.float32).eps
SUMS: list[Any] = [form for form in FORMATS.values() if issubclass(form, LowRankSum)]
ALL: list[Any] = [LowRank, *SUMS]
RANKS = (1, 17, 33)
every = pytest.mark.parametrize("form", ALL, ids=[form.name for form in ALL])
sums = pytest.mark.parametrize("form", SUMS, ids=[form.name for form in SUMS])
formats_of_factors = pytest.mark.parametrize("factors", [FP32, BF16, Int8], ids=lambda f: f.name)


def low_rank_product(x: Tensor, weight: LowRank, kind: str) -> tuple[Tensor, Tensor]:
    """x · (U V)ᵀ in float64, and how far the kernels may be from it.

    "int8": rows of x, and of T = x Vᵀ, have one scale each. "exact": fp32 sums; with bfloat16 x,
    int8 factors that are expanded, and T, may be rounded to bfloat16.
    """
    U, V = weight.U.dequantize().double(), weight.V.dequantize().double()
    a = x.double()
    if kind == "int8":
        values, scales = gs.kernels.quantize_rows(x)
        a = values.double() * scales.double()[:, None]
    narrow = 2.0**-8 if kind == "exact" and x.dtype is torch.bfloat16 else 0.0
    T = a @ V.T
    error = ((V.shape[1] + 16) * EPS + narrow) * (a.abs() @ V.abs().T)
    largest = (T.abs() + error).amax(1, keepdim=True)
    error = error + narrow * (T.abs() + error)
    if kind == "int8":
        error = error + largest / 254 * (1 + 2.0**-10)
    size = (T.abs() + error) @ U.abs().T
    return T @ U.T, error @ U.abs().T + ((V.shape[0] + 16) * EPS + narrow) * size


def assert_low_rank_product(x: Tensor, weight: LowRank, kind: str, **how: Any) -> None:
    y = gs.kernels.matmul(x, weight.pack(kind), out_dtype=torch.float32, **how)
    want, bound = low_rank_product(x, weight, kind)
    assert bool(((y - want).abs() <= bound + 2.0**-126).all())


@formats_of_factors
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_with_factors(isa: str, factors: Any, dtype: torch.dtype) -> None:
    for R in RANKS:
        weight = random_low_rank(67, 130, R, R, factors)
        for M in (1, 3, 16, 70):
            x = torch.randn(M, 130).to(dtype)
            for kind in factors.activation_kinds[:2]:
                assert_low_rank_product(x, weight, kind)


@hypothesis.given(
    M=st.integers(1, 80),
    shape=st.tuples(st.integers(1, 80), st.integers(1, 300), st.integers(1, 80)),
    seed=st.integers(0, 2**31),
)
@hypothesis.settings(max_examples=60)
def test_products_of_any_shape(M: int, shape: tuple[int, int, int], seed: int) -> None:
    N, K, R = shape
    generator = torch.Generator().manual_seed(seed)
    weight = random_low_rank(N, K, R, seed)
    x = torch.randn(M, K, generator=generator)
    x = x.to((torch.float32, torch.bfloat16, torch.float16)[seed % 3])
    kind = "int8" if weight.factors == "int8" and seed % 2 else "exact"
    assert_low_rank_product(x, weight, kind)


@sums
@formats_of_factors
def test_a_sum_is_the_product_of_its_base_and_the_low_rank_one(
    isa: str, form: Any, factors: Any
) -> None:
    for M, R in ((1, 17), (1, 33), (4, 33), (40, 1), (40, 17)):
        weight = low_rank_weight(form, 67, 130, R, R + M, factors)
        x = torch.randn(M, 130).to((torch.float32, torch.bfloat16)[(R == 17) ^ (M == 40)])
        for kind in form.activation_kinds:
            if kind == "int8-group" and weight.group_size is None:
                continue
            base = gs.kernels.matmul(x, weight.base.pack(kind), out_dtype=torch.float32).double()
            rounds = factors is Int8 and kind != "exact"
            added, bound = low_rank_product(x, weight.low_rank, "int8" if rounds else "exact")
            size = x.double().abs() @ weight.base.dequantize().double().abs().T
            bound = bound + 4 * EPS * (size + added.abs())
            y = gs.kernels.matmul(x, weight.pack(kind), out_dtype=torch.float32)
            assert bool(((y - base - added).abs() <= bound).all()), (kind, M, R)


@every
def test_bias_activation_and_dtype_of_the_result(form: Any) -> None:
    packed = low_rank_weight(form, 40, 130, 17, 1).pack()
    x, bias = torch.randn(5, 130), torch.randn(40)
    plain = gs.kernels.matmul(x, packed)
    got = gs.kernels.matmul(x, packed, bias, "silu")
    want = torch.nn.functional.silu(plain + bias)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))
    for dtype in (torch.bfloat16, torch.float16):
        got = gs.kernels.matmul(x, packed, out_dtype=dtype)
        torch.testing.assert_close(got, plain.to(dtype), rtol=0, atol=0)


@every
def test_any_number_of_threads_gives_the_same_bits(form: Any) -> None:
    packed = low_rank_weight(form, 300, 260, 33, 2).pack()
    for M in (1, 3, 150):
        x = torch.randn(M, 260)
        want = gs.kernels.matmul(x, packed, threads=1)
        for threads in (2, 3):
            assert torch.equal(gs.kernels.matmul(x, packed, threads=threads), want)


@every
@pytest.mark.parametrize("M", [4, 40])
def test_rows_of_nan_and_zeros(form: Any, M: int) -> None:
    packed = low_rank_weight(form, 35, 70, 5, 1).pack()
    x = torch.randn(M, 70)
    x[1, 3], x[3] = float("nan"), 0
    y = gs.kernels.matmul(x, packed)
    assert bool(y[1].isnan().all())
    assert not bool(y[3].any())
    assert bool(y[0].isfinite().all())
