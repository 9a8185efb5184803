"""Whole models from checkpoints of others: what is packed, tied, cast, missing or left over."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import gossamer as gs
from gossamer.formats import Int4, Int8
from gossamer.interop import is_foreign, load, read, write_compressed_tensors

from .foreign_files import FIXTURES, fixture, relative_error, write_folder

TOKENS = torch.arange(30)[None]


def tiny_llama(**settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="has the models")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": 48,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "tie_word_embeddings": False,
            **settings,
        }
    )
    return transformers.LlamaForCausalLM(config).eval()


def gptq_folder(model: nn.Module, folder: Path, *, layers: str = "layers") -> dict[str, Int4]:
    """Write a model as GPTQ, v2, with its linear layers rounded to 4 bits; gives these."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or layers not in name:
            continue
        weight = packed[name] = Int4.quantize(state.pop(f"{name}.weight"), 32, symmetric=False)
        zeros = weight.zero_points.T.reshape(weight.zero_points.shape[1], -1, 2)
        zeros = (zeros[..., 0] | zeros[..., 1] << 4).contiguous()
        state[f"{name}.qweight"] = weight.codes.view(torch.int32).T.contiguous()
        state[f"{name}.qzeros"] = zeros.view(torch.int32)
        state[f"{name}.scales"] = weight.scales.T.contiguous()
    method = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}
    model.config.quantization_config = method
    model.config.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(state, folder / "model.safetensors")
    return packed


def test_gptq_model(tmp_path):
    dense = tiny_llama(attention_bias=True)
    for module in dense.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
    packed = gptq_folder(dense, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # everything is held bit for bit
        model = load(tmp_path)
    for name, weight in packed.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, gs.nn.Linear)
        assert layer.activations == "exact"
        assert torch.equal(layer.quantized().codes, weight.codes)
        dense.get_submodule(name).weight.data = weight.dequantize()
    assert not model.training
    assert not hasattr(model.config, "quantization_config")
    with torch.no_grad():
        assert relative_error(model(TOKENS).logits, dense(TOKENS).logits) < 1e-5


def test_dtype_and_activations(tmp_path):
    gptq_folder(tiny_llama(), tmp_path)
    model = load(tmp_path, dtype=torch.bfloat16, activations="int8")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    layers = [m for m in model.modules() if isinstance(m, gs.nn.Linear)]
    assert {(layer.activations, layer.dtype) for layer in layers} == {("int8", torch.bfloat16)}
    assert model(TOKENS).logits.dtype is torch.bfloat16
    with pytest.raises(ValueError, match="load: activations: got 'int4'"):
        load(tmp_path, activations="int4")
    with pytest.raises(TypeError, match=r"load: dtype: got torch.int8"):
        load(tmp_path, dtype=torch.int8)


def test_static_scales_of_x(tmp_path):
    recipe = gs.Quantize("int8", activations="int8-static")
    calibration = [{"input_ids": TOKENS}]
    model = gs.compress(
        tiny_llama(), recipe, ignore=["lm_head"], calibration=calibration, fuse=False
    )
    write_compressed_tensors(model, tmp_path / "out")
    scales = {
        name: float(torch.tensor(module.input_scale))  # as float32 has it
        for name, module in model.named_modules()
        if isinstance(module, gs.nn.Linear)
    }
    loaded = load(tmp_path / "out")
    assert {name: loaded.get_submodule(name).input_scale for name in scales} == scales
    by_row = load(tmp_path / "out", activations="int8")
    assert {by_row.get_submodule(name).input_scale for name in scales} == {None}


def test_the_dtype_is_that_of_the_config(tmp_path):
    model = tiny_llama().to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    gptq_folder(model, tmp_path)
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.bfloat16}


def test_a_tied_head_follows_the_embedding(tmp_path):
    dense = tiny_llama(tie_word_embeddings=True)
    gptq_folder(dense, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, tmp_path / "model.safetensors")
    model = load(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def quantize_embedding(folder: Path, *, head: bool) -> Int8:
    """Store the embedding of a tiny GPTQ model as compressed-tensors, int8."""
    state = load_file(folder / "model.safetensors")
    weight = Int8.quantize(state.pop("model.embed_tokens.weight"))
    if not head:
        state.pop("lm_head.weight", None)
    state["model.embed_tokens.weight"] = weight.values
    state["model.embed_tokens.weight_scale"] = weight.scales
    save_file(state, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    group = {"targets": ["Embedding"], "weights": {"num_bits": 8, "type": "int"}}
    settings["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return weight


@pytest.mark.parametrize("tied", [True, False])
def test_packed_embedding(tied, tmp_path):
    dense = tiny_llama(tie_word_embeddings=tied)
    gptq_folder(dense, tmp_path, layers="none")
    weight = quantize_embedding(tmp_path, head=not tied)
    model = load(tmp_path)
    embedding = model.model.embed_tokens
    assert isinstance(embedding, gs.nn.Embedding)
    assert isinstance(model.lm_head, gs.nn.Linear) == tied
    if tied:
        assert embedding.packed is model.lm_head.packed
    dense.model.embed_tokens.weight.data = weight.dequantize()
    with torch.no_grad():
        assert relative_error(model(TOKENS).logits, dense(TOKENS).logits) < 1e-5


def edit(folder: Path, **changes: torch.Tensor | None) -> Path:
    state = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        state.pop(name.replace("/", "."), None)
        if tensor is not None:
            state[name.replace("/", ".")] = tensor
    save_file(state, folder / "model.safetensors")
    return folder


def test_missing_tensors_are_named(tmp_path):
    gptq_folder(tiny_llama(), tmp_path)
    edit(tmp_path, **{"model/norm/weight": None, "model/layers/1/mlp/up_proj/qweight": None})
    wanted = (
        r"2 tensors are missing: .*up_proj.weight, model.norm.weight; there is no place for "
        r".*up_proj.qzeros, .*up_proj.scales$"
    )
    with pytest.raises(ValueError, match=wanted):
        load(tmp_path)


def test_surplus_tensors_are_named_in_a_warning(tmp_path):
    gptq_folder(tiny_llama(), tmp_path)
    frequencies = {"model/layers/0/self_attn/rotary_emb/inv_freq": torch.ones(8)}
    edit(tmp_path, **{"model/extra": torch.ones(2)}, **frequencies)
    with pytest.warns(UserWarning, match=r"no place for 1 tensors: model\.extra$"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model/norm/weight": torch.ones(65)}, r"model.norm.weight: got shape \[65\], wanted"),
        ({"model/norm/weight": torch.ones(64).int()}, r"model.norm.weight: got torch.int32"),
        (  # a quantized weight whose scale is missing
            {"lm_head/weight": torch.ones(48, 64).to(torch.float8_e4m3fn)},
            r"lm_head.weight: got torch.float8_e4m3fn, wanted floating point of 16 bits",
        ),
    ],
)
def test_wrong_tensors_are_named(changes, message, tmp_path):
    gptq_folder(tiny_llama(), tmp_path)
    with pytest.raises(ValueError, match=message):
        load(edit(tmp_path, **changes))


def test_layers_of_another_shape_are_named(tmp_path):
    gptq_folder(tiny_llama(intermediate_size=64), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "intermediate_size": 96}))
    with pytest.raises(ValueError, match=r"down_proj.weight: got shape .*wanted \[64, 96\]"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "architectures: got None, wanted a name"),
        ({"architectures": ["NoSuchModel"]}, "NoSuchModel"),
        ({"quantization_config": {"quant_method": "magic"}}, "quant_method: got 'magic', wanted"),
    ],
)
def test_wrong_configs(changes, message, tmp_path):
    gptq_folder(tiny_llama(), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **changes}))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_layers_that_were_rounded_are_named_in_a_warning(tmp_path):
    gptq_folder(tiny_llama(), tmp_path)
    order = (torch.arange(64).flip(0) // 32).to(torch.int32)
    edit(tmp_path, **{"model/layers/0/self_attn/o_proj/g_idx": order})
    wanted = (
        r"1 of 14 quantized layers cannot be held .* at most 0\.00\d+: model.*0.self_attn.o_proj$"
    )
    with pytest.warns(UserWarning, match=wanted):
        model = load(tmp_path)
    assert model.model.layers[0].self_attn.o_proj.format == "int8"


def test_conv1d_layers_of_gpt2(tmp_path):
    transformers = pytest.importorskip("transformers", reason="has the models")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=48, n_positions=32, n_embd=64, n_layer=1, n_head=2)
    dense = transformers.GPT2LMHeadModel(config).eval()
    gptq_folder(dense, tmp_path, layers="none")
    name = "transformer.h.0.attn.c_attn"
    weight = Int8.quantize(dense.get_submodule(name).weight.detach().T)
    state = load_file(tmp_path / "model.safetensors")
    state[f"{name}.weight"] = weight.values
    state[f"{name}.weight_scale"] = weight.scales
    state.pop("lm_head.weight", None)
    save_file(state, tmp_path / "model.safetensors")
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": {"targets": ["Conv1D"], "weights": {"num_bits": 8}}},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    model = load(tmp_path)
    assert isinstance(model.get_submodule(name), gs.nn.Linear)
    dense.get_submodule(name).weight.data = weight.dequantize().T
    with torch.no_grad():
        assert relative_error(model(TOKENS).logits, dense(TOKENS).logits) < 1e-5


def test_is_foreign(tmp_path):
    tensors, _, config = fixture("awq")
    assert is_foreign(write_folder(tmp_path / "a", tensors, config))
    assert is_foreign(FIXTURES / "gguf-llama.gguf")
    (tmp_path / "b").mkdir()
    assert not is_foreign(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text("{}")
    assert not is_foreign(tmp_path / "b")
    assert not is_foreign(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"wanted a GGUF file, or a folder whose config.json"):
        list(read(tmp_path / "b"))


def test_what_was_written_loads(tmp_path):
    model = gs.compress(tiny_llama(), "int4-g32", fuse=False)
    write_compressed_tensors(model, tmp_path / "out")
    found = load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(found(TOKENS).logits, model(TOKENS).logits)
