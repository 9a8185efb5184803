"""Fusion on real models: the same numbers as without, and everything that matches is fused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gossamer as gs
from gossamer.bench import models
from gossamer.bench.assets import MINILM, SMOLLM2, Asset

pytestmark = pytest.mark.real

SENTENCES = ["a cat sat on the mat", "interest rates rose again", "the striker scored twice"]


def unfused(model: torch.nn.Module) -> list[str]:
    return [item.reason for item in gs.report(model).fusions if item.reason]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_minilm(dtype: torch.dtype, need: Callable[[Asset], Path]) -> None:
    need(MINILM)
    dense, tokenizer = models.load_minilm()
    plain = gs.compress(copy.deepcopy(dense), "int8", fuse=False).to(dtype)
    fused = gs.compress(dense, "int8").to(dtype)
    assert len(gs.report(fused).fusions) == 12  # six layers
    assert unfused(fused) == []
    # Layer by layer: from one to the next, GELU's last bits may turn a rounding to int8.
    x = torch.randn(1, 9, 384).to(dtype)
    with torch.no_grad():
        for one, two in zip(plain.encoder.layer, fused.encoder.layer, strict=True):
            for name in ("query", "key", "value"):
                want, got = (each.attention.self.get_submodule(name)(x) for each in (one, two))
                assert torch.equal(want, got)
            want, got = one.intermediate(x), two.intermediate(x)
            # In bfloat16 the unfused layer rounds before GELU too.
            rtol, atol = (1e-5, 1e-6) if dtype is torch.float32 else (0.03, 0.003)
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol)
    want, got = (models.encode(model, tokenizer, SENTENCES) for model in (plain, fused))
    assert ((want - got) ** 2).sum(1).max() < 0.11**2  # as far as int8 is from float32


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smollm2(dtype: torch.dtype, scheme: str, need: Callable[[Asset], Path]) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    need(SMOLLM2)
    dense, tokenizer = models.load_smollm2()
    plain = gs.compress(copy.deepcopy(dense), scheme, fuse=False).to(dtype)
    fused = gs.compress(dense, scheme).to(dtype)
    assert len(gs.report(fused).fusions) == 60  # thirty layers
    assert unfused(fused) == []
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(plain(**tokens).logits, fused(**tokens).logits)
        texts = [
            model.generate(**tokens, max_new_tokens=12, do_sample=False) for model in (plain, fused)
        ]
    assert torch.equal(*texts)
