"""What a call costs besides arithmetic: a 64 x 64 layer on one row, and ``nn.Linear`` alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gossamer as gs

SIZE = 64


@pytest.fixture
def x() -> torch.Tensor:
    """One row."""
    return torch.randn(1, SIZE)


def bench_dense_layer(benchmark: Any, x: torch.Tensor) -> None:
    layer = torch.nn.Linear(SIZE, SIZE)
    with torch.inference_mode():
        benchmark(layer, x)


def bench_int8_layer(benchmark: Any, x: torch.Tensor) -> None:
    layer = gs.nn.Linear.from_dense(torch.nn.Linear(SIZE, SIZE), "int8")
    with torch.inference_mode():
        benchmark(layer, x)
