"""Sparsity by layer: OWL against its definition; the mean is exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gossamer as gs
from gossamer.formats import groups
from gossamer.pruning import OWL, Weighed, layer_sparsity


def layers(count: int, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Weights of different sizes, with more and more outliers."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for i in range(count):
        N, K = 8 + 4 * i, 32 + 8 * (i % 3)
        W = torch.randn(N, K, generator=generator) ** (1 + 2 * (i % 4))
        found[f"layer{i}"] = W, torch.rand(K, generator=generator) + 0.1
    return found


def weighed(found: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Weighed]:
    return {name: Weighed(lambda W=W: W, squares) for name, (W, squares) in found.items()}


def share_of_outliers(times: float, *parts: tuple[Tensor, Tensor]) -> float:
    scores = torch.cat([(W.abs() * squares.sqrt()).flatten() for W, squares in parts]).double()
    return float((scores > times * scores.mean()).double().mean())


class TestOWL:
    @given(
        count=st.integers(1, 7),
        seed=st.integers(0, 20),
        sparsity=st.floats(0, 1),
        spread=st.floats(0, 1),
        times=st.sampled_from([2.0, 5.0]),
    )
    @settings(max_examples=60)
    def test_the_mean_is_exact(
        self, count: int, seed: int, sparsity: float, spread: float, times: float
    ) -> None:
        found = layers(count, seed)
        prune = gs.Prune(sparsity, method="wanda", allocation=OWL(times, spread))
        given_ = layer_sparsity(prune, weighed(found))
        assert list(given_) == list(found)
        sizes = {name: W.numel() for name, (W, _) in found.items()}
        mean = sum(given_[name] * sizes[name] for name in found) / sum(sizes.values())
        assert mean == pytest.approx(sparsity, abs=1e-12)
        assert all(0 <= value <= 1 for value in given_.values())
        assert all(abs(value - sparsity) <= spread + 1e-12 for value in given_.values())

    def test_by_its_definition(self) -> None:
        found = layers(5)
        given_ = layer_sparsity(gs.Prune(0.6, allocation=OWL(3.0, 0.1)), weighed(found))
        shares = [share_of_outliers(3.0, part) for part in found.values()]
        sizes = [W.numel() for W, _ in found.values()]
        mean = sum(s * n for s, n in zip(shares, sizes, strict=True)) / sum(sizes)
        c = 0.1 / max(abs(share - mean) for share in shares)
        expected = [0.6 - c * (share - mean) for share in shares]
        assert list(given_.values()) == pytest.approx(expected, abs=1e-9)
        assert max(abs(value - 0.6) for value in given_.values()) == pytest.approx(0.1)
        assert len(set(given_.values())) == 5

    def test_blocks_of_the_model(self) -> None:
        found = layers(6)
        blocks = {name: f"block{i // 2}" for i, name in enumerate(found)}
        del blocks["layer5"]
        prune = gs.Prune(0.5, allocation=OWL(3.0, 0.1))
        given_ = list(layer_sparsity(prune, weighed(found), blocks).values())
        assert given_[0] == given_[1]
        assert given_[2] == given_[3]
        assert len(set(given_)) == 4
        parts = list(found.values())
        groups_of = [parts[:2], parts[2:4], parts[4:5], parts[5:]]
        shares = [share_of_outliers(3.0, *group) for group in groups_of]
        order = sorted(range(4), key=lambda i: shares[i])
        assert sorted(range(4), key=lambda i: -given_[(0, 2, 4, 5)[i]]) == order
        each = gs.Prune(0.5, allocation=OWL(3.0, 0.1, per="layer"))
        alone = layer_sparsity(each, weighed(found), blocks)
        assert alone == layer_sparsity(each, weighed(found))
        assert len(set(alone.values())) == 6

    def test_sparsities_near_the_ends_are_spread_less(self) -> None:
        for sparsity in (0.0, 0.02, 0.97, 1.0):
            prune = gs.Prune(sparsity, allocation=OWL(3.0, 0.3))
            values = layer_sparsity(prune, weighed(layers(5))).values()
            assert all(0 <= value <= 1 for value in values)
            if sparsity in (0.0, 1.0):
                assert set(values) == {sparsity}

    def test_equal_layers_get_the_same(self) -> None:
        W = torch.randn(8, 8)
        same = {name: Weighed(lambda: W, torch.ones(8)) for name in "abc"}
        assert set(layer_sparsity(gs.Prune(0.7, allocation="owl"), same).values()) == {0.7}
        silent = {name: Weighed(lambda: W, torch.zeros(8)) for name in "abc"}
        assert set(layer_sparsity(gs.Prune(0.7, allocation="owl"), silent).values()) == {0.7}

    def test_uniform(self) -> None:
        assert layer_sparsity(gs.Prune(0.5), weighed(layers(2))) == {"layer0": 0.5, "layer1": 0.5}
        assert layer_sparsity(gs.Prune(0.5, allocation="owl"), {}) == {}

    def test_chunks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        prune = gs.Prune(0.5, allocation=OWL(3.0))
        whole = layer_sparsity(prune, weighed(layers(4)))
        monkeypatch.setattr(groups, "_CHUNK_ELEMENTS", 100)
        assert layer_sparsity(prune, weighed(layers(4))) == whole

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
    def test_wrong_numbers(self, bad: float) -> None:
        found = layers(2)
        found["layer1"][1][3] = bad
        with pytest.raises(
            ValueError, match=r"layer_sparsity: layers: .* of 'layer1' hold NaN, inf"
        ):
            layer_sparsity(gs.Prune(0.5, allocation="owl"), weighed(found))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"outlier": 0}, "OWL: outlier: got 0, wanted a number above 0"),
            ({"outlier": math.nan}, "OWL: outlier: got nan"),
            ({"spread": 1.5}, r"OWL: spread: got 1.5, wanted a number in \[0, 1\]"),
            ({"spread": None}, "OWL: spread: got None"),
            ({"per": "row"}, "OWL: per: got 'row', wanted 'block' or 'layer'"),
        ],
    )
    def test_wrong_settings(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            OWL(**arguments)
