"""compress(): swaps the layers of a model for packed ones, in place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import _check, selection
from . import nn as packed_nn
from ._progress import Progress
from .fusion import fuse as fuse_layers
from .nn.linear import dense_weight, is_conv1d
from .nn.packed_conv import quantize_groups
from .schemes import Quantize, as_quantize
from .selection import Layer, Patterns

Model = TypeVar("Model", bound=nn.Module)

# What replaces a layer of torch, for compress(). A new layer is a line here. The Conv1D of
# transformers, which may not be installed, is replaced as nn.Linear is.
REPLACEMENTS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: packed_nn.Linear.from_dense,
    nn.Conv1d: packed_nn.Conv1d.from_dense,
    nn.Conv2d: packed_nn.Conv2d.from_dense,
    nn.ConvTranspose1d: packed_nn.ConvTranspose1d.from_dense,
    nn.ConvTranspose2d: packed_nn.ConvTranspose2d.from_dense,
    nn.Embedding: packed_nn.Embedding.from_dense,
    nn.EmbeddingBag: packed_nn.EmbeddingBag.from_dense,
    nn.LSTM: packed_nn.LSTM.from_dense,
    nn.GRU: packed_nn.GRU.from_dense,
    nn.RNN: packed_nn.RNN.from_dense,
    nn.LSTMCell: packed_nn.LSTMCell.from_dense,
    nn.GRUCell: packed_nn.GRUCell.from_dense,
    nn.RNNCell: packed_nn.RNNCell.from_dense,
    nn.MultiheadAttention: packed_nn.MultiheadAttention.from_dense,
}

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)

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
    """Replace the layers of a model by packed ones, in place.

    Replaced are ``nn.Linear`` and the ``Conv1D`` of transformers; ``nn.Conv1d``, ``nn.Conv2d`` and
    their transposes; ``nn.Embedding`` and ``nn.EmbeddingBag``; ``nn.LSTM``, ``nn.GRU``, ``nn.RNN``
    and their cells; and ``nn.MultiheadAttention``. A module that occurs in several places is
    replaced once and stays shared; an embedding and the output head tied to it become two modules
    with one packed weight.

    Left alone, and listed by :func:`gossamer.report` with the reason, are: layers whose weight is
    tied to another parameter in any other way; those with a weight that is computed (parametrized,
    pruned) or float64; embeddings with ``max_norm``; and, unless `targets` holds their class or
    their full name, embeddings of few rows, recurrent layers with a hidden size below 256 and
    subclasses of these classes.

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
        Where a pattern matches nothing, the model is itself a layer to be replaced, there is none
        in it, or a weight holds NaN or infinity. The model is then as it was.
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
        raise ValueError(f"compress: model: has no layer that can be packed: {names} or Conv1D")
    for layer in layers:
        layer.reason = layer.reason or _why_groups(layer.module, recipe)
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


def _why_groups(module: Any, recipe: Quantize) -> str:
    """Why a format cannot hold the groups of a convolution: its blocks of rows lie across them."""
    if not isinstance(module, _CONVOLUTIONS) or module.groups == 1:
        return ""
    rows = module.out_channels // module.groups
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        rows *= math.prod(module.kernel_size)
    elif module.groups == module.in_channels == module.out_channels:
        return ""  # depthwise: all rows are one weight
    try:
        quantize_groups(torch.zeros(2 * rows, 1), 2, recipe.quantize)
    except ValueError as error:
        return str(error)
    return ""


def _check_layer(layer: Layer, recipe: Quantize) -> None:
    """Raises what replacing the layer would raise, without the memory that replacing it takes."""
    module, start = layer.module, f"compress: model: layer {layer.names[0]!r}"
    for parameter in module.parameters():
        if parameter.device.type != "cpu":
            raise RuntimeError(f"{start} is on {parameter.device}; move the model to the CPU first")
    with _naming(layer):
        for name, parameter in module.named_parameters():
            if "bias" in name.rpartition(".")[2]:
                _check.floating(type(module).__name__, name, parameter)
        for weight in _matrices(module):
            if isinstance(module, nn.Linear) or is_conv1d(module):
                _check.bias("Linear", module.bias, len(weight))  # type: ignore[arg-type]
            low, high = weight.aminmax(dim=1)  # NaN if one is
            bad = (~(low.isfinite() & high.isfinite())).nonzero().flatten().tolist()
            if bad:
                shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
                raise ValueError(f"weight: NaN or infinity in row(s) {shown}")
            recipe.quantize(weight[:1])


def _matrices(module: nn.Module) -> Iterator[Tensor]:
    """The weights of a layer, of two dimensions each."""
    if isinstance(module, nn.Linear) or is_conv1d(module):
        yield dense_weight(module)
    else:
        yield from (weight.detach().flatten(1) for weight in selection.weights(module))


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
    if _is_packed(old):
        return  # a head, replaced with the embedding that is tied to it
    kind = nn.Linear if is_conv1d(old) else selection.base_kind(old, tuple(REPLACEMENTS))
    shared = {}
    if layer.partner and kind is nn.Embedding:
        _replace(layer.partner, recipe)
        shared = {"head": layer.partner.module}
    with _naming(layer):
        new = REPLACEMENTS[kind](old, recipe, **shared)  # type: ignore[index]  # selection saw to it
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
