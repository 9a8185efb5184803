"""Sums and extremes of columns on every instruction set, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer._ops_calibration import ColumnStats

EPS = 2.0**-24
ROWS = 64  # that are added in float32


def stats_of(*parts: Tensor, threads: int | None = None) -> ColumnStats:
    stats = ColumnStats(parts[0].shape[1])
    for part in parts:
        stats.add(part, threads)
    return stats


def assert_right(stats: ColumnStats, rows: Tensor) -> None:
    x = rows.double()
    bounds = ROWS * EPS * x.abs().sum(0), (ROWS + 1) * EPS * x.square().sum(0)
    for found, exact, bound in zip(stats.sums, (x.sum(0), x.square().sum(0)), bounds, strict=True):
        assert bool(((found - exact).abs() <= bound).all())
    assert torch.equal(stats.bounds.double(), torch.stack([x.amin(0), x.amax(0)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("K", [1, 15, 16, 17, 63, 64, 65, 307])
def test_tails(isa: str, dtype: torch.dtype, K: int) -> None:
    for M in (1, 63, 64, 65, 257):
        x = torch.randn(M, K).to(dtype)
        assert_right(stats_of(x), x)


def test_rows_in_parts(isa: str) -> None:
    x = torch.randn(1000, 70) + 5
    assert_right(stats_of(*x.split([1, 64, 935])), x)


def test_rows_apart_and_columns_apart() -> None:
    wide = torch.randn(200, 100)
    for x in (wide[:, 3:40], wide[::2], wide.T):
        assert torch.equal(stats_of(x).sums, stats_of(x.contiguous()).sums)


def test_threads_change_nothing(isa: str) -> None:
    x = torch.randn(3000, 300)
    one = stats_of(x, threads=1)
    for threads in (2, 3, 5):
        many = stats_of(x, threads=threads)
        assert torch.equal(many.sums, one.sums)
        assert torch.equal(many.bounds, one.bounds)


def test_nan_and_infinity_show_in_their_columns(isa: str) -> None:
    x = torch.ones(5, 40)
    x[1, 3], x[2, 17], x[4, 30] = torch.nan, torch.inf, 1e30
    stats = stats_of(x)
    finite = stats.sums.isfinite()
    assert set((~finite[0]).nonzero().flatten().tolist()) == {3, 17}
    assert set((~finite[1]).nonzero().flatten().tolist()) == {3, 17, 30}
    assert stats.bounds[:, 3].tolist() == [1, 1]


def test_no_rows() -> None:
    stats = stats_of(torch.empty(0, 4))
    assert not stats.sums.any()
    assert stats.bounds.tolist() == [[torch.inf] * 4, [-torch.inf] * 4]


def test_bad_rows() -> None:
    stats = ColumnStats(4)
    with pytest.raises(ValueError, match=r"ColumnStats.add: x: got .*\[2, 5\].*wanted \[M, 4\]"):
        stats.add(torch.ones(2, 5))
    with pytest.raises(TypeError, match=r"ColumnStats.add: x"):
        stats.add(torch.ones(2, 4, dtype=torch.int32))
