"""Folders in other people's layouts: from the fixtures, and made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gossamer.formats import Format
from gossamer.interop import read

FIXTURES = Path(__file__).parent / "fixtures"


def fixture(name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, Any]]:
    """The tensors of a layer, what they mean, and the quantization_config."""
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["quantization_config"])
    return tensors, tensors.pop("expected"), config


def write_folder(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    """A checkpoint of these tensors, without the config of a model."""
    folder.mkdir(exist_ok=True)
    contiguous = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def read_fixture(name: str, folder: Path) -> tuple[Format, float, torch.Tensor]:
    """The weight of a fixture, the error of rounding it once more, and what it must be."""
    tensors, expected, config = fixture(name)
    (entry,) = read(write_folder(folder, tensors, config))
    assert entry.name == "layer.weight"
    assert not isinstance(entry.value, torch.Tensor)
    return entry.value, entry.error, expected


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|expected - found| / |expected|."""
    return float((found - expected.float()).norm() / expected.float().norm())
