"""compress(): swaps the linear layers of a model for packed ones, in place."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy

from . import _check
from .nn.linear import Linear, dense_weight, is_conv1d
from .schemes import Quantize, as_quantize

Pattern: TypeAlias = str | type[nn.Module]
Model = TypeVar("Model", bound=nn.Module)

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


@dataclass(frozen=True)
class LeftAlone:
    """A linear layer that compress() did not touch, and why.

    Attributes
    ----------
    name, kind : str
        Its name in the model, and its class.
    shape : tuple of int
        Of its weight.
    bytes : int
        Of its weight.
    reason : str
        Why.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bytes: int
    reason: str


def compress(
    model: Model,
    scheme: str | Quantize,
    targets: Pattern | Sequence[Pattern] | None = None,
    ignore: Pattern | Sequence[Pattern] | None = None,
) -> Model:
    """Replace the linear layers of a model by packed ones, in place.

    ``nn.Linear`` and the ``Conv1D`` of transformers are replaced. A module that occurs in several
    places is replaced once and stays shared. Left alone, and listed by :func:`gossamer.report` with
    the reason, are: layers whose weight is tied to another parameter, such as an output head tied
    to an embedding; layers with a weight that is computed (parametrized, pruned) or float64; and
    subclasses of ``nn.Linear``, unless `targets` holds their class or their full name.

    Parameters
    ----------
    model : nn.Module
        On the CPU. Hooks, bias, training mode and everything else stay.
    scheme : str or Quantize
        "int8", or ``gs.Quantize("int8", group_size=64)``.
    targets : pattern or sequence of patterns, optional
        Which layers; None takes all. A pattern is a name with ``*``, ``?`` and ``[]``, a regular
        expression for the whole name after ``re:``, or a module class. One that matches a module
        takes all layers inside it.
    ignore : pattern or sequence of patterns, optional
        Which layers not, even if they are among the targets.

    Returns
    -------
    nn.Module
        The same `model`.

    Raises
    ------
    ValueError
        Where a pattern matches nothing, the model is itself a linear layer, there is none in it, or
        a weight holds NaN or infinity. The model is then as it was.
    TypeError
        Where an argument has another type.
    RuntimeError
        Where a layer to be replaced is on another device than the CPU. The model is as it was.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> gs.compress(model, "int8", ignore="2")
    Sequential(
      (0): Linear(in_features=64, out_features=64, bias=True, format=int8)
      (1): ReLU()
      (2): Linear(in_features=64, out_features=8, bias=True)
    )
    """
    recipe = as_quantize("compress", scheme)
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: model: got {_check.describe(model)}, wanted nn.Module")
    if _is_linear(model):
        raise ValueError(
            "compress: model: is a linear layer itself and cannot be replaced in place; use "
            "gs.nn.Linear.from_dense(model)"
        )
    layers = _find_layers(model)
    if not layers and not any(isinstance(module, Linear) for module in model.modules()):
        raise ValueError("compress: model: has no nn.Linear or Conv1D in it")
    _apply_patterns(model, layers, _patterns("targets", targets), _patterns("ignore", ignore))
    _find_reasons(model, layers)
    replacements = [(layer, _replacement(layer, recipe)) for layer in layers if not layer.reason]
    for layer, new in replacements:
        for parent, child in layer.places:
            parent._modules[child] = new
    _disable_transformer_fast_path(model)
    model._gossamer_left_alone = tuple(_left_alone(layer) for layer in layers if layer.reason)  # type: ignore[assignment]
    return model


@dataclass
class _Layer:
    """A linear layer in the model: where it is, and why it is left alone ("" if it is not)."""

    module: nn.Module
    names: list[str] = field(default_factory=list)
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    named_by_targets: bool = False
    reason: str = ""


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _find_layers(model: nn.Module) -> list[_Layer]:
    """Every linear layer once, in order, with all its names and parents."""
    found: dict[int, _Layer] = {}
    seen_places: set[tuple[int, str]] = set()
    for name, parent in model.named_modules(remove_duplicate=False):
        for child, module in parent._modules.items():
            if module is None or not _is_linear(module):
                continue
            layer = found.setdefault(id(module), _Layer(module))
            layer.names.append(f"{name}.{child}" if name else child)
            if (id(parent), child) not in seen_places:
                seen_places.add((id(parent), child))
                layer.places.append((parent, child))
    return list(found.values())


def _patterns(
    argument: str, patterns: Pattern | Sequence[Pattern] | None
) -> tuple[Pattern, ...] | None:
    if patterns is None:
        return None
    many = (patterns,) if isinstance(patterns, str | type) else tuple(patterns)
    for pattern in many:
        is_class = isinstance(pattern, type) and issubclass(pattern, nn.Module)
        if not is_class and not isinstance(pattern, str):
            raise TypeError(
                f"compress: {argument}: got {_check.describe(pattern)}, wanted a name, a pattern "
                "or a module class"
            )
    return many


def _matches(pattern: Pattern, name: str, module: nn.Module) -> bool:
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatch.fnmatchcase(name, pattern)


def _covered(model: nn.Module, argument: str, pattern: Pattern) -> tuple[str, ...]:
    """Names of the modules that a pattern matches."""
    try:
        names = tuple(
            name
            for name, module in model.named_modules(remove_duplicate=False)
            if _matches(pattern, name, module)
        )
    except re.error as error:
        raise ValueError(f"compress: {argument}: {pattern!r}: {error}") from error
    if not names:
        raise ValueError(f"compress: {argument}: {pattern!r} matches no module")
    return names


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(not outer or name == outer or name.startswith(outer + ".") for outer in modules)


def _apply_patterns(
    model: nn.Module,
    layers: list[_Layer],
    targets: tuple[Pattern, ...] | None,
    ignore: tuple[Pattern, ...] | None,
) -> None:
    """Gives the layers that are not wanted a reason; every pattern must match something."""
    wanted: set[int] = set()
    for pattern in targets or ():
        outer = _covered(model, "targets", pattern)
        chosen = [layer for layer in layers if any(_inside(n, outer) for n in layer.names)]
        if not chosen:
            raise ValueError(f"compress: targets: {pattern!r} matches no linear layer")
        wanted.update(map(id, chosen))
        for layer in chosen:
            layer.named_by_targets |= type(layer.module) is pattern or pattern in layer.names
    for layer in layers:
        if targets is not None and id(layer) not in wanted:
            layer.reason = "not among the targets"
    for pattern in ignore or ():
        outer = _covered(model, "ignore", pattern)
        for layer in layers:
            if any(_inside(name, outer) for name in layer.names):
                layer.reason = "ignored"


def _find_reasons(model: nn.Module, layers: list[_Layer]) -> None:
    """Gives the layers that cannot be replaced a reason. A new rule is a line here."""
    owners = _parameter_owners(model)
    for layer in layers:
        weight: Any = layer.module.weight
        if is_lazy(weight):
            raise ValueError(
                f"compress: model: layer {layer.names[0]!r} is lazy; run the model once before"
            )
        if not layer.reason:
            layer.reason = (
                _why_subclass(layer)
                or _why_computed(layer)
                or _why_tied(layer, owners)
                or _why_dtype(layer)
                or ""
            )


def _why_subclass(layer: _Layer) -> str | None:
    kind = type(layer.module)
    if kind is nn.modules.linear.NonDynamicallyQuantizableLinear:
        return "nn.MultiheadAttention reads its weight directly"
    if kind is not nn.Linear and not is_conv1d(layer.module) and not layer.named_by_targets:
        return f"{kind.__name__} is a subclass of nn.Linear; name its class in targets"
    return None


def _why_computed(layer: _Layer) -> str | None:
    weight = layer.module._parameters.get("weight")
    if weight is None:
        return "its weight is computed, not a parameter (parametrized or pruned)"
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}"
    if "forward" in layer.module.__dict__:
        return "its forward was replaced on the instance"
    return None


def _why_tied(layer: _Layer, owners: dict[int, list[tuple[int, str]]]) -> str | None:
    others = [name for owner, name in owners[id(layer.module.weight)] if owner != id(layer.module)]
    return f"its weight is tied to {others[0]}" if others else None


def _why_dtype(layer: _Layer) -> str | None:
    dtype = layer.module.weight.dtype
    return None if dtype in _check.DTYPES else f"its weight is {dtype}".replace("torch.", "")


def _parameter_owners(model: nn.Module) -> dict[int, list[tuple[int, str]]]:
    """For each parameter, by identity, the modules that hold it: (identity, parameter name)."""
    owners: dict[int, list[tuple[int, str]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            full = f"{name}.{key}" if name else key
            owners.setdefault(id(parameter), []).append((id(module), full))
    return owners


def _replacement(layer: _Layer, recipe: Quantize) -> Linear:
    old, name = layer.module, layer.names[0]
    device = dense_weight(old).device
    if device.type != "cpu":
        raise RuntimeError(
            f"compress: model: layer {name!r} is on {device}; move the model to the CPU first"
        )
    try:
        new = Linear.from_dense(old, recipe)
    except (TypeError, ValueError) as error:
        raise type(error)(f"compress: model: layer {name!r}: {error}") from error
    for hooks in _HOOKS:
        new.__dict__[hooks] = old.__dict__[hooks]
    return new


def _disable_transformer_fast_path(model: nn.Module) -> None:
    """Keep torch from its fused encoder kernel, which reads weights, and from nested tensors."""
    changed = {
        id(module)
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        and any(isinstance(child, Linear) for child in module.modules())
    }
    for module in model.modules():
        if id(module) in changed:
            module.activation_relu_or_gelu = 0  # type: ignore[assignment]
        elif isinstance(module, nn.TransformerEncoder) and any(
            id(layer) in changed for layer in module.layers
        ):
            module.use_nested_tensor = False


def _left_alone(layer: _Layer) -> LeftAlone:
    weight = dense_weight(layer.module)
    shape, size = tuple(weight.shape), weight.nbytes
    kind = type(layer.module).__name__
    return LeftAlone(layer.names[0], kind, shape, size, layer.reason)
