"""Shapes and the environment record, shared with ``gossamer bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.bench import environment
from gossamer.bench.linear import Layer, read_layers

LAYERS = {
    f"{layer.N}x{layer.K}": layer for layer in read_layers(Path(__file__).with_name("cases.toml"))
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def layer(request: pytest.FixtureRequest) -> Layer:
    """Every shape of ``cases.toml``."""
    chosen: Layer = request.param
    return chosen


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Replace pytest-benchmark's record, which holds the host name, by that of the results."""
    machine_info.clear()
    machine_info.update(environment.describe(torch.get_num_threads()))
