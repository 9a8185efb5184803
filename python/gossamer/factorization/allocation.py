"""Which rank each layer gets when all of them share one budget of parameters.

Layer l can have any size c of a list, of which it keeps the energy g_l(c): the sum of the largest
σ² that a rank of that size keeps, or all of it as the dense layer that it is. Wanted is

    max Σ_l v_l g_l(c_l)    with    Σ_l c_l <= budget.

Ranks. The σ² fall, so that g_l is concave: each rank more gains less. Taking the steps of all
layers in the order of gain per parameter until the next one does not fit is optimal for what is
then spent: with the gain per parameter of the last step as the Lagrange multiplier λ, each layer
has the maximum of v_l g_l(c) - λ c by itself (Everett 1963; Fox 1966). For the whole budget it is
within the gain of one step of the optimum. Steps are taken along the concave hull, which leaves out
pairs of ranks of Tucker-2 that are not worth it.

Dense layers. From some rank on, going on to the dense layer gains more than each further rank; how
much more per parameter is the slope of the last edge of the hull that has the dense layer, too. A λ
keeps those layers dense whose slope is above it. All the sets that a λ can pick are tried (the
first k by slope, k = 0, 1, ...), each with the best ranks of the other layers, and the best of them
is taken: no worse than the choice by λ alone, and than low rank everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """What a layer can become, from the smallest; as the dense layer it keeps all energy.

    Attributes
    ----------
    ranks : Tensor
        int64, shape (n, 1); (n, 2) of output and input channels, for Tucker-2.
    sizes : Tensor
        int64, shape (n,): parameters, increasing, all below those of the dense layer.
    kept : Tensor
        float64, shape (n,): share of the energy that is kept, in [0, 1], increasing.
    dense_size : int
        Parameters of the dense layer.
    worth : float
        What an energy of 1 is worth against that of other layers.
    """

    ranks: Tensor
    sizes: Tensor
    kept: Tensor
    dense_size: int
    worth: float = 1.0

    def __len__(self) -> int:
        return len(self.sizes)

    def smallest_keeping(self, share: float) -> int | None:
        """The first option that keeps a share of the energy; None: only the dense layer does."""
        index = int((self.kept < share).sum())
        return index if index < len(self) else None

    def largest_within(self, size: float) -> int | None:
        """The last option of at most some parameters; None where there is none."""
        index = int((self.sizes <= size).sum()) - 1
        return index if index >= 0 else None


def allocate(curves: Sequence[Curve], budget: int) -> list[int]:
    """The option of each layer: an index into its curve, or its length for the dense layer.

    Parameters
    ----------
    curves : sequence of Curve
        One for each layer. One without options stays dense.
    budget : int
        Parameters of all layers together; at least those of all first options.
    """
    points = [_points(curve) for curve in curves]
    steps = _steps(points)
    slopes = [_last_slope(*each) if len(each[0]) > 1 else -1.0 for each in points]
    order = sorted(range(len(points)), key=lambda layer: -slopes[layer])
    best, chosen = -1.0, [0] * len(points)
    for dense in range(len(points) + 1):
        start = [0] * len(points)
        for layer in order[:dense]:
            start[layer] = len(points[layer][0]) - 1
        left = budget - _total(points, start, 0)
        if left < 0:
            break
        taken = _affordable(steps, set(order[:dense]), left)
        for index in taken.tolist():  # the later steps of a layer come later
            start[int(steps.layers[index])] = int(steps.options[index])
        value = _total(points, start, 1)
        if value > best:
            best, chosen = value, start
    _spend(points, chosen, budget - _total(points, chosen, 0))
    return chosen


Points: TypeAlias = tuple[np.ndarray, np.ndarray]  # sizes, increasing, and what they are worth


def _points(curve: Curve) -> Points:
    """All options, the dense layer being the last."""
    sizes = np.append(curve.sizes.numpy(), curve.dense_size)
    return sizes, curve.worth * np.append(curve.kept.numpy(), 1.0)


def _total(points: Sequence[Points], chosen: Sequence[int], which: int) -> Any:
    """The size (0) or the worth (1) of all layers together."""
    return sum(each[which][option] for each, option in zip(points, chosen, strict=True))


@dataclass(frozen=True)
class _Steps:
    """Steps of all layers along their hulls, without dense ones, by gain per parameter."""

    layers: np.ndarray
    options: np.ndarray  # after the step
    costs: np.ndarray


def _steps(points: Sequence[Points]) -> _Steps:
    layers, options, costs, gains = [], [], [], []
    for layer, (sizes, values) in enumerate(points):
        hull = _hull(sizes[:-1], values[:-1])
        layers += [np.full(max(len(hull) - 1, 0), layer)]
        options += [np.array(hull[1:], dtype=np.int64)]
        costs += [np.diff(sizes[hull])]
        gains += [np.diff(values[hull]) / np.diff(sizes[hull])]
    order = np.argsort(-np.concatenate(gains), kind="stable")
    joined = (np.concatenate(each)[order] for each in (layers, options, costs))
    return _Steps(*joined)


def _affordable(steps: _Steps, without: set[int], left: int) -> np.ndarray:
    """The first steps, as many as fit, of all layers but some."""
    wanted = np.nonzero(~np.isin(steps.layers, list(without)))[0]
    fitting = np.searchsorted(np.cumsum(steps.costs[wanted]), left, side="right")
    return wanted[:fitting]


def _hull(sizes: np.ndarray, values: np.ndarray) -> list[int]:
    """The points on the upper concave hull, from the first to the last."""
    hull: list[int] = []
    for point in range(len(sizes)):
        while len(hull) > 1:
            first, second = hull[-2:]
            ahead = (values[second] - values[first]) * (sizes[point] - sizes[first])
            if ahead > (values[point] - values[first]) * (sizes[second] - sizes[first]):
                break
            hull.pop()
        hull.append(point)
    return hull


def _last_slope(sizes: np.ndarray, values: np.ndarray) -> float:
    """Gain per parameter of the step from the hull to the dense layer."""
    slopes = (values[-1] - values[:-1]) / (sizes[-1] - sizes[:-1])
    return float(slopes.min())


def _spend(points: Sequence[Points], chosen: list[int], left: int) -> None:
    """Give what is left of the budget to the layers that gain the most per parameter by it."""
    while True:
        best, step = 0.0, None
        for layer, (sizes, values) in enumerate(points):
            now = chosen[layer]
            fitting = int(np.searchsorted(sizes, sizes[now] + left, side="right")) - 1
            if fitting > now:
                gain = float(values[fitting] - values[now]) / float(sizes[fitting] - sizes[now])
                if gain > best:
                    best, step = gain, (layer, fitting)
        if step is None:
            return
        layer, option = step
        left -= int(points[layer][0][option] - points[layer][0][chosen[layer]])
        chosen[layer] = option


def rank_curve(energies: Tensor, total: float, step: int, dense_size: int, worth: float) -> Curve:
    """The options of a matrix: each rank, up to that of the energies.

    Parameters
    ----------
    energies : Tensor
        σ², from the largest.
    total : float
        Sum of all σ².
    step : int
        Parameters of one rank.
    dense_size : int
        Parameters of the dense layer.
    worth : float
        As of :class:`Curve`.
    """
    kept = energies.double().cumsum(0).div_(total) if total else torch.ones_like(energies)
    ranks = torch.arange(1, len(energies) + 1)
    return Curve(ranks[:, None], step * ranks, kept.clamp(0, 1), dense_size, worth)
