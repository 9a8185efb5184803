"""formats.Int4, NF4, FP4, MXFP4: what quantize chooses, and the canonical and packed bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from gossamer.formats import FP4, MXFP4, NF4, Int4

EPS = torch.finfo(torch.float32).eps
group_sizes = st.sampled_from([None, 16, 32, 64, 128, 256])
shapes = st.tuples(st.integers(1, 20), st.integers(1, 300))


def random_weight(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes_of(weight: Any) -> Tensor:
    """One code to an element: [N, K], by the definition of the canonical layout."""
    codes = weight.codes.long()
    return torch.stack([codes & 15, codes >> 4], 2).view(codes.shape[0], -1)[:, : weight.shape[1]]


def by_k(groups: Tensor, weight: Any) -> Tensor:
    K = weight.shape[1]
    return groups.double().repeat_interleave(weight.group_size or K, 1)[:, :K]


@hypothesis.given(shape=shapes, group_size=group_sizes, seed=st.integers(0, 2**31))
@hypothesis.settings(max_examples=30)
def test_symmetric_int4_is_at_least_as_good_as_fitting_the_largest_weight(
    shape: tuple[int, int], group_size: int | None, seed: int
) -> None:
    W = random_weight(shape, seed)
    weight = Int4.quantize(W, group_size)
    size = group_size or shape[1]
    for g, group in enumerate(W.double().split(size, 1)):
        extreme = group.gather(1, group.abs().argmax(1, keepdim=True))
        plain = (group / extreme * -8).round().clamp(-8, 7) * extreme / -8
        got = weight.dequantize()[:, g * size : (g + 1) * size].double()
        limit = (plain - group).square().sum(1).sqrt()
        # The scale is rounded to float16: each weight moves by 2^-11 of itself, or to the next code
        # where it was as near.
        limit += 2**-10 * group.norm(dim=1)
        assert bool(((got - group).norm(dim=1) <= limit).all())


@hypothesis.given(shape=shapes, group_size=group_sizes, seed=st.integers(0, 2**31))
@hypothesis.settings(max_examples=30)
def test_asymmetric_int4_is_within_a_step(
    shape: tuple[int, int], group_size: int | None, seed: int
) -> None:
    W = random_weight(shape, seed) + 0.5
    weight = Int4.quantize(W, group_size, symmetric=False, scale_dtype=torch.float32)
    assert weight.zero_points is not None
    # Half a step, and as much again where the zero point was rounded and an end is clipped.
    error = (weight.dequantize() - W).abs()
    assert bool((error <= by_k(weight.scales, weight) * (1 + 2**-20)).all())
    zero = Int4.quantize(torch.cat([W, torch.zeros(shape[0], 1)], 1), None, symmetric=False)
    assert not bool(zero.dequantize()[:, -1].any())


@hypothesis.given(
    shape=shapes,
    group_size=group_sizes,
    form=st.sampled_from([NF4, FP4]),
    dtype=st.sampled_from([None, torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 2**31),
)
@hypothesis.settings(max_examples=60)
def test_codes_are_those_of_the_nearest_level(
    shape: tuple[int, int], group_size: int | None, form: Any, dtype: Any, seed: int
) -> None:
    W = random_weight(shape, seed)
    weight = form.quantize(W, group_size, scale_dtype=dtype)
    levels = torch.tensor(form.codebook, dtype=torch.float64)
    scaled = W.double() / by_k(weight.scales, weight)
    nearest = (scaled[:, :, None] - levels).abs().amin(2)
    error = (scaled - levels[codes_of(weight)]).abs()
    assert bool((error <= nearest + 4 * EPS * scaled.abs()).all())
    size = group_size or shape[1]
    amax = torch.stack([group.abs().amax(1) for group in W.split(size, 1)], 1)
    want = (amax / max(form.codebook)).to(dtype or torch.float16)
    assert torch.equal(weight.scales, want)


@hypothesis.given(shape=shapes, exponent=st.integers(-140, 127), seed=st.integers(0, 2**31))
@hypothesis.settings(max_examples=40)
def test_mxfp4_is_that_of_the_specification(
    shape: tuple[int, int], exponent: int, seed: int
) -> None:
    W = (random_weight(shape, seed).double() * 2.0 ** (exponent - 2)).float()
    weight = MXFP4.quantize(W)
    for g, group in enumerate(W.split(32, 1)):
        for n, row in enumerate(group):
            amax = float(row.abs().max())
            scale = (
                int(torch.frexp(torch.tensor(amax, dtype=torch.float64))[1]) - 3 if amax else -127
            )
            assert int(weight.scales[n, g]) == max(scale, -127) + 127
    scaled = W.double() / torch.exp2(by_k(weight.scales, weight) - 127)
    levels = torch.tensor(MXFP4.codebook, dtype=torch.float64)
    error = (scaled - levels[codes_of(weight)]).abs()
    assert bool((error == (scaled[:, :, None] - levels).abs().amin(2)).all())


def test_halves_of_e2m1_round_to_even() -> None:
    W = torch.tensor([[6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -5.0]])
    for form in (FP4, MXFP4):
        got = form.quantize(W).dequantize().tolist()
        assert got == [[6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.0, -4.0]]


def test_int4_scales_may_be_negative_so_that_the_extreme_is_exact() -> None:
    W = torch.tensor([[8.0, -7.0, 1.0, 0.0], [-8.0, 7.0, 1.0, 0.0]])
    weight = Int4.quantize(W, None)
    assert weight.scales.tolist() == [[-1.0], [1.0]]
    assert torch.equal(weight.dequantize(), W)


@pytest.mark.parametrize(
    ("group_size", "limit"),
    [(16, 0.0765), (32, 0.0855), (64, 0.093), (128, 0.0995), (256, 0.1055), (None, 0.1155)],
)
def test_error_on_normal_weights(group_size: int | None, limit: float) -> None:
    """A regression of the search for scales: amax / 7 gives 0.085 to 0.157."""
    W = torch.randn(64, 4096)
    error = (Int4.quantize(W, group_size).dequantize() - W).norm() / W.norm()
    assert float(error) < limit


def test_scales_have_the_smallest_sum_of_cubed_errors() -> None:
    W = torch.randn(40, 512)
    weight = Int4.quantize(W, None, scale_dtype=torch.float32)
    extreme = W.gather(1, W.abs().argmax(1, keepdim=True))

    def cubes(scale: Tensor) -> Tensor:
        rounded = (W / scale).round().clamp(-8, 7) * scale
        return (rounded - W).double().abs().pow(3).sum(1)

    best = torch.stack([cubes(extreme / -8 * share) for share in (1, 0.9, 0.8, 0.7, 0.6)]).amin(0)
    torch.testing.assert_close(cubes(weight.scales), best, rtol=1e-4, atol=0)
    assert len((weight.scales / extreme).unique()) > 2  # several shares are chosen


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_of_zeros_and_scale_dtypes(symmetric: bool) -> None:
    W = torch.randn(4, 64)
    W[1, :16] = 0
    weight = Int4.quantize(W, 16, symmetric=symmetric)
    assert weight.scales.dtype is torch.float16
    assert float(weight.scales[1, 0]) == 0
    assert not bool(weight.dequantize()[1, :16].any())
    assert weight.settings == ({} if symmetric else {"symmetric": False})
    W[2] *= 1e-6  # its scales are subnormal in float16
    small = Int4.quantize(W, 16, symmetric=symmetric)
    assert small.scales.dtype is torch.float32
    error = (small.dequantize() - W)[2].norm() / W[2].norm()
    assert float(error) < 0.12
    brain = Int4.quantize(W, 16, symmetric=symmetric, scale_dtype=torch.bfloat16)
    assert brain.scales.dtype is torch.bfloat16
    assert brain.settings["scale_dtype"] is torch.bfloat16
    with pytest.raises(ValueError, match=r"Int4.quantize: scale_dtype: some scales are too large"):
        Int4.quantize(W * 1e7, 16, symmetric=symmetric, scale_dtype=torch.float16)
    with pytest.raises(TypeError, match=r"Int4.quantize: scale_dtype: got torch.float64"):
        Int4.quantize(W, 16, scale_dtype=torch.float64)


@pytest.mark.parametrize("form", [Int4, NF4, FP4])
def test_all_codes_in_every_position(form: Any) -> None:
    """Sixteen rows, each the codes 0 to 15 rotated by one more, K odd."""
    K = 35
    codes = (torch.arange(16)[:, None] + torch.arange(K)) % 16
    even, odd = codes[:, 0::2], torch.nn.functional.pad(codes[:, 1::2], (0, 1))
    weight = form((even + 16 * odd).to(torch.uint8), torch.ones(16, 3), 16, K)
    levels = torch.tensor(form.codebook, dtype=torch.float32) - (8 if form is Int4 else 0)
    assert torch.equal(codes_of(weight), codes)
    assert torch.equal(weight.dequantize(), levels[codes])
    assert torch.equal(form.unpack(weight.pack()).codes, weight.codes)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda c, s: Int4(c.char(), s), TypeError, r"Int4: codes: .*int8.*wanted uint8 \[N, K\]"),
        (lambda c, s: Int4(c, s.double()), TypeError, "Int4: scales: .*wanted float16 or bfloat16"),
        (lambda c, s: Int4(c, s[0]), ValueError, r"Int4: scales: got shape \[1\], wanted \[2, 1\]"),
        (lambda c, s: Int4(c, s, 16, 9), ValueError, r"Int4: codes: got shape .* in_features 9"),
        (lambda c, s: Int4(c, s, None, 5), ValueError, "last high half is not 0"),
        (lambda c, s: Int4(c, s * torch.nan), ValueError, "Int4: scales: some are infinite or NaN"),
        (lambda c, s: Int4(c, s, 48), ValueError, "Int4: group_size: got 48"),
        (lambda c, s: Int4(c, s, None, 6, s), TypeError, "Int4: zero_points: .*wanted uint8"),
        (lambda c, s: Int4(c, s, None, 6, s.byte() + 16), ValueError, "zero_points: some are abo"),
        (lambda c, s: MXFP4(c, s), TypeError, "MXFP4: scales: .*wanted uint8"),
        (lambda c, s: MXFP4(c, s.byte() * 0 + 255), ValueError, "MXFP4: scales: some are infinite"),
        (lambda c, s: MXFP4(c, s.byte(), None), ValueError, "MXFP4: group_size: got None"),
    ],
)
def test_wrong_canonical_tensors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(torch.full((2, 3), 0x91, dtype=torch.uint8), torch.ones(2, 1))


def test_the_examples_of_the_document_run() -> None:
    text = (Path(__file__).parent.parent / "docs" / "format-int4.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "format-int4.md", "exec"), {})
