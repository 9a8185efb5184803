"""AWQ: the search against one that really multiplies, and that nothing gets worse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gossamer as gs
from gossamer.calibration import Block, Call, Statistics
from gossamer.calibration.scalable import find_scalable, fold, scaled
from gossamer.quantization.awq import AWQ, scaled_error
from gossamer.quantization.rtn import RTN

SCHEMES = ["int4-g32", "int4-per-channel", "int4-g32-asym", "int8", "nf4", "sparse-int4", "fp8"]


def measured(x: Tensor) -> Statistics:
    moment = (x.double().T @ x.double() / len(x)).float()
    peak, squares = x.abs().amax(0), x.double().square().mean(0).float()
    return Statistics(len(x), x.mean(0), peak, squares, moment, float(x.min()), float(x.max()))


def inputs(rows: int, K: int, salient: float = 1.0) -> Tensor:
    """Correlated, and some channels much larger than others."""
    x = torch.randn(rows, K) @ (torch.eye(K) + 0.2 * torch.randn(K, K) / K**0.5)
    x[:, :: max(1, K // 4)] *= salient
    return x


def naive_error(W: Tensor, s: Tensor, x: Tensor, scheme: str) -> float:
    """The mean over rows of |W x - Ŵ x|² in float64, from the products themselves."""
    rounded = RTN().round(W * s, resolved(scheme), measured(x / s)).dequantize() / s
    x, rounded = x.double(), rounded.double()
    return float((x @ W.double().T - x @ rounded.T).square().sum() / len(x))


def naive_scales(W: Tensor, x: Tensor, scheme: str, grid: int) -> Tensor:
    size = x.double().square().mean(0).sqrt()
    columns = W.double().square().mean(0).sqrt()

    def scales(alpha: float, beta: float) -> Tensor:
        s = size**alpha / columns**beta
        return (s / (s.max() * s.min()).sqrt()).clamp(1e-4, 1e4).float()

    def error(alpha: float, beta: float) -> float:
        return naive_error(W, scales(alpha, beta), x, scheme)

    steps = [step / grid for step in range(grid + 1)]
    alpha = min(steps, key=lambda a: error(a, 0))
    beta = min(steps, key=lambda b: error(alpha, b))
    return scales(min(steps, key=lambda a: error(a, beta)), beta)


def resolved(scheme: str) -> Any:
    return gs.Quantize(scheme).resolved()


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-per-channel", "nf4", "int4-g32-asym"])
@pytest.mark.parametrize("seed", range(2))
def test_the_search_is_the_naive_one(scheme: str, seed: int) -> None:
    torch.manual_seed(seed)
    weights, x = [torch.randn(20, 64), torch.randn(12, 64)], inputs(200, 64, salient=20)
    found = AWQ(grid=5).scales(weights, measured(x), resolved(scheme))
    exact = naive_scales(torch.cat(weights), x, scheme, 5)
    assert torch.allclose(found, exact, rtol=1e-4)
    assert not torch.equal(found, torch.ones(64))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_error_is_that_of_the_outputs(scheme: str) -> None:
    W, x, s = torch.randn(16, 64), inputs(100, 64), torch.rand(64) + 0.5
    found = scaled_error(W, s, measured(x), resolved(scheme))
    exact = naive_error(W, s, x, scheme.removeprefix("sparse-"))
    assert found == pytest.approx(exact, rel=1e-3)


def test_the_error_without_a_moment_is_that_of_uncorrelated_inputs() -> None:
    W, x = torch.randn(16, 64), inputs(100, 64)
    statistics = measured(x)
    diagonal = replace(statistics, moment=torch.diag(statistics.squares))
    ones = torch.ones(64)
    found = scaled_error(W, ones, replace(statistics, moment=None), resolved("int4-g32"))
    assert found == pytest.approx(scaled_error(W, ones, diagonal, resolved("int4-g32")), rel=1e-5)


@given(
    seed=st.integers(0, 999),
    N=st.integers(1, 300),
    K=st.integers(1, 40),
    scheme=st.sampled_from(SCHEMES),
    salient=st.sampled_from([1.0, 30.0, 1e4]),
)
@settings(max_examples=8)
def test_never_worse_than_no_scaling(
    seed: int, N: int, K: int, scheme: str, salient: float
) -> None:
    torch.manual_seed(seed)
    W, statistics = torch.randn(N, K), measured(inputs(50, K, salient))
    s = AWQ(grid=4).scales([W], statistics, resolved(scheme))
    assert bool((s > 0).all())
    plain = scaled_error(W, torch.ones(K), statistics, resolved(scheme))
    assert scaled_error(W, s, statistics, resolved(scheme)) <= plain


def test_a_salient_channel_wins() -> None:
    """A model with a channel a hundred times larger: AWQ and rtn beside rtn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 48))
    model[0].weight.data[17] = 100
    x = torch.randn(4, 50, 64)
    exact = model(x).detach()
    block = Block("", model, {"1": model[1]}, [Call((x,), {})])

    def rounded_outputs() -> Tensor:
        inside = model[0](x).detach()
        statistics = measured(inside.flatten(0, 1))
        rounded = RTN().round(model[1].weight.detach(), resolved("int4-g32"), statistics)
        return nn.functional.linear(inside, rounded.dequantize(), model[1].bias).detach()

    plain = rounded_outputs()
    (scalable,) = find_scalable(block)
    statistics = block.statistics(moments=True)["1"]
    W = model[1].weight.detach()
    s = AWQ().scales([W], statistics, resolved("int4-g32"), tie=scalable.columns)
    expected = scaled_error(W, s, statistics, resolved("int4-g32"))
    fold(scalable, s)
    assert torch.allclose(model(x), exact, rtol=1e-4, atol=1e-3)
    ours = rounded_outputs()
    assert (ours - exact).norm() < 0.7 * (plain - exact).norm()
    # What the moment promised is what the layer does, and the scaled statistics say it, too.
    assert float((ours - exact).square().sum() / 200) == pytest.approx(expected, rel=1e-2)
    after = scaled(statistics, s)
    again = scaled_error(model[1].weight.detach(), torch.ones(64), after, resolved("int4-g32"))
    assert again == pytest.approx(expected, rel=1e-2)


def test_tied_columns_have_one_factor() -> None:
    tie = torch.arange(4).repeat_interleave(8)
    x = inputs(100, 32, salient=30)
    s = AWQ().scales([torch.randn(16, 32)], measured(x), resolved("int4-g32"), tie=tie)
    assert not torch.equal(s, torch.ones(32))
    assert torch.equal(s.view(4, 8), s.view(4, 8)[:, :1].expand(4, 8))


class TestOddInputs:
    def test_dead_channels(self) -> None:
        W, x = torch.randn(16, 64), inputs(100, 64, salient=50)
        x[:, 5] = 0
        W[:, 9] = 0
        s = AWQ().scales([W], measured(x), resolved("int4-g32"))
        assert s[5] == s[9] == 1
        assert not torch.equal(s, torch.ones(64))

    def test_nothing_but_zeros(self) -> None:
        W, zeros = torch.randn(16, 64), measured(torch.zeros(3, 64))
        assert torch.equal(AWQ().scales([W], zeros, resolved("int4")), torch.ones(64))
        some = measured(torch.randn(3, 64))
        ones = AWQ().scales([torch.zeros(16, 64)], some, resolved("int4"))
        assert torch.equal(ones, torch.ones(64))

    @pytest.mark.parametrize("rows", [1, 5])
    def test_few_samples_and_a_constant_input(self, rows: int) -> None:
        W, statistics = torch.randn(16, 64), measured(torch.full((rows, 64), 3.0))
        s = AWQ().scales([W], statistics, resolved("int4-g32"))
        plain = scaled_error(W, torch.ones(64), statistics, resolved("int4-g32"))
        assert scaled_error(W, s, statistics, resolved("int4-g32")) <= plain

    @pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
    def test_nan(self, wrong: float) -> None:
        W, statistics = torch.randn(4, 8), measured(torch.randn(9, 8))
        bad = W.clone()
        bad[1, 2] = wrong
        with pytest.raises(ValueError, match="AWQ: weights: NaN or infinity"):
            AWQ().scales([W, bad], statistics, resolved("int4"))
        for name in ("squares", "moment", "peak"):
            values = getattr(statistics, name).clone()
            values[0] = wrong
            with pytest.raises(ValueError, match="AWQ: statistics: NaN or infinity"):
                AWQ().scales([W], replace(statistics, **{name: values}), resolved("int4"))

    def test_shapes(self) -> None:
        statistics = measured(torch.randn(9, 8))
        with pytest.raises(ValueError, match=r"AWQ: weights: got shape \[4, 9\], wanted \[N, 8\]"):
            AWQ().scales([torch.randn(4, 9)], statistics, resolved("int4"))
        with pytest.raises(ValueError, match="AWQ: weights: is empty"):
            AWQ().scales([], statistics, resolved("int4"))


@pytest.mark.parametrize("grid", [0, -1, 2.5, True, "4"])
def test_wrong_settings(grid: Any) -> None:
    with pytest.raises(ValueError, match="AWQ: grid: got"):
        AWQ(grid=grid)
