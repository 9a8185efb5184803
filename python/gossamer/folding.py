"""The dense weights of a layer, however they are stored, and copies of layers with others.

``torch.nn.utils.prune`` keeps a weight as ``weight_orig`` and ``weight_mask`` and multiplies them
before each call; a parameter may be a ``torch.masked.MaskedTensor`` or a sparse tensor. Packing
wants the product, so it is given a copy of the layer that has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.masked import MaskedTensor
from torch.nn.utils import prune

from .nn.linear import is_conv1d

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)


def folded(layer: nn.Module) -> nn.Module:
    """The layer if its parameters are plain and dense, else a copy of it where they are."""
    values: dict[str, Tensor] = {}
    changed = False
    for prefix, module in layer.named_modules():
        before = f"{prefix}." if prefix else ""
        methods = pruned_tensors(module)
        changed |= bool(methods)
        for name, method in methods.items():
            computed: Tensor = method.apply_mask(module)  # type: ignore[no-untyped-call]
            values[before + name] = computed.detach()
        for name, parameter in module._parameters.items():
            if parameter is not None and is_stored_otherwise(parameter):
                values[before + name] = _dense(parameter)
    return with_values(layer, values) if changed or values else layer


def is_stored_otherwise(parameter: Tensor) -> bool:
    """Whether a parameter stands for a dense tensor that it is not."""
    return isinstance(parameter, MaskedTensor) or parameter.layout is not torch.strided


def pruned_tensors(module: nn.Module) -> dict[str, prune.BasePruningMethod]:
    """The tensors of a module that torch.nn.utils.prune computes, and by which methods."""
    hooks = module._forward_pre_hooks.values()
    return {hook._tensor_name: hook for hook in hooks if isinstance(hook, prune.BasePruningMethod)}


def with_values(layer: nn.Module, values: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """A copy of a layer in which some parameters have other values; it shares everything else."""
    new = type(layer).__new__(type(layer))
    new.__dict__.update(layer.__dict__)
    parameters = dict(layer._parameters)
    for name in pruned_tensors(layer):
        del new.__dict__[name]
        parameters[name] = parameters.pop(f"{name}_orig")
    for name, parameter in parameters.items():
        if parameter is not None and prefix + name in values:
            value = values[prefix + name]
            parameters[name] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    new.__dict__["_parameters"] = parameters
    new.__dict__["_modules"] = {
        name: None if child is None else with_values(child, values, f"{prefix}{name}.")
        for name, child in layer._modules.items()
    }
    return new


@torch.no_grad()
def assign_values(layer: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give parameters of a layer other values, for good: what computed them before is removed."""
    for prefix, module in layer.named_modules():
        for name in pruned_tensors(module):
            prune.remove(module, name)  # type: ignore[no-untyped-call]
        for name, parameter in list(module._parameters.items()):
            value = values.get(f"{prefix}.{name}" if prefix else name)
            if parameter is None or value is None:
                continue
            if is_stored_otherwise(parameter):
                setattr(module, name, nn.Parameter(value, parameter.requires_grad))
            else:
                parameter.copy_(value)


def drop_pruning_hooks(layer: nn.Module) -> None:
    """Remove the hooks by which torch.nn.utils.prune computes weights."""
    for key, hook in list(layer._forward_pre_hooks.items()):
        if isinstance(hook, prune.BasePruningMethod):
            del layer._forward_pre_hooks[key]


def matrices(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a folded layer by name, each as [N, K]; those of layers in it included."""
    for name, parameter in layer.named_parameters():
        if "bias" not in name.rpartition(".")[2]:
            yield name, to_matrix(layer, parameter.detach())


def to_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight as [N, K], with the input features of one output next to each other."""
    if is_conv1d(layer):
        return weight.T
    if isinstance(layer, _TRANSPOSED):
        by_group = weight.view(layer.groups, -1, *weight.shape[1:])
        return by_group.movedim((1, 2), (-1, -2)).flatten(0, -2)
    if isinstance(layer, _CONVOLUTIONS):
        return weight.movedim(1, -1).flatten(1)
    return weight


def from_matrix(layer: nn.Module, matrix: Tensor, shape: torch.Size) -> Tensor:
    """Undo :func:`to_matrix`."""
    if is_conv1d(layer):
        return matrix.T
    if isinstance(layer, _TRANSPOSED):
        taps = matrix.reshape(layer.groups, *shape[2:], shape[1], -1)
        return taps.movedim((-1, -2), (1, 2)).flatten(0, 1)
    if isinstance(layer, _CONVOLUTIONS):
        return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    return matrix


def _dense(parameter: Tensor) -> Tensor:
    if isinstance(parameter, MaskedTensor):
        data: Tensor = parameter.get_data()  # type: ignore[no-untyped-call]
        mask: Tensor = parameter.get_mask()  # type: ignore[no-untyped-call]
        return torch.where(mask.to_dense(), data.detach().to_dense(), 0)
    return parameter.detach().to_dense()
