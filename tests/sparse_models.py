"""Models with zeros, and what became of their layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gossamer as gs

SCHEMES = ("sparse-int8", "sparse-int4", "sparse-bf16", "sparse-fp32")


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 80), nn.Linear(80, 16)
    ).eval()


def with_zeros(model: nn.Module, sparsity: float) -> nn.Module:
    """The model with so many of its weights zero, those of the smallest magnitude."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                mask = gs.pruning.magnitude_mask(parameter.detach().flatten(1), sparsity)
                parameter.mul_(mask.view(parameter.shape))
    return model


def formats(model: nn.Module) -> dict[str, str]:
    return {layer.name: layer.format for layer in gs.report(model).layers}


def kept(model: nn.Module) -> dict[str, str]:
    return {item.name: item.reason for item in gs.report(model).kept_dense}


def dense_matrix(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().clone()
