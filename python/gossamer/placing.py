"""Putting a new module where a layer of a model was."""

from __future__ import annotations

from torch import nn

from . import nn as packed_nn
from .folding import drop_pruning_hooks
from .selection import Layer

# What moves from a layer to its replacement beside weight and bias.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def place(layer: Layer, new: nn.Module) -> None:
    """Put a module in all places of a layer; it takes over the hooks, but those that prune."""
    for hooks in _HOOKS:
        new.__dict__[hooks] = layer.module.__dict__[hooks]
    drop_pruning_hooks(new)
    for parent, child in layer.places:
        parent._modules[child] = new
    layer.module = new


def is_packed(module: nn.Module) -> bool:
    """Whether this is a module of gossamer."""
    return type(module).__module__.startswith(packed_nn.__name__)


def disable_transformer_fast_path(model: nn.Module) -> None:
    """Keep torch from its fused encoder kernel, which reads weights, and from nested tensors."""
    changed = {
        id(module)
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        and any(is_packed(child) for child in module.modules())
    }
    for module in model.modules():
        if id(module) in changed:
            module.activation_relu_or_gelu = 0  # type: ignore[assignment]
        elif isinstance(module, nn.TransformerEncoder) and any(
            id(layer) in changed for layer in module.layers
        ):
            module.use_nested_tensor = False
