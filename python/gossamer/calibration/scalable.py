"""Where a block can be scaled without changing what it computes, found without knowing its class.

A producer (norm, linear layer, convolution) makes channels that consumers (linear layers,
convolutions) read. If what is in between is positively homogeneous in each channel, as ReLU, a
product with a gate and the mixing of values by attention are, then

    producer's channel c / s[c],    consumers' column k * s[c(k)]

leaves the outputs as they are. Which channel c(k) of the producer a column k reads is measured:
the producer's outputs are multiplied by powers of two that spell the number of each channel, and
the number is read off the consumer's input. So heads that are repeated, fused projections,
flattened images and shuffled channels need no rule of their own. Every pair is then proven by
scaling the weights and running the block. All factors are powers of two: a product with them is
exact in every dtype, and what should be equal is equal in all bits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .batches import evaluating
from .calls import tensors_of
from .records import Record, full_name, records_of, unreached
from .sample import Run, is_unchanged, rounding_tolerance, sample_of
from .scaling import (
    Scalable,
    channel_axis,
    divide_outputs,
    fold,
    in_channels,
    is_norm,
    of_producer,
    out_channels,
    parameters_of,
    scaled,
    unshared,
    weight_of,
)
from .stream import Block

__all__ = ["Known", "Scalable", "find_scalable", "fold", "scaled"]

_CANDIDATES = 4  # producers that are tried for an input, the nearest first
_BASE = 16  # a number of a channel is spelled in digits of this base
_READING_TOLERANCE = 0.01  # attention weights add up to 1 in bfloat16
_TOLERANCE = 1e-6  # powers of two are exact, but for numbers that underflow


class Finding(NamedTuple):
    """A :class:`Scalable` without its modules, which would otherwise outlive their block."""

    places: tuple[str, ...]
    channels: Tensor
    plus_one: bool


Known: TypeAlias = dict[object, list[Finding]]


def find_scalable(block: Block, known: Known | None = None) -> list[Scalable]:
    """Every place of a block that can be scaled, proven on its first call.

    Parameters
    ----------
    block : Block
        Its weights are changed for the proof and put back, bit for bit.
    known : dict, optional
        Kept by the caller between blocks, first empty: what was found in a block is tried first in
        others that have the same modules.

    Returns
    -------
    list of Scalable
        In the order of calls. A consumer is in one of them at most.

    Notes
    -----
    The proof covers the tensors that the block returns. A pair is refused where a parameter is
    shared, where a consumer or another reader of the producer is packed, and where the sample does
    not reach it or what may be another reader, such as an expert that no token is sent to.
    """
    with evaluating(block.module), torch.no_grad():
        run = sample_of(block)
        outputs = run()
        usable = unshared(block.model)
        known = {} if known is None else known
        signature = _signature(block)
        before = known.get(signature)
        found = None if before is None else _as_before(block, before, run, outputs, usable)
        if found is None:
            records = records_of(block, run)
            groups = _groups(block, records, usable)
            tried = (_search(group, records, run, outputs, usable) for group in groups)
            found = [scalable for scalable in tried if scalable is not None]
            missed = unreached(block, run) if found else []
            found = [scalable for scalable in found if not _may_be_read(scalable, missed)]
        known[signature] = [Finding(one.places, one.channels, one.plus_one) for one in found]
    return found


class _Group(NamedTuple):
    """The consumers of one tensor."""

    consumers: list[Record]
    before: int  # records made before the first of them was called


class _ReachedError(Exception):
    """Ends a run whose rest is not needed."""


def _signature(block: Block) -> object:
    """What blocks with the same modules have in common."""
    layers = frozenset(map(id, block.layers.values()))
    return tuple(
        (
            place,
            type(module),
            id(module) in layers,
            *(tuple(p.shape) for p in parameters_of(module)),
        )
        for place, module in block.module.named_modules()
    )


# --- search ---


def _groups(
    block: Block, records: list[Record], usable: Callable[[nn.Module], bool]
) -> list[_Group]:
    """Consumers by the tensor that they get; those that cannot be scaled are left out."""
    groups: list[_Group] = []
    for place, record in enumerate(records):
        if in_channels(record.module) is None:
            continue
        same = (group for group in groups if record.x.is_set_to(group.consumers[0].x))
        group = next(same, None)
        if group is None:
            groups.append(_Group([record], place))
        else:
            group.consumers.append(record)
    layers = set(map(id, block.layers.values()))
    return [
        group
        for group in groups
        if any(id(record.module) in layers for record in group.consumers)
        and all(usable(record.module) for record in group.consumers)
        and len({in_channels(record.module) for record in group.consumers}) == 1
    ]


def _search(
    group: _Group,
    records: list[Record],
    run: Run,
    outputs: list[Tensor],
    usable: Callable[[nn.Module], bool],
) -> Scalable | None:
    """The nearest producer that the consumers can be scaled with."""
    first = group.consumers[0]
    C = in_channels(first.module) or 0
    before = records[: group.before][::-1]
    itself = [record for record in before if record.y.is_set_to(first.x)]
    candidates = itself or [record for record in before if _fits(record, C)]
    for producer in [record for record in candidates if usable(record.module)][:_CANDIDATES]:
        for channels in _channel_maps(producer, first, run):
            for plus_one in (False, True) if is_norm(producer.module) else (False,):
                scalable = Scalable(
                    producer.module,
                    {record.name: record.module for record in group.consumers},
                    channels,
                    plus_one,
                    (producer.place, *(record.place for record in group.consumers)),
                )
                if _is_proven(scalable, run, outputs):
                    return scalable
    return None


def _fits(producer: Record, C: int) -> bool:
    """Channels are repeated or flattened, or are a part of those of a fused projection."""
    N = out_channels(producer.module) or 0
    return C % N == 0 or C < N <= 3 * C


def _channel_maps(producer: Record, consumer: Record, run: Run) -> Iterator[Tensor]:
    """What may be the producer's channel of each input channel of the consumer."""
    N, C = out_channels(producer.module) or 0, in_channels(consumer.module) or 0
    if producer.y.shape[channel_axis(producer.module, producer.y)] != N:
        return
    if N == C and producer.y.is_set_to(consumer.x):
        yield torch.arange(C)
        return
    # Of a fused projection, the other part may be a gate, which is not to change.
    parts = [range(N)] if N <= C else [range(N), range(N - C, N), range(C)]
    for part in parts:
        channels = _measure(producer, consumer, torch.tensor(part), run)
        if channels is not None:
            yield channels


def _measure(producer: Record, consumer: Record, part: Tensor, run: Run) -> Tensor | None:
    """The map as it is read off the consumer's input when a part of the channels is scaled."""
    N = out_channels(producer.module) or 0
    plain = _reached(producer, consumer, torch.ones(N), run)
    channels = torch.zeros(plain.shape[1], dtype=torch.int64)
    lives = plain.abs().sum(0) > 0
    for place in range(max(1, math.ceil(math.log(N, _BASE) - 1e-9))):
        digits = part // _BASE**place % _BASE - _BASE // 2
        factors = torch.ones(N).index_copy_(0, part, digits.float().exp2())
        spelled = _reached(producer, consumer, factors, run)
        ratio = spelled.abs().sum(0) / plain.abs().sum(0)
        found = ratio.log2().round().nan_to_num(0, 0, 0)
        expected = plain * found.exp2()
        wrong = (spelled - expected).norm(dim=0) > _READING_TOLERANCE * expected.norm(dim=0)
        found += _BASE // 2
        if bool((lives & (wrong | (found < 0) | (found >= _BASE))).any()):
            return None
        channels += found.long() * _BASE**place
    return _completed(channels, lives, N)


def _completed(channels: Tensor, lives: Tensor, N: int) -> Tensor | None:
    """Channels that are zero in the sample get the number that follows from those of others."""
    count = torch.arange(len(channels))
    shift = (channels - count)[lives]
    if len(shift) == 0:
        return None
    if not bool(lives.all()):
        if bool((shift != shift[0]).any()):
            return None
        channels = count + shift[0]
    return channels if bool(((channels >= 0) & (channels < N)).all()) else None


def _reached(producer: Record, consumer: Record, factors: Tensor, run: Run) -> Tensor:
    """What reaches the consumer, [rows, C], when the producer makes the same factors everywhere.

    They are positive, so that ReLU lets them pass, and the same for all tokens, so that attention
    does, whatever its queries and keys.
    """
    reached = []

    def replace(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        axis = channel_axis(module, y)
        shape = [-1 if dim == axis % y.dim() else 1 for dim in range(y.dim())]
        return torch.ones_like(y) * factors.to(y.dtype).view(shape)

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        x = next(tensors_of([args, kwargs]))
        reached.append(x.movedim(channel_axis(module, x), -1).reshape(-1, in_channels(module) or 0))
        raise _ReachedError

    hooks = (
        producer.module.register_forward_hook(replace),
        consumer.module.register_forward_pre_hook(stop, with_kwargs=True),
    )
    try:
        run()
    except _ReachedError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return reached[0].double()


def _may_be_read(scalable: Scalable, missed: list[str]) -> bool:
    """Whether the smallest module around producer and consumers has parts that were not reached."""
    parents = [place.split(".")[:-1] for place in scalable.places]
    common = takewhile(lambda names: len(set(names)) == 1, zip(*parents, strict=False))
    around = "".join(f"{names[0]}." for names in common)
    return any(place.startswith(around) for place in missed)


# --- proof ---


def _is_proven(scalable: Scalable, run: Run, outputs: list[Tensor]) -> bool:
    """Whether scaling leaves the outputs as they are, and scaling the producer alone does not."""
    s = _powers_of_two(scalable)
    with _restored([scalable]):
        fold(scalable, s)
        after = run()
    with _restored([scalable]):
        divide_outputs(scalable, of_producer(scalable, s))
        alone = run()
    weight = weight_of(scalable.producer)
    assert weight is not None
    tolerance = rounding_tolerance(weight) if scalable.plus_one else _TOLERANCE
    return is_unchanged(after, alone, outputs, tolerance)


def _as_before(
    block: Block,
    before: list[Finding],
    run: Run,
    outputs: list[Tensor],
    usable: Callable[[nn.Module], bool],
) -> list[Scalable] | None:
    """What was found in a block of the same modules, proven in one run; None where it fails."""
    module = block.module
    names = {id(layer): name for name, layer in block.layers.items()}
    found = []
    for places, channels, plus_one in before:
        producer, *consumers = map(module.get_submodule, places)
        named = {
            names.get(id(consumer), full_name(block, place)): consumer
            for place, consumer in zip(places[1:], consumers, strict=True)
        }
        found.append(Scalable(producer, named, channels, plus_one, places))
    modules = (module for scalable in found for module in _modules(scalable))
    if not all(map(usable, modules)):
        return None
    with _restored(found):
        for scalable in found:
            fold(scalable, _powers_of_two(scalable))
        after = run()
    return found if all(map(torch.equal, after, outputs)) else None


def _powers_of_two(scalable: Scalable) -> Tensor:
    """A half or two for each channel, by chance."""
    generator = torch.Generator().manual_seed(0)
    N = out_channels(scalable.producer) or 0
    factors = torch.randint(0, 2, (N,), generator=generator) * 1.5 + 0.5
    return factors[scalable.channels]


def _modules(scalable: Scalable) -> tuple[nn.Module, ...]:
    return (scalable.producer, *scalable.consumers.values())


@contextlib.contextmanager
def _restored(scalables: Iterable[Scalable]) -> Iterator[None]:
    """Parameters get the values back that they had."""
    modules = (module for scalable in scalables for module in _modules(scalable))
    saved = [(p, p.clone()) for module in modules for p in parameters_of(module)]
    try:
        yield
    finally:
        for parameter, value in saved:
            parameter.copy_(value)
