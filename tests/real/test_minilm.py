"""MiniLM-L6, int8: as good as float32 by people's judgements, and a well-behaved torch module."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import gossamer as gs
from gossamer.bench import models, quality
from gossamer.bench.assets import MINILM, TEXTS, Asset

pytestmark = pytest.mark.real

LARGEST_DROP = 0.005
SENTENCES = ["a cat sat on the mat", "interest rates rose again", "the striker scored twice"]


@pytest.fixture(scope="module")
def dense(need: Callable[[Asset], Path]) -> tuple[torch.nn.Module, Any]:
    need(MINILM)
    need(TEXTS)
    return models.load_minilm()


@pytest.fixture(scope="module")
def dense_quality(dense: tuple[torch.nn.Module, Any]) -> dict[str, float]:
    return quality.encoder_quality(partial(models.encode, *dense))


@pytest.fixture(scope="module")
def light(dense: tuple[torch.nn.Module, Any]) -> torch.nn.Module:
    return gs.compress(copy.deepcopy(dense[0]), "int8")


@pytest.fixture
def tokenizer(dense: tuple[torch.nn.Module, Any]) -> Any:
    return dense[1]


def test_dense_reproduces_its_known_quality(dense_quality: dict[str, float]) -> None:
    # If these move, the data or the protocol changed, and the comparisons below mean nothing.
    assert dense_quality["WordSim353"] == pytest.approx(0.729, abs=0.002)
    assert dense_quality["SimLex999"] == pytest.approx(0.446, abs=0.002)
    assert dense_quality["Lee"] == pytest.approx(0.656, abs=0.002)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quality_is_kept(
    dtype: torch.dtype, light: torch.nn.Module, tokenizer: Any, dense_quality: dict[str, float]
) -> None:
    model = copy.deepcopy(light).to(dtype)
    judged = quality.encoder_quality(partial(models.encode, model, tokenizer))
    for name in ("WordSim353", "Lee"):
        assert abs(judged[name] - dense_quality[name]) <= LARGEST_DROP, name


def test_every_layer_is_packed(dense: tuple[torch.nn.Module, Any], light: torch.nn.Module) -> None:
    kinds = torch.nn.Linear, torch.nn.Embedding
    found = {n for n, m in dense[0].named_modules() if isinstance(m, kinds)}
    assert len(found) == 40  # six a layer, the pooler, and three embeddings, one of two rows
    expected = found - {"embeddings.token_type_embeddings"}
    assert {layer.name for layer in gs.report(light).layers} == expected
    weights = sum(dense[0].get_submodule(name).weight.nbytes for name in expected)
    # Three of every four bytes of those weights go; scales and padding may cost one in a hundred.
    saved = models.model_bytes(dense[0]) - models.model_bytes(light)
    assert 0.74 * weights < saved < 0.75 * weights


def test_embeddings_stay_close(
    dense: tuple[torch.nn.Module, Any], light: torch.nn.Module, tokenizer: Any
) -> None:
    want = models.encode(dense[0], tokenizer, SENTENCES)
    got = models.encode(light, tokenizer, SENTENCES)
    # Exact arithmetic on the same rounded weights and activations gives 0.084.
    assert ((want - got) ** 2).sum(1).max() < 0.11**2
    assert (want != got).any()  # it is the int8 model that ran


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_and_reloads_give_the_same_bits(
    dtype: torch.dtype, light: torch.nn.Module, tokenizer: Any
) -> None:
    model = copy.deepcopy(light).to(dtype)
    want = models.encode(model, tokenizer, SENTENCES)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    reloaded = gs.compress(models.load_minilm()[0], "int8").to(dtype)
    with torch.no_grad():
        for parameter in reloaded.parameters():
            parameter.zero_()  # so that equality can only come from the file
    reloaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(model), reloaded):
        assert (models.encode(other, tokenizer, SENTENCES) == want).all()
