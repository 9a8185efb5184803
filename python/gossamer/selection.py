"""Which layers of a model are replaced, and why the others are not."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from . import _check
from .folding import is_stored_otherwise, pruned_tensors
from .nn.linear import is_conv1d

Pattern: TypeAlias = str | type[nn.Module]
Patterns: TypeAlias = Pattern | Sequence[Pattern] | None
Kinds: TypeAlias = tuple[type[nn.Module], ...]

# A table of few rows is not worth a kernel.
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_TABLE_ROWS = 64
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
# A step is one small product: below this hidden size torch's whole step costs less than its call.
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_HIDDEN_SIZE = 256
_IGNORED = "ignored"


@dataclass(frozen=True)
class LeftAlone:
    """A layer that compress() did not touch, and why.

    Attributes
    ----------
    name, kind : str
        Its name in the model, and its class.
    shape : tuple of int
        Of its weight; of the first, where it has several.
    bytes : int
        Of its weights.
    reason : str
        Why.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bytes: int
    reason: str


@dataclass(frozen=True)
class KeptDense:
    """A layer that could be stored sparse and is not, and why.

    Attributes
    ----------
    name : str
        Its name in the model.
    format : str
        What its weight is stored in instead: the name of a dense format, or of a dtype where the
        layer stayed as it was.
    sparsity : float
        Share of its weights that are zero.
    reason : str
        Why.
    """

    name: str
    format: str
    sparsity: float
    reason: str


@dataclass
class Layer:
    """A layer in the model: where it is, and why it is left alone ("" if it is not)."""

    module: nn.Module
    names: list[str] = field(default_factory=list)
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    named_by_targets: bool = False  # by its class or its full name
    named_in_full: bool = False
    reason: str = ""
    partner: Layer | None = None  # the other of an embedding and a head that have one weight


def choose(model: nn.Module, kinds: Kinds, targets: Patterns, ignore: Patterns) -> list[Layer]:
    """Every layer of some kinds, with the reason for those that are left alone.

    Layers inside one that will be replaced are not in the list.
    """
    layers = _find_layers(model, kinds)
    for layer in layers:
        if any(map(is_lazy, layer.module.parameters())):
            raise ValueError(
                f"compress: model: layer {layer.names[0]!r} is lazy; run the model once before"
            )
    _apply_patterns(model, layers, _as_patterns("targets", targets), _as_patterns("ignore", ignore))
    owners = _parameter_owners(model)
    _find_partners(layers, owners)
    for layer in layers:
        layer.reason = layer.reason or _why_not(layer, kinds, owners)
    for layer in layers:
        layer.reason = layer.reason or _why_others(layer, layers)
    inner = {id(module) for layer in layers if not layer.reason for module in _inner_modules(layer)}
    return [layer for layer in layers if id(layer.module) not in inner]


def matching(
    model: nn.Module, layers: Sequence[Layer], argument: str, pattern: Pattern
) -> list[Layer]:
    """The layers that a pattern matches, or that are inside a module that it matches."""
    (only,) = _as_patterns(argument, pattern) or ()
    outer = _covered(model, argument, only)
    found = [layer for layer in layers if any(_inside(name, outer) for name in layer.names)]
    if not found:
        raise ValueError(f"compress: {argument}: {pattern!r} matches no layer that is replaced")
    return found


def base_kind(module: nn.Module, kinds: Kinds) -> type[nn.Module] | None:
    """Which of the kinds a module is, the most derived of several."""
    return next((base for base in type(module).__mro__ if base in kinds), None)


def weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a layer that are no biases, those of layers inside it included."""
    for name, parameter in module.named_parameters():
        if "bias" not in name.rpartition(".")[2]:
            yield parameter


def left_alone(layer: Layer) -> LeftAlone:
    """What the report says of a layer; weights of layers inside it are listed with those."""
    own = [
        parameter
        for name, parameter in layer.module.named_parameters(recurse=False)
        if "bias" not in name
    ] or list(weights(layer.module))
    shape = tuple(own[0].shape) if own else ()
    return LeftAlone(
        layer.names[0],
        type(layer.module).__name__,
        shape[::-1] if is_conv1d(layer.module) else shape,
        sum(weight.numel() * weight.element_size() for weight in own),
        layer.reason,
    )


def why_not_pruned(layer: Layer) -> str:
    """Why the weights of a layer are not set to zero; "" where they are."""
    if layer.partner:
        return "an embedding and the layer tied to it are not pruned"
    if isinstance(layer.module, _TABLES) and not layer.named_by_targets:
        return "embeddings are pruned only where targets names them"
    if _is_depthwise(layer.module):
        return "a depthwise convolution gains nothing from zeros"
    return ""


def why_not_sparse(layer: Layer) -> str:
    """Why a layer is not stored sparse, whatever its zeros; "" where that depends on them."""
    module = layer.module
    if isinstance(module, _TABLES) and not layer.partner:
        return "looking a row up is slower in a sparse table"
    if isinstance(module, _CONVOLUTIONS) and module.groups > 1:
        return "convolutions in groups have no sparse form"
    return ""


# --- finding ---


def _find_layers(model: nn.Module, kinds: Kinds) -> list[Layer]:
    """Every layer once, in order, with all its names and parents."""
    found: dict[int, Layer] = {}
    seen_places: set[tuple[int, str]] = set()
    for name, parent in model.named_modules(remove_duplicate=False):
        for child, module in parent._modules.items():
            if module is None or not (isinstance(module, kinds) or is_conv1d(module)):
                continue
            layer = found.setdefault(id(module), Layer(module))
            layer.names.append(f"{name}.{child}" if name else child)
            if (id(parent), child) not in seen_places:
                seen_places.add((id(parent), child))
                layer.places.append((parent, child))
    return list(found.values())


def _is_depthwise(module: nn.Module) -> bool:
    if not isinstance(module, _CONVOLUTIONS):
        return False
    return module.groups == module.in_channels == module.out_channels > 1


# --- targets and ignore ---


def _as_patterns(argument: str, patterns: Patterns) -> tuple[Pattern, ...] | None:
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
    layers: list[Layer],
    targets: tuple[Pattern, ...] | None,
    ignore: tuple[Pattern, ...] | None,
) -> None:
    """Gives the layers that are not wanted a reason; every pattern must match something."""
    wanted: set[int] = set()
    for pattern in targets or ():
        chosen = matching(model, layers, "targets", pattern)
        wanted.update(map(id, chosen))
        for layer in chosen:
            layer.named_in_full |= pattern in layer.names
            layer.named_by_targets |= type(layer.module) is pattern or layer.named_in_full
    for layer in layers:
        if targets is not None and id(layer) not in wanted:
            layer.reason = "not among the targets"
    for pattern in ignore or ():
        outer = _covered(model, "ignore", pattern)
        for layer in layers:
            if any(_inside(name, outer) for name in layer.names):
                layer.reason = _IGNORED


# --- reasons ---


def _why_not(layer: Layer, kinds: Kinds, owners: dict[int, list[tuple[int, str]]]) -> str:
    """Why a layer cannot be replaced; "" if it can. A new rule is a line here."""
    return (
        _why_kind(layer, kinds)
        or _why_computed(layer.module)
        or (None if layer.partner else _why_tied(layer.module, owners))
        or _why_dtype(layer.module)
        or _why_max_norm(layer.module)
        or (None if layer.named_by_targets else _why_small(layer.module))
        or ""
    )


def _why_others(layer: Layer, layers: list[Layer]) -> str:
    """Why a layer is left alone for the sake of another one; "" if it is not."""
    if layer.partner and layer.partner.reason:
        name, why = layer.partner.names[0], layer.partner.reason
        return f"its weight is tied to {name}.weight, which is left alone ({why})"
    inner = set(map(id, _inner_modules(layer)))
    for other in layers:
        if id(other.module) in inner and other.reason == _IGNORED:
            return f"{other.names[0]}, in it, is ignored"
    return ""


def _inner_modules(layer: Layer) -> Iterator[nn.Module]:
    return (module for module in layer.module.modules() if module is not layer.module)


def _why_kind(layer: Layer, kinds: Kinds) -> str | None:
    kind, base = type(layer.module), base_kind(layer.module, kinds)
    if kind is nn.modules.linear.NonDynamicallyQuantizableLinear:
        return "nn.MultiheadAttention reads its weight directly"
    if base is None or kind is base:  # none: a Conv1D
        return None
    if not layer.named_by_targets:
        return f"{kind.__name__} is a subclass of nn.{base.__name__}; name its class in targets"
    # Whoever names a linear layer says that it computes x W^T + b, however it is written.
    if base is not nn.Linear and kind.forward is not base.forward:
        return f"{kind.__name__} has another forward than nn.{base.__name__}"
    return None


def _why_computed(module: nn.Module) -> str | None:
    # A computed weight is a plain attribute, parametrizations are a dict of modules.
    tensors = {name for name, value in vars(module).items() if isinstance(value, Tensor)}
    plain = tensors - pruned_tensors(module).keys()
    if plain or hasattr(module, "parametrizations") or next(weights(module), None) is None:
        return "its weight is computed, not a parameter (parametrized)"
    for weight in weights(module):
        if type(weight) is not nn.Parameter and not is_stored_otherwise(weight):
            return f"its weight is a {type(weight).__name__}"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    return None


def _why_tied(module: nn.Module, owners: dict[int, list[tuple[int, str]]]) -> str | None:
    own = {id(part) for part in module.modules()}
    for weight in weights(module):
        for owner, name in owners[id(weight)]:
            if owner not in own:
                return f"its weight is tied to {name}"
    return None


def _why_dtype(module: nn.Module) -> str | None:
    for weight in weights(module):
        if weight.dtype not in _check.DTYPES:
            return f"its weight is {weight.dtype}".replace("torch.", "")
    return None


def _why_max_norm(module: nn.Module) -> str | None:
    if isinstance(module, _TABLES) and module.max_norm is not None:
        return f"max_norm={module.max_norm}: its lookups write to the weight"
    return None


def _why_small(module: nn.Module) -> str | None:
    """Below what a packed layer gains by."""
    if isinstance(module, _TABLES):
        N, K = module.num_embeddings, module.embedding_dim
        padded_K = -(-K // 64) * 64
        if N < _TABLE_ROWS:
            return f"{N} rows: a table of less than {_TABLE_ROWS} is not worth packing"
        if N * padded_K >= N * K * module.weight.element_size():
            return f"would grow: the {K} values of a row are padded to {padded_K}"
    if isinstance(module, _RECURRENT) and module.hidden_size < _HIDDEN_SIZE:
        return (
            f"hidden size {module.hidden_size}: below {_HIDDEN_SIZE} the dense layer is faster; "
            "name it in targets to pack it"
        )
    return None


def _find_partners(layers: list[Layer], owners: dict[int, list[tuple[int, str]]]) -> None:
    """Join each nn.Embedding to the nn.Linear that alone shares its weight: one packed weight."""
    by_module = {id(layer.module): layer for layer in layers}
    for layer in layers:
        if type(layer.module) is not nn.Embedding:
            continue
        ids = {owner for owner, _ in owners.get(id(layer.module.weight), ())}
        others = [by_module.get(owner) for owner in ids - {id(layer.module)}]
        if len(others) == 1 and others[0] and type(others[0].module) is nn.Linear:
            layer.partner, others[0].partner = others[0], layer


def _parameter_owners(model: nn.Module) -> dict[int, list[tuple[int, str]]]:
    """For each parameter, by identity, the modules that hold it: (identity, parameter name)."""
    owners: dict[int, list[tuple[int, str]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            full = f"{name}.{key}" if name else key
            owners.setdefault(id(parameter), []).append((id(module), full))
    return owners
