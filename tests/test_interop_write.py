"""write_compressed_tensors(): its own reader gives back the same codes and scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import gossamer as gs
from gossamer.formats import FORMATS, FP8
from gossamer.interop import Entry, read, write_compressed_tensors

EXACT = {
    "int4-g32": "pack-quantized",
    "int4-g64-asym": "pack-quantized",
    "int4-per-channel": "pack-quantized",
    "int4-per-channel-asym": "pack-quantized",
    "int4-weight-only": "pack-quantized",
    "int8": "int-quantized",
    "int8-g32": "int-quantized",
    "int8-weight-only": "pack-quantized",
    "fp8": "float-quantized",
    "fp8-block": "float-quantized",
}


def layers(N: int = 40, K: int = 192) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(K, N), nn.LayerNorm(N), nn.Linear(N, 24, bias=False))


def written(model: nn.Module, folder: Path, **settings: Any) -> dict[str, Entry]:
    write_compressed_tensors(model, folder / "out", **settings)
    return {entry.name: entry for entry in read(folder / "out")}


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "config.json").read_text())
    return found["quantization_config"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("scheme", EXACT)
def test_codes_and_scales_come_back(scheme, tmp_path):
    model = gs.compress(layers(K=256), scheme, targets="0")
    found = written(model, tmp_path)
    state, back = model[0].quantized().state(), found["0.weight"].value.state()
    assert state.keys() == back.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name].float(), tensor.float()), name
    assert found["0.weight"].activations == model[0].activations
    assert found["0.weight"].error == 0
    assert torch.equal(found["0.bias"].value, model[0].bias)
    assert torch.equal(found["2.weight"].value, model[2].weight)
    config = config_of(tmp_path)
    assert config["format"] == EXACT[scheme]
    assert config["ignore"] == ["2"]
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]


def test_static_scales_of_x_come_back(tmp_path):
    torch.manual_seed(0)
    recipe = gs.Quantize("int8", activations="int8-static")
    model = gs.compress(layers(), recipe, targets="0", calibration=[torch.randn(16, 192)])
    found = written(model, tmp_path)["0.weight"]
    assert found.activations == "int8"
    assert found.input_scale == torch.tensor(model[0].input_scale)  # as float32 has it
    given = config_of(tmp_path)["config_groups"]["group_0"]["input_activations"]
    assert (given["strategy"], given["dynamic"]) == ("tensor", False)


@pytest.mark.parametrize("N", [1, 7, 8, 9])
@pytest.mark.parametrize("K", [1, 2, 7, 33, 100])
def test_odd_shapes(N, K, tmp_path):
    model = gs.compress(nn.Sequential(nn.Linear(K, N)), "int4-per-channel-asym")
    found = written(model, tmp_path)["0.weight"].value
    assert found.shape == (N, K)
    assert torch.equal(found.dequantize(), model[0].dequantize())
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.get_tensor("0.weight_packed").shape == (N, -(-K // 8))
        assert file.get_tensor("0.weight_zero_point").shape == (-(-N // 8), 1)


@pytest.mark.parametrize(("scheme", "size"), [("int4-g128-asym", 64), ("int8-g128", 64)])
def test_short_groups_are_divided(scheme, size, tmp_path):
    model = gs.compress(nn.Sequential(nn.Linear(192, 16)), scheme)
    found = written(model, tmp_path)["0.weight"].value
    assert found.group_size == size
    assert torch.equal(found.dequantize(), model[0].dequantize())
    weights = config_of(tmp_path)["config_groups"]["group_0"]["weights"]
    assert weights["group_size"] == size


def test_groups_that_divide_nothing_are_an_error(tmp_path):
    model = gs.compress(nn.Sequential(nn.Linear(100, 32), nn.Linear(32, 8)), "int4-g32")
    with pytest.raises(ValueError, match=r"layer '0': compressed-tensors has no short groups"):
        write_compressed_tensors(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    found = written(model, tmp_path, expand=True)
    assert torch.equal(found["0.weight"].value, model[0].dequantize())


def test_mixed_models_name_their_layers(tmp_path):
    model = gs.compress(layers(), "int4-g32", targets="0")
    gs.compress(model, "fp8", targets="2")
    found = written(model, tmp_path)
    assert isinstance(found["2.weight"].value, FP8)
    config = config_of(tmp_path)
    assert config["format"] == "mixed-precision"
    groups = config["config_groups"].values()
    assert [group["targets"] for group in groups] == [["0"], ["2"]]
    assert [group["format"] for group in groups] == ["pack-quantized", "float-quantized"]
    assert config["ignore"] == []


@pytest.mark.parametrize("scheme", ["nf4", "sparse-int8", "bf16", "fp8-e5m2", "mxfp4"])
def test_other_formats_are_an_error_or_dense(scheme, tmp_path):
    model = gs.compress(layers(), "int8", targets="2")
    gs.compress(model, scheme, targets="0")
    name = FORMATS[gs.schemes.SCHEMES[scheme].format].name
    with pytest.raises(ValueError, match=f"layer '0': compressed-tensors has no {name}"):
        write_compressed_tensors(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    found = written(model, tmp_path, expand=True)
    assert torch.equal(found["0.weight"].value, model[0].dequantize())
    assert config_of(tmp_path)["ignore"] == ["0"]


def test_convolutions(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(64, 8))
    gs.compress(model, "int8")
    with pytest.raises(ValueError, match="layer '0': compressed-tensors has no packed Conv2d"):
        write_compressed_tensors(model, tmp_path / "out")
    found = written(model, tmp_path, expand=True)
    assert torch.equal(found["0.weight"].value, model[0].dequantize())
    assert config_of(tmp_path)["ignore"] == []


def test_embeddings_and_tied_heads_are_dense(tmp_path):
    model = nn.ModuleDict({"embed": nn.Embedding(4096, 32), "head": nn.Linear(32, 4096, False)})
    model["layer"] = nn.Linear(32, 32)
    model["head"].weight = model["embed"].weight
    gs.compress(model, "int8")
    assert isinstance(model["embed"], gs.nn.Embedding)
    found = written(model, tmp_path)
    assert "head.weight" not in found
    assert torch.equal(found["embed.weight"].value, model["embed"].dequantize())
    assert config_of(tmp_path)["ignore"] == ["head"]


def test_fused_layers_have_their_own_names(tmp_path):
    transformers = pytest.importorskip("transformers", reason="has the models")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    names = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    gs.compress(model, "int4-g32", fuse=True)
    found = written(model, tmp_path)
    assert {
        name.removesuffix(".weight") for name, e in found.items() if e.activations == "int8"
    } == names
    for name in names:
        layer = model.get_submodule(name)
        assert torch.equal(found[f"{name}.weight"].value.dequantize(), layer.dequantize())
    written_config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written_config["architectures"] == ["LlamaForCausalLM"]
    assert written_config["dtype"] == "float32"


def test_shards(tmp_path):
    model = gs.compress(nn.Sequential(*(nn.Linear(64, 64) for _ in range(5))), "int8")
    found = written(model, tmp_path, max_shard_bytes=6000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-0000{i}-of-00005.safetensors" for i in range(1, 6)]
    for i in range(5):
        assert torch.equal(found[f"{i}.weight"].value.values, model[i].quantized().values)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * (64 * 64 + 2 * 64 * 4)
    assert len(index["weight_map"]) == 15


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(TypeError, match="model: got int 3"):
        write_compressed_tensors(3, tmp_path / "out")
    with pytest.raises(ValueError, match="has no packed layers"):
        write_compressed_tensors(layers(), tmp_path / "out")
    model = gs.compress(layers(), "int8", targets="0")
    model[2].to("meta")
    with pytest.raises(ValueError, match=r"'2.weight': is on meta"):
        write_compressed_tensors(model, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        write_compressed_tensors(gs.compress(layers(), "int8"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_views_of_one_tensor(tmp_path):
    model = gs.compress(layers(), "int8", targets="0")
    both = torch.randn(2, 5)
    model.register_buffer("a", both[0])
    model.register_buffer("b", both[1])
    found = written(model, tmp_path)
    assert torch.equal(found["a"].value, both[0])
    assert torch.equal(found["b"].value, both[1])
