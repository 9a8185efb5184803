"""gs.compress with sparse schemes: which layers become sparse, and what is in them."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.fusion import Fusion

from .sparse_models import SCHEMES, dense_matrix, formats, kept, mlp, with_zeros


class TestPlainZeros:
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_a_whole_model(self, scheme: str) -> None:
        model, x = with_zeros(mlp(), 0.9), torch.randn(5, 96)
        weights = {name: dense_matrix(model[int(name)]) for name in ("0", "2", "3")}
        with torch.no_grad():
            expected = model(x)
            assert gs.compress(model, scheme) is model
            got = model(x)
        bound = {"sparse-int8": 0.03, "sparse-int4": 0.3, "sparse-bf16": 0.02, "sparse-fp32": 1e-5}
        assert float((got - expected).norm() / expected.norm()) < bound[scheme]
        for layer in gs.report(model).layers:
            weight = weights[layer.name]
            assert layer.format.split(":")[0] == scheme
            assert layer.sparsity is not None
            zeros = 1 - int(torch.count_nonzero(weight)) / weight.numel()
            assert layer.sparsity >= zeros - 1e-9
            assert layer.sparsity < 0.97
            assert layer.bytes_after < layer.bytes_before / 2
            now = model[int(layer.name)].dequantize()
            assert bool((now[weight == 0] == 0).all())

    def test_float_formats_lose_nothing(self) -> None:
        model = with_zeros(mlp(), 0.9)
        weight = dense_matrix(model[0])
        gs.compress(model, "sparse-fp32")
        assert torch.equal(model[0].dequantize(), weight)
        half = with_zeros(mlp(), 0.9).bfloat16()
        weight = dense_matrix(half[0])
        gs.compress(half, "sparse-bf16")
        assert torch.equal(half[0].dequantize(torch.bfloat16), weight)

    @pytest.mark.parametrize(
        ("scheme", "dense"),
        [
            ("sparse-int8", "int8"),
            (gs.Quantize("sparse-int8", group_size=64), "int8:64"),
            (gs.Quantize("sparse-int8", activations="exact"), "int8"),
            ("sparse-int4", "int4:128"),
            ("sparse-bf16", "bf16"),
        ],
    )
    def test_few_zeros_keep_the_dense_twin(self, scheme: Any, dense: str) -> None:
        model = with_zeros(mlp(), 0.1)
        expected = gs.compress(copy.deepcopy(model), dense.split(":")[0])
        gs.compress(model, scheme)
        assert set(formats(model).values()) == {dense}
        name = dense.split(":")[0]
        for reason in kept(model).values():
            assert reason.startswith(f"10% of the weights are zero; sparse-{name} is faster than")
        assert set(kept(model)) == {"0", "2", "3"}
        if dense == "int8":
            assert torch.equal(model[0].dequantize(), expected[0].dequantize())
        if isinstance(scheme, gs.Quantize):
            assert model[0].activations == scheme.resolved().activations

    def test_few_zeros_keep_the_float_layer(self) -> None:
        model = with_zeros(mlp(), 0.1)
        layer, x = model[0], torch.randn(3, 96)
        expected = model(x)
        gs.compress(model, "sparse-fp32")
        assert model[0] is layer
        assert torch.equal(model(x), expected)
        assert set(kept(model)) == {"0", "2", "3"}

    def test_each_layer_by_itself(self) -> None:
        model = mlp()
        with_zeros(model[2], 0.9)
        gs.compress(model, "sparse-int8")
        assert formats(model) == {"0": "int8", "2": "sparse-int8", "3": "int8"}
        assert kept(model)["0"].startswith("0% of the weights are zero; ")

    def test_a_layer_by_its_name_is_sparse_whatever_its_zeros(self) -> None:
        model = gs.compress(mlp(), "sparse-int8", targets=["0", "re:2"])
        assert formats(model) == {"0": "sparse-int8", "2": "int8"}
        assert set(kept(model)) == {"2"}

    def test_a_dense_scheme_looks_at_no_zeros(self) -> None:
        model = gs.compress(with_zeros(mlp(), 0.9), "int8")
        assert set(formats(model).values()) == {"int8"}
        assert kept(model) == {}

    def test_layers_all_of_zeros(self) -> None:
        model, x = mlp(), torch.randn(2, 96)
        with torch.no_grad():
            model[0].weight.zero_()
        expected = model(x)
        gs.compress(model, "sparse-fp32")
        assert gs.report(model).layers[0].sparsity == 1
        torch.testing.assert_close(model(x), expected)


class TestPrune:
    @pytest.mark.parametrize("store", ["int8", "sparse-int8", "int4", "bf16"])
    def test_then_quantize_is_quantize_of_the_pruned_weight(self, store: str) -> None:
        model = mlp()
        weight = dense_matrix(model[0])
        gs.compress(model, [gs.Prune(0.9, "layer"), gs.Quantize(store)])
        pruned = weight * gs.pruning.magnitude_mask(weight, 0.9)
        expected = gs.Quantize(store.removeprefix("sparse-")).quantize(pruned).dequantize()
        assert formats(model)["0"].split(":")[0] == "sparse-" + store.removeprefix("sparse-")
        assert torch.equal(model[0].dequantize(), expected)

    def test_the_error_is_that_of_the_weight_before(self) -> None:
        model = mlp()
        weight = dense_matrix(model[0])
        gs.compress(model, [gs.Prune(0.8), "int4"])
        error = float((model[0].dequantize() - weight).norm() / weight.norm())
        assert gs.report(model).layers[0].error == pytest.approx(error, rel=1e-4)
        assert error > 0.2

    def test_alone_in_float32_and_bfloat16(self) -> None:
        for dtype, name in ((torch.float32, "sparse-fp32"), (torch.bfloat16, "sparse-bf16")):
            model = mlp().to(dtype)
            weight = dense_matrix(model[2])
            gs.compress(model, gs.Prune(0.9, "row"))
            assert set(formats(model).values()) == {name}
            pruned = weight * gs.pruning.magnitude_mask(weight, 0.9, "row")
            assert torch.equal(model[2].dequantize(dtype), pruned)

    def test_formats_that_have_no_sparse_form(self) -> None:
        for scheme in ("nf4", "int4-asym", "fp8"):
            model = gs.compress(mlp(), [gs.Prune(0.9), scheme])
            assert kept(model)["0"] == f"there is no sparse form of {scheme}"
            assert float((model[0].dequantize() == 0).float().mean()) > 0.8

    @pytest.mark.parametrize("pattern", ["1x4", "4x1", "1x16", "16x1"])
    def test_blocks_are_stored_as_such(self, pattern: str) -> None:
        model = gs.compress(mlp(), [gs.Prune(0.9, "layer", pattern), "int8"])
        layer = gs.report(model).layers[0]
        assert layer.pattern == pattern
        single = gs.compress(mlp(), [gs.Prune(0.9, "layer"), "int8"])
        assert gs.report(single).layers[0].pattern == "any"
        assert layer.bytes_after < gs.report(single).layers[0].bytes_after

    def test_more_pruning_of_pruned_layers(self) -> None:
        model = gs.compress(mlp(), gs.Prune(0.1))
        gs.compress(model, [gs.Prune(0.9), "int8"])
        assert set(formats(model).values()) == {"sparse-int8"}
        assert kept(model) == {}


class TestBatch:
    @pytest.mark.parametrize("batch", [1, 64, "large", (1, "large")])
    def test_parts_are_those_of_the_choice(self, batch: Any) -> None:
        model = gs.compress(mlp(), gs.Prune(0.97, "layer"), batch=batch)
        for i in (0, 2):
            expected = model[i].quantized().choice(batch, pattern="any").parts
            assert gs.report(model).layers[(0, None, 1)[i]].parts == expected

    def test_convolutions(self) -> None:
        layer = nn.Conv2d(32, 32, 3)
        for batch in (1, "large"):
            model = nn.Sequential(copy.deepcopy(layer))
            gs.compress(model, gs.Prune(0.9, "row"), batch=batch)
            expected = model[0].quantized().choice(batch)
            assert gs.report(model).layers[0].parts == expected.parts

    def test_loading_and_copies_keep_it(self) -> None:
        model = gs.compress(mlp(), gs.Prune(0.97, "layer"), batch=1)
        bytes_before = model[0].packed.numel()
        model.load_state_dict(model.state_dict())
        assert model[0].packed.numel() == bytes_before
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again[0].packed, model[0].packed)
        assert torch.equal(copy.deepcopy(model)[0].packed, model[0].packed)

    @pytest.mark.parametrize("batch", [0, "small", (), 1.5])
    def test_wrong_batches(self, batch: Any) -> None:
        with pytest.raises(ValueError, match="compress: batch: "):
            gs.compress(mlp(), "sparse-int8", batch=batch)


class TestSaving:
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_state_dict_pickle_and_deepcopy(self, scheme: str) -> None:
        model = gs.compress(with_zeros(mlp(), 0.9), scheme)
        x = torch.randn(4, 96)
        expected = model(x)
        assert {"0.weight", "0.weight_mask", "0.bias"} <= set(model.state_dict())
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        fresh = gs.compress(with_zeros(mlp(), 0.87), scheme)  # with other zeros
        fresh.load_state_dict(torch.load(file))
        assert torch.equal(fresh(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        assert torch.equal(copy.deepcopy(model)(x), expected)

    def test_a_dense_checkpoint_is_taken(self) -> None:
        dense = with_zeros(mlp(), 0.9)
        state, x = dense.state_dict(), torch.randn(2, 96)
        expected = gs.compress(copy.deepcopy(dense), "sparse-int8")
        model = gs.compress(with_zeros(mlp(), 0.87), "sparse-int8")
        model.load_state_dict(state)
        assert torch.equal(model(x), expected(x))

    def test_damaged_masks_are_refused(self) -> None:
        model = gs.compress(with_zeros(mlp(), 0.9), "sparse-int8")
        state = model.state_dict()
        state["0.weight_mask"] = ~state["0.weight_mask"]
        with pytest.raises(RuntimeError, match=r"0\.weight: "):
            model.load_state_dict(state)


class TestOtherLayers:
    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (nn.Conv2d(32, 48, 3, padding=1), (2, 32, 8, 8)),
            (nn.Conv1d(32, 48, 3), (2, 32, 20)),
            (nn.ConvTranspose2d(32, 16, 3, stride=2), (1, 32, 6, 6)),
            (nn.Conv2d(64, 32, 1), (1, 64, 9, 7)),
        ],
    )
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_convolutions(self, layer: nn.Module, shape: tuple[int, ...], scheme: str) -> None:
        model = with_zeros(nn.Sequential(copy.deepcopy(layer)), 0.9).eval()
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x)
            got = gs.compress(model, scheme)(x)
        assert formats(model)["0"].startswith(scheme)
        assert got.shape == expected.shape
        bound = {"sparse-int8": 0.03, "sparse-int4": 0.3, "sparse-bf16": 0.02, "sparse-fp32": 1e-5}
        assert float((got - expected).norm() / expected.norm()) < bound[scheme]
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again(x), got)

    def test_groups_stay_dense(self) -> None:
        layers = nn.Conv2d(32, 32, 3, groups=2), nn.Conv2d(32, 32, 3, groups=32)
        model = gs.compress(with_zeros(nn.Sequential(*layers), 0.9), "sparse-int8")
        assert set(formats(model).values()) == {"int8"}
        assert set(kept(model).values()) == {"convolutions in groups have no sparse form"}

    def test_tied_heads_are_sparse_and_tables_are_not(self) -> None:
        def make() -> nn.ModuleDict:
            torch.manual_seed(0)
            model = nn.ModuleDict({"table": nn.Embedding(96, 64), "embed": nn.Embedding(96, 64)})
            model["head"] = nn.Linear(64, 96, bias=False)
            model["head"].weight = model["embed"].weight
            with_zeros(model["table"], 0.9)
            return with_zeros(model["embed"], 0.9) and model

        model, expected = gs.compress(make(), "sparse-int8"), make()
        assert formats(model) == {"table": "int8", "head": "sparse-int8"}
        assert kept(model) == {"table": "looking a row up is slower in a sparse table"}
        assert model["embed"].packed is model["head"].packed
        ids = torch.tensor([3, 95, 0])
        torch.testing.assert_close(
            model["embed"](ids), expected["embed"](ids), rtol=0.01, atol=0.02
        )

    def test_one_name_of_a_tied_pair_is_enough(self) -> None:
        model = nn.ModuleDict({"embed": nn.Embedding(96, 64), "head": nn.Linear(64, 96)})
        model["head"].weight = model["embed"].weight
        gs.compress(model, "sparse-fp32", targets=["embed", "re:head"])
        assert formats(model) == {"head": "sparse-fp32"}
        assert model["embed"].packed is model["head"].packed

    def test_recurrent_layers_and_attention(self) -> None:
        model = nn.ModuleDict({"gru": nn.GRU(64, 256), "attention": nn.MultiheadAttention(64, 4)})
        with_zeros(model, 0.9)
        x = torch.randn(3, 2, 64)
        with torch.no_grad():
            expected = model["gru"](x)[0], model["attention"](x, x + 1, x)[0]
            gs.compress(model, "sparse-int8")
            got = model["gru"](x)[0], model["attention"](x, x + 1, x)[0]
        assert set(formats(model).values()) == {"sparse-int8"}
        for y, wanted in zip(got, expected, strict=True):
            assert float((y - wanted).norm() / wanted.norm()) < 0.05


class TestFusion:
    def encoder(self, sparsity: float) -> nn.Module:
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            num_hidden_layers=1, num_attention_heads=2, hidden_size=64, intermediate_size=96
        )
        model: nn.Module = transformers.BertModel(config).encoder.eval()
        return with_zeros(model, sparsity)

    def fusions(self, model: nn.Module) -> dict[str, Fusion]:
        return {fusion.result: fusion for fusion in gs.report(model).fusions}

    @pytest.mark.parametrize("scheme", ["sparse-int8", "sparse-fp32"])
    def test_sparse_projections_are_one(self, scheme: str) -> None:
        model, x = self.encoder(0.9), torch.randn(1, 5, 64)
        with torch.no_grad():
            separate = gs.compress(copy.deepcopy(model), scheme, fuse=False)
            together = gs.compress(model, scheme)
            assert self.fusions(together)["query, key, value"].reason == ""
            torch.testing.assert_close(
                together(x).last_hidden_state, separate(x).last_hidden_state, rtol=1e-4, atol=1e-5
            )
        shares = [
            {layer.name: layer.sparsity for layer in gs.report(each).layers}
            for each in (separate, together)
        ]
        assert shares[0] == pytest.approx(shares[1])

    def test_sparse_and_dense_ones_are_not(self) -> None:
        model = self.encoder(0.9)
        with torch.no_grad():
            model.layer[0].attention.self.key.weight.normal_()
        gs.compress(model, "sparse-int8")
        reason = self.fusions(model)["query, key, value"].reason
        assert reason == "query, key, value: have different formats"

    def test_float_layers_that_stay_are_the_reason(self) -> None:
        model = self.encoder(0.1)
        gs.compress(model, "sparse-fp32")
        reason = self.fusions(model)["query, key, value"].reason
        assert reason.startswith("query: 10% of the weights are zero")


class TestReport:
    def test_columns(self) -> None:
        model = mlp()
        with_zeros(model[0], 0.9)
        found = gs.report(gs.compress(model, "sparse-int4"), measure=True)
        lines = str(found).splitlines()
        assert lines[0].split()[6:10] == ["error", "zeros", "pattern", "parts"]
        assert lines[1].split()[:4] == ["0", "128", "x", "96"]
        layer = found.layers[0]
        assert f"90%  {layer.pattern:>7}  {'+'.join(layer.parts)}" in lines[1]
        assert found.layers[0].ms is not None
        assert found.layers[1].sparsity is None
        assert lines[lines.index("kept dense:") + 1].split() == [
            "layer",
            "format",
            "zeros",
            "reason",
        ]
        data = found.to_dict()
        assert data["layers"][0]["parts"] == ("bitmask",)
        assert data["kept_dense"][0]["format"] == "int4"
        assert "zeros" not in str(gs.report(gs.compress(mlp(), "int8")))

    def test_kept_dense_is_remembered(self) -> None:
        model = gs.compress(mlp(), "sparse-int8", targets="re:0")
        gs.compress(model, "int8")
        assert set(kept(model)) == {"0"}
        assert set(kept(copy.deepcopy(model))) == {"0"}
        assert set(kept(nn.Sequential(model))) == {"0.0"}
