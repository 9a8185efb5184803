"""quantization.GPTQ against the elimination of one column after the other in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import gossamer as gs
from gossamer.calibration import known
from gossamer.formats import SparseInt4
from gossamer.formats.grids import Grid, fit_grid
from gossamer.pruning import SparseGPT
from gossamer.quantization import GPTQ, RTN

from .rounding_layers import SCHEMES, inputs, output_error, scheme_of, statistics_of, weight


def eliminate(W: Tensor, H: Tensor, order: list[int], grid: Grid | None) -> tuple[Tensor, Tensor]:
    """GPTQ as the paper tells it, with the inverse of what is left of H: Ŵ and the pivots."""
    W, inverse = W.double().clone(), H.double().inverse()
    done, pivots = torch.zeros_like(W), torch.zeros(len(H), dtype=torch.float64)
    for k in order:
        pivots[k] = 1 / inverse[k, k]
        if grid is not None:
            whole = grid.dequantize(grid.round(W.float()))
            done[:, k] = whole[:, k]
            error = (W[:, k] - done[:, k]) * pivots[k]
            W -= error[:, None] * inverse[k]
        inverse -= torch.outer(inverse[:, k], inverse[k]) * pivots[k]
        inverse[k, k] = 1.0  # is not read again
    return done, pivots


def damped(moment: Tensor, damping: float = 0.03) -> Tensor:
    return moment + damping * moment.diagonal().mean() * torch.eye(len(moment))


@pytest.mark.parametrize("name", ["int4-per-channel", "int4-g16-asym", "nf4", "mxfp4", "int8"])
@pytest.mark.parametrize("seed", range(2))
def test_it_is_the_elimination_of_columns(name: str, seed: int) -> None:
    W, statistics = weight(12, 40, seed), statistics_of(inputs(200, 40, seed + 10))
    assert statistics.moment is not None
    H, scheme = damped(statistics.moment), scheme_of(name)
    order = statistics.moment.diagonal().argsort(descending=True, stable=True).tolist()
    _, pivots = eliminate(W, H, order, None)
    settings = scheme.format, scheme.group_size, scheme.settings
    grid = fit_grid(*settings, W, importance=pivots.float())
    wanted, _ = eliminate(W, H, order, grid)
    got = GPTQ(sweeps=0).round(W, scheme, statistics)
    error = (W - wanted).double()
    limit = float(((error @ H.double()) * error).sum())
    assert output_error(W, got, H) == pytest.approx(limit, rel=0.02)
    # float32 decides a few near ties otherwise, and all later columns of that row then differ.
    close = (got.dequantize() - wanted).abs().amax(1) < 1e-3
    assert close.double().mean() >= 0.75


def test_without_act_order_each_group_is_fitted_to_what_is_left_of_it() -> None:
    W, statistics = weight(12, 40, 0), statistics_of(inputs(200, 40, 10))
    assert statistics.moment is not None
    H, scheme = damped(statistics.moment).double(), scheme_of("int4-g16")
    _, pivots = eliminate(W, H, list(range(40)), None)
    left, inverse, done = W.double(), H.inverse(), torch.zeros(12, 40, dtype=torch.float64)
    for k in range(40):
        if k % 16 == 0:
            part = slice(k, k + 16)
            grid = fit_grid("int4", 16, {}, left[:, part], importance=pivots[part].float())
            done_group = slice(k, min(k + 16, 40))
        values = left[:, done_group].float()
        done[:, k] = grid.dequantize(grid.round(values))[:, k - done_group.start]
        error = (left[:, k] - done[:, k]) / inverse[k, k]
        left = left - error[:, None] * inverse[k]
        inverse = inverse - torch.outer(inverse[:, k], inverse[k]) / inverse[k, k]
        inverse[k, k] = 1.0
    got = GPTQ(act_order=False, sweeps=0).round(W, scheme, statistics)
    wrong = W - done
    limit = float(((wrong @ H) * wrong).sum())
    assert output_error(W, got, H) == pytest.approx(limit, rel=0.02)
    assert ((got.dequantize() - done).abs().amax(1) < 1e-3).double().mean() >= 0.75


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("act_order", [True, False])
def test_outputs_are_closer_than_with_rtn(name: str, act_order: bool) -> None:
    scheme = scheme_of(name)
    W, statistics = weight(24, 100, 0), statistics_of(inputs(300, 100, 0))
    assert statistics.moment is not None
    best = output_error(W, RTN().round(W, scheme, statistics), statistics.moment)
    got = GPTQ(act_order=act_order).round(W, scheme, statistics)
    assert output_error(W, got, statistics.moment) < 0.8 * best


@pytest.mark.parametrize("name", ["int4-g64", "int4-g16-asym", "nf4", "fp4", "mxfp4"])
def test_sweeps_only_help(name: str) -> None:
    W, statistics = weight(24, 100, 3), statistics_of(inputs(300, 100, 3))
    assert statistics.moment is not None
    H, scheme = damped(statistics.moment), scheme_of(name)
    errors = [
        output_error(W, GPTQ(sweeps=sweeps).round(W, scheme, statistics), H) for sweeps in range(3)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.99 * errors[0]


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("name", ["int4-g64", "int4-g16-asym", "mxfp4", "fp8-block", "int8"])
def test_dead_columns_are_rounded_to_nearest(name: str, act_order: bool) -> None:
    W, x, scheme = weight(12, 100, 5), inputs(200, 100, 5), scheme_of(name)
    x[:, [0, 7, 99]] = 0
    x[:, 32:64] = 0  # groups
    statistics = statistics_of(x)
    assert statistics.moment is not None
    got = GPTQ(act_order=act_order).round(W, scheme, statistics)
    steps = W.abs().amax(1, keepdim=True)
    assert bool(((got.dequantize() - W).abs() < 0.5 * steps)[:, 32:64].all())
    assert got.dequantize()[:, 32:64].count_nonzero() > 200
    plain = RTN().round(W, scheme, statistics)
    assert output_error(W, got, statistics.moment) < output_error(W, plain, statistics.moment)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("rows", ["one", "few", "constant", "zeros"])
def test_degenerate_inputs(rows: str, act_order: bool) -> None:
    W, scheme = weight(12, 100, 6), scheme_of("int4-g64")
    count = {"one": 1, "few": 20, "constant": 50, "zeros": 50}[rows]
    x = inputs(count, 100, 6)
    if rows == "constant":
        x = x[:1].expand(50, -1).contiguous()
    if rows == "zeros":
        x = torch.zeros(50, 100)
    statistics = statistics_of(x)
    assert statistics.moment is not None
    got = GPTQ(act_order=act_order).round(W, scheme, statistics)
    plain = RTN().round(W, scheme, statistics)
    assert bool(got.dequantize().isfinite().all())
    limit = output_error(W, plain, statistics.moment)
    assert output_error(W, got, statistics.moment) <= 0.2 * limit
    # Damping holds the weights to where they were.
    assert float((got.dequantize() - W).norm() / W.norm()) < 0.5


def test_what_is_pruned_is_made_up_for() -> None:
    W, statistics = weight(24, 128, 7), statistics_of(inputs(400, 128, 7))
    assert statistics.moment is not None
    keep = W.abs() > 0.5
    scheme = scheme_of("sparse-int4-g32")
    got = GPTQ().round(W, scheme, statistics, keep)
    assert isinstance(got, SparseInt4)
    assert not bool(got.dequantize()[~keep].any())
    masked = RTN().round(W, scheme, statistics, keep)
    assert output_error(W, got, statistics.moment) < 0.7 * output_error(
        W, masked, statistics.moment
    )


def test_layers_with_the_same_statistics_are_factored_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Tensor] = []

    def counted(moment: Tensor, **settings: Any) -> Any:
        calls.append(moment)
        return factor(moment, **settings)

    factor = known.factor
    monkeypatch.setattr(known, "factor", counted)
    shared, scheme = statistics_of(inputs(100, 32, 8)), scheme_of("int4-g16")
    for seed in range(3):
        GPTQ().round(weight(4, 32, seed), scheme, shared)
    assert len(calls) == 1
    GPTQ(damping=0.1).round(weight(4, 32, 0), scheme, shared)
    GPTQ().round(weight(4, 32, 0), scheme, shared)  # both are kept
    assert len(calls) == 2
    GPTQ(damping=0.1).round(weight(4, 32, 0), scheme, replace(shared))
    assert len(calls) == 3
    prune, pruning = gs.Prune(0.5, method="sparsegpt"), SparseGPT()
    for seed in range(2):
        pruning.prune(weight(4, 32, seed), shared, prune)
    assert len(calls) == 4


def test_bad_statistics_are_refused() -> None:
    W, scheme, statistics = weight(8, 64, 9), scheme_of("int4"), statistics_of(inputs(80, 64, 9))
    assert statistics.moment is not None
    for missing in (None, replace(statistics, moment=None)):
        with pytest.raises(
            ValueError, match=r"GPTQ\.round: statistics: (got None|moment: got None), wanted"
        ):
            GPTQ().round(W, scheme, missing)
    broken = statistics.moment.clone()
    broken[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"GPTQ\.round: statistics: moment: got NaN or infinity"):
        GPTQ().round(W, scheme, replace(statistics, moment=broken))
    with pytest.raises(ValueError, match=r"statistics: moment: got .*65.*, wanted \[64, 64\]"):
        GPTQ().round(W, scheme, statistics_of(inputs(80, 65, 9)))
    with pytest.raises(ValueError, match="'bf16' has no grid"):
        GPTQ().round(W, scheme_of("bf16"), statistics)


@pytest.mark.parametrize("settings", [{"damping": 0}, {"damping": 2.0}, {"sweeps": -1}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"GPTQ: {next(iter(settings))}: got"):
        GPTQ(**settings)
