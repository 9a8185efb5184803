"""SparseGPT against the update written down column by column in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import gossamer as gs
from gossamer.calibration.obs import factor, update
from gossamer.calibration.statistics import Statistics
from gossamer.formats.grids import Grid, fit_grid
from gossamer.pruning import Pruned, SparseGPT, refining
from gossamer.pruning.patterns import BLOCKS
from gossamer.pruning.sparsegpt import keep_costliest

PUBLISHED = SparseGPT(iterations=0)
Choose = Callable[[Tensor, int], Tensor | None]


def statistics_of(x: Tensor) -> Statistics:
    """Of the rows x, in float64."""
    x = x.double()
    return Statistics(
        rows=len(x),
        mean=x.mean(0).float(),
        peak=x.abs().amax(0).float(),
        squares=x.square().mean(0).float(),
        moment=(x.T @ x / len(x)).float(),
        low=float(x.min()),
        high=float(x.max()),
    )


def layer(N: int = 16, K: int = 24, rows: int = 200, seed: int = 0) -> tuple[Tensor, Statistics]:
    """A weight and its inputs, whose features are correlated and of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(K, K, generator=generator) * torch.logspace(-0.7, 0.7, K)[:, None]
    x = torch.randn(rows, K, generator=generator) @ mix
    x *= torch.rand(K, generator=generator) * 2 + 0.1
    return torch.randn(N, K, generator=generator), statistics_of(x)


def naive(
    W: Tensor, statistics: Statistics, choose: Choose, grid: Grid | None = None
) -> tuple[Tensor, Tensor]:
    """The pruned weight and what stays: each column by itself, H inverted anew for each.

    `choose` is asked at every column, with the scores of the columns from there on, and answers
    with a mask for the next few, or None.
    """
    assert statistics.moment is not None
    W, H = W.double().clone(), statistics.moment.double().clone()
    N, K = W.shape
    dead = H.diagonal() == 0
    H += torch.diag(0.01 * H.diagonal()[~dead].mean() * torch.ones(K))
    H.diagonal()[dead] = 1
    W[:, dead] = 0
    inverses = [H[j:, j:].inverse() for j in range(K)]
    costs = torch.stack([inverse[0, 0] for inverse in inverses])
    keep = torch.zeros(N, K, dtype=torch.bool)
    for j in range(K):
        mask = choose(W[:, j:].square() / costs[j:], j)
        if mask is not None:
            keep[:, j : j + mask.shape[1]] = mask
        value = W[:, j]
        if grid is not None:
            whole = torch.zeros(N, K)
            whole[:, j] = value.float()
            value = grid.dequantize(grid.round(whole))[:, j].double()
        value = torch.where(keep[:, j], value, 0)
        W[:, j + 1 :] += ((value - W[:, j]) / costs[j])[:, None] * inverses[j][0, 1:]
        W[:, j] = value
    return W, keep


def best_of(scores: Tensor, count: int) -> Tensor:
    order = scores.flatten().argsort(descending=True)
    keep = torch.zeros(scores.numel(), dtype=torch.bool)
    keep[order[:count]] = True
    return keep.view(scores.shape)


def by_layer(sparsity: float, N: int) -> Choose:
    def choose(scores: Tensor, j: int) -> Tensor | None:
        if j % 128:
            return None
        scores = scores[:, :128]
        last = j + scores.shape[1]
        return best_of(
            scores, scores.numel() - round(sparsity * N * last) + round(sparsity * N * j)
        )

    return choose


def by_row(sparsity: float) -> Choose:
    def choose(scores: Tensor, j: int) -> Tensor | None:
        if j % 128:
            return None
        scores = scores[:, :128]
        B = scores.shape[1]
        go = round(sparsity * (j + B)) - round(sparsity * j)
        return torch.stack([best_of(row, B - go) for row in scores])

    return choose


def n_of_m(n: int, m: int) -> Choose:
    def choose(scores: Tensor, j: int) -> Tensor | None:
        if j % m:
            return None
        return torch.stack([best_of(row, min(n, len(row))) for row in scores[:, :m]])

    return choose


def check(found: Pruned, expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found.keep, expected[1])
    assert bool((found.values[~found.keep] == 0).all())
    torch.testing.assert_close(found.values, expected[0].float(), rtol=2e-3, atol=2e-4)


def loss(W: Tensor, V: Tensor, statistics: Statistics) -> float:
    """tr((W - V) C (W - V)ᵀ)."""
    assert statistics.moment is not None
    E = (W - V).double()
    return float((E @ statistics.moment.double() * E).sum())


class TestAgainstTheNaiveUpdate:
    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77, 1.0])
    def test_layer(self, sparsity: float) -> None:
        W, statistics = layer()
        found = gs.Prune(sparsity, method=PUBLISHED).apply(W, statistics)
        assert int((~found.keep).sum()) == round(sparsity * W.numel())
        check(found, naive(W, statistics, by_layer(sparsity, 16)))

    @pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.77])
    def test_row(self, sparsity: float) -> None:
        W, statistics = layer(seed=1)
        found = gs.Prune(sparsity, "row", method=PUBLISHED).apply(W, statistics)
        assert set((~found.keep).sum(1).tolist()) == {round(sparsity * 24)}
        check(found, naive(W, statistics, by_row(sparsity)))

    @pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 3), (3, 5)])
    def test_n_of_m(self, n: int, m: int) -> None:
        W, statistics = layer(seed=2)
        found = gs.Prune(pattern=f"{n}:{m}", method=PUBLISHED).apply(W, statistics)
        check(found, naive(W, statistics, n_of_m(n, m)))

    @pytest.mark.parametrize("scope", ["layer", "row"])
    def test_masks_are_chosen_when_their_turn_comes(self, scope: str) -> None:
        """More columns than one block: the second one is judged as the first has left it."""
        W, statistics = layer(N=6, K=140, rows=300, seed=3)
        found = gs.Prune(0.55, scope, method=PUBLISHED).apply(W, statistics)
        choose = by_layer(0.55, 6) if scope == "layer" else by_row(0.55)
        check(found, naive(W, statistics, choose))
        assert int((~found.keep).sum()) == round(0.55 * 140) * 6

    @pytest.mark.parametrize("group_size", [None, 16])
    def test_with_a_grid(self, group_size: int | None) -> None:
        W, statistics = layer(K=40, seed=4)
        grid = fit_grid("int4", group_size, {}, W)
        found = gs.Prune(0.5, method=PUBLISHED).apply(W, statistics, grid=grid)
        check(found, naive(W, statistics, by_layer(0.5, 16), grid))
        assert found.grid is grid
        assert torch.equal(found.to_format(sparse=True).dequantize(), found.values)

    @pytest.mark.parametrize("name", ["int8", "nf4", "int4-asym", "fp8"])
    def test_other_grids(self, name: str) -> None:
        W, statistics = layer(K=64, seed=5)
        settings = {"symmetric": False} if name.endswith("-asym") else {}
        form = name.removesuffix("-asym")
        for group_size in (None, 32) if form.startswith("int") else (None,):
            grid = fit_grid(form, 64 if form == "nf4" else group_size, settings, W)
            found = gs.Prune(0.5, method=PUBLISHED).apply(W, statistics, grid=grid)
            assert int(found.keep.sum()) == W.numel() // 2
            assert bool((found.values[~found.keep] == 0).all())
            assert torch.equal(found.to_format().dequantize(), found.values)

    def test_nothing_stays(self) -> None:
        W, statistics = layer(K=64)
        grid = fit_grid("int4", 32, {}, W)
        found = gs.Prune(1.0, method=PUBLISHED).apply(W, statistics, grid=grid)
        assert not found.keep.any()
        assert not found.to_format().dequantize().any()
        with pytest.raises(ValueError, match=r"Pruned.to_format: the values are not on a grid"):
            gs.Prune(0.5, method=PUBLISHED).apply(W, statistics).to_format()

    def test_n_of_m_with_a_grid(self) -> None:
        W, statistics = layer(K=64, seed=6)
        grid = fit_grid("int4", 32, {}, W)
        found = gs.Prune(pattern="2:4", method=PUBLISHED).apply(W, statistics, grid=grid)
        assert bool((found.keep.view(-1, 4).sum(1) == 2).all())
        assert torch.equal(found.to_format().dequantize(), found.values)

    def test_another_sparsity_and_damping(self) -> None:
        W, statistics = layer()
        prune = gs.Prune(0.5, method=PUBLISHED, allocation="owl")
        quarter = prune.apply(W, statistics, sparsity=0.25)
        check(quarter, naive(W, statistics, by_layer(0.25, 16)))
        stiff = gs.Prune(0.5, method=SparseGPT(damping=1e6, iterations=0)).apply(W, statistics)
        assert torch.equal(stiff.keep, gs.Prune(0.5, "layer").apply(W).keep)
        torch.testing.assert_close(
            stiff.values, torch.where(stiff.keep, W, 0), atol=1e-4, rtol=1e-4
        )


class TestBlocks:
    @pytest.mark.parametrize("pattern", BLOCKS)
    @pytest.mark.parametrize("scope", ["layer", "row"])
    def test_they_live_or_die_as_a_whole(self, pattern: str, scope: str) -> None:
        W, statistics = layer(N=33, K=150, rows=300)
        found = gs.Prune(0.5, scope, pattern, method="sparsegpt").apply(W, statistics)
        height, width = BLOCKS[pattern]
        rows, columns = math.ceil(33 / height), math.ceil(150 / width)
        kept = torch.empty(rows, columns, dtype=torch.bool)
        for i in range(rows):
            for j in range(columns):
                block = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
                assert len(found.keep[block].unique()) == 1
                kept[i, j] = found.keep[block].all()
        gone = (~kept).sum(1) if scope == "row" else (~kept).sum()
        wanted = round(0.5 * columns) if scope == "row" else round(0.5 * rows * columns)
        assert bool((gone == wanted).all())
        assert bool((found.values[~found.keep] == 0).all())

    @pytest.mark.parametrize("pattern", BLOCKS)
    def test_the_cheapest_go(self, pattern: str) -> None:
        height, width = BLOCKS[pattern]
        scores = torch.rand(32, 48) ** 4
        settings = {"share": 0.4, "by_row": False, "block": (height, width)}
        keep = keep_costliest(scores, 0, **settings)  # type: ignore[arg-type]
        sums = scores.unfold(0, height, height).unfold(1, width, width).double().sum((2, 3))
        kept = keep.unfold(0, height, height).unfold(1, width, width).flatten(2).all(2)
        assert torch.equal(kept, best_of(sums, sums.numel() - round(0.4 * sums.numel())))

    @pytest.mark.parametrize("share", [0.0, 0.123, 0.5, 0.99, 1.0])
    @pytest.mark.parametrize("by_row", [True, False])
    def test_counts_are_exact_over_all_blocks(self, share: float, by_row: bool) -> None:
        scores = torch.rand(7, 300)
        parts = [
            keep_costliest(part, first, share=share, by_row=by_row, block=(1, 1))
            for first, part in zip((0, 128, 256), scores.split(128, 1), strict=True)
        ]
        gone = ~torch.cat(parts, 1)
        if by_row:
            assert set(gone.sum(1).tolist()) == {round(share * 300)}
        else:
            assert int(gone.sum()) == round(share * 2100)


class TestQuality:
    @pytest.mark.parametrize("pattern", [None, "2:4"])
    def test_sparsegpt_loses_less_than_wanda_and_that_less_than_magnitude(
        self, pattern: str | None
    ) -> None:
        total = dict.fromkeys(("magnitude", "wanda", "sparsegpt"), 0.0)
        for seed in range(8):
            W, statistics = layer(N=24, K=64, rows=256, seed=seed)
            for method in total:
                prune = gs.Prune(None if pattern else 0.5, "row", pattern, method)
                total[method] += loss(W, prune.apply(W, statistics).values, statistics)
        assert 1.5 * total["sparsegpt"] < total["wanda"] < total["magnitude"]

    @pytest.mark.parametrize("size", [None, 32])
    def test_joint_loses_less_than_pruning_then_rounding(self, size: int | None) -> None:
        joint = after = 0.0
        for seed in range(2):
            W, statistics = layer(N=24, K=384, rows=500, seed=seed)
            grid = fit_grid("int4", size, {}, W)
            prune = gs.Prune(0.5, method=PUBLISHED)
            joint += loss(W, prune.apply(W, statistics, grid=grid).values, statistics)
            pruned = prune.apply(W, statistics)
            one = update(pruned.values, factor(statistics.moment), keep=pruned.keep, grid=grid)
            after += loss(W, one.values, statistics)
        assert joint < after

    def test_the_mask_takes_account_of_a_grid(self) -> None:
        W, statistics = layer(K=300, rows=400)
        grid = fit_grid("int4", None, {}, W)
        free = gs.Prune(0.5, method="sparsegpt").apply(W, statistics)
        aware = gs.Prune(0.5, method="sparsegpt").apply(W, statistics, grid=grid)
        joint = gs.Prune(0.5, method=PUBLISHED).apply(W, statistics, grid=grid)
        assert torch.equal(aware.keep, joint.keep)
        assert not torch.equal(aware.keep, free.keep)
        assert aware.codes is None
        assert loss(W, aware.values, statistics) < loss(W, joint.values, statistics)


def best_values(W: Tensor, keep: Tensor, statistics: Statistics) -> Tensor:
    """Each row by itself: the least-squares solution on what stays."""
    assert statistics.moment is not None
    H = statistics.moment.double()
    H = H + torch.diag(0.01 * H.diagonal().mean() * torch.ones(len(H)))
    V = torch.zeros_like(W)
    for n, row in enumerate(keep):
        there = row.nonzero().flatten()
        right = (H @ W[n].double())[there]
        V[n, there] = torch.linalg.solve(H[there][:, there], right).float()
    return V


class TestRefining:
    @pytest.mark.parametrize("pattern", [None, "2:4", "1x4"])
    def test_it_comes_to_the_least_error_of_the_mask(self, pattern: str | None) -> None:
        W, statistics = layer()
        sparsity = None if pattern == "2:4" else 0.5
        prune = gs.Prune(sparsity, "row", pattern, SparseGPT(iterations=60))
        found = prune.apply(W, statistics)
        best = best_values(W, found.keep, statistics)
        torch.testing.assert_close(found.values, best, atol=2e-4, rtol=2e-3)
        assert bool((found.values[~found.keep] == 0).all())

    def test_the_mask_is_that_of_the_pass(self) -> None:
        W, statistics = layer()
        found = gs.Prune(0.5, method="sparsegpt").apply(W, statistics)
        published = gs.Prune(0.5, method=PUBLISHED).apply(W, statistics)
        assert torch.equal(found.keep, published.keep)

    def test_each_step_loses_less(self) -> None:
        W, statistics = layer(N=24, K=200, rows=400)
        assert statistics.moment is not None
        C = statistics.moment.double()
        H = (C + torch.diag(0.01 * C.diagonal().mean() * torch.ones(200))).float()
        damped = dataclasses.replace(statistics, moment=H)
        losses = []
        for steps in (0, 1, 2, 4, 8, 16):
            prune = gs.Prune(0.5, method=SparseGPT(iterations=steps))
            losses.append(loss(W, prune.apply(W, statistics).values, damped))
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 0.6 * losses[0]

    def test_rows_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        W, statistics = layer(N=40)
        whole = gs.Prune(0.5, method="sparsegpt").apply(W, statistics).values
        monkeypatch.setattr(refining, "_ROWS", 16)
        parts = gs.Prune(0.5, method="sparsegpt").apply(W, statistics).values
        torch.testing.assert_close(parts, whole)

    def test_nothing_to_move(self) -> None:
        W, statistics = layer()
        for sparsity in (0.0, 1.0):
            values = gs.Prune(sparsity, method="sparsegpt").apply(W, statistics).values
            torch.testing.assert_close(values, W * (1 - sparsity), atol=1e-6, rtol=0)
        zero = gs.Prune(0.5, method="sparsegpt").apply(torch.zeros_like(W), statistics)
        assert not zero.values.any()


class TestHardInputs:
    def test_dead_columns(self) -> None:
        W, _ = layer()
        x = torch.randn(50, 24) @ torch.randn(24, 24)
        x[:, [3, 11, 12]] = 0
        statistics = statistics_of(x)
        found = gs.Prune(0.5, method="sparsegpt").apply(W, statistics)
        assert not found.keep[:, [3, 11, 12]].any()
        published = gs.Prune(0.5, method=PUBLISHED).apply(W, statistics)
        check(published, naive(W, statistics, by_layer(0.5, 16)))
        assert loss(W, found.values, statistics) < loss(W, published.values, statistics)

    def test_all_columns_dead(self) -> None:
        W, _ = layer()
        found = gs.Prune(0.5, method="sparsegpt").apply(W, statistics_of(torch.zeros(5, 24)))
        assert int(found.keep.sum()) == W.numel() // 2
        assert not found.values.any()

    @pytest.mark.parametrize("rows", [1, 5])
    def test_fewer_samples_than_features(self, rows: int) -> None:
        W, statistics = layer(rows=rows)
        found = gs.Prune(0.5, method="sparsegpt").apply(W, statistics)
        assert bool(found.values.isfinite().all())
        assert int(found.keep.sum()) == W.numel() // 2
        plain = torch.where(found.keep, W, 0)
        assert loss(W, found.values, statistics) < 0.1 * loss(W, plain, statistics)

    def test_constant_input(self) -> None:
        W, _ = layer()
        statistics = statistics_of(torch.full((20, 24), 2.0))
        found = gs.Prune(0.5, method="sparsegpt").apply(W, statistics)
        assert bool(found.values.isfinite().all())
        # All that counts is the sum of a row, which the weights that stay can keep.
        torch.testing.assert_close(found.values.sum(1), W.sum(1), atol=0.05, rtol=0.01)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        W, statistics = layer()
        found = gs.Prune(0.5, method="sparsegpt").apply(W.to(dtype), statistics)
        same = gs.Prune(0.5, method="sparsegpt").apply(W.to(dtype).float(), statistics)
        assert torch.equal(found.values, same.values)
        assert found.values.dtype is torch.float32

    def test_nan(self) -> None:
        W, statistics = layer()
        assert statistics.moment is not None
        prune = gs.Prune(0.5, method="sparsegpt")
        moment = statistics.moment.clone()
        moment[2, 3] = moment[3, 2] = math.nan
        with pytest.raises(ValueError, match="SparseGPT: statistics: moment: got NaN or infinity"):
            prune.apply(W, dataclasses.replace(statistics, moment=moment))
        W[4, 5] = math.inf
        with pytest.raises(ValueError, match=r"Prune: W: NaN or infinity in row\(s\) 4"):
            prune.apply(W, statistics)

    def test_missing_statistics(self) -> None:
        W, statistics = layer()
        prune = gs.Prune(0.5, method="sparsegpt")
        with pytest.raises(ValueError, match=r"SparseGPT: statistics: got None, .* a calibration"):
            prune.apply(W)
        with pytest.raises(ValueError, match=r"moment: got None, wanted \[24, 24\]"):
            prune.apply(W, dataclasses.replace(statistics, moment=None))
        with pytest.raises(ValueError, match=r"moment: got a .*wanted \[23, 23\]"):
            prune.apply(W[:, :23], statistics)
        with pytest.raises(
            ValueError, match="Prune: scores: sparsegpt has none before its updates"
        ):
            prune.scores(W, statistics)
