"""compress(): swaps the layers of a model for packed ones, in place."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from . import selection
from .calibration import Batches, sized
from .calibration.fingerprint import fingerprint
from .decisions import Decisions, Overrides, Request, Steps, decide
from .factorization.correction import LayerCorrection
from .fits import LayerFit
from .fitting import fit_alone, fit_blocks, why_not_fitted
from .fitting_layers import Fitting
from .fusion import fuse as fuse_layers
from .placing import disable_transformer_fast_path, is_packed
from .replacing import REPLACEMENTS, Replacing, replace_all
from .resuming import Finished
from .selection import KeptDense, Patterns
from .sparse_choice import Batch

Model = TypeVar("Model", bound=nn.Module)

__all__ = ["REPLACEMENTS", "compress"]


def compress(
    model: Model,
    scheme: Steps | Path,
    targets: Patterns = None,
    ignore: Patterns = None,
    *,
    overrides: Overrides | None = None,
    calibration: Batches | None = None,
    batch: Batch | None = None,
    resume: str | os.PathLike[str] | None = None,
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
    the peak of memory is the model and one layer. With a `calibration` the blocks of the model are
    passed through in order, each being given what the packed blocks before it make of the batches:
    then the peak is the model, two of its blocks, what is known of the inputs of one (E[x xᵀ] takes
    12 K² bytes for each different input), and the hidden states of all batches, of which methods
    that learn keep two sets. :func:`gossamer.report` tells their size.

    After ``gs.LowRankCorrection`` linear layers hold "int4+low-rank" and the like; all others are
    packed without a correction, and the report says why. Corrected layers that read one input are
    not fused.

    Parameters
    ----------
    model : nn.Module
        On the CPU. Hooks, bias, training mode and everything else stay.
    scheme : str, Quantize, Prune, or a list of Prune, one of the others and LowRankCorrection
        "int8", ``gs.Quantize("int4", group_size=64, method="gptq")``, "sparse-int8",
        ``gs.Prune(0.6, method="sparsegpt")``, ``[gs.Prune(0.5), "int8"]``, or
        ``["int4", gs.LowRankCorrection(rank=32)]``. Or a recipe: "fast", "balanced", "smallest", or
        the path of a YAML file, whose other settings hold where the arguments here are None.
    targets : pattern or sequence of patterns, optional
        Which layers; None takes all. A pattern is a name with ``*``, ``?`` and ``[]``, a regular
        expression for the whole name after ``re:``, or a module class. One that matches a module
        takes all layers inside it. A layer that is here by its full name is stored sparse if the
        scheme says so, whatever its zeros.
    ignore : pattern or sequence of patterns, optional
        Which layers not, even if they are among the targets.
    overrides : mapping of patterns to schemes, optional
        Another scheme for some layers, such as ``{"*.down_proj": "int8"}``. Of several patterns
        that match a layer the last counts.
    calibration : iterable of batches, optional
        Inputs of the model, each a tensor, a tuple of arguments or a dict of keyword arguments, to
        fit each layer to what it is given: what the methods of ``gs.Quantize`` and ``gs.Prune`` are
        about, and better for "rtn" and ``gs.LowRankCorrection``, too. None: to weights alone.
    batch : int, "large" or a tuple of these, optional
        Rows of x (tokens) in the calls that the model is for: sparse weights hold what these need,
        in one or two parts. None: 1 and "large".
    resume : str or path, optional
        A folder in which each block that is done is kept, so that the same call goes on there after
        an interruption, to the same result. New or of the same call; it may be deleted at the end.
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
        in it, a weight holds NaN or infinity, a method needs a `calibration`, or `resume` is of
        other work: the model is then as it was. Where the `calibration` does not call a layer, or
        gives it NaN: the blocks before it are then packed.
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
    batches = None if calibration is None else sized("compress", calibration)
    decisions = decide(model, Request(scheme, targets, ignore, overrides, batch))
    finished = _begin(model, decisions, batches, resume)
    left_alone = tuple(selection.left_alone(it) for it in decisions.layers if it.reason)
    model._gossamer_left_alone = left_alone  # type: ignore[assignment]
    _replace_all(model, decisions, batches, finished, progress)
    if fuse:
        reasons = {item.name: item.reason for item in left_alone}
        reasons.update((item.name, item.reason) for item in _dense_layers(model))
        model._gossamer_fusions = fuse_layers(model, reasons, progress)  # type: ignore[assignment]
    return model


# --- replacing ---


def _begin(
    model: nn.Module,
    decisions: Decisions,
    batches: Collection[Any] | None,
    resume: str | os.PathLike[str] | None,
) -> Finished:
    """What an earlier call has finished, if it was the same."""
    for layer in decisions.chosen:
        wanting = decisions.recipe_of(layer).wants_calibration
        if batches is None and wanting:
            raise ValueError(
                f"compress: calibration: {wanting} needs one: some batches that the model is run on"
            )
    if resume is None:
        return Finished(None)
    if batches is None:
        raise ValueError("compress: resume: is for work with a calibration, and there is none")
    by_name = {layer.names[0]: decisions.recipe_of(layer) for layer in decisions.chosen}
    finished = Finished(Path(resume), fingerprint(model, by_name, batches))
    finished.begin()
    return finished


def _replace_all(
    model: nn.Module,
    decisions: Decisions,
    batches: Collection[Any] | None,
    finished: Finished,
    progress: bool | None,
) -> None:
    """Replace the chosen layers, and remember on the model what there is to say of them."""
    names = {layer.names[0] for layer in decisions.layers}
    kept: tuple[KeptDense, ...] = getattr(model, "_gossamer_kept_dense", ())
    corrections: tuple[LayerCorrection, ...] = getattr(model, "_gossamer_corrections", ())
    fits: tuple[LayerFit, ...] = getattr(model, "_gossamer_fits", ())
    chosen = decisions.chosen
    replacing = Replacing(
        decisions.recipes,
        [item for item in kept if item.name not in names],
        [item for item in corrections if item.name not in names],
    )
    fitted = {layer.names[0]: layer for layer in chosen if not why_not_fitted(layer)}
    fitting = Fitting(replacing, fitted, [item for item in fits if item.name not in names])
    try:
        if batches is not None:
            record = fit_blocks(model, chosen, fitting, batches, finished, progress)
            model._gossamer_calibration = record  # type: ignore[assignment]
        elif all(decisions.recipe_of(layer).rounds_to_nearest for layer in chosen):
            replace_all(chosen, replacing, progress)
        else:
            fit_alone(chosen, fitting, progress)
    finally:
        model._gossamer_kept_dense = tuple(replacing.kept_dense)  # type: ignore[assignment]
        model._gossamer_corrections = tuple(replacing.corrections)  # type: ignore[assignment]
        model._gossamer_fits = tuple(fitting.results)  # type: ignore[assignment]
        disable_transformer_fast_path(model)


def _dense_layers(model: nn.Module) -> Iterator[KeptDense]:
    """Layers that compress() was meant for and that stayed as they are."""
    kept: tuple[KeptDense, ...] = model._gossamer_kept_dense  # type: ignore[assignment]
    return (item for item in kept if not is_packed(model.get_submodule(item.name)))
