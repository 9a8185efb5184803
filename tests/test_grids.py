"""formats.grids: the numbers that each format can round to, and the search for their scales."""

from __future__ import annotations

import re
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from gossamer.formats import FORMATS, FP4, FP8, MXFP4, NF4, Int4, Int8, SparseInt4
from gossamer.formats.grids import Grid, fit_grid

from .random_weights import random_weight, same
from .rounding_layers import SCHEMES, scheme_of, weight

schemes = st.sampled_from(SCHEMES)
shapes = st.tuples(st.integers(1, 200), st.integers(1, 300))
seeds = st.integers(0, 2**31)


def fitted(name: str, W: Tensor, importance: Tensor | None = None) -> Grid:
    scheme = scheme_of(name)
    return fit_grid(scheme.format, scheme.group_size, scheme.settings, W, importance=importance)


def by_weight(values: Tensor, grid: Grid, K: int) -> Tensor:
    return values.repeat_interleave(grid.group_size or K, 1)[:, :K]


def loss(W: Tensor, grid: Grid, importance: Tensor) -> Tensor:
    """Of each row, in float64."""
    error = (grid.dequantize(grid.round(W)) - W).double()
    return (error.square() * importance.double()).sum(1)


@hypothesis.given(name=schemes, shape=shapes, seed=seeds, size=st.sampled_from([1, 1e-3, 1e-39]))
@hypothesis.settings(max_examples=60, deadline=None)
def test_without_importance_bits_are_those_of_quantize(
    name: str, shape: tuple[int, int], seed: int, size: float
) -> None:
    W = weight(*shape, seed) * size
    W = torch.where(W.abs() < 0.3 * size, torch.copysign(torch.zeros(()), W), W)  # both zeros
    scheme, grid = scheme_of(name), fitted(name, W)
    codes = grid.round(W)
    got = grid.to_format(codes, sparse=scheme.format.startswith("sparse-"))
    assert same(got, FORMATS[scheme.format].quantize(W, scheme.group_size, **scheme.settings))
    assert torch.equal(got.dequantize(), grid.dequantize(codes))


@pytest.mark.parametrize("name", SCHEMES)
def test_ties_are_rounded_as_quantize_does(name: str) -> None:
    levels = fitted(name, weight(1, 64, 0)).levels
    largest = levels.abs().max()
    middles = torch.cat([(levels[1:] + levels[:-1]) / 2, torch.tensor([largest, -largest])])
    W = middles[None] * 0.25
    scheme, grid = scheme_of(name), fitted(name, W)
    got = grid.to_format(grid.round(W), sparse=scheme.format.startswith("sparse-"))
    assert same(got, FORMATS[scheme.format].quantize(W, scheme.group_size, **scheme.settings))


@hypothesis.given(name=schemes, seed=seeds)
@hypothesis.settings(max_examples=40, deadline=None)
def test_round_gives_the_nearest_level(name: str, seed: int) -> None:
    W = weight(5, 70, seed)
    importance = torch.rand(70, generator=torch.Generator().manual_seed(seed))
    grid = fitted(name, W, importance)
    levels = grid.levels.double().expand(5, 70, -1)
    if grid.zeros is not None:
        levels = levels - by_weight(grid.zeros, grid, 70).double()[:, :, None]
    all_values = levels * by_weight(grid.scales, grid, 70).double()[:, :, None]
    smallest = (all_values - W.double()[:, :, None]).abs().amin(2)
    got = (grid.dequantize(grid.round(W)) - W).double().abs()
    assert bool((got <= smallest + 1e-6 * W.abs().max()).all())


@pytest.mark.parametrize("form", [Int8, Int4, NF4, FP4, MXFP4])
@pytest.mark.parametrize("seed", range(6))
def test_a_weight_lies_on_its_own_grid(form: Any, seed: int) -> None:
    group_size = 32 if form is MXFP4 else form.group_sizes[seed % len(form.group_sizes)]
    given = random_weight(form, 9, 75, group_size, seed)  # scales of both signs, any zero points
    if form is Int8:
        given = Int8(given.values.clamp(min=-127), given.scales, group_size)
    grid = Grid.of(given)
    codes = grid.round(given.dequantize())
    assert torch.equal(grid.dequantize(codes), given.dequantize())
    assert torch.equal(grid.to_format(codes).dequantize(), given.dequantize())
    assert grid.to_format(codes).scales.dtype == given.scales.dtype


@hypothesis.given(name=schemes, shape=shapes, seed=seeds)
@hypothesis.settings(max_examples=40, deadline=None)
def test_importance_never_loses_against_quantize(
    name: str, shape: tuple[int, int], seed: int
) -> None:
    W = weight(*shape, seed)
    random = torch.Generator().manual_seed(seed)
    importance = torch.rand(shape[1], generator=random).pow(4) * 100
    importance[torch.rand(shape[1], generator=random) < 0.2] = 0  # dead columns
    grid = fitted(name, W, importance)
    limit = loss(W, fitted(name, W), importance)
    got = loss(W, grid, importance)
    if grid.row_block > 1:
        got, limit = got.sum(), limit.sum()
    assert bool((got <= limit * (1 + 1e-4) + 1e-12).all())
    codes = grid.round(W)
    made = grid.to_format(codes, sparse=scheme_of(name).format.startswith("sparse-"))
    assert torch.equal(made.dequantize(), grid.dequantize(codes))


@pytest.mark.parametrize("name", ["int4-per-channel", "nf4", "int4-per-channel-asym"])
def test_the_search_comes_close_to_the_best_of_many_scales(name: str) -> None:
    W = weight(200, 32, 1)
    importance = torch.rand(32, generator=torch.Generator().manual_seed(2)) + 0.1
    plain = fitted(name, W)
    whole = W.abs().amax(1, keepdim=True) / (8 if name.startswith("int4") else 1)
    if name.endswith("asym"):
        whole = plain.scales
    best = torch.full((200,), torch.inf, dtype=torch.float64)
    for share in torch.linspace(0.4, 1.1, 36):
        for sign in (1, -1):
            best = torch.minimum(best, loss(W, plain.with_scales(whole * share * sign), importance))
    got = loss(W, fitted(name, W, importance), importance)
    before = loss(W, plain, importance)
    assert got.sum() < 1.06 * best.sum() < before.sum()


def test_zeros_of_asymmetric_groups_move() -> None:
    W, random = weight(64, 128, 3), torch.Generator().manual_seed(3)
    importance = torch.rand(128, generator=random).pow(6)
    plain, grid = fitted("int4-g64-asym", W), fitted("int4-g64-asym", W, importance)
    assert grid.zeros is not None
    assert plain.zeros is not None
    assert 0.1 < (grid.zeros != plain.zeros).double().mean() < 1
    assert bool((grid.zeros == grid.zeros.round()).all())
    assert loss(W, grid, importance).sum() < 0.8 * loss(W, plain, importance).sum()


def test_fp8_has_one_scale_for_the_rows_of_a_block() -> None:
    W = weight(200, 300, 4)
    grid = fitted("fp8-block", W, torch.rand(300))
    assert grid.scales.shape == (200, 3)
    assert bool((grid.scales[:128] == grid.scales[0]).all())
    assert bool((grid.scales[128:] == grid.scales[128]).all())
    assert grid.to_format(grid.round(W)).scales.shape == (2, 3)


def test_scales_become_what_the_format_can_store() -> None:
    W = weight(2, 32, 5)
    assert fitted("int8", W).with_scales(torch.tensor([[-1.0], [0.3]])).scales.tolist() == [
        [0.0],
        [pytest.approx(0.3)],
    ]
    powers = fitted("mxfp4", W).with_scales(torch.tensor([[0.3], [-1.5]])).scales
    assert powers.tolist() == [[0.25], [2.0]]
    int4 = fitted("int4-per-channel", W).with_scales(torch.tensor([[-0.1], [1e-7]]))
    assert int4.scales.tolist() == torch.tensor([[-0.1], [1e-7]]).tolist()  # one needs float32
    int4 = fitted("int4-per-channel", W).with_scales(torch.tensor([[-0.1], [0.1]]))
    assert int4.scales.tolist() == torch.tensor([[-0.1], [0.1]]).half().tolist()
    bf16 = fit_grid("int4", None, {"scale_dtype": torch.bfloat16}, W)
    assert bf16.to_format(bf16.round(W)).scales.dtype is torch.bfloat16
    block = fitted("fp8-block", weight(3, 2, 0)).with_scales(torch.tensor([[1.0], [2.0], [6.0]]))
    assert block.scales.tolist() == [[3.0]] * 3


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scale_of_zero_gives_zeros(name: str) -> None:
    W = torch.zeros(3, 40)
    grid = fitted(name, W, torch.ones(40))
    ones = torch.ones(3, 40)
    if grid.format != "mxfp4":  # has no scale of 0
        assert not bool(grid.dequantize(grid.round(ones)).any())
    assert not bool(grid.dequantize(grid.round(W)).any())


def test_sparse_twins() -> None:
    W = weight(4, 64, 6).where(weight(4, 64, 7) > 0, 0.0)
    grid = fitted("sparse-int4-g32", W, torch.ones(64))
    sparse = grid.to_format(grid.round(W), sparse=True)
    assert isinstance(sparse, SparseInt4)
    assert torch.equal(sparse.dequantize(), grid.dequantize(grid.round(W)))
    for name, message in (("nf4", "no sparse twin"), ("int4-g64-asym", "zero points")):
        other = fitted(name, W)
        with pytest.raises(ValueError, match=message):
            other.to_format(other.round(W), sparse=True)


def test_errors_name_what_is_wrong() -> None:
    W = weight(2, 32, 8)
    for form in ("bf16", "sparse-bf16", "sparse-nf4", "int5"):
        with pytest.raises(ValueError, match=f"fit_grid: form: '{form}' has no grid"):
            fit_grid(form, None, {}, W)
    with pytest.raises(ValueError, match="fit_grid: importance: got shape"):
        fit_grid("int4", None, {}, W, importance=torch.ones(31))
    for bad in (-1.0, torch.nan, torch.inf):
        with pytest.raises(ValueError, match="fit_grid: importance: some are"):
            fit_grid("int4", None, {}, W, importance=torch.full((32,), bad))
    W[1, 3] = torch.nan
    with pytest.raises(ValueError, match=re.escape("NaN or infinity in row(s) 1")):
        fit_grid("int4", None, {}, W)
    with pytest.raises(ValueError, match="symmetric"):
        fitted("int4-g64", W.nan_to_num()).with_scales(torch.ones(2, 1), torch.ones(2, 1))


def test_grids_of_fp8_leave_out_nan_and_infinity() -> None:
    for name, largest, count in (("fp8", 448.0, 254), ("fp8-e5m2", 57344.0, 248)):
        grid = fitted(name, weight(2, 32, 9))
        assert len(grid.levels) == count
        assert grid.levels[-1] == largest
        assert bool((grid.levels.diff() >= 0).all())
    assert isinstance(grid.to_format(grid.round(weight(2, 32, 9))), FP8)
