"""gs.report: figures that are checked against the tensors, and a table that lines up."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import gossamer as gs


def make() -> nn.Sequential:
    model = nn.Sequential(
        nn.Identity(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32), nn.Linear(32, 4)
    )
    return gs.compress(model, gs.Quantize("int8", group_size=32), ignore="4")


def test_layers() -> None:
    model = make()
    found = gs.report(model)
    assert [layer.name for layer in found.layers] == ["1", "3"]
    first = found.layers[0]
    assert (first.shape, first.format) == ((96, 64), "int8:32")
    assert first.bytes_before == 96 * 64 * 4
    assert first.bytes_after == model[1].packed.numel()
    assert first.bits_per_weight == 8 * first.bytes_after / (96 * 64)
    assert first.error == model[1].weight_error
    assert 0 < first.error < 0.01
    assert first.ms is first.ms_dense is found.batch is None


def test_totals_are_those_of_the_whole_model() -> None:
    dense = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96))
    before = sum(t.numel() * t.element_size() for t in (*dense.parameters(), *dense.buffers()))
    totals = gs.report(gs.compress(dense, "int8")).totals
    assert totals.layers == 1
    assert totals.model_bytes_before == before
    assert totals.model_bytes_after == before - totals.bytes_before + totals.bytes_after
    assert totals.bytes_before / totals.bytes_after > 3


def test_bfloat16_models_count_two_bytes_before() -> None:
    model = gs.compress(nn.Sequential(nn.Linear(64, 96)).bfloat16(), "int8")
    assert gs.report(model).layers[0].bytes_before == 96 * 64 * 2
    assert gs.report(model.float()).layers[0].bytes_before == 96 * 64 * 2


def test_left_alone() -> None:
    (item,) = gs.report(make()).left_alone
    assert (item.name, item.kind, item.shape, item.bytes, item.reason) == (
        "4",
        "Linear",
        (4, 32),
        512,
        "ignored",
    )


def every_kind() -> nn.ModuleDict:
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(96, 64),
            "table": nn.Embedding(128, 64),
            "conv": nn.Conv2d(64, 32, 3, groups=2),
            "up": nn.ConvTranspose1d(64, 32, 3, groups=2),
            "lstm": nn.LSTM(64, 256, proj_size=64),
            "attention": nn.MultiheadAttention(64, 4),
            "head": nn.Linear(64, 96),
        }
    )
    model["head"].weight = model["embed"].weight
    return model


EVERY_WEIGHT = {
    "table": (128, 64),
    "conv": (32, 32, 3, 3),
    "up": (64, 16, 3),
    "lstm.weight_ih_l0": (1024, 64),
    "lstm.weight_hh_l0": (1024, 64),
    "lstm.weight_hr_l0": (64, 256),
    "attention.in_proj_weight": (192, 64),
    "attention.out_proj": (64, 64),
    "head": (96, 64),
}


@pytest.mark.parametrize("scheme", ["int8", "int4-g32", "bf16"])
def test_every_kind_of_layer(scheme: str) -> None:
    dense = every_kind()
    before = sum(parameter.nbytes for parameter in dense.parameters())
    model = gs.compress(dense, scheme)
    found = gs.report(model, measure=True)
    assert {layer.name: layer.shape for layer in found.layers} == EVERY_WEIGHT
    assert found.left_alone == ()
    assert found.totals.model_bytes_before == before
    assert found.totals.bytes_after == sum(buffer.numel() for buffer in model.buffers())
    for layer in found.layers:
        assert layer.format.startswith(scheme[:4])
        assert layer.bytes_before == 4 * torch.Size(layer.shape).numel()
        assert 0 < layer.error < 0.15
        assert (layer.ms is not None) == (layer.name in ("head", "attention.out_proj"))


def test_tied_pairs_are_counted_once() -> None:
    found = gs.report(gs.compress(every_kind(), "int8"))
    assert {layer.name: layer.tied_to for layer in found.layers if layer.tied_to} == {
        "head": "embed"
    }
    lines = str(found).splitlines()
    assert lines[0].endswith("  tied to")
    assert next(line for line in lines if line.startswith("head ")).endswith("  embed")
    assert "tied" not in str(gs.report(make()))


@pytest.mark.parametrize("kind", ["lstm", "table", "up"])
def test_a_layer_by_itself(kind: str) -> None:
    found = gs.report(gs.compress(every_kind(), "int8")[kind])
    own = [name for name in EVERY_WEIGHT if name.split(".")[0] == kind]
    assert [layer.name for layer in found.layers] == [
        name.removeprefix(kind).removeprefix(".") for name in own
    ]


def test_table() -> None:
    lines = str(gs.report(make())).splitlines()
    assert lines[0].split() == ["layer", "shape", "format", "bits", "before", "after", "error"]
    assert lines[1].startswith("1      96 x 64  int8:32  ")
    assert len({len(line) for line in lines[:3]}) == 1
    assert "left alone:" in lines
    assert any(line.startswith("4 ") and line.endswith("ignored") for line in lines)
    assert lines[-1].startswith("2 packed layers: 36.86 kB -> ")


def test_to_dict_is_json() -> None:
    found = gs.report(make(), measure=True)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["layers"][0]["name"] == "1"
    assert data["left_alone"][0]["reason"] == "ignored"
    assert data["totals"]["layers"] == 2
    assert data["batch"] == 1


def test_measured_times_are_added() -> None:
    found = gs.report(make(), measure=True, batch=3)
    assert found.batch == 3
    for layer in found.layers:
        assert layer.ms is not None
        assert layer.ms_dense is not None
        assert layer.ms > 0
        assert layer.ms_dense > 0
    assert found.totals.ms == pytest.approx(sum(layer.ms for layer in found.layers))
    assert "ms, 3 rows" in str(found).splitlines()[0]
    assert str(found).splitlines()[1].rstrip().endswith("x")


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layer_can_be_measured(activation: str, dtype: torch.dtype) -> None:
    layer = gs.nn.Linear.from_dense(nn.Linear(8, 8, bias=False), activation=activation).to(dtype)
    (found,) = gs.report(layer, measure=True).layers
    assert found.ms is not None


def test_unknown_errors_are_shown_as_such() -> None:
    layer = gs.nn.Linear(8, 4, weight=gs.formats.Int8.quantize(torch.randn(4, 8)))
    found = gs.report(nn.Sequential(layer))
    assert found.layers[0].error is None
    assert found.layers[0].bytes_before == 4 * 8 * 4
    assert str(found).splitlines()[1].endswith(" -")


def test_dense_model() -> None:
    found = gs.report(nn.Sequential(nn.Linear(4, 4)))
    assert found.layers == found.left_alone == ()
    assert "0 packed layers" in str(found)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="report: model: got str"):
        gs.report("model")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="report: batch: got 0"):
        gs.report(make(), batch=0)


def attention() -> nn.Module:
    """One layer of BERT: six linear layers, of which three share an input, and an activation."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        num_hidden_layers=1, num_attention_heads=2, hidden_size=64, intermediate_size=96
    )
    model: nn.Module = transformers.BertModel(config).encoder
    return model


class TestFusion:
    def test_a_column_shows_what_was_fused(self) -> None:
        found = gs.report(gs.compress(attention(), "int8"))
        fused = {layer.name.rpartition(".")[2]: layer.fused for layer in found.layers[:3]}
        assert fused == dict.fromkeys(("query", "key", "value"), "query, key, value")
        lines = str(found).splitlines()
        assert lines[0].endswith("  fused")
        assert lines[1].endswith("  query, key, value")
        assert [line for line in lines if line.endswith("dense + gelu")]
        assert "fusion" not in str(found)
        assert json.loads(json.dumps(found.to_dict()))["fusions"][0]["module"] == (
            "layer.0.attention.self"
        )

    def test_a_table_shows_what_was_not(self) -> None:
        found = gs.report(gs.compress(attention(), "int8", ignore="*.key"))
        lines = str(found).splitlines()
        start = lines.index("not fused:")
        assert lines[start + 1].split() == ["module", "layers", "reason"]
        assert lines[start + 2].split("  ")[:1] == ["layer.0.attention.self"]
        assert lines[start + 2].endswith("key: ignored")

    def test_there_is_neither_where_nothing_was_asked_for(self) -> None:
        found = gs.report(gs.compress(attention(), "int8", fuse=False))
        assert found.fusions == ()
        assert "fuse" not in str(found)

    def test_bytes_and_times_are_shared_by_rows(self) -> None:
        plain = gs.report(gs.compress(attention(), "int8", fuse=False))
        model = gs.compress(attention(), "int8")
        found = gs.report(model, measure=True)
        parts = found.layers[:3]
        whole = model.get_submodule("layer.0.attention.self.query").packed.numel()
        assert sum(layer.bytes_after for layer in parts) == whole
        assert max(layer.bytes_after for layer in parts) < 0.4 * whole
        assert len({layer.ms for layer in parts}) == 1
        assert found.totals.model_bytes_before == plain.totals.model_bytes_before
        assert found.totals.bytes_after <= plain.totals.bytes_after
        assert [layer.error for layer in parts] != [None] * 3
