"""Statistics of the rows that layers multiply with their weights, gathered by hooks on them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .. import _check
from .._ops_calibration import ColumnStats, gram
from .rows import geometry, has_rows, input_rows, tensor_version, without_padding

_ROWS = 4096  # in one float32 product; products are added in float64
_BINS = 2048

Rows = Callable[[nn.Module, Tensor], Iterator[Tensor]]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of all rows x that a layer was given while a model ran over batches.

    Layers that always got the same tensor, such as q, k and v, have one object between them, so
    what is computed from it can be kept by its identity. K is the number of columns of
    ``folding.to_matrix(layer, layer.weight)``: the input features of a linear layer; of a
    convolution the values under its kernel in the order (height, width, channel), each position of
    the kernel being a row. For a convolution in groups, K counts the channels of all groups.

    Attributes
    ----------
    rows : int
        Number of rows. Padding, where an attention mask tells it, is not counted anywhere here.
    mean, peak, squares : Tensor
        Float32 of shape (K,): E[x], max |x| and E[x²].
    moment : Tensor or None
        Float32 of shape (K, K), symmetric: E[x xᵀ]. None where it was not asked for, and for a
        convolution in groups.
    low, high : float
        The least and the largest number in all rows.
    histogram : Tensor or None
        Float64 of shape (2048,): how many numbers of the input tensors have a magnitude in
        [i, i + 1) · ``limit`` / 2048, for a scale of a whole tensor. None where it was not asked
        for.
    limit : float
        Where the histogram ends: the power of two above the largest magnitude.
    """

    rows: int
    mean: Tensor
    peak: Tensor
    squares: Tensor
    moment: Tensor | None
    low: float
    high: float
    histogram: Tensor | None = None
    limit: float = 1.0


class Gathering:
    """Hooks on layers that measure what these are given, for as long as it is entered.

    The one who runs the model sets ``mask`` before each batch (bool [B, S], False where a token is
    padding, or None) and calls ``close`` after it; ``results`` comes last.
    """

    def __init__(
        self,
        function: str,
        modules: Mapping[str, nn.Module],
        *,
        moments: bool,
        histograms: bool = False,
        rows: Rows = input_rows,
        lane: str | None = None,
    ) -> None:
        for name, module in modules.items():
            if not has_rows(module):
                raise TypeError(
                    f"{function}: modules: {name!r} is {type(module).__name__}, wanted nn.Linear, "
                    "Conv1D, nn.Conv1d or nn.Conv2d"
                )
        self.mask: Tensor | None = None
        self._function = function
        self._modules = modules
        self._moments, self._lane = moments, lane  # of products: see gram()
        self._histograms, self._rows = histograms, rows
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._sums: dict[frozenset[str], _Sums] = {}  # of what a set of layers have all been given
        self._input: _Input | None = None

    def __enter__(self) -> Gathering:
        for name, module in self._modules.items():
            hook = self._hook(name)
            self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._hooks:
            handle.remove()

    def close(self) -> None:
        """Add the last input to the sums of those who got it."""
        last, self._input = self._input, None
        if last is None:
            return
        key = frozenset(last.names)
        if key not in self._sums:
            # The patches of a convolution in groups are multiplied with no weight as a whole.
            whole = self._rows is not input_rows or getattr(last.module, "groups", 1) == 1
            self._sums[key] = _Sums(self._moments and whole, self._histograms, self._lane)
        sums = self._sums[key]
        sums.add_tensor(last.values)
        for rows in self._rows(last.module, last.values):
            sums.add_rows(rows)
        if not sums.finite():
            raise ValueError(
                f"{self._function}: the input of {min(last.names)!r} holds NaN or infinity, or "
                "numbers whose squares are beyond float32"
            )

    def least_rows(self) -> int:
        """How many the layer was given that was given the fewest."""
        return min(
            sum(sums.rows for names, sums in self._sums.items() if name in names)
            for name in self._modules
        )

    def results(self) -> dict[str, Statistics]:
        """By layer; those that were always given the same have the same object."""
        for sums in self._sums.values():
            sums.multiply()
        done: dict[tuple[frozenset[str], ...], Statistics] = {}
        found = {}
        for name in self._modules:
            keys = tuple(key for key in self._sums if name in key)
            if not keys:
                raise ValueError(
                    f"{self._function}: {name!r} was given no row of x in all of the calibration: "
                    "the model does not call it for these batches"
                )
            if keys not in done:
                done[keys] = _statistics([self._sums[key] for key in keys])
            found[name] = done[keys]
        return found

    def _hook(self, name: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._add(name, module, args[0] if args else next(iter(kwargs.values())))

        return before

    def _add(self, name: str, module: nn.Module, x: Tensor) -> None:
        last = self._input
        if last is not None and last.is_of(module, x) and name not in last.names:
            last.names.add(name)
            return
        self.close()
        if x.is_complex() or not x.is_floating_point():
            raise TypeError(
                f"{self._function}: {name!r} got {_check.describe(x)} as its input, wanted floats"
            )
        values = without_padding(x, self.mask)
        if values.numel():
            self._input = _Input({name}, module, x, tensor_version(x), values)


@dataclass
class _Input:
    """A tensor that layers are being given."""

    names: set[str]
    module: nn.Module  # the first of them
    x: Tensor
    version: int  # tells whether x was written to since
    values: Tensor  # a copy of x, without padding

    def is_of(self, module: nn.Module, x: Tensor) -> bool:
        same = x is self.x and tensor_version(x) == self.version != -1
        return same and geometry(module) == geometry(self.module)


class _Sums:
    """Sums over rows, in float64, extremes of them, and histograms of tensors."""

    def __init__(self, moments: bool, histograms: bool, lane: str | None) -> None:
        self.rows = 0
        self.columns: ColumnStats | None = None
        self.histogram = torch.zeros(_BINS, dtype=torch.float64) if histograms else None
        self.limit = 0.0
        self.moment: Tensor | None = None
        self._moments, self._lane = moments, lane
        self._waiting: Tensor | None = None  # [4096, K], of which some rows wait to be multiplied
        self._waiting_rows = 0

    def add_tensor(self, x: Tensor) -> None:
        """Count the numbers of a tensor."""
        if self.histogram is None:
            return
        magnitudes = x.float().abs()
        peak = float(magnitudes.amax())
        if not math.isfinite(peak):
            return  # finite() will tell
        if peak == 0:  # in the first bin, wherever the last one ends
            self.histogram[0] += x.numel()
            return
        self.widen(2.0 ** math.frexp(peak)[1])
        self.histogram += torch.histc(magnitudes, _BINS, 0, self.limit)

    def widen(self, limit: float) -> None:
        """Merge bins pair by pair until the histogram ends at a limit; powers of two are exact."""
        self.limit = self.limit or limit
        while self.limit < limit and self.histogram is not None:
            pairs = self.histogram.view(-1, 2).sum(1)
            self.histogram = torch.cat([pairs, torch.zeros_like(pairs)])
            self.limit *= 2

    def add_rows(self, rows: Tensor) -> None:
        """Count rows [M, K]."""
        if self.columns is None:
            self.columns = ColumnStats(rows.shape[1])
        self.columns.add(rows if rows.dtype is not torch.float64 else rows.float())
        self.rows += len(rows)
        if self._moments:
            self._wait(rows)

    def finite(self) -> bool:
        """Whether there was neither NaN nor infinity, nor a square beyond float32."""
        return self.columns is None or bool(self.columns.sums.isfinite().all())

    def _wait(self, rows: Tensor) -> None:
        """Keep rows until there are enough for a product."""
        if self._waiting is None:
            dtype = torch.float64 if rows.dtype is torch.float64 else torch.float32
            self._waiting = rows.new_empty(_ROWS, rows.shape[1], dtype=dtype)
        while len(rows):
            part, rows = rows.tensor_split([_ROWS - self._waiting_rows])
            self._waiting[self._waiting_rows : self._waiting_rows + len(part)] = part
            self._waiting_rows += len(part)
            if self._waiting_rows == _ROWS:
                self.multiply()

    def multiply(self) -> None:
        """Add the product of the rows that wait to the moment."""
        if self._waiting is None or self._waiting_rows == 0:
            return
        x, self._waiting_rows = self._waiting[: self._waiting_rows], 0
        product = _gram(x, self._lane)
        self.moment = product.double() if self.moment is None else self.moment.add_(product)


def _gram(x: Tensor, lane: str | None) -> Tensor:
    """Σ x xᵀ, exactly symmetric."""
    if x.dtype is not torch.float64:
        return gram(x, lane)
    product = x.T @ x
    return product.add(product.T).div_(2)


def _statistics(parts: list[_Sums]) -> Statistics:
    """The means over the rows of all parts."""
    rows = sum(part.rows for part in parts)
    limit = max(part.limit for part in parts)
    for part in parts:
        part.widen(limit)
    moment = _sum(part.moment for part in parts)
    columns = [part.columns for part in parts if part.columns is not None]
    mean, squares = torch.stack([each.sums for each in columns]).sum(0).div(rows).float()
    bounds = torch.stack([each.bounds for each in columns])
    low, high = bounds[:, 0].amin(0), bounds[:, 1].amax(0)
    return Statistics(
        rows=rows,
        mean=mean,
        peak=torch.maximum(-low, high),
        squares=squares,
        moment=None if moment is None else moment.div(rows).float(),
        low=float(low.min()),
        high=float(high.max()),
        histogram=_sum(part.histogram for part in parts),
        limit=limit or 1.0,
    )


def _sum(tensors: Iterable[Tensor | None]) -> Tensor | None:
    given = [tensor for tensor in tensors if tensor is not None]
    return functools.reduce(torch.add, given) if given else None
