"""Coordinate descent on the error of a layer's outputs, over scales and over codes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._ops_calibration import BLOCK, Moves
from ..formats.codebooks import storable
from ..formats.grids import Grid
from ..formats.groups import over_k
from ..svd import algebra


class Descent:
    """Moves a rounded weight to where ``tr((W - Ŵ) H (W - Ŵ)ᵀ)`` is smaller, and never larger.

    Everything is transposed, [K, N]: a column of the weight is a row here. A pass visits blocks of
    columns, and begins each with its gradients ``H Eᵀ``, E = W - Ŵ as it is then, one product.

    Parameters
    ----------
    W : Tensor
        Shape (N, K), float32.
    codes : Tensor
        uint8 (N, K), on the grid.
    grid : Grid
        Of the codes.
    H : Tensor
        Float32 (K, K), symmetric, positive semidefinite.
    keep : Tensor, optional
        Bool (N, K): codes stay as they are where it is False.
    """

    def __init__(
        self, W: Tensor, codes: Tensor, grid: Grid, H: Tensor, keep: Tensor | None = None
    ) -> None:
        K = W.shape[1]
        self._grid, self._size = grid, grid.group_size or K
        levels = grid.levels[codes.T.int()]
        if grid.zeros is not None:
            levels -= over_k(grid.zeros, grid.group_size, K).T
        E = W.T - levels * over_k(grid.scales, grid.group_size, K).T
        self._moves = moves = Moves(E, levels, H, keep)
        self._scales = moves.padded(grid.scales.T, torch.float32)
        zeros = None if grid.zeros is None else moves.padded(grid.zeros.T, torch.float32)
        groups = (torch.arange(K) // self._size).to(torch.int32)
        self._codes = moves.use_grid(self._scales, zeros, groups)
        self._codes[:, : moves.N] = codes.T
        if grid.thresholds is None:
            moves.use_uniform(float(grid.levels[0]), float(grid.levels[-1]))
        else:
            moves.use_codebook(grid.levels.contiguous(), grid.thresholds.contiguous())

    @property
    def codes(self) -> Tensor:
        """uint8 (N, K)."""
        return self._codes[:, : self._moves.N].T.contiguous()

    @property
    def grid(self) -> Grid:
        """With the scales as they are now."""
        return self._grid.with_scales(self._scales[:, : self._moves.N].T.contiguous())

    def move_scales(self) -> None:
        """One group after the other takes the best scale for its codes that can be stored."""
        for first, last in self._blocks(max(self._size, BLOCK // self._size * self._size)):
            owed = self._gradients(first, last)
            for start in range(first, last, self._size):
                stop = min(start + self._size, last)
                moved = self._move_scale(start, stop, owed[start - first : stop - first])
                if stop < last:
                    rest = self._moves.H[stop:last, start:stop]
                    owed[stop - first :] -= algebra.times(rest, moved)

    def move_codes(self) -> None:
        """One column after the other takes the best codes, the others being as they are.

        With all else fixed, ``Ŵ[n, k] + (H Eᵀ)[k, n] / H[k, k]`` would be the best number: its
        nearest level is taken.
        """
        for first, last in self._blocks(BLOCK):
            self._moves.descend(self._gradients(first, last), first, last)

    def _blocks(self, width: int) -> Iterator[tuple[int, int]]:
        K = self._moves.K
        return ((first, min(first + width, K)) for first in range(0, K, width))

    def _gradients(self, first: int, last: int) -> Tensor:
        return algebra.times(self._moves.H[first:last], self._moves.E)

    def _move_scale(self, start: int, stop: int, owed: Tensor) -> Tensor:
        """Move the scale of a group, whose gradients are given; by how much Ŵ moved [G, rows].

        With the levels d of the group, s + (d H Eᵀ) / (d H_gg dᵀ) is best.
        """
        grid, part, g = self._grid, slice(start, stop), start // self._size
        levels, before = self._moves.levels[part], self._scales[g]
        slope = (levels * owed).sum(0)
        curve = algebra.times(self._moves.H[part, part], levels).mul_(levels).sum(0)
        best = torch.where(curve > 0, before + slope / curve, before)
        after = storable(grid.format, grid.settings, grid.group_size, best[:, None])[:, 0]
        change = after - before
        change *= change * (change * curve - 2 * slope) < 0
        self._scales[g] += change
        moved = levels * change
        self._moves.E[part] -= moved
        return moved
