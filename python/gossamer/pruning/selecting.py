"""The smallest of very many numbers, exactly, without sorting or joining them.

Numbers are keys: int32, not negative. Two passes find the key below which the wanted count lies: a
histogram of the upper 16 bits over everything, then one of the lower bits inside the bin that the
count ends in. Memory is that of the histograms, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Reader: TypeAlias = Callable[[], Iterable[Tensor]]  # gives the keys of a weight, in parts
_LOW_BITS = 16
_LOW_MASK = (1 << _LOW_BITS) - 1
_HIGH_BINS = 1 << (31 - _LOW_BITS)


class Cut(NamedTuple):
    """Where the keys of one weight are divided.

    Attributes
    ----------
    key : int
        Smaller ones go, larger ones stay.
    stay : int
        Of those that are equal, so many stay: the first.
    """

    key: int
    stay: int


def common_cuts(
    weights: Sequence[Reader], share: float, advance: Callable[[int], None] | None = None
) -> list[Cut]:
    """Cuts by which ``round(share * n)`` of the n keys of all weights together go."""
    high = torch.zeros(_HIGH_BINS, dtype=torch.int64)
    for weight in weights:
        for keys in weight():
            high += torch.bincount((keys >> _LOW_BITS).flatten(), minlength=_HIGH_BINS)
            if advance is not None:
                advance(keys.numel())
    count = round(share * int(high.sum()))
    upper, below = _bin_of(high, count)
    lows = []
    for weight in weights:
        low = torch.zeros(_LOW_MASK + 1, dtype=torch.int32)
        for keys in weight():
            inside = keys[keys >> _LOW_BITS == upper] & _LOW_MASK
            low += torch.bincount(inside, minlength=_LOW_MASK + 1).to(torch.int32)
            if advance is not None:
                advance(keys.numel())
        lows.append(low)
    lower, below_inside = _bin_of(
        sum(lows, torch.zeros(_LOW_MASK + 1, dtype=torch.int64)), count - below
    )
    equal = [int(low[lower]) for low in lows]
    stay = sum(equal) - (count - below - below_inside)
    cuts = []
    for ties in equal:
        cuts.append(Cut((upper << _LOW_BITS) | lower, min(ties, stay)))
        stay -= cuts[-1].stay
    return cuts


def _bin_of(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bin in which the smallest `count` end, and how many are in those before it."""
    cumulative = histogram.cumsum(0)
    index = int(torch.searchsorted(cumulative, count))
    return index, int(cumulative[index] - histogram[index])


def keep_above(keys: Tensor, cut: Cut, seen: int) -> tuple[Tensor, int]:
    """Which keys stay, where `seen` equal ones came before; and how many have come after them."""
    keep, equal = keys > cut.key, keys == cut.key
    ties = int(equal.sum())
    if ties:
        order = equal.flatten().cumsum(0).view(keys.shape) + seen
        keep |= equal & (order <= cut.stay)
    return keep, seen + ties


def keep_largest(keys: Tensor, count: int) -> Tensor:
    """The `count` largest of each row [rows, columns], bool; of equal ones the first."""
    columns = keys.shape[1]
    if count >= columns:
        return torch.ones_like(keys, dtype=torch.bool)
    cut = keys.kthvalue(columns - count, dim=1, keepdim=True).values
    keep, equal = keys > cut, keys == cut
    stay = count - keep.sum(1, keepdim=True)
    if bool((equal.sum(1, keepdim=True) > stay).any()):  # otherwise spares a pass in int64
        equal &= equal.cumsum(1) <= stay
    return keep.logical_or_(equal)
