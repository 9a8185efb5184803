"""Cross-layer equalization: channels of layers that follow each other get the same ranges.

    s_c = sqrt(r1_c / r2_c),    W1[c, :] / s_c,    W2[:, c] s_c

r1_c is the largest weight of a row of the first layer, r2_c that of the columns which read it.
Afterwards both are sqrt(r1_c r2_c), and what the layers compute together is what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import _check
from ..calibration.batches import evaluating
from ..calibration.records import records_of
from ..calibration.sample import sample_of
from ..calibration.scalable import find_scalable
from ..calibration.scaling import (
    Scalable,
    fold,
    in_channels,
    input_ranges,
    is_norm,
    output_ranges,
)
from ..calibration.stream import Block, Call
from .batch_norm import can_fold, fold_if_same
from .sequences import fold_norms_in_sequences, places_of, scalable_in_sequences

_ROUNDS = 100
_SETTLED = 1e-3  # no factor is farther from 1
_DEAD = 1e-12  # of the largest range of a layer

ModelT = TypeVar("ModelT", bound=nn.Module)


def equalize(model: ModelT, sample: Any = None) -> ModelT:
    """Give the channels of consecutive layers the same ranges, without changing what is computed.

    One scale for a whole row of weights, or for a whole tensor of activations, serves channels of
    the same range best. Batch norms are folded into the layers before them first.

    Parameters
    ----------
    model : nn.Module
        Changed in place: weights and biases; batch norms that are folded become ``nn.Identity``.
    sample : optional
        A batch, as the model is called with: a tensor, a tuple of arguments or a dict of keyword
        arguments. With it, places that can be equalized are found by running the model and each is
        proven. None: layers in an ``nn.Sequential`` with ReLU, pooling, dropout or flattening
        between them; the Sequential must be called as a whole.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    ValueError
        For batch norms in training mode, and weights with NaN or infinity.
    TypeError
        For a sample of another kind.

    Notes
    -----
    Layers are equalized one pair after the other until no factor differs from 1 by more than 0.1 %.
    Channels without weights on one side are left as they are, and so are pairs with what is not
    positively homogeneous between them: GELU, SiLU, Sigmoid, ReLU6.

    References
    ----------
    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019,
    section 4.1.

    Examples
    --------
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    ... ).eval()
    >>> model = gs.equalize(model)
    >>> rows, columns = model[0].weight.abs().amax(1), model[2].weight.abs().amax(0)
    >>> torch.allclose(rows, columns, rtol=1e-2)
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"equalize: model: got {_check.describe(model)}, wanted an nn.Module")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(f"equalize: model: {name!r} is in training mode; call model.eval()")
    if sample is None:
        fold_norms_in_sequences(model)
        found = scalable_in_sequences(model)
    else:
        found = _proven(model, _as_call(sample))
    _settle([scalable for scalable in found if not is_norm(scalable.producer)])
    return model


def _as_call(sample: Any) -> Call:
    if isinstance(sample, Tensor):
        return Call((sample,), {})
    if isinstance(sample, Mapping):
        return Call((), dict(sample))
    if isinstance(sample, tuple | list):
        return Call(tuple(sample), {})
    raise TypeError(
        f"equalize: sample: got {_check.describe(sample)}, wanted a tensor, a tuple of arguments "
        "or a dict of keyword arguments"
    )


def _proven(model: nn.Module, call: Call) -> list[Scalable]:
    """Fold batch norms, then find what can be scaled; both as a run of the model proves it."""
    layers = {name: module for name, module in model.named_modules() if in_channels(module)}
    block = Block("", model, layers, [call])
    with evaluating(model), torch.no_grad():
        run = sample_of(block)
        places = places_of(model)
        records = records_of(block, run)
        for norm in records:
            layer = next((record for record in records if record.y.is_set_to(norm.x)), None)
            if layer is None or not can_fold(layer.module, norm.module):
                continue
            if len(places[id(layer.module)]) == len(places[id(norm.module)]) == 1:
                fold_if_same(layer.module, norm.module, places[id(norm.module)][0], run)
        records.clear()
    return find_scalable(block)


def _settle(found: Sequence[Scalable]) -> None:
    for _ in range(_ROUNDS):
        largest = 0.0
        for scalable in found:
            s = _factors(scalable)
            fold(scalable, s)
            largest = max(largest, float(s.log().abs().max()))
        if largest < _SETTLED:
            return


def _factors(scalable: Scalable) -> Tensor:
    """The factors of the channels that are read; 1 where there are no weights on one side."""
    channels = scalable.channels
    produced = output_ranges(scalable.producer).float()
    read = torch.stack([input_ranges(one).float() for one in scalable.consumers.values()]).amax(0)
    if not bool(produced.isfinite().all() and read.isfinite().all()):
        names = ", ".join(scalable.places)
        raise ValueError(f"equalize: model: NaN or infinity in a weight of {names}")
    consumed = torch.zeros_like(produced).scatter_reduce_(0, channels, read, "amax")
    lives = (produced > _DEAD * produced.max()) & (consumed > _DEAD * consumed.max())
    return torch.where(lives, (produced / consumed).sqrt(), 1.0)[channels]
