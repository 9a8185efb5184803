"""SmoothQuant: the formula, the choice of alpha by what is lost, and outliers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gossamer as gs
from gossamer.calibration import Block, Call, Statistics
from gossamer.calibration.sample import sample_rows
from gossamer.calibration.scalable import find_scalable, fold
from gossamer.quantization.channels import rounded_rows
from gossamer.quantization.rtn import RTN
from gossamer.quantization.smoothquant import SmoothQuant, rows_error


def measured(x: Tensor) -> Statistics:
    moment = (x.double().T @ x.double() / len(x)).float()
    peak, squares = x.abs().amax(0), x.double().square().mean(0).float()
    return Statistics(len(x), x.mean(0), peak, squares, moment, float(x.min()), float(x.max()))


def resolved(scheme: str, **options: Any) -> Any:
    return gs.Quantize(scheme, **options).resolved()


def outliers(rows: int, K: int, size: float = 100.0) -> Tensor:
    x = torch.randn(rows, K)
    x[:, K // 3] *= size
    return x


def error(W: Tensor, s: Tensor, x: Tensor, scheme: Any) -> float:
    """Squared error of the outputs in float64, with rows rounded by the kernels."""
    weight = RTN().round(W * s, scheme, measured(x / s))
    rows = x / s
    if scheme.activations != "exact":
        values, scales = gs.kernels.quantize_rows(rows)
        rows = values.double() * scales.double()[:, None]
    found = rows.double() @ weight.dequantize().double().T
    return float((found - x.double() @ W.double().T).square().sum())


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_the_formula(alpha: float) -> None:
    weights, x = [torch.randn(5, 12), torch.randn(7, 12)], outliers(50, 12)
    s = SmoothQuant(alpha).scales(weights, measured(x), resolved("int8"))
    columns = torch.stack([W.abs().amax(0) for W in weights]).amax(0)
    exact = x.abs().amax(0) ** alpha / columns ** (1 - alpha)
    assert torch.allclose(s / s[0], exact / exact[0], rtol=1e-5)
    assert float(s.max() * s.min()) == pytest.approx(1)


def test_what_rounding_rows_loses() -> None:
    torch.manual_seed(0)
    W, x = torch.eye(2), torch.tensor([[127.0, 0.4], [127.0, 1.0], [1.27, 0.0], [0.0, 0.0]])
    squares = x.square().sum(1)
    expected = (torch.tensor([0.16, 0.0, 0.0, 0.0]) / (squares + squares.median())).mean().sqrt()
    assert rows_error(W, x, resolved("int8")) == pytest.approx(float(expected), rel=1e-5)
    assert rows_error(W, x, resolved("int8", activations="exact")) == 0
    assert rows_error(W, torch.zeros(3, 2), resolved("int8")) == 0


@pytest.mark.parametrize(
    "settings", [{"exact_above": -1.0}, {"exact_above": "0.1"}, {"exact_above": True}]
)
def test_limits_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SmoothQuant: exact_above: got "):
        SmoothQuant(**settings)


def test_rows_are_rounded_as_the_kernels_round_them() -> None:
    x = torch.randn(20, 100) * torch.logspace(-3, 3, 20)[:, None]
    x[3] = 0
    values, scales = gs.kernels.quantize_rows(x)
    assert torch.allclose(rounded_rows(x, None), values.float() * scales[:, None], rtol=1e-5)
    grouped = rounded_rows(x, 32)
    for first in range(0, 100, 32):
        part = x[:, first : first + 32]
        assert torch.allclose(grouped[:, first : first + 32], rounded_rows(part, None))


@given(
    seed=st.integers(0, 999),
    K=st.integers(1, 70),
    size=st.sampled_from([1.0, 10.0, 1000.0]),
    scheme=st.sampled_from(["int8", "int8-g32", "int8-weight-only", "int4-g32", "fp8"]),
)
@settings(max_examples=10)
def test_never_worse_than_plain(seed: int, K: int, size: float, scheme: str) -> None:
    torch.manual_seed(seed)
    W, x = torch.randn(30, K), outliers(40, K, size)
    s = SmoothQuant().scales([W], measured(x), resolved(scheme), x=x)
    plain = error(W, torch.ones(K), x, resolved(scheme))
    assert error(W, s, x, resolved(scheme)) <= plain * (1 + 1e-3)


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("activations", ["int8", "int8-group"])
def test_an_outlier_wins(rows: bool, activations: str) -> None:
    """A model whose norm makes one channel large: smoothed and plain int8 on the kernels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 48))
    model[0].weight.data[17] = 100
    x = torch.randn(4, 50, 64)
    exact = model(x).detach()
    block = Block("", model, {"1": model[1]}, [Call((x,), {})])
    scheme = gs.Quantize("int8", group_size=32, activations=activations)

    def lost() -> float:
        layer = gs.nn.Linear.from_dense(model[1], scheme)
        return float((layer(model[0](x)) - exact).detach().norm() / exact.norm())

    plain = lost()
    (scalable,) = find_scalable(block)
    statistics = block.statistics(moments=True)["1"]
    sample = sample_rows(block)["1"] if rows else None
    s = SmoothQuant().scales(
        [model[1].weight.detach()],
        statistics,
        scheme.resolved(),
        tie=scalable.columns,
        x=sample,
    )
    fold(scalable, s)
    assert torch.allclose(model(x), exact, rtol=1e-4, atol=1e-3)
    assert lost() < 0.7 * plain
    assert s[17] > 2 * s.median()


def test_nothing_is_moved_where_inputs_are_not_rounded() -> None:
    """The weights then only get worse, but for a scaling that they gain by themselves."""
    W, x = torch.randn(30, 64), outliers(40, 64)
    exact = resolved("int8", activations="exact")
    s = SmoothQuant().scales([W], measured(x), exact)
    assert float(s[64 // 3] / s.median()) < 10
    assert error(W, s, x, exact) <= error(W, torch.ones(64), x, exact) * 1.001


class TestOddInputs:
    def test_dead_channels(self) -> None:
        W, x = torch.randn(16, 32), outliers(30, 32)
        x[:, 5] = 0
        W[:, 9] = 0
        for x_or_none in (x, None):
            s = SmoothQuant().scales([W], measured(x), resolved("int8"), x=x_or_none)
            assert s[5] == s[9] == 1
            assert not torch.equal(s, torch.ones(32))

    def test_nothing_but_zeros(self) -> None:
        zeros = torch.zeros(3, 8)
        for x in (zeros, None):
            s = SmoothQuant().scales([torch.randn(4, 8)], measured(zeros), resolved("int8"), x=x)
            assert torch.equal(s, torch.ones(8))

    @pytest.mark.parametrize("rows", [1, 7])
    def test_few_samples_and_a_constant_input(self, rows: int) -> None:
        W, x = torch.randn(16, 32), torch.full((rows, 32), -2.0)
        s = SmoothQuant().scales([W], measured(x), resolved("int8"), x=x)
        ones = torch.ones(32)
        plain = error(W, ones, x, resolved("int8"))
        assert error(W, s, x, resolved("int8")) <= plain * 1.001

    def test_tied_columns_have_one_factor(self) -> None:
        tie = torch.arange(4).repeat_interleave(8)
        x = outliers(60, 32)
        s = SmoothQuant(0.5).scales([torch.randn(9, 32)], measured(x), resolved("int8"), tie=tie)
        assert torch.equal(s.view(4, 8), s.view(4, 8)[:, :1].expand(4, 8))
        assert len(s.unique()) == 4

    def test_errors(self) -> None:
        W, x = torch.randn(4, 8), torch.randn(9, 8)
        bad = x.clone()
        bad[0, 0] = torch.nan
        with pytest.raises(ValueError, match="SmoothQuant: x: NaN or infinity"):
            SmoothQuant().scales([W], measured(x), resolved("int8"), x=bad)
        with pytest.raises(ValueError, match="SmoothQuant: statistics: NaN or infinity"):
            SmoothQuant().scales([W], measured(bad), resolved("int8"))
        with pytest.raises(ValueError, match="SmoothQuant: weights: NaN or infinity"):
            SmoothQuant().scales([W * torch.inf], measured(x), resolved("int8"))
        with pytest.raises(ValueError, match=r"SmoothQuant: x: got .*, wanted \[R, 8\]"):
            SmoothQuant().scales([W], measured(x), resolved("int8"), x=torch.randn(3, 9))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), True, "0.5"])
def test_wrong_settings(alpha: Any) -> None:
    with pytest.raises(ValueError, match="SmoothQuant: alpha: got"):
        SmoothQuant(alpha)
