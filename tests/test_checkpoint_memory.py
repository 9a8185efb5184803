"""The peak of memory while a model is saved and loaded: the model and one layer."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.checkpoint import load, reading, save

SIZE, LAYERS = 2048, 16
LAYER = SIZE * SIZE  # bytes of a packed layer, and of its canonical tensors, but for the scales


def mebibytes(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(name + r":\s+(\d+) kB", status)[0]) / 1024


def growth(call: Callable[[], object]) -> float:
    """What a call takes at most, in layers, with what it returns."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what glibc has kept of freed memory would be taken again
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    except OSError as error:
        pytest.skip(f"the peak of memory cannot be reset: {error}")
    before = mebibytes("VmRSS")
    kept = call()
    grown = (mebibytes("VmHWM") - before) * 2**20 / LAYER
    del kept
    return grown


def test_the_peak_is_the_model_and_one_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_MAPPED_BYTES", LAYER)
    weight = gs.formats.Int8(torch.ones(SIZE, SIZE, dtype=torch.int8), torch.ones(SIZE, 1))
    layers = [gs.nn.Linear(SIZE, SIZE, weight=weight) for _ in range(LAYERS)]
    model = nn.Sequential(*layers)
    save(nn.Sequential(gs.nn.Linear.from_dense(nn.Linear(64, 64))), tmp_path / "first")
    assert growth(lambda: save(model, tmp_path / "out")) < 4

    with torch.device("meta"):
        target = nn.Sequential(*(nn.Linear(SIZE, SIZE, bias=False) for _ in range(LAYERS)))
    # All of the file mapped, or read, at once would be twice as much.
    assert LAYERS - 1 < growth(lambda: load(tmp_path / "out", target)) < LAYERS + 5
