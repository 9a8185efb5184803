"""Pruning by magnitude: exact counts, the smallest first, ties in order, patterns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gossamer as gs
from gossamer.formats import groups
from gossamer.pruning import magnitude_mask
from gossamer.pruning.patterns import BLOCKS


def levels(N: int, K: int, count: int = 5, seed: int = 0) -> Tensor:
    """Few different magnitudes, so that ties are everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-count, count + 1, (N, K), generator=generator).float()


def smallest_first(W: Tensor, count: int) -> Tensor:
    """By sorting: the mask of what stays when `count` go; of equal ones the first stay."""
    magnitudes = [(-abs(value), place) for place, value in enumerate(W.flatten().tolist())]
    keep = torch.zeros(W.numel(), dtype=torch.bool)
    for _, place in sorted(magnitudes)[: W.numel() - count]:
        keep[place] = True
    return keep.view(W.shape)


class TestOneTensor:
    @given(
        N=st.integers(1, 9),
        K=st.integers(1, 40),
        sparsity=st.floats(0, 1),
        seed=st.integers(0, 99),
        scope=st.sampled_from(["global", "layer"]),
    )
    @settings(max_examples=40)
    def test_the_smallest_go(self, N: int, K: int, sparsity: float, seed: int, scope: str) -> None:
        W = levels(N, K, seed=seed)
        mask = magnitude_mask(W, sparsity, scope)
        assert torch.equal(mask, smallest_first(W, round(sparsity * N * K)))

    @given(N=st.integers(1, 9), K=st.integers(1, 40), sparsity=st.floats(0, 1))
    def test_rows(self, N: int, K: int, sparsity: float) -> None:
        W = levels(N, K)
        mask = magnitude_mask(W, sparsity, "row")
        for row, kept in zip(W, mask, strict=True):
            assert torch.equal(kept, smallest_first(row, round(sparsity * K)))

    @given(
        N=st.integers(1, 8), K=st.integers(1, 50), keep=st.integers(1, 8), more=st.integers(0, 9)
    )
    def test_n_of_m(self, N: int, K: int, keep: int, more: int) -> None:
        M = keep + more
        W = levels(N, K)
        mask = magnitude_mask(W, pattern=f"{keep}:{M}")
        for row, kept in zip(W, mask, strict=True):
            for part, stays in zip(row.split(M), kept.split(M), strict=True):
                assert torch.equal(stays, smallest_first(part, max(len(part) - keep, 0)))

    @pytest.mark.parametrize("pattern", BLOCKS)
    @pytest.mark.parametrize("shape", [(32, 64), (33, 50), (3, 5)])
    @pytest.mark.parametrize("scope", ["layer", "row"])
    def test_blocks(self, pattern: str, shape: tuple[int, int], scope: str) -> None:
        W, (height, width) = torch.randn(shape), BLOCKS[pattern]
        mask = magnitude_mask(W, 0.7, scope, pattern)
        rows, columns = math.ceil(shape[0] / height), math.ceil(shape[1] / width)
        norms = torch.empty(rows, columns)
        kept = torch.empty(rows, columns, dtype=torch.bool)
        for i in range(rows):
            for j in range(columns):
                block = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
                assert len(mask[block].unique()) == 1, "a block lives or dies as a whole"
                norms[i, j], kept[i, j] = W[block].norm(), mask[block].all()
        if scope == "layer":
            norms, kept = norms.view(1, -1), kept.view(1, -1)
        for row, stays in zip(norms, kept, strict=True):
            assert torch.equal(stays, smallest_first(row, round(0.7 * row.numel())))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        W = levels(8, 9).to(dtype)
        assert torch.equal(magnitude_mask(W, 0.4), smallest_first(W.float(), round(0.4 * 72)))

    def test_numpy_and_other_strides(self) -> None:
        W = torch.randn(8, 9)
        mask = magnitude_mask(W, 0.4)
        assert torch.equal(magnitude_mask(W.numpy(), 0.4), mask)
        assert torch.equal(magnitude_mask(W.T.contiguous().T, 0.4), mask)

    @pytest.mark.parametrize("pattern", [None, "4x1", "1x16"])
    @pytest.mark.parametrize("scope", ["layer", "row"])
    def test_chunks_do_not_matter(
        self, pattern: str | None, scope: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        W = levels(50, 40)
        whole = magnitude_mask(W, 0.5, scope, pattern)
        monkeypatch.setattr(groups, "_CHUNK_ELEMENTS", 400)
        assert torch.equal(magnitude_mask(W, 0.5, scope, pattern), whole)

    def test_tiny_and_huge_magnitudes(self) -> None:
        W = torch.tensor([[1e-45, -3e38, 0.0, -1e-44, torch.inf, 2e-38, -0.0, 1.0]])
        assert magnitude_mask(W, 0.5).tolist() == [
            [False, True] + [False] * 2 + [True] * 2 + [False, True]
        ]
        assert magnitude_mask(W.repeat(1, 4), 0.5, pattern="1x4").sum() == 16

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sparsity": 1.5}, r"Prune: sparsity: got 1.5, wanted a number in \[0, 1\]"),
            ({"sparsity": -0.1}, "Prune: sparsity: got -0.1"),
            ({"sparsity": None}, "Prune: sparsity: got None"),
            ({"sparsity": True}, "Prune: sparsity: got True"),
            ({"sparsity": 0.5, "scope": "model"}, "Prune: scope: got 'model', wanted one of glo"),
            ({"sparsity": 0.5, "pattern": "2x2"}, "Prune: pattern: got '2x2', wanted N:M or one"),
            ({"sparsity": 0.5, "pattern": "4:2"}, "Prune: pattern: got '4:2', wanted N:M with"),
            ({"sparsity": 0.5, "pattern": "0:4"}, "Prune: pattern: got '0:4'"),
            ({"sparsity": 0.8, "pattern": "2:4"}, "sparsity: got 0.8, wanted None or 0.5, which"),
        ],
    )
    def test_wrong_settings(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            gs.Prune(**arguments)

    def test_wrong_weights(self) -> None:
        with pytest.raises(ValueError, match=r"magnitude_mask: W: NaN or infinity in row\(s\) 1"):
            magnitude_mask(torch.tensor([[1.0], [math.nan]]), 0.5)
        with pytest.raises(ValueError, match=r"magnitude_mask: W: got a .* of shape"):
            magnitude_mask(torch.randn(4), 0.5)


class TestManyTensors:
    def masks(self, prune: gs.Prune, weights: list[Tensor]) -> list[Tensor]:
        cuts = prune.cuts([lambda weight=weight: weight for weight in weights])
        return [prune.mask(weight, cut) for weight, cut in zip(weights, cuts, strict=True)]

    @given(sparsity=st.floats(0, 1), seed=st.integers(0, 50))
    @settings(max_examples=25)
    def test_global_is_that_of_all_together(self, sparsity: float, seed: int) -> None:
        weights = [levels(N, K, N, seed) for N, K in ((3, 7), (5, 2), (4, 4), (1, 30))]
        together = torch.cat([weight.flatten() for weight in weights])
        expected = smallest_first(together, round(sparsity * together.numel()))
        masks = self.masks(gs.Prune(sparsity), weights)
        assert torch.equal(torch.cat([mask.flatten() for mask in masks]), expected)

    def test_layers_are_by_themselves(self) -> None:
        weights = [torch.randn(8, 9), 100 * torch.randn(5, 6)]
        for weight, mask in zip(weights, self.masks(gs.Prune(0.3, "layer"), weights), strict=True):
            assert torch.equal(mask, smallest_first(weight, round(0.3 * weight.numel())))

    def test_global_blocks(self) -> None:
        weights = [torch.randn(8, 16), 3 * torch.randn(4, 16)]
        masks = self.masks(gs.Prune(0.5, pattern="1x4"), weights)
        assert sum(int(mask.sum()) for mask in masks) == 24 * 4
        assert float(masks[0].float().mean()) < 0.5 < float(masks[1].float().mean())


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 40), nn.Linear(40, 8))


def zeros(layer: nn.Module) -> int:
    weight: Any = layer.weight
    return weight.numel() - int(torch.count_nonzero(weight.detach()))


class TestCompress:
    """With too few zeros for sparse layers, so that what was pruned is seen as it is."""

    def test_layer_scope_is_exact(self) -> None:
        pruned = gs.compress(model(), gs.Prune(0.2, "layer"))
        assert [zeros(pruned[i]) for i in (0, 2, 3)] == [
            round(0.2 * size) for size in (32 * 48, 48 * 40, 40 * 8)
        ]

    def test_global_scope_is_exact(self) -> None:
        dense = model()
        with torch.no_grad():
            dense[2].weight *= 4
        weights = [dense[i].weight.detach().clone() for i in (0, 2, 3)]
        pruned = gs.compress(dense, gs.Prune(0.2))
        total = sum(weight.numel() for weight in weights)
        assert sum(zeros(pruned[i]) for i in (0, 2, 3)) == round(0.2 * total)
        assert zeros(pruned[2]) < 0.15 * weights[1].numel()
        for weight, i in zip(weights, (0, 2, 3), strict=True):
            now = pruned[i].weight.detach()
            assert torch.equal(now[now != 0], weight[now != 0])

    def test_row_scope_is_exact(self) -> None:
        pruned = gs.compress(model(), gs.Prune(0.25, "row"))
        for i, K in ((0, 32), (2, 48), (3, 40)):
            assert set((pruned[i].weight == 0).sum(1).tolist()) == {K // 4}

    def test_layers_that_stay_keep_their_parameters(self) -> None:
        dense = model()
        weight = dense[0].weight
        gs.compress(dense, gs.Prune(0.1))
        assert dense[0].weight is weight
        assert type(dense[0]) is nn.Linear

    def test_targets_and_ignore(self) -> None:
        pruned = gs.compress(model(), gs.Prune(0.2), ignore="0", targets=["0", "2"])
        assert [zeros(pruned[i]) for i in (0, 2, 3)] == [0, round(0.2 * 48 * 40), 0]

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv2d(8, 12, 3),
            nn.Conv2d(8, 12, 3, groups=2),
            nn.Conv1d(8, 12, 5),
            nn.ConvTranspose2d(8, 12, 3, groups=2),
            nn.ConvTranspose1d(8, 12, 3),
        ],
    )
    def test_n_of_m_along_the_input_features_of_convolutions(self, layer: nn.Module) -> None:
        weight: Tensor = layer.weight.detach().clone()  # type: ignore[operator,union-attr]
        pruned = gs.compress(nn.Sequential(layer), gs.Prune(pattern="3:4"))[0].weight.detach()
        channels = 0 if "Transpose" in type(layer).__name__ else 1
        fours = pruned.movedim(channels, -1).unflatten(-1, (-1, 4))
        assert bool(((fours == 0).sum(-1) == 1).all())
        assert torch.equal(pruned[pruned != 0], weight[pruned != 0])

    def test_what_is_not_pruned(self) -> None:
        dense = nn.ModuleDict(
            {
                "table": nn.Embedding(100, 64),
                "embed": nn.Embedding(96, 64),
                "head": nn.Linear(64, 96, bias=False),
                "depthwise": nn.Conv2d(8, 8, 3, groups=8),
                "body": nn.Linear(64, 64),
            }
        )
        dense["head"].weight = dense["embed"].weight
        pruned = gs.compress(dense, gs.Prune(0.2))
        assert {name: zeros(layer) for name, layer in pruned.items()} == {
            "table": 0,
            "embed": 0,
            "head": 0,
            "depthwise": 0,
            "body": round(0.2 * 64 * 64),
        }
        found = {item.name: item.reason for item in gs.report(pruned).left_alone}
        assert found["table"] == "embeddings are pruned only where targets names them"
        assert found["head"] == "an embedding and the layer tied to it are not pruned"
        assert found["depthwise"] == "a depthwise convolution gains nothing from zeros"
        gs.compress(pruned, gs.Prune(0.2), targets="table")
        assert zeros(pruned["table"]) == round(0.2 * 6400)

    def test_the_report_says_why_layers_stay(self) -> None:
        found = gs.report(gs.compress(model(), gs.Prune(0.1, "layer")))
        assert found.left_alone == ()
        assert [item.name for item in found.kept_dense] == ["0", "2", "3"]
        first = found.kept_dense[0]
        assert first.format == "float32"
        assert first.sparsity == pytest.approx(round(0.1 * 32 * 48) / (32 * 48))
        assert "10% of the weights are zero; sparse-fp32 is faster than dense from " in first.reason
        lines = str(found).splitlines()
        assert lines[lines.index("kept dense:") + 2].split()[:3] == ["0", "float32", "10%"]

    def test_an_error_changes_nothing(self) -> None:
        dense = model()
        with torch.no_grad():
            dense[3].weight[1, 2] = math.nan
        before = {name: value.clone() for name, value in dense.state_dict().items()}
        with pytest.raises(ValueError, match=r"layer '3': weight: NaN or infinity in row\(s\) 1"):
            gs.compress(dense, gs.Prune(0.1))
        for name, value in dense.state_dict().items():
            assert torch.equal(value.nan_to_num(9), before[name].nan_to_num(9)), name

    @pytest.mark.parametrize(
        ("scheme", "error"),
        [
            ([], ValueError),
            (["int8", gs.Prune(0.5)], ValueError),
            (["int8", "int4"], ValueError),
            ([gs.Prune(0.5), gs.Prune(0.5)], ValueError),
            ([gs.Prune(0.5), 8], TypeError),
            (None, TypeError),
        ],
    )
    def test_wrong_recipes(self, scheme: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"compress: scheme: got .*wanted a name, gs\.Quantize, "):
            gs.compress(model(), scheme)
