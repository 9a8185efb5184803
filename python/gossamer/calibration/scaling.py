"""A producer and consumers that can be scaled against each other, and how that is done.

If the product of channel c of the producer and the columns that read it is all that counts,

    producer's channel c / s[c],    consumers' column k * s[c(k)]

leaves the outputs as they are. :mod:`gossamer.calibration.scalable` finds and proves such places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..folding import is_stored_otherwise, pruned_tensors
from ..nn.linear import is_conv1d
from .statistics import Statistics

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_CHANNELS_SECOND = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


@dataclass(frozen=True, eq=False)
class Scalable:
    """A producer and all consumers of what it makes; see :func:`fold`.

    Attributes
    ----------
    producer : nn.Module
        A norm, linear layer or convolution.
    consumers : dict of str to nn.Module
        By full name: linear layers and convolutions, all of which get the same tensor.
    channels : Tensor
        int64, shape (C,): for each input channel of the consumers the output channel of the
        producer. Some may be the same, as where heads are repeated: they have the same factor.
    plus_one : bool
        The producer is a norm that multiplies by 1 + weight.
    places : tuple of str
        Names of the producer and the consumers in the block.
    """

    producer: nn.Module
    consumers: dict[str, nn.Module]
    channels: Tensor
    plus_one: bool
    places: tuple[str, ...]

    @property
    def columns(self) -> Tensor | None:
        """``channels`` for each column of the consumers' matrices (``folding.to_matrix``).

        None where these have different columns: convolutions in groups, or of several kernel sizes.
        """
        taps = {_taps(consumer) for consumer in self.consumers.values()}
        if len(taps) != 1 or 0 in taps:
            return None
        return self.channels.repeat(taps.pop())


@torch.no_grad()
def fold(scalable: Scalable, s: Tensor) -> None:
    """Divide the producer's channels by s and multiply the consumers' columns by it, in place.

    Parameters
    ----------
    scalable : Scalable
        As found.
    s : Tensor
        Positive, shape (C,) or, for convolutions of several taps, the (C * taps,) columns of their
        matrices. Channels that are the same to the producer must have the same factor.

    Raises
    ------
    ValueError
        For factors of another shape, that are not positive and finite, or that differ where they
        must not. Nothing is changed then.
    """
    C = len(scalable.channels)
    if s.dim() != 1 or len(s) % C:
        raise ValueError(f"fold: s: got shape {list(s.shape)}, wanted [{C}]")
    if not bool((s.isfinite() & (s > 0)).all()):
        raise ValueError("fold: s: holds factors that are not positive and finite")
    factors = of_producer(scalable, s[:C])
    if not torch.equal(factors[scalable.channels].repeat(len(s) // C), s):
        raise ValueError("fold: s: differs between columns that read one channel of the producer")
    divide_outputs(scalable, factors)
    for consumer in scalable.consumers.values():
        _multiply_inputs(consumer, s[:C])


def scaled(statistics: Statistics, s: Tensor) -> Statistics:
    """The statistics of x / s.

    Parameters
    ----------
    statistics : Statistics
        Of x.
    s : Tensor
        Positive, shape (K,).

    Returns
    -------
    Statistics
        Exact but for what is known of the whole tensor only: ``low`` and ``high`` become the
        largest magnitude with the signs that they had, and there is no histogram.
    """
    peak = statistics.peak / s
    largest = float(peak.max())
    moment = statistics.moment
    return replace(
        statistics,
        mean=statistics.mean / s,
        peak=peak,
        squares=statistics.squares / s.square(),
        moment=None if moment is None else moment / s / s[:, None],
        low=-largest if statistics.low < 0 else 0.0,
        high=largest if statistics.high > 0 else 0.0,
        histogram=None,
        limit=1.0,
    )


# --- weights ---


def weight_of(module: nn.Module) -> Tensor | None:
    """The parameter that holds a weight, that of torch.nn.utils.prune included."""
    pruned = "weight" in pruned_tensors(module)
    weight = module._parameters.get("weight_orig" if pruned else "weight")
    if weight is None or is_stored_otherwise(weight) or not weight.is_floating_point():
        return None
    return weight


def _bias_of(module: nn.Module) -> Tensor | None:
    return module._parameters.get("bias_orig" if "bias" in pruned_tensors(module) else "bias")


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_norm(module: nn.Module) -> bool:
    """Whether it has one weight for each channel; the proof tells whether it multiplies by it."""
    weight = weight_of(module)
    return weight is not None and weight.dim() == 1 and not isinstance(module, nn.PReLU)


def in_channels(module: nn.Module) -> int | None:
    """Channels that a consumer reads; None for a module that is none."""
    weight = weight_of(module)
    if weight is None or not (_is_linear(module) or isinstance(module, _CONVOLUTIONS)):
        return None
    if isinstance(module, _CONVOLUTIONS):
        return module.in_channels
    return int(weight.shape[0 if is_conv1d(module) else 1])


def out_channels(module: nn.Module) -> int | None:
    """Channels that a producer makes; None for a module that is none."""
    weight = weight_of(module)
    if weight is None or not (in_channels(module) or is_norm(module)):
        return None
    return int(weight.shape[1 if is_conv1d(module) else 0])


def _taps(module: nn.Module) -> int:
    """Columns of a consumer's matrix for one channel; 0 for a convolution in groups."""
    if not isinstance(module, _CONVOLUTIONS):
        return 1
    return math.prod(module.kernel_size) if module.groups == 1 else 0


def channel_axis(module: nn.Module, x: Tensor) -> int:
    """The dimension of its inputs and outputs that channels run along."""
    if isinstance(module, _CONVOLUTIONS):
        return -1 - len(module.kernel_size)
    return 1 if isinstance(module, _CHANNELS_SECOND) and x.dim() > 1 else -1


def of_producer(scalable: Scalable, s: Tensor) -> Tensor:
    """Factors of all channels that the producer makes; 1 for those that no consumer reads."""
    return s.new_ones(out_channels(scalable.producer) or 0).index_copy_(0, scalable.channels, s)


def divide_outputs(scalable: Scalable, factors: Tensor) -> None:
    """Divide the producer's channels, all of them, in place."""
    producer = scalable.producer
    weight, bias = weight_of(producer), _bias_of(producer)
    assert weight is not None
    if scalable.plus_one:
        weight.copy_((weight.to(factors.dtype) + 1) / factors - 1)
    elif is_conv1d(producer):
        weight.div_(factors)
    else:
        weight.div_(factors.view(-1, *[1] * (weight.dim() - 1)))
    if bias is not None:
        bias.div_(factors)


def _multiply_inputs(consumer: nn.Module, s: Tensor) -> None:
    weight = weight_of(consumer)
    assert weight is not None
    if is_conv1d(consumer):
        weight.mul_(s[:, None])
    elif isinstance(consumer, _CONVOLUTIONS):
        by_group = weight.view(consumer.groups, -1, *weight.shape[1:])
        shape = (consumer.groups, 1, weight.shape[1], *[1] * (weight.dim() - 2))
        by_group.mul_(s.view(shape))
    else:
        weight.mul_(s)


def output_ranges(module: nn.Module) -> Tensor:
    """The largest magnitude of the weights of each channel that a producer makes: [N]."""
    weight = weight_of(module)
    assert weight is not None
    rows = weight.detach().T if is_conv1d(module) else weight.detach()
    return rows.abs().flatten(1).amax(1) if rows.dim() > 1 else rows.abs()


def input_ranges(module: nn.Module) -> Tensor:
    """The largest magnitude of the weights on each channel that a consumer reads: [C]."""
    weight = weight_of(module)
    assert weight is not None
    if not isinstance(module, _CONVOLUTIONS):
        return weight.detach().abs().amax(1 if is_conv1d(module) else 0)
    by_tap = weight.detach().abs().flatten(2).amax(2)
    return by_tap.view(module.groups, -1, by_tap.shape[1]).amax(1).flatten()


def unshared(model: nn.Module) -> Callable[[nn.Module], bool]:
    """Whether no parameter of a module belongs to another module, too."""
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in parameters_of(module):
            owners.setdefault(id(parameter), set()).add(id(module))
    return lambda module: all(len(owners[id(p)]) == 1 for p in parameters_of(module))


def parameters_of(module: nn.Module) -> Iterator[Tensor]:
    """Those of a module itself."""
    return (parameter for parameter in module._parameters.values() if parameter is not None)
