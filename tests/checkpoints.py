"""Saving and loading in tests, and whether two models are the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.checkpoint import load, manifest, save

from .random_weights import numbers


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 24), nn.LayerNorm(24))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding="same"),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, (3, 1), stride=2, padding=(1, 0), groups=8, bias=False),
        nn.Conv2d(8, 16, 1, padding_mode="reflect"),
        nn.ConvTranspose2d(16, 6, 3, stride=2, output_padding=1, groups=2),
        nn.Flatten(2),
        nn.Conv1d(6, 6, 3, dilation=2),
        nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1),
    )


def through_files(model: nn.Module, target: nn.Module | None, folder: Path, **settings: Any) -> Any:
    """Save a model and load it again; the files are those of one call."""
    save(model, folder, **settings)
    return load(folder, target)


def check_same(loaded: nn.Module, model: nn.Module) -> None:
    """All tensors have the same bits, and the reports show the same."""
    left, right = model.state_dict(), loaded.state_dict()
    assert list(right) == list(left)
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(numbers(left[name]), numbers(right[name])), name
    assert str(gs.report(loaded)) == str(gs.report(model))


def same_outputs(a: nn.Module, b: nn.Module, *args: Any, **inputs: Any) -> bool:
    """Bit for bit."""
    with torch.no_grad():
        found, wanted = a(*args, **inputs), b(*args, **inputs)
    exact: dict[str, Any] = {"rtol": 0, "atol": 0, "equal_nan": True}
    pairs = zip(_tensors(found), _tensors(wanted), strict=True)
    return all(torch.allclose(*pair, **exact) for pair in pairs)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if output is None:
        return []
    values = output.values() if isinstance(output, dict) else output
    return [tensor for item in values for tensor in _tensors(item)]


def dense_copy(model: nn.Module) -> nn.Module:
    """The same architecture with other values."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            if tensor.is_floating_point():
                tensor.fill_(0.5)
    return other


def on_meta(model: nn.Module) -> nn.Module:
    """The same architecture without values."""
    return copy.deepcopy(model).to("meta")


def read_plain(folder: Path) -> dict[str, Any]:
    """The manifest as JSON has it, without its checksum."""
    plain: dict[str, Any] = json.loads((folder / manifest.FILE).read_text())
    del plain["checksum"]
    return plain


def rewrite(folder: Path, changes: dict[str, Any]) -> None:
    """Change the manifest as someone would who means harm: its checksum is right again."""
    plain = read_plain(folder) | changes
    (folder / manifest.FILE).write_text(json.dumps(plain | {"checksum": manifest._digest(plain)}))
