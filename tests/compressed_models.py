"""A model to compress, and what became of its layers."""

from __future__ import annotations

from torch import nn

import gossamer as gs


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(32, 48), nn.ReLU(), nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 8))
    )


def packed_names(model: nn.Module) -> list[str]:
    """Modules, those inside them apart, that are packed."""
    found = [
        name
        for name, module in model.named_modules()
        if type(module).__module__.startswith("gossamer.nn")
    ]
    return [name for name in found if name.rpartition(".")[0] not in found]


def reasons(model: nn.Module) -> dict[str, str]:
    return {item.name: item.reason for item in gs.report(model).left_alone}
