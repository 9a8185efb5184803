"""Batch norms become part of the layer before them.

BN(W x + b) = a W x + a (b - mean) + β,    a = γ / sqrt(var + ε)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..calibration.sample import Run, is_unchanged, rounding_tolerance
from ..calibration.scaling import out_channels, weight_of
from ..folding import pruned_tensors


def can_fold(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether the two have what it takes; not whether one follows the other."""
    return (
        isinstance(norm, _BatchNorm)
        and norm.running_mean is not None
        and isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
        and weight_of(layer) is not None
        and "bias" not in pruned_tensors(layer)
        and out_channels(layer) == norm.num_features
    )


@torch.no_grad()
def fold_batch_norm(layer: nn.Module, norm: nn.Module) -> None:
    """Give a layer the outputs that the norm after it makes of them, in place.

    The norm stays as it is, and is to be taken out.
    """
    assert isinstance(norm, _BatchNorm)
    weight, bias = weight_of(layer), layer._parameters.get("bias")
    mean, variance = norm.running_mean, norm.running_var
    assert weight is not None
    assert mean is not None
    assert variance is not None
    gain = (variance.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    before = torch.zeros_like(gain) if bias is None else bias.double()
    shift = (before - mean.double()) * gain
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    weight.mul_(gain.view(-1, *[1] * (weight.dim() - 1)))
    if bias is None:
        layer.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)
    else:
        bias.copy_(shift)


@torch.no_grad()
def fold_if_same(layer: nn.Module, norm: nn.Module, place: tuple[nn.Module, str], run: Run) -> None:
    """Fold the norm and put an identity in its place, if the outputs of a run stay the same."""
    parent, name = place
    outputs = run()
    saved = {key: None if p is None else p.clone() for key, p in layer._parameters.items()}
    fold_batch_norm(layer, norm)
    alone = run()
    parent._modules[name] = nn.Identity()
    after = run()
    weight = weight_of(layer)
    assert weight is not None
    if not is_unchanged(after, alone, outputs, rounding_tolerance(weight)):
        parent._modules[name] = norm
        _restore(layer, saved)


def _restore(layer: nn.Module, saved: dict[str, Tensor | None]) -> None:
    for key, value in saved.items():
        parameter = layer._parameters[key]
        if value is None:
            layer._parameters[key] = None
        elif parameter is not None:
            parameter.copy_(value)
