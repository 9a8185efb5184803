"""Products with every format, on every ISA, against float64 references from dequantize()."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import gossamer as gs
from gossamer.formats import FORMATS, FP8, MXFP4, NF4, Int4, Int8

EPS = torch.finfo(torch.float32).eps
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SCHEMES = [
    "int8",
    "int8-g32",
    "int8-weight-only",
    "int4",
    "int4-g16",
    "int4-g32-asym",
    "int4-per-channel",
    "int4-weight-only",
    "int4-asym-weight-only",
    "nf4",
    "nf4-weight-only",
    "fp4",
    "mxfp4",
    "mxfp4-weight-only",
    "fp8",
    "fp8-e5m2",
    "fp8-block",
    "bf16",
]
schemes = pytest.mark.parametrize("scheme", SCHEMES)


def packed_with(scheme: str, W: Tensor) -> tuple[Any, Tensor, str]:
    """The weight in this scheme, its packed bytes, and what happens to activations."""
    recipe = gs.Quantize(scheme)
    weight, kind = recipe.quantize(W), recipe.resolved().activations
    assert kind is not None
    return weight, weight.pack(kind), kind


def rounding_of_s8(weight: Any) -> Tensor:
    """How far the s8 lane may be from the stored weights of a column: [N, 1].

    The levels of nf4 are rounded to 1/127. Groups may be brought to one scale for the column, 1/127
    of the largest weight that any of its groups could hold; 0.52, not 0.5, as the ratio of the
    scales is rounded too.
    """
    if type(weight) is Int8:
        return torch.zeros(weight.shape[0], 1, dtype=torch.float64)
    scales = weight.float_scales().double().abs()
    levels = torch.tensor(weight.codebook).double().abs()
    reach = levels.max() * torch.ones_like(scales)
    if type(weight) is Int4:
        zero = 8.0 if weight.zero_points is None else weight.zero_points.double()
        reach = torch.maximum(scales * 0 + zero, scales * 0 + 15 - zero)
    error = scales.amax(1, keepdim=True) / 254 * (type(weight) is NF4)
    if weight.group_size is not None:
        error += 0.52 / 127 * (reach * scales).amax(1, keepdim=True)
    return error


def assert_close(y: Tensor, x: Tensor, weight: Any, kind: str) -> None:
    """y is the product with the stored weight, up to what the lanes round.

    int8: the rows that quantize_rows gives, and exact integer sums. exact: x as it is and fp32
    sums, or for bfloat16 the bf16 lane, on which the expanded weight is rounded to bfloat16.
    """
    W = weight.dequantize().double()
    bound_w = torch.zeros_like(W)
    if kind == "int8":
        values, scales = gs.kernels.quantize_rows(x)
        a = values.double() * scales.double()[:, None]
        bound_w += rounding_of_s8(weight)
    else:
        a = x.double()
        if x.dtype is torch.bfloat16:
            bound_w = W.abs() * 2.0**-8 + 2.0**-126
    want, size = a @ W.T, a.abs() @ W.abs().T
    out = torch.finfo(y.dtype)
    bound = (x.shape[1] + 16) * EPS * size + a.abs() @ bound_w.T * (1 + 2.0**-10)
    bound += out.eps * want.abs() + out.smallest_normal * out.eps + 2.0**-126
    fits = want.abs() < out.max
    error = (y.double() - want).abs()
    assert bool((error <= bound)[fits].all()), f"largest excess {(error / bound)[fits].max()}"


@schemes
@hypothesis.given(
    M=st.integers(1, 20),
    N=st.integers(1, 70),
    K=st.one_of(st.integers(1, 70), st.integers(71, 400)),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 2**31),
)
@hypothesis.settings(
    max_examples=5, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_few_rows(
    isa: str, scheme: str, M: int, N: int, K: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    weight, packed, kind = packed_with(scheme, torch.randn(N, K))
    x = torch.randn(M, K).to(dtype)
    assert_close(gs.kernels.matmul(x, packed), x, weight, kind)


@schemes
@pytest.mark.parametrize("dtype", FLOATS)
def test_many_rows(isa: str, scheme: str, dtype: torch.dtype) -> None:
    weight, packed, kind = packed_with(scheme, torch.randn(67, 300))
    x = torch.randn(75, 300).to(dtype)
    assert_close(gs.kernels.matmul(x, packed), x, weight, kind)


def heavy_tailed(N: int, K: int) -> Tensor:
    return torch.randn(N, K) / torch.randn(4, N, K).square().mean(0).sqrt()  # Student's t, 4 d.o.f.


@pytest.mark.parametrize(
    "scheme", ["int4-g16", "int4-g32", "int4", "int4-g32-asym", "nf4", "fp4", "mxfp4"]
)
@pytest.mark.parametrize("weights", [torch.randn, heavy_tailed])
def test_requantized_groups_add_two_percent_at_most(isa: str, scheme: str, weights: Any) -> None:
    """Many rows of int8 activations: one int8 scale per column, where that costs little."""
    W = weights(96, 1024)
    weight, packed, _kind = packed_with(scheme, W)
    x = torch.randn(128, 1024)
    exact = x.double() @ W.double().T
    values, scales = gs.kernels.quantize_rows(x)
    by_group = (values.double() * scales.double()[:, None]) @ weight.dequantize().double().T
    limit = (by_group - exact).square().mean().sqrt()
    error = (gs.kernels.matmul(x, packed).double() - exact).square().mean().sqrt()
    assert float(error) <= 1.02 * float(limit)


@pytest.mark.parametrize("scheme", ["int4", "int4-g16", "int4-asym", "nf4", "mxfp4", "fp8-block"])
def test_any_number_of_threads_gives_the_same_bits(isa: str, scheme: str) -> None:
    _weight, packed, _kind = packed_with(scheme, torch.randn(300, 520))
    for M in (1, 3, 150):
        x = torch.randn(M, 520)
        want = gs.kernels.matmul(x, packed, threads=1)
        for threads in (2, 3):
            assert torch.equal(gs.kernels.matmul(x, packed, threads=threads), want)


@schemes
@pytest.mark.parametrize("M", [4, 40])
def test_rows_of_zeros_nan_and_infinity(isa: str, scheme: str, M: int) -> None:
    W = torch.randn(35, 70)
    W[3] = 0
    _weight, packed, kind = packed_with(scheme, W)
    x = torch.randn(M, 70)
    x[1, 3], x[2, 69], x[3] = float("nan"), float("inf"), 0
    y = gs.kernels.matmul(x, packed)
    assert not bool(y[3].any())
    assert not bool(y[0, 3])
    assert bool(y[0].isfinite().all())
    assert bool(y[1].isnan().all())
    assert bool(y[2].isnan().all()) if kind == "int8" else not bool(y[2].isfinite().any())


@pytest.mark.parametrize("M", [1, 40])
def test_scales_of_both_signs_and_extreme_sizes(isa: str, M: int) -> None:
    codes = torch.randint(0, 256, (33, 96), dtype=torch.uint8)
    sizes = torch.logspace(-25, 25, 33)[:, None] * torch.tensor([1.0, -0.9, 0.0, 1.0, -1.1, 0.8])
    weight = Int4(codes, sizes, 32)
    x = torch.randn(M, 192)
    assert_close(gs.kernels.matmul(x, weight), x, weight, "int8")
    packed = weight.pack("exact")
    assert_close(gs.kernels.matmul(x, packed), x, weight, "exact")


def test_addend_bias_and_activation_of_every_format() -> None:
    x, bias = torch.randn(5, 70), torch.randn(20)
    for form in FORMATS.values():
        packed = gs.kernels.pack(form.quantize(torch.randn(20, 70)))
        plain = gs.kernels.matmul(x, packed)
        got = gs.kernels.matmul(x, packed, bias, "silu")
        torch.testing.assert_close(
            got, torch.nn.functional.silu(plain + bias), rtol=1e-5, atol=1e-5
        )


def test_accumulate_is_of_int8_only() -> None:
    a = torch.zeros(2, 64, dtype=torch.int8)
    for form in (Int4, MXFP4, FP8):
        with pytest.raises(ValueError, match=r"accumulate: weight: only int8 has integer sums"):
            gs.kernels.accumulate(a, form.quantize(torch.randn(3, 64)))
    packed = Int8.quantize(torch.randn(3, 64)).pack("exact")
    assert gs.kernels.accumulate(a, packed).shape == (2, 3)


def test_dequantize_of_rows_that_do_not_exist() -> None:
    weight = Int8.quantize(torch.randn(3, 64))
    for first, last in ((2, 1), (-1, 2), (0, 4)):
        with pytest.raises(ValueError, match="dequantize: first_row, last_row: got"):
            gs.kernels.dequantize(weight, first, last)
