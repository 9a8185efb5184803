"""SmolLM2-135M: perplexity close to float32, text, and the memory that compressing it takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gossamer as gs
from gossamer.bench import models, quality
from gossamer.bench.assets import SMOLLM2, TEXTS, Asset

pytestmark = pytest.mark.real

WINDOWS = 2
# Of the perplexity, relative. Exact arithmetic on the same rounded weights and activations gives
# 0.026: this model has outlying activations, which one scale per row does not love.
LARGEST_RISE = 0.04


def test_perplexity_is_kept(need: Callable[[Asset], Path]) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    need(TEXTS)
    need(SMOLLM2)
    model, tokenizer = models.load_smollm2()
    windows = quality.wikipedia_windows(tokenizer, WINDOWS)
    dense = quality.perplexity(model, windows)
    assert 10 < dense < 20  # 13.7: a wrong model or protocol would be far off

    gs.compress(model, "int8")
    assert isinstance(model.get_submodule("model.layers.0.mlp.gate_proj"), gs.nn.Linear)
    assert model.lm_head.packed is model.model.embed_tokens.packed
    for dtype in (torch.float32, torch.bfloat16):
        light = quality.perplexity(model.to(dtype), windows)
        assert light != dense
        assert abs(light / dense - 1) < LARGEST_RISE, dtype


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_everything_is_packed_and_writes_text(scheme: str, need: Callable[[Asset], Path]) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    need(SMOLLM2)
    model, tokenizer = models.load_smollm2()
    dense_bytes = models.model_bytes(model)
    gs.compress(model, scheme)
    found = gs.report(model)
    assert found.left_alone == ()
    assert [layer.name for layer in found.layers if layer.tied_to == "model.embed_tokens"] == [
        "lm_head"
    ]
    assert models.model_bytes(model) < dense_bytes * {"int8": 0.26, "int4": 0.14}[scheme]
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        new = model.generate(**tokens, max_new_tokens=12, do_sample=False)
    assert new.shape[1] == tokens["input_ids"].shape[1] + 12
    if scheme == "int8":  # four bits, rounded to nearest, forget
        assert "Paris" in tokenizer.decode(new[0])


PEAK = """
import ctypes, re, sys
import torch
from torch import nn
import gossamer as gs
from gossamer.bench import models

def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

scheme = sys.argv[1]
torch.set_num_threads(1)
gs.compress(nn.Sequential(nn.Linear(256, 256)), scheme)  # what is loaded and allocated only once
model, _ = models.load_smollm2()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.set_(parameter.clone())  # in memory, where they were pages of a file
try:
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
except OSError as error:
    sys.exit(f"skip: {error}")
before = kib("VmRSS")
gs.compress(model, scheme, progress=False)
largest = model.lm_head.dense_bytes / 1024
peak = kib("VmHWM") - before
ctypes.CDLL(None).malloc_trim(0)  # what is freed and still in the C library's hands
print(peak / largest, (before - kib("VmRSS")) / largest)
"""


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_peak_memory_is_the_model_and_one_layer(scheme: str, need: Callable[[Asset], Path]) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    need(SMOLLM2)
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of memory is read from Linux's /proc")
    result = subprocess.run([sys.executable, "-c", PEAK, scheme], capture_output=True, text=True)
    if result.stderr.startswith("skip: "):
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stderr
    peak, freed = map(float, result.stdout.split())
    assert peak < 1
    assert freed > 2.5  # of 4.75, in units of the largest layer
