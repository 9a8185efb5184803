"""quantization.static_scale against the numbers that the statistics are of."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer.quantization import static_scale

from .rounding_layers import statistics_of


def heavy(seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(500, 40, generator=random) ** 3


def squared_error(x: Tensor, amax: float) -> float:
    step = amax / 127
    return float(((x / step).round().clamp(-127, 127) * step - x).double().square().sum())


def test_min_max_is_the_largest_magnitude() -> None:
    x = heavy(0)
    assert static_scale(statistics_of(x), "min-max") == pytest.approx(x.abs().max().item())
    assert static_scale(statistics_of(-x), "min-max") == pytest.approx(x.abs().max().item())


@pytest.mark.parametrize("percentile", [50, 99, 99.9, 100])
def test_percentile_is_exact_to_a_bin(percentile: float) -> None:
    x, statistics = heavy(1), statistics_of(heavy(1))
    magnitudes = x.abs().flatten().sort().values
    exact = magnitudes[math.ceil(percentile / 100 * len(magnitudes)) - 1].item()
    got = static_scale(statistics, percentile=percentile)
    width = statistics.limit / 2048
    assert exact - 1e-6 <= got <= exact + 1.01 * width
    assert got <= x.abs().max().item()


@pytest.mark.parametrize("seed", range(3))
def test_mse_is_close_to_the_best_amax(seed: int) -> None:
    x = heavy(seed)
    peak = x.abs().max().item()
    best = min(squared_error(x, peak * step / 400) for step in range(20, 401))
    got = static_scale(statistics_of(x), "mse")
    assert squared_error(x, got) <= 1.05 * best
    assert squared_error(x, got) < 0.96 * squared_error(x, peak)


def test_inputs_of_zeros_have_a_scale_of_one() -> None:
    for method in ("min-max", "percentile", "mse"):
        assert static_scale(statistics_of(torch.zeros(3, 4)), method) == 1.0


def test_constant_inputs() -> None:
    for method in ("min-max", "percentile", "mse"):
        got = static_scale(statistics_of(torch.full((3, 4), -2.5)), method)
        assert got == pytest.approx(2.5, rel=0.02)


def test_errors() -> None:
    statistics = statistics_of(heavy(2))
    with pytest.raises(ValueError, match="static_scale: method: got 'max', wanted one of min-max"):
        static_scale(statistics, "max")
    with pytest.raises(ValueError, match="static_scale: percentile: got 0"):
        static_scale(statistics, percentile=0)
    for method in ("percentile", "mse"):
        with pytest.raises(ValueError, match="have no histogram"):
            static_scale(replace(statistics, histogram=None), method)
    with pytest.raises(ValueError, match="NaN or infinity"):
        static_scale(replace(statistics, low=float("nan")), "min-max")
