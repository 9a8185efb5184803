"""The kinds of pattern: which layers of a module can compute as one, when, and how.

A layer is fused only if nobody could tell by anything but time: it is packed, in one place, and
without hooks, which would see other values than before.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from ..nn.linear import Linear
from ..nn.projections import Projection, share
from .gated import GatedMLP

# For each module, by identity, the modules that hold it and the names they hold it by.
Places: TypeAlias = dict[int, list[tuple[nn.Module, str]]]

# By the names of their classes in torch and transformers. Those of "gelu_tanh" write the same
# formula in different ways.
_ACTIVATIONS = {
    "ReLU": "relu",
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "SiLU": "silu",
    "SiLUActivation": "silu",
}


def find_places(model: nn.Module) -> Places:
    """Where in a model each of its modules is."""
    places: Places = {}
    for parent in model.modules():
        for child, module in parent._modules.items():
            if module is not None:
                places.setdefault(id(module), []).append((parent, child))
    return places


@dataclass(frozen=True)
class Pattern(ABC):
    """Layers in a module of transformers.

    Attributes
    ----------
    classes : str
        A regular expression for the name of the module's class.
    layers : tuple of str
        Names of linear layers in the module, all called with the same x.
    """

    classes: str
    layers: tuple[str, ...]

    def matches(self, module: nn.Module) -> bool:
        """Whether this is such a module, before or after it was fused."""
        kind = type(module)
        return (
            kind.__module__.split(".")[0] == "transformers"
            and re.fullmatch(self.classes, kind.__name__) is not None
            and all(hasattr(module, layer) for layer in self.layers)
        )

    @abstractmethod
    def is_fused(self, module: nn.Module) -> bool:
        """Whether :meth:`apply` was here."""

    def result(self, module: nn.Module) -> str:
        """What the layers are together."""
        return ", ".join(self.layers)

    def why_not(
        self, name: str, module: nn.Module, left_alone: Mapping[str, str], places: Places
    ) -> str:
        """Why the layers cannot be fused; "" where they can. `left_alone`: why some are dense."""
        if "forward" in vars(module):
            return "the module's forward was replaced on the instance"
        for layer in self.layers:
            found = getattr(module, layer)
            if type(found) is not Linear:
                return f"{layer}: {left_alone[layer] or f'is a {type(found).__name__}'}"
            if found.activation != "none":
                return f"{layer}: has the activation {found.activation} already"
            if _has_hooks(found):
                return f"{layer}: has hooks"
            if len(places[id(found)]) > 1:
                return f"{layer}: is in several places"
        return _why_different(module, self.layers)

    @abstractmethod
    def apply(self, module: nn.Module, places: Places) -> None:
        """Fuse the layers. They can be, as :meth:`why_not` says."""


@dataclass(frozen=True)
class SameInput(Pattern):
    """Layers that become parts of one product, such as q, k and v."""

    def is_fused(self, module: nn.Module) -> bool:
        """Whether the layers are siblings."""
        return _are_siblings(module, self.layers)

    def why_not(
        self, name: str, module: nn.Module, left_alone: Mapping[str, str], places: Places
    ) -> str:
        """Why the layers cannot be fused."""
        if "crossattention" in name.split("."):
            return "cross-attention: keys and values have another input than queries"
        return super().why_not(name, module, left_alone, places)

    def apply(self, module: nn.Module, places: Places) -> None:
        """Put siblings in the places of the layers."""
        module._modules.update(_siblings(module, self.layers))


@dataclass(frozen=True)
class Activated(Pattern):
    """A layer that computes the activation after it too.

    Attributes
    ----------
    activation : str
        Name of the module that the output of the one layer goes through.
    """

    activation: str

    def is_fused(self, module: nn.Module) -> bool:
        """Whether the layer has an activation, and the module has none."""
        layer = getattr(module, self.layers[0])
        identity = type(getattr(module, self.activation)) is nn.Identity
        return identity and isinstance(layer, Linear) and layer.activation != "none"

    def result(self, module: nn.Module) -> str:
        """The layer and the activation."""
        layer = getattr(module, self.layers[0])
        if self.is_fused(module):
            return f"{self.layers[0]} + {layer.activation}"
        activation = getattr(module, self.activation)
        return f"{self.layers[0]} + {_kernel_activation(activation) or _name(activation)}"

    def why_not(
        self, name: str, module: nn.Module, left_alone: Mapping[str, str], places: Places
    ) -> str:
        """Why the layer and the activation cannot be fused."""
        return super().why_not(name, module, left_alone, places) or _why_not_activation(
            self.activation, getattr(module, self.activation), tuple(_ACTIVATIONS.values())
        )

    def apply(self, module: nn.Module, places: Places) -> None:
        """Move the activation into the layer."""
        layer, activation = getattr(module, self.layers[0]), getattr(module, self.activation)
        layer.activation = _kernel_activation(activation)
        module._modules[self.activation] = nn.Identity()


@dataclass(frozen=True)
class Gated(Pattern):
    """A module that computes ``output(activation(layers[0](x)) * layers[1](x))``.

    Attributes
    ----------
    activation, output : str
        Names of modules in it.
    """

    activation: str
    output: str

    def matches(self, module: nn.Module) -> bool:
        """Whether this is such a module, before or after it was fused."""
        return type(module) is GatedMLP or super().matches(module)

    def is_fused(self, module: nn.Module) -> bool:
        """Whether the module was replaced."""
        return type(module) is GatedMLP

    def result(self, module: nn.Module) -> str:
        """The layers and what their outputs go through."""
        return f"{super().result(module)} + silu * mul"

    def why_not(
        self, name: str, module: nn.Module, left_alone: Mapping[str, str], places: Places
    ) -> str:
        """Why the module cannot be replaced."""
        if _has_hooks(module):
            return "the module has hooks"
        if id(module) not in places:
            return "the model itself cannot be replaced in place"
        if getattr(getattr(module, "config", None), "pretraining_tp", 1) > 1:
            return "pretraining_tp: the module slices its weights"
        return super().why_not(name, module, left_alone, places) or _why_not_activation(
            self.activation, getattr(module, self.activation), ("silu",)
        )

    def apply(self, module: nn.Module, places: Places) -> None:
        """Replace the module."""
        gate, up = _siblings(module, self.layers).values()
        activation, output = getattr(module, self.activation), getattr(module, self.output)
        new = GatedMLP(gate, up, output, activation)
        new.training = module.training
        for parent, child in places[id(module)]:
            parent._modules[child] = new


def _siblings(module: nn.Module, layers: tuple[str, ...]) -> dict[str, Projection]:
    return dict(zip(layers, share([getattr(module, layer) for layer in layers]), strict=True))


def _are_siblings(module: nn.Module, layers: tuple[str, ...]) -> bool:
    found = [getattr(module, layer) for layer in layers]
    return all(isinstance(layer, Projection) for layer in found) and all(
        layer in found[0].siblings for layer in found
    )


def _has_hooks(module: nn.Module) -> bool:
    return any(name.endswith("_hooks") and value for name, value in vars(module).items())


def _why_different(module: nn.Module, layers: tuple[str, ...]) -> str:
    """What the layers of one product must have in common. Biases may be missing: they are 0."""
    found: list[Linear] = [getattr(module, layer) for layer in layers]
    same: dict[str, set[Any]] = {
        "in_features": {layer.in_features for layer in found},
        "formats": {
            (layer.format, layer.group_size, layer.activations, *sorted(layer.settings.items()))
            for layer in found
        },
        "input scales": {layer.input_scale for layer in found},
        "dtypes": {layer.dtype for layer in found},
        "dtypes of bias": {layer.bias.dtype for layer in found if layer.bias is not None},
    }
    for what, values in same.items():
        if len(values) > 1:
            return f"{', '.join(layers)}: have different {what}"
    return ""


def _kernel_activation(module: Any) -> str | None:
    """What the kernels call an activation; None where they do not know it."""
    if type(module) is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    home = type(module).__module__.split(".")[0]
    return _ACTIVATIONS.get(_name(module)) if home in ("torch", "transformers") else None


def _name(activation: Any) -> str:
    if isinstance(activation, nn.Module):
        return type(activation).__name__
    return getattr(activation, "__name__", type(activation).__name__)


def _why_not_activation(name: str, activation: Any, wanted: tuple[str, ...]) -> str:
    if not isinstance(activation, nn.Module) or _kernel_activation(activation) not in wanted:
        return f"{name}: no kernel computes {_name(activation)}"
    if _has_hooks(activation) or "forward" in vars(activation):
        return f"{name}: has hooks"
    return ""
