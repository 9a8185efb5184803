"""A weight whose rounding is being learned: its place on the grid, and how far it is moved."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..formats import Format
from ..formats.grids import Grid
from ..formats.groups import in_groups

_REACH = 0.5  # of V: every weight can get the level below it and the one above
_FACTORS = (0.5, 1.5)  # of the scales
_ELEMENTS = 1 << 17  # at a time: they stay in the cache between operations


class LearnedWeight:
    """``Ŵ = (levels[c] - zero) · a s`` with ``c = clamp(round(position(W / (a s)) + V))``.

    The position of a number is the index of the level below it, plus how far it is on its way to
    the next. V [N, K] is in [-0.5, 0.5] and begins at 0, a [N, groups] in [0.5, 1.5] and at 1.
    For gradients, rounding counts as the identity (straight-through), clamping does not:

        dŴ/dV = s                     where c is not clamped, else 0; up to a positive factor
        dŴ/da = (level - W / (a s)) s  where c is not clamped, else level · s

    Parameters
    ----------
    W : Tensor
        Float32 (N, K).
    grid : Grid
        Where a = 1.
    keep : Tensor, optional
        Bool (N, K): what is False is zero.
    clip : bool
        Whether a is learned. Scales of blocks of rows, and powers of two, never are.
    """

    def __init__(self, W: Tensor, grid: Grid, keep: Tensor | None, clip: bool) -> None:
        self.shape = W.shape
        self.grid = grid
        self.keep = keep
        self.V = torch.zeros(in_groups(W[:1], grid.group_size).expand(len(W), -1, -1).shape)
        self.factors = torch.ones(grid.scales.shape)
        self.clip = clip and grid.row_block == 1 and grid.format != "mxfp4"
        self._W = in_groups(W, grid.group_size)
        self._keep = None if keep is None else in_groups(keep, grid.group_size)
        self._levels, self._codes = _distinct(grid)
        self._spaced = grid.thresholds is None  # evenly: levels are whole numbers
        self._step = max(1, _ELEMENTS // (self._W.shape[1] * self._W.shape[2]))

    def parameters(self) -> list[Tensor]:
        """What is learned: V, and the factors of the scales if they are."""
        return [self.V, self.factors] if self.clip else [self.V]

    def clamp(self) -> None:
        """Keep what is learned within its range."""
        self.V.clamp_(-_REACH, _REACH)
        self.factors.clamp_(*_FACTORS)

    def rounded(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Ŵ [N, K]."""
        out = torch.empty(self._W.shape, dtype=dtype)
        for rows in self._chunks():
            index, _, _ = self._index(rows)
            values = self._value(index, rows).mul_(self._scales(rows))
            out[rows] = values if self._keep is None else values.mul_(self._keep[rows])
        return out.flatten(1)[:, : self.shape[1]]

    def gradients(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of :meth:`parameters`, from that of Ŵ [N, K].

        That of V is right up to a positive factor for each entry.
        """
        V, factors = torch.empty_like(self.V), torch.empty_like(self.factors)
        for rows in self._chunks():
            by_group = in_groups(gradient[rows], self.grid.group_size)
            if self._keep is not None:
                by_group = by_group * self._keep[rows]
            index, inside, steps = self._index(rows)
            torch.mul(by_group, inside, out=V[rows])
            if self.clip:
                lever = self._value(index, rows).sub_(steps.mul_(inside)).mul_(by_group)
                factors[rows] = lever.sum(2).mul_(self.grid.scales[rows])
            V[rows] *= self.grid.scales[rows].sign().unsqueeze(2)
        return [V, factors] if self.clip else [V]

    def codes(self) -> Tensor:
        """What is rounded to, as indices into the levels of the grid: uint8 [N, K]."""
        codes = torch.empty(self._W.shape, dtype=torch.uint8)
        for rows in self._chunks():
            index, _, _ = self._index(rows)
            codes[rows] = self._codes[index.int()]
        codes = codes.flatten(1)[:, : self.shape[1]].contiguous()
        zero = self.grid.round(torch.zeros(self.shape))
        dead = self._scales(slice(None)).expand(self._W.shape).flatten(1)[:, : self.shape[1]] == 0
        pruned = dead if self.keep is None else dead | ~self.keep
        return torch.where(pruned, zero, codes)

    def format(self, sparse: bool) -> Format:
        """The weight as its format stores it."""
        scales = self.grid.scales * self.factors
        grid = self.grid.with_scales(scales) if self.clip else self.grid
        weight: Format = grid.to_format(self.codes(), sparse=sparse)
        return weight

    def forget(self) -> None:
        """Go back to the beginning: nearest, with the scales of the grid."""
        self.V.zero_()
        self.factors.fill_(1)

    def _chunks(self) -> Iterator[slice]:
        N = len(self._W)
        return (slice(first, min(first + self._step, N)) for first in range(0, N, self._step))

    def _scales(self, rows: slice) -> Tensor:
        return (self.grid.scales[rows] * self.factors[rows]).unsqueeze_(2)

    def _index(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Of the levels: which, whether without clamping (1 or 0); and W in steps of the scale."""
        scales = self._scales(rows)
        steps = self._W[rows] * torch.where(scales == 0, 0.0, scales.reciprocal())
        position = self._position(steps, rows).add_(self.V[rows]).round_()
        index = position.clamp(0, len(self._levels) - 1)
        return index, position.eq_(index), steps

    def _position(self, steps: Tensor, rows: slice) -> Tensor:
        """Where numbers lie between the levels, as a fractional index; a new tensor."""
        if self._spaced:
            zeros = self.grid.zeros
            offset: Tensor | float = -float(self._levels[0])
            return steps + (offset if zeros is None else zeros[rows].unsqueeze(2) + offset)
        levels = self._levels
        below = torch.bucketize(steps, levels).sub_(1).clamp_(0, len(levels) - 2)
        return (steps - levels[below]).div_(levels[below + 1] - levels[below]).add_(below)

    def _value(self, index: Tensor, rows: slice) -> Tensor:
        """Level less zero; a new tensor."""
        if not self._spaced:
            return self._levels[index.int()]
        zeros = self.grid.zeros
        offset: Tensor | float = float(self._levels[0])
        return index + (offset if zeros is None else offset - zeros[rows].unsqueeze(2))


def _distinct(grid: Grid) -> tuple[Tensor, Tensor]:
    """Levels, ascending, with zero only once; and their indices in the grid, uint8."""
    levels = torch.unique(grid.levels)
    codes = torch.searchsorted(grid.levels, levels, right=True) - 1
    return levels, codes.to(torch.uint8)
