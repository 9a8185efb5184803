"""What a layer can be factorized into: the ranks for a goal, and the layers for these ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..formats import LowRank
from ..nn import Linear
from ..nn.linear import dense_weight, is_conv1d
from . import convolution, matrices
from .allocation import Curve, rank_curve
from .sensitivity import Measure

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Goal:
    """What decides the ranks; one of these is not None.

    Attributes
    ----------
    rank : int or None
        That of each layer.
    ratio : float or None
        Share of its parameters that each layer keeps at most.
    rel_error : float or None
        That of each layer at most, by its measure.
    parameters : float or int or None
        A budget of all layers together: not for a layer to decide.
    """

    rank: int | None = None
    ratio: float | None = None
    rel_error: float | None = None
    parameters: float | int | None = None


@dataclass(frozen=True)
class Built:
    """The replacement of a layer.

    Attributes
    ----------
    module : nn.Module
        With the same inputs and outputs.
    error : float
        ``|W - Ŵ| / |W|`` (Frobenius), rounding of the factors included.
    kept : float
        Share of the energy that is kept, by the measure.
    """

    module: nn.Module
    error: float
    kept: float


class Plan(Protocol):
    """One layer and the form that it is factorized into; sizes are numbers of parameters."""

    form: str
    dense_size: int
    break_even: Ranks
    least_size: int

    def size(self, ranks: Ranks) -> int:
        """Parameters with these ranks."""
        ...

    def choose(self, goal: Goal) -> Ranks | str:
        """The ranks that a goal wants, or why the layer stays dense."""
        ...

    def curve(self) -> Curve:
        """All ranks worth having, with the energy that they keep."""
        ...

    def build(self, ranks: Ranks) -> Built:
        """The layers with ranks that were chosen or are on the curve."""
        ...


class MatrixPlan:
    """A layer whose weight is factorized as one matrix [n, k].

    Parameters
    ----------
    form : str
        What it becomes.
    matrix : callable
        Gives the matrix, in any dtype.
    shape : tuple of int
        (n, k).
    measure : Measure
        For this matrix.
    build : callable
        Takes U and V, gives the layers and their relative error.
    seed : int
        Of the solver.
    """

    def __init__(
        self,
        form: str,
        matrix: Callable[[], Tensor],
        shape: tuple[int, int],
        measure: Measure,
        build: Callable[[Tensor, Tensor], tuple[nn.Module, float]],
        seed: int,
    ) -> None:
        self.form = form
        self.dense_size = shape[0] * shape[1]
        self.break_even: Ranks = ((self.dense_size - 1) // sum(shape),)
        self._step = sum(shape)
        self.least_size = self._step if self.break_even[0] else self.dense_size
        self._matrix, self._measure, self._build, self._seed = matrix, measure, build, seed
        self._found: matrices.Subspace | None = None

    def size(self, ranks: Ranks) -> int:
        """Parameters with this rank."""
        return ranks[0] * self._step

    def choose(self, goal: Goal) -> Ranks | str:
        """The rank that a goal wants, or why the layer stays dense."""
        (largest,) = self.break_even
        if goal.ratio is not None:
            rank = min(largest, math.floor(goal.ratio * self.dense_size / self._step))
            return (rank,) if rank else _too_large(self._step, self.dense_size)
        rank = goal.rank or 1
        if goal.rel_error is not None and rank <= largest:
            self._found = self._solve(rel_error=goal.rel_error)
            rank = self._found.rank
        return (rank,) if rank <= largest else _above((rank,), self.break_even)

    def curve(self) -> Curve:
        """Every rank up to the break-even."""
        (largest,) = self.break_even
        if not largest:
            none = torch.empty(0, dtype=torch.int64)
            return Curve(none[:, None], none, none.double(), self.dense_size)
        self._found = found = self._solve(rank=largest, all_ranks=True)
        worth = self._measure.worth_of(found.total, self.dense_size)
        return rank_curve(found.energies, found.total, self._step, self.dense_size, worth)

    def build(self, ranks: Ranks) -> Built:
        """The layer with two factors, or the two layers."""
        found = self._found or self._solve(rank=ranks[0])
        W = self._matrix()
        module, error = self._build(*found.factors(W, ranks[0]))
        self._found = None
        return Built(module, error, found.kept(ranks[0]))

    def _solve(self, **wanted: Any) -> matrices.Subspace:
        return matrices.solve(self._matrix(), self._measure, seed=self._seed, **wanted)


class TuckerPlan:
    """A convolution that becomes 1x1, kernel, 1x1.

    Parameters
    ----------
    conv : nn.Conv2d
        In one group.
    measure : Measure
        Its columns are channels.
    """

    form = "tucker"

    def __init__(self, conv: nn.Conv2d, measure: Measure) -> None:
        self._conv, self._measure = conv, measure
        self.dense_size = conv.weight.numel()
        self._found: convolution.Tucker | None = None
        ranks = range(max(conv.out_channels, conv.in_channels), 0, -1)
        pairs = (self._pair(rank) for rank in ranks)
        self.break_even: Ranks = next((p for p in pairs if self.size(p) < self.dense_size), (0, 0))
        self.least_size = self.size((1, 1)) if self.break_even[0] else self.dense_size

    def size(self, ranks: Ranks) -> int:
        """Parameters with these ranks."""
        outputs, inputs = ranks
        return convolution.tucker_size(self._conv.weight.shape, outputs, inputs)

    def choose(self, goal: Goal) -> Ranks | str:
        """The ranks that a goal wants, or why the layer stays dense."""
        if goal.rank is not None:
            pair = self._pair(goal.rank)
            return pair if self.size(pair) < self.dense_size else _above(pair, self.break_even)
        curve = self.curve()
        if goal.ratio is not None:
            index = curve.largest_within(goal.ratio * self.dense_size)
            if index is None:
                return _too_large(self.size((1, 1)), self.dense_size)
        else:
            assert goal.rel_error is not None
            index = curve.smallest_keeping(1 - goal.rel_error**2)
            if index is None:
                return f"a relative error of {goal.rel_error:g} needs as many parameters as it has"
        return tuple(curve.ranks[index].tolist())

    def curve(self) -> Curve:
        """The pairs of ranks that no smaller one keeps as much as."""
        self._found = convolution.Tucker.solve(self._conv.weight.detach(), self._measure)
        return self._found.curve(self._measure)

    def build(self, ranks: Ranks) -> Built:
        """The two or three layers."""
        kernel = self._conv.weight.detach()
        found = self._found or convolution.Tucker.solve(kernel, self._measure)
        A, core, B, kept = found.factors(ranks[0], ranks[1])
        self._found = None
        module = convolution.tucker_layers(self._conv, A, core, B)
        return Built(module, _kernel_error(kernel, module), kept)

    def _pair(self, rank: int) -> Ranks:
        return min(rank, self._conv.out_channels), min(rank, self._conv.in_channels)


def plan_for(
    layer: nn.Module, measure: Measure, factors: str, convolutions: str | None, seed: int
) -> Plan:
    """How a layer, with plain parameters, is factorized."""
    if not isinstance(layer, nn.Conv2d):
        return _linear_plan(layer, measure, factors, seed)
    if layer.kernel_size == (1, 1):
        return _pointwise_plan(layer, measure, seed)
    if convolutions == "tucker":
        return TuckerPlan(layer, measure)
    return _separated_plan(layer, measure, seed)


def _linear_plan(layer: nn.Module, measure: Measure, factors: str, seed: int) -> MatrixPlan:
    def build(U: Tensor, V: Tensor) -> tuple[nn.Module, float]:
        dense = dense_weight(layer)
        weight = LowRank.from_factors(U, V, factors)
        N, K = dense.shape
        new = Linear(K, N, weight=weight, bias=layer.bias, dtype=dense.dtype)  # type: ignore[arg-type]
        new._remember_dense(dense, weight)
        new._from_conv1d = is_conv1d(layer)
        assert new.weight_error is not None
        return new.train(layer.training), new.weight_error

    N, K = dense_weight(layer).shape
    return MatrixPlan("low-rank", lambda: dense_weight(layer), (N, K), measure, build, seed)


def _pointwise_plan(conv: nn.Conv2d, measure: Measure, seed: int) -> MatrixPlan:
    kernel = conv.weight.detach()

    def build(U: Tensor, V: Tensor) -> tuple[nn.Module, float]:
        module = convolution.pointwise_layers(conv, U, V)
        return module, _kernel_error(kernel, module)

    shape = conv.out_channels, conv.in_channels
    return MatrixPlan("1x1, 1x1", lambda: kernel.flatten(1), shape, measure, build, seed)


def _separated_plan(conv: nn.Conv2d, measure: Measure, seed: int) -> MatrixPlan:
    kernel = conv.weight.detach()
    height, width = conv.kernel_size

    def build(U: Tensor, V: Tensor) -> tuple[nn.Module, float]:
        module = convolution.separated_layers(conv, U, V)
        return module, _kernel_error(kernel, module)

    return MatrixPlan(
        "spatial",
        lambda: convolution.separated_matrix(kernel),
        (conv.out_channels * width, conv.in_channels * height),
        convolution.separated_measure(measure, conv.kernel_size),
        build,
        seed,
    )


def _kernel_error(kernel: Tensor, layers: nn.Sequential) -> float:
    exact = kernel.double()
    size = float(exact.norm())
    found = convolution.composed_kernel(layers)
    return float((found - exact).norm()) / size if size else 0.0


def _above(ranks: Ranks, break_even: Ranks) -> str:
    if not break_even[0]:
        return "even rank 1 has no fewer parameters than the dense layer"
    return f"needs rank {show(ranks)}, above its break-even of {show(break_even)}"


def _too_large(size: int, dense_size: int) -> str:
    return f"even rank 1 has {size / dense_size:.0%} of the parameters of the dense layer"


def show(ranks: Ranks) -> str:
    """Ranks in text."""
    return " x ".join(map(str, ranks))
