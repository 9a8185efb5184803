"""The peak of memory while a model is compressed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PEAK = """
import re, sys
import torch
from torch import nn
import gossamer as gs
from gossamer.factorization import LowRankCorrection

def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

torch.set_num_threads(1)
SIZE = int(sys.argv[1])
steps = ["int8", LowRankCorrection(4)] if sys.argv[2:] == ["corrected"] else "int8"
gs.compress(nn.Sequential(nn.Linear(256, 256)), steps)  # what is loaded and allocated only once
model = nn.Sequential(*(nn.utils.skip_init(nn.Linear, SIZE, SIZE, bias=False) for _ in range(10)))
with torch.no_grad():
    for layer in model:
        layer.weight.copy_(torch.linspace(-1, 1, SIZE))
try:
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
except OSError as error:
    sys.exit(f"skip: {error}")
before = kib("VmRSS")
gs.compress(model, steps, progress=False)
assert gs.report(model).totals.layers == 10
print((kib("VmHWM") - before) / (4 * SIZE * SIZE / 1024))
print((before - kib("VmRSS")) / (4 * SIZE * SIZE / 1024))
"""


def measured(*arguments: str) -> tuple[float, float]:
    """The peak of memory and what is free afterwards, in dense layers of which there are ten."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of memory is read from Linux's /proc")
    command = [sys.executable, "-c", PEAK, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.stderr.startswith("skip: "):
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stderr
    peak, freed = map(float, result.stdout.split())
    return peak, freed


def test_peak_memory_is_the_model_and_one_layer() -> None:
    """In dense layers: 1.5, most of it to measure the error; ten packed at once would add 2.25."""
    peak, freed = measured("3072")
    assert peak < 2.2
    assert freed > 5


def test_a_correction_adds_a_few_matrices_of_one_layer() -> None:
    """Some 4 layers, the basis of the eigensolver among them; the errors of all would add ten."""
    peak, _ = measured("2048", "corrected")
    assert peak < 6
