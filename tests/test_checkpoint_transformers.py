"""gs.save and gs.load on models of transformers: built from the folder alone, fused, tied."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.checkpoint import load, save
from gossamer.nn.projections import Projection

from .checkpoints import check_same, dense_copy, on_meta, rewrite, same_outputs
from .fusion_models import make, transformers

TOKENS = torch.arange(24).view(2, 12) + 3


def compressed(name: str, scheme: str = "int4-g32", **settings: Any) -> tuple[Any, Any]:
    """A small model dense, and packed."""
    torch.manual_seed(0)
    kind = settings.pop("kind", None)
    dense = make(name, **settings)
    if kind:
        dense = getattr(transformers, kind)(dense.config).eval()
    return dense, gs.compress(copy.deepcopy(dense), scheme)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 99.0}}),
        ("GPT2", {}),
        ("Bert", {"kind": "BertForMaskedLM"}),
        ("Qwen3", {}),
    ],
)
@pytest.mark.parametrize("fuse", [True, False])
def test_a_model_is_built_from_the_folder(
    name: str, settings: dict[str, Any], fuse: bool, tmp_path: Path
) -> None:
    dense, model = compressed(name, **settings)
    if not fuse:
        model = gs.compress(dense, "int4-g32", fuse=False)
    save(model, tmp_path / "out")
    loaded: Any = load(tmp_path / "out")
    assert type(loaded) is type(model)
    assert not loaded.training
    check_same(loaded, model)
    assert same_outputs(loaded, model, input_ids=TOKENS)
    assert str(loaded) == str(model)
    assert loaded.config.to_dict() | {"architectures": None} == (
        model.config.to_dict() | {"architectures": None}
    )


def test_a_dense_model_is_built_from_the_folder(tmp_path: Path) -> None:
    dense, _ = compressed("Llama", tie_word_embeddings=True)
    save(dense.to(torch.bfloat16), tmp_path / "out")
    loaded: Any = load(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.model.rotary_emb.inv_freq.dtype is dense.model.rotary_emb.inv_freq.dtype
    assert same_outputs(loaded, dense, input_ids=TOKENS)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert"])
@pytest.mark.parametrize("target", ["dense", "meta", "fused", "unfused"])
def test_it_is_loaded_into_a_model(name: str, target: str, tmp_path: Path) -> None:
    dense, model = compressed(name)
    save(model, tmp_path / "out")
    given = {
        "dense": lambda: dense_copy(dense),
        "meta": lambda: on_meta(dense),
        "fused": lambda: gs.compress(dense_copy(dense), "int8"),
        "unfused": lambda: gs.compress(dense_copy(dense), "int8", fuse=False),
    }[target]()
    loaded = load(tmp_path / "out", given)
    assert loaded is given
    check_same(loaded, model)
    assert str(loaded) == str(model)
    assert same_outputs(loaded, model, input_ids=TOKENS)
    assert shared_products(loaded) == shared_products(model)


def shared_products(model: nn.Module) -> list[bool]:
    return [module.shares for module in model.modules() if isinstance(module, Projection)]


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_what_was_not_fused_is_fused_where_the_model_was(name: str, tmp_path: Path) -> None:
    dense, fused = compressed(name)
    model = gs.compress(copy.deepcopy(dense), "int8", fuse=False)
    save(model, tmp_path / "out")
    loaded = load(tmp_path / "out", fused)
    assert same_outputs(loaded, gs.compress(dense, "int8"), input_ids=TOKENS)


def test_a_block_of_a_fused_model_is_saved_by_itself(tmp_path: Path) -> None:
    dense, model = compressed("Llama")
    save(model.model.layers[0], tmp_path / "block")
    loaded = copy.deepcopy(model)
    loaded.model.layers[0] = load(tmp_path / "block", dense.model.layers[0])
    assert str(loaded) == str(model)
    assert same_outputs(loaded, model, input_ids=TOKENS)


def test_values_outside_of_the_configuration_are_right(tmp_path: Path) -> None:
    """Rotary frequencies are no part of the state_dict, and were rounded with the model."""
    _, model = compressed("Llama")
    model.to(torch.bfloat16)
    save(model, tmp_path / "out")
    loaded: Any = load(tmp_path / "out")
    found, wanted = loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq
    assert found.dtype is wanted.dtype
    assert torch.equal(found, wanted)
    assert same_outputs(loaded, model, input_ids=TOKENS)


def test_building_draws_no_random_numbers_and_restores_torch(tmp_path: Path) -> None:
    _, model = compressed("Bert")
    save(model, tmp_path / "out")
    register = nn.Module.register_parameter
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    load(tmp_path / "out")
    assert torch.rand(1) == wanted
    assert nn.Module.register_parameter is register
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_configurations_and_tokenizer_are_in_the_folder(tmp_path: Path) -> None:
    _, model = compressed("Llama")
    model.generation_config.max_length = 77
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "vocab.txt", "config.json", "model.safetensors", "a.index.json"):
        (source / name).write_text(f"{name} of the source")
    save(model, tmp_path / "out", source=source)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("gossamer.json", "model.safetensors", "config.json", "generation_config.json"),
        *("tokenizer.json", "vocab.txt"),
    }
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]
    assert load(tmp_path / "out").generation_config.max_length == 77  # type: ignore[union-attr]


def test_a_tokenizer_writes_its_own_files(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    _, model = compressed("Bert")
    save(model, tmp_path / "out", source=Tokenizer())
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize(
    "name", ["Linear", "AutoModel", "os", "BertConfig", "pipeline", "NoSuchModel", "__name__"]
)
def test_only_models_of_transformers_are_made(name: str, tmp_path: Path) -> None:
    _, model = compressed("Bert")
    save(model, tmp_path / "out")
    rewrite(tmp_path / "out", {"architecture": name})
    with pytest.raises(ValueError, match=f"no model '{name}'"):
        load(tmp_path / "out")


def test_a_changed_configuration_is_noticed(tmp_path: Path) -> None:
    _, model = compressed("Bert")
    save(model, tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(file.read_text().replace("1e-12", "1e-11"))
    with pytest.raises(ValueError, match=r"config\.json: its checksum is wrong"):
        load(tmp_path / "out")
    file.unlink()
    with pytest.raises(ValueError, match=r"config\.json: cannot be read"):
        load(tmp_path / "out")


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = compressed("Bert")
    save(model, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RuntimeError, match=r"pip install 'gossamer\[hf\]'"):
        load(tmp_path / "out")
