"""compress(): swaps the layers of a model for packed ones, in place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import nn

from . import _check, selection
from . import nn as packed_nn
from ._progress import Progress
from .fusion import fuse as fuse_layers
from .nn.linear import dense_weight, is_conv1d
from .schemes import Quantize, as_quantize
from .selection import Layer, Patterns

Model = TypeVar("Model", bound=nn.Module)

# What replaces a layer of torch, for compress(). A new layer is a line here. The Conv1D of
# transformers, which may not be installed, is replaced as nn.Linear is.
REPLACEMENTS: dict[type[nn.Module], Callable[[nn.Module, Quantize], nn.Module]] = {
    nn.Linear: packed_nn.Linear.from_dense,
}

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


def compress(
    model: Model,
    scheme: str | Quantize,
    targets: Patterns = None,
    ignore: Patterns = None,
    *,
    fuse: bool = True,
    progress: bool | None = None,
) -> Model:
    """Replace the linear layers of a model by packed ones, in place.

    ``nn.Linear`` and the ``Conv1D`` of transformers are replaced. A module that occurs in several
    places is replaced once and stays shared. Left alone, and listed by :func:`gossamer.report` with
    the reason, are: layers whose weight is tied to another parameter, such as an output head tied
    to an embedding; layers with a weight that is computed (parametrized, pruned) or float64; and
    subclasses of ``nn.Linear``, unless `targets` holds their class or their full name.

    Layers are replaced one by one, each dense weight being freed before the next is packed, so that
    the peak of memory is the model and one layer.

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
    fuse : bool
        Let layers of the BERT, GPT-2 and Llama families of transformers compute as one: q, k and v;
        gate and up; a linear layer and the activation after it. Names and tensors of the
        ``state_dict`` are those of the layers. A group that has hooks on a layer, or one that is
        left alone, is not fused; the report lists what was, and why the rest was not.
    progress : bool, optional
        Show a bar on stderr: True, False, or where it is a terminal, after a second (None). Needs
        rich, of the extra ``cli``; there is no bar without it.

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

    Notes
    -----
    An interruption (Ctrl-C) leaves a model that works, with some layers packed and others not;
    calling again packs the rest.

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
    kinds = _check_model(model)
    layers = selection.choose(model, kinds, targets, ignore)
    if not layers and not any(map(_is_packed, model.modules())):
        names = ", ".join(f"nn.{kind.__name__}" for kind in kinds)
        raise ValueError(f"compress: model: has no {names} or Conv1D in it")
    chosen = [layer for layer in layers if not layer.reason]
    for layer in chosen:
        _check_layer(layer, recipe)
    left_alone = tuple(selection.left_alone(layer) for layer in layers if layer.reason)
    model._gossamer_left_alone = left_alone  # type: ignore[assignment]
    _replace_all(model, chosen, recipe, progress)
    if fuse:
        reasons = {item.name: item.reason for item in left_alone}
        model._gossamer_fusions = fuse_layers(model, reasons, progress)  # type: ignore[assignment]
    return model


# --- everything that can fail, before anything changes ---


def _check_model(model: object) -> tuple[type[nn.Module], ...]:
    """The kinds of layers that are replaced, if the model is one that can hold them."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: model: got {_check.describe(model)}, wanted nn.Module")
    kinds = tuple(REPLACEMENTS)
    if isinstance(model, kinds) or is_conv1d(model):
        raise ValueError(
            f"compress: model: is itself a layer ({type(model).__name__}) and cannot be replaced "
            "in place; use from_dense of its class in gs.nn"
        )
    return kinds


def _is_packed(module: nn.Module) -> bool:
    return type(module).__module__.startswith(packed_nn.__name__)


def _check_layer(layer: Layer, recipe: Quantize) -> None:
    """Raises what replacing the layer would raise, without the memory that replacing it takes."""
    module, start = layer.module, f"compress: model: layer {layer.names[0]!r}"
    for parameter in module.parameters():
        if parameter.device.type != "cpu":
            raise RuntimeError(f"{start} is on {parameter.device}; move the model to the CPU first")
    linear = isinstance(module, nn.Linear) or is_conv1d(module)
    weights = [dense_weight(module)] if linear else selection.weights(module)
    for weight in weights:
        low, high = weight.detach().flatten(1).aminmax(dim=1)  # NaN if one is
        bad = (~(low.isfinite() & high.isfinite())).nonzero().flatten().tolist()
        if bad:
            shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
            raise ValueError(f"{start}: weight: NaN or infinity in row(s) {shown}")
    if linear:
        with _naming(layer):
            dense = dense_weight(module)
            recipe.quantize(dense[:1])
            _check.bias("Linear", module.bias, len(dense))  # type: ignore[arg-type]


@contextlib.contextmanager
def _naming(layer: Layer) -> Iterator[None]:
    """Says in an error which layer it comes from."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        raise type(error)(f"compress: model: layer {layer.names[0]!r}: {error}") from error


# --- replacing ---


def _replace_all(
    model: nn.Module, chosen: list[Layer], recipe: Quantize, progress: bool | None
) -> None:
    sizes = [sum(weight.numel() for weight in selection.weights(it.module)) for it in chosen]
    try:
        with Progress("packing layers", sum(sizes), progress) as shown:
            for layer, size in zip(chosen, sizes, strict=True):
                _replace(layer, recipe)
                shown.advance(size)
    finally:
        _disable_transformer_fast_path(model)


def _replace(layer: Layer, recipe: Quantize) -> None:
    """Swap a layer in all its places. Nothing refers to the dense one afterwards."""
    old = layer.module
    kind = nn.Linear if is_conv1d(old) else selection.base_kind(old, tuple(REPLACEMENTS))
    with _naming(layer):
        new = REPLACEMENTS[kind](old, recipe)  # type: ignore[index]  # selection saw to it
    for hooks in _HOOKS:
        new.__dict__[hooks] = old.__dict__[hooks]
    for parent, child in layer.places:
        parent._modules[child] = new
    layer.module = new


def _disable_transformer_fast_path(model: nn.Module) -> None:
    """Keep torch from its fused encoder kernel, which reads weights, and from nested tensors."""
    changed = {
        id(module)
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        and any(_is_packed(child) for child in module.modules())
    }
    for module in model.modules():
        if id(module) in changed:
            module.activation_relu_or_gelu = 0  # type: ignore[assignment]
        elif isinstance(module, nn.TransformerEncoder) and any(
            id(layer) in changed for layer in module.layers
        ):
            module.use_nested_tensor = False
