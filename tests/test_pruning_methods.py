"""Settings of gs.Prune, and Wanda against its equation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gossamer as gs
from gossamer.calibration.statistics import Statistics
from gossamer.pruning import OWL, Magnitude, SparseGPT, Wanda
from gossamer.pruning.patterns import BLOCKS


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


def best_of(scores: Tensor, count: int) -> Tensor:
    """By sorting: the `count` largest of a few scores, of equal ones the first."""
    order = sorted(range(scores.numel()), key=lambda i: (-float(scores.flatten()[i]), i))
    keep = torch.zeros(scores.numel(), dtype=torch.bool)
    keep[order[:count]] = True
    return keep.view(scores.shape)


class TestSettings:
    def test_default_scopes(self) -> None:
        scopes = {name: gs.Prune(0.5, method=name).scope for name in gs.pruning.METHODS}
        assert scopes == {"magnitude": "global", "wanda": "row", "sparsegpt": "layer"}
        assert gs.Prune(0.5, allocation="owl").scope == "layer"
        assert gs.Prune(0.5, method=Wanda(), allocation=OWL()).scope == "row"

    def test_needs(self) -> None:
        assert gs.Prune(0.5).needs == "nothing"
        assert gs.Prune(0.5, allocation="owl").needs == "squares"
        assert gs.Prune(0.5, method="wanda").needs == "squares"
        assert gs.Prune(0.5, method="sparsegpt").needs == "moment"
        assert gs.Prune(0.5, method=SparseGPT(), allocation="owl").needs == "moment"

    def test_names_stand_for_settings(self) -> None:
        assert gs.Prune(0.5, method="sparsegpt").method_settings == SparseGPT(0.01, 12)
        assert gs.Prune(0.5, method=SparseGPT(0.2)).method_settings.damping == 0.2
        assert gs.Prune(0.5).method_settings == Magnitude()
        assert gs.Prune(0.5).allocation_settings is None
        assert gs.Prune(0.5, allocation="owl").allocation_settings == OWL()

    def test_are_values(self) -> None:
        prune = gs.Prune(0.5, method=SparseGPT(), allocation=OWL())
        assert len({prune, dataclasses.replace(prune)}) == 1
        assert dataclasses.replace(prune, sparsity=0.25).sparsity == 0.25

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"method": "wonda"}, "Prune: method: got str 'wonda', wanted one of magnitude, wanda"),
            ({"method": None}, "Prune: method: got NoneType None, wanted one of magnitude"),
            ({"method": Wanda}, "Prune: method: got type .*wanted one of magnitude"),
            ({"method": OWL()}, "Prune: method: got OWL "),
            ({"allocation": "even"}, "Prune: allocation: got str 'even', wanted one of uniform, o"),
            ({"allocation": Wanda()}, "Prune: allocation: got Wanda "),
            ({"method": "sparsegpt", "scope": "global"}, "scope: got 'global', .* for sparsegpt"),
            (
                {"scope": "global", "allocation": "owl"},
                "allocation: got 'owl' with a scope 'global",
            ),
            ({"sparsity": None, "pattern": "2:4", "allocation": "owl"}, "with a pattern N:M"),
        ],
    )
    def test_wrong(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            gs.Prune(**{"sparsity": 0.5, **arguments})

    @pytest.mark.parametrize("damping", [0, -1.0, math.inf, math.nan, True, "1"])
    def test_wrong_damping(self, damping: Any) -> None:
        with pytest.raises(ValueError, match=r"SparseGPT: damping: got .*, wanted a number above"):
            SparseGPT(damping)

    @pytest.mark.parametrize("iterations", [-1, 1.5, True, None])
    def test_wrong_iterations(self, iterations: Any) -> None:
        with pytest.raises(ValueError, match=r"SparseGPT: iterations: got .*, wanted a whole numb"):
            SparseGPT(iterations=iterations)


class TestWanda:
    def layer(self, N: int = 12, K: int = 40, seed: int = 0) -> tuple[Tensor, Statistics, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        W = torch.randn(N, K, generator=generator)
        x = torch.randn(64, K, generator=generator) * torch.logspace(-1, 1, K)
        scores = W.abs() * x.double().square().mean(0).sqrt().float()
        return W, statistics_of(x), scores

    @given(seed=st.integers(0, 30), sparsity=st.floats(0, 1))
    @settings(max_examples=25)
    def test_rows(self, seed: int, sparsity: float) -> None:
        W, statistics, scores = self.layer(seed=seed)
        values, keep, codes, grid = gs.Prune(sparsity, method="wanda").apply(W, statistics)
        for row, kept in zip(scores, keep, strict=True):
            assert torch.equal(kept, best_of(row, 40 - round(sparsity * 40)))
        assert torch.equal(values, torch.where(keep, W, 0))
        assert codes is None
        assert grid is None

    def test_layer(self) -> None:
        W, statistics, scores = self.layer()
        keep = gs.Prune(0.6, "layer", method="wanda").apply(W, statistics).keep
        assert torch.equal(keep, best_of(scores, 480 - round(0.6 * 480)))

    @pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (7, 8)])
    def test_n_of_m(self, n: int, m: int) -> None:
        W, statistics, scores = self.layer(K=42)
        keep = gs.Prune(pattern=f"{n}:{m}", method="wanda").apply(W, statistics).keep
        for row, kept in zip(scores, keep, strict=True):
            for part, stays in zip(row.split(m), kept.split(m), strict=True):
                assert torch.equal(stays, best_of(part, min(n, len(part))))

    @pytest.mark.parametrize("pattern", BLOCKS)
    def test_blocks(self, pattern: str) -> None:
        W, statistics, scores = self.layer(N=32, K=48)
        keep = gs.Prune(0.5, "layer", pattern, method="wanda").apply(W, statistics).keep
        height, width = BLOCKS[pattern]
        blocks = scores.unfold(0, height, height).unfold(1, width, width)
        kept = keep.unfold(0, height, height).unfold(1, width, width).flatten(2)
        assert torch.equal(kept.all(2), kept.any(2)), "a block lives or dies as a whole"
        norms = blocks.double().square().sum((2, 3)).sqrt()
        assert torch.equal(kept.all(2), best_of(norms, norms.numel() // 2))

    def test_global_is_over_the_scores_of_all_layers(self) -> None:
        prune = gs.Prune(0.5, "global", method="wanda")
        layers = [self.layer(seed=seed)[:2] for seed in range(3)]
        layers.append((layers[0][0] * 5, layers[0][1]))
        readers = [lambda W=W, s=s: prune.scores(W, s) for W, s in layers]
        cuts = prune.cuts(readers)
        keeps = [prune.apply(W, s, cut=cut).keep for (W, s), cut in zip(layers, cuts, strict=True)]
        together = torch.cat([reader().flatten() for reader in readers])
        expected = best_of(together, together.numel() - round(0.5 * together.numel()))
        assert torch.equal(torch.cat([keep.flatten() for keep in keeps]), expected)

    def test_dead_features_go_first(self) -> None:
        W, statistics, _ = self.layer(K=40)
        squares = statistics.squares.clone()
        squares[10:30] = 0
        statistics = dataclasses.replace(statistics, squares=squares)
        keep = gs.Prune(0.5, method="wanda").apply(W, statistics).keep
        assert not keep[:, 10:30].any()
        assert keep[:, :10].all()
        assert keep[:, 30:].all()

    def test_constant_inputs_make_it_magnitude(self) -> None:
        W, _, _ = self.layer()
        statistics = statistics_of(torch.full((1, 40), 3.0))
        wanda = gs.Prune(0.5, "layer", method="wanda").apply(W, statistics)
        assert torch.equal(wanda.keep, gs.Prune(0.5, "layer").apply(W).keep)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        W, statistics, _ = self.layer()
        found = gs.Prune(0.5, method="wanda").apply(W.to(dtype), statistics)
        exact = gs.Prune(0.5, method="wanda").apply(W.to(dtype).float(), statistics)
        assert found.values.dtype is torch.float32
        assert torch.equal(found.values, exact.values)

    def test_another_sparsity(self) -> None:
        W, statistics, _ = self.layer()
        prune = gs.Prune(0.5, method="wanda", allocation="owl")
        assert int((~prune.apply(W, statistics, sparsity=0.25).keep).sum()) == 12 * 10

    def test_wrong_statistics(self) -> None:
        W, statistics, _ = self.layer()
        prune = gs.Prune(0.5, method="wanda")
        with pytest.raises(ValueError, match=r"Wanda: statistics: got None, .* needs a calibrati"):
            prune.apply(W)
        with pytest.raises(ValueError, match=r"Wanda: statistics: squares: got .*wanted \[39\]"):
            prune.apply(W[:, :39], statistics)
        for bad in (math.nan, math.inf, -1.0):
            squares = statistics.squares.clone()
            squares[3] = bad
            with pytest.raises(
                ValueError, match="Wanda: statistics: squares: got NaN, infinity or"
            ):
                prune.apply(W, dataclasses.replace(statistics, squares=squares))

    def test_wrong_weights(self) -> None:
        W, statistics, _ = self.layer()
        W[2, 3] = math.nan
        for method in ("wanda", "magnitude"):
            with pytest.raises(ValueError, match=r"Prune: W: NaN or infinity in row\(s\) 2"):
                gs.Prune(0.5, method=method).apply(W, statistics)

    def test_no_grid(self) -> None:
        W, statistics, _ = self.layer()
        grid: Any = object()
        with pytest.raises(ValueError, match="Prune: grid: wanda does not round"):
            gs.Prune(0.5, method="wanda").apply(W, statistics, grid=grid)
