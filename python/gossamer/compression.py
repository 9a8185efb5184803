"""compress(): swaps the layers of a model for packed ones, in place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import _check, selection
from .calibration import Batches, sized
from .correcting import Correcting
from .factorization.correction import LayerCorrection
from .folding import folded
from .fusion import fuse as fuse_layers
from .nn.linear import dense_weight, is_conv1d
from .nn.packed_conv import quantize_groups
from .placing import disable_transformer_fast_path, is_packed
from .recipe import Recipe, Step, as_recipe
from .replacing import REPLACEMENTS, naming, replace_all
from .schemes import Quantize
from .selection import KeptDense, Layer, Patterns
from .sparse_choice import Batch

Model = TypeVar("Model", bound=nn.Module)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)

__all__ = ["REPLACEMENTS", "compress"]


def compress(
    model: Model,
    scheme: Step | Sequence[Step],
    targets: Patterns = None,
    ignore: Patterns = None,
    *,
    calibration: Batches | None = None,
    batch: Batch | None = None,
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
    tied to another parameter in any other way; those with a weight that is computed (parametrized)
    or float64; embeddings with ``max_norm``; and, unless `targets` holds their class or
    their full name, embeddings of few rows, recurrent layers with a hidden size below 256 and
    subclasses of these classes.

    Zeros count where the scheme is sparse ("sparse-int8") or comes after ``gs.Prune``: a layer is
    stored sparse where that is faster than its dense twin ("int8"), by thresholds that were
    measured for the processor, and dense elsewhere; the report says why. Without a scheme after
    ``gs.Prune`` that is between sparse values in float32 (bfloat16 in layers of that dtype) and the
    layer as it is. Weights pruned by ``torch.nn.utils.prune``, ``MaskedTensor`` parameters and
    sparse ones are taken, in every scheme, as the dense weights that they stand for.

    Layers are replaced one by one, each dense weight being freed before the next is packed, so that
    the peak of memory is the model and one layer; with a `calibration` also E[x xᵀ] for each
    different input of the linear layers, 4 K² bytes (12 K² while the model runs), which are freed
    as the layers are done.

    After ``gs.LowRankCorrection`` linear layers hold "int4+low-rank" and the like; all others are
    packed without a correction, and the report says why. Corrected layers that read one input are
    not fused.

    Parameters
    ----------
    model : nn.Module
        On the CPU. Hooks, bias, training mode and everything else stay.
    scheme : str, Quantize, Prune, or a list of Prune, one of the others and LowRankCorrection
        "int8", ``gs.Quantize("int8", group_size=64)``, "sparse-int8", ``gs.Prune(0.8)``,
        ``[gs.Prune(0.5), "int8"]``, or ``["int4", gs.LowRankCorrection(rank=32)]``.
    targets : pattern or sequence of patterns, optional
        Which layers; None takes all. A pattern is a name with ``*``, ``?`` and ``[]``, a regular
        expression for the whole name after ``re:``, or a module class. One that matches a module
        takes all layers inside it. A layer that is here by its full name is stored sparse if the
        scheme says so, whatever its zeros.
    ignore : pattern or sequence of patterns, optional
        Which layers not, even if they are among the targets.
    calibration : iterable of batches, optional
        Inputs of the model, each a tensor, a tuple of arguments or a dict of keyword arguments, for
        ``gs.LowRankCorrection`` to fit each layer to what it is given. None: to its weight alone.
    batch : int, "large" or a tuple of these, optional
        Rows of x (tokens) in the calls that the model is for: sparse weights hold what these need,
        in one or two parts. None: 1 and "large".
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
        in it, a weight holds NaN or infinity, or the `calibration` does not call a layer, or is
        given without a correction. The model is then as it was.
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
    recipe = as_recipe("compress", scheme, batch)
    batches = _check_calibration(calibration, recipe)
    kinds = _check_model(model)
    layers = selection.choose(model, kinds, targets, ignore)
    if not layers and not any(map(is_packed, model.modules())):
        names = ", ".join(f"nn.{kind.__name__}" for kind in kinds)
        raise ValueError(f"compress: model: has no layer that can be packed: {names} or Conv1D")
    for layer in layers:
        layer.reason = layer.reason or _why_not(layer, recipe)
    chosen = [layer for layer in layers if not layer.reason]
    for layer in chosen:
        _check_layer(layer, recipe)
    correcting = _correcting(model, layers, recipe)
    if correcting and batches is not None:
        correcting.calibrate(model, chosen, batches, progress)
    left_alone = tuple(selection.left_alone(layer) for layer in layers if layer.reason)
    model._gossamer_left_alone = left_alone  # type: ignore[assignment]
    _replace_all(model, layers, recipe, correcting, progress)
    if fuse:
        reasons = {item.name: item.reason for item in left_alone}
        reasons.update((item.name, item.reason) for item in _dense_layers(model))
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


def _check_calibration(calibration: Batches | None, recipe: Recipe) -> Batches | None:
    """The batches, of which there are some, if anything is to be fitted to them."""
    if calibration is None:
        return None
    if recipe.correction is None:
        raise ValueError(
            "compress: calibration: is what gs.LowRankCorrection is fitted to, and the scheme has "
            "none"
        )
    return sized("compress", calibration)


def _why_not(layer: Layer, recipe: Recipe) -> str:
    """Why the recipe has nothing for a layer."""
    if recipe.store is None:
        return selection.why_not_pruned(layer)
    dense = recipe.forms(next(selection.weights(layer.module)).dtype)[1]
    return _why_groups(layer.module, dense) if dense else ""


def _why_groups(module: Any, scheme: Quantize) -> str:
    """Why a format cannot hold the groups of a convolution: its blocks of rows lie across them."""
    if not isinstance(module, _CONVOLUTIONS) or module.groups == 1:
        return ""
    rows = module.out_channels // module.groups
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        rows *= math.prod(module.kernel_size)
    elif module.groups == module.in_channels == module.out_channels:
        return ""  # depthwise: all rows are one weight
    try:
        quantize_groups(torch.zeros(2 * rows, 1), 2, scheme.quantize)
    except ValueError as error:
        return str(error)
    return ""


def _check_layer(layer: Layer, recipe: Recipe) -> None:
    """Raises what replacing the layer would raise, without the memory that replacing it takes."""
    module, start = layer.module, f"compress: model: layer {layer.names[0]!r}"
    for parameter in module.parameters():
        if parameter.device.type != "cpu":
            raise RuntimeError(f"{start} is on {parameter.device}; move the model to the CPU first")
    module = folded(module)
    with naming(layer):
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
            for form in recipe.forms(weight.dtype):
                if form is not None:
                    form.quantize(weight[:1])


def _matrices(module: nn.Module) -> Iterator[Tensor]:
    """The weights of a layer, of two dimensions each."""
    if isinstance(module, nn.Linear) or is_conv1d(module):
        yield dense_weight(module)
    else:
        yield from (weight.detach().flatten(1) for weight in selection.weights(module))


# --- replacing ---


def _correcting(model: nn.Module, layers: list[Layer], recipe: Recipe) -> Correcting | None:
    """What fits the corrections, with the results of earlier calls for other layers."""
    if recipe.correction is None:
        return None
    names = {layer.names[0] for layer in layers}
    before: tuple[LayerCorrection, ...] = getattr(model, "_gossamer_corrections", ())
    return Correcting(recipe.correction, [item for item in before if item.name not in names])


def _replace_all(
    model: nn.Module,
    layers: list[Layer],
    recipe: Recipe,
    correcting: Correcting | None,
    progress: bool | None,
) -> None:
    """Replace the chosen layers, and remember on the model what stayed dense or uncorrected."""
    names = {layer.names[0] for layer in layers}
    before: tuple[KeptDense, ...] = getattr(model, "_gossamer_kept_dense", ())
    kept = [item for item in before if item.name not in names]
    chosen = [layer for layer in layers if not layer.reason]
    try:
        replace_all(chosen, recipe, kept, correcting, progress)
    finally:
        model._gossamer_kept_dense = tuple(kept)  # type: ignore[assignment]
        if correcting:
            model._gossamer_corrections = tuple(correcting.results)  # type: ignore[assignment]
        disable_transformer_fast_path(model)


def _dense_layers(model: nn.Module) -> Iterator[KeptDense]:
    """Layers that compress() was meant for and that stayed as they are."""
    kept: tuple[KeptDense, ...] = model._gossamer_kept_dense  # type: ignore[assignment]
    return (item for item in kept if not is_packed(model.get_submodule(item.name)))
