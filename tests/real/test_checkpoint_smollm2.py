"""A real model saved and loaded: the same logits, no more bytes than the model has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gossamer as gs
from gossamer.bench import models
from gossamer.bench.assets import SMOLLM2, Asset
from gossamer.checkpoint import load, save

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def dense(need: Callable[[Asset], Path]) -> tuple[torch.nn.Module, object]:
    need(SMOLLM2)
    return models.load_smollm2()


def test_smollm2(dense: tuple[torch.nn.Module, object], tmp_path: Path) -> None:
    import transformers

    model, tokenizer = dense
    gs.compress(model, "int4-g64")
    ids = torch.arange(100, 164)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits

    save(model, tmp_path / "out", source=tokenizer)
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    size += (tmp_path / "out" / "gossamer.json").stat().st_size
    assert size <= 1.01 * models.model_bytes(model)

    loaded = load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, expected)
    assert gs.report(loaded) == gs.report(model)
    assert loaded.get_input_embeddings().packed is loaded.lm_head.packed
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("A model of words").input_ids == tokenizer("A model of words").input_ids
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
