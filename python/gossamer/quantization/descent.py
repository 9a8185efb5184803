"""Coordinate descent on the error of a layer's outputs, over scales and over codes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats.codebooks import codebook, nearest_codes, storable
from ..formats.grids import Grid
from ..formats.groups import divided, over_k

_COLUMNS = 128  # in a block: what it owes the others is one matrix product


class Descent:
    """Moves a rounded weight to where ``tr((W - Ŵ) H (W - Ŵ)ᵀ)`` is smaller, and never larger.

    Everything is transposed, [K, N]: a column of the weight is a row here.

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
        self._grid, self._H = grid, H
        self._size = grid.group_size or K
        self._book = codebook(grid.format, grid.settings)
        self._keep = None if keep is None else keep.T.contiguous()
        self._codes = codes.T.contiguous()
        self._scales = grid.scales.T.contiguous()
        self._zeros = None if grid.zeros is None else grid.zeros.T.contiguous()
        self._levels = grid.levels[self._codes.int()]
        if grid.zeros is not None:
            self._levels -= over_k(grid.zeros, grid.group_size, K).T
        values = self._levels * over_k(grid.scales, grid.group_size, K).T
        self._owed = H @ (W.T - values)  # H Eᵀ

    @property
    def codes(self) -> Tensor:
        """uint8 (N, K)."""
        return self._codes.T.contiguous()

    @property
    def grid(self) -> Grid:
        """With the scales as they are now."""
        return self._grid.with_scales(self._scales.T.contiguous())

    def move_scales(self) -> None:
        """One group after the other takes the best scale for its codes that can be stored.

        With the levels d of a group, that is s + (d H Eᵀ) / (d H_gg dᵀ).
        """
        grid = self._grid
        for g, first in enumerate(range(0, len(self._levels), self._size)):
            part = slice(first, first + self._size)
            levels, before = self._levels[part], self._scales[g]
            slope = (levels * self._owed[part]).sum(0)
            curve = (self._H[part, part] @ levels).mul_(levels).sum(0)
            best = torch.where(curve > 0, before + slope / curve, before)
            after = storable(grid.format, grid.settings, grid.group_size, best[:, None])[:, 0]
            change = after - before
            change *= change * (change * curve - 2 * slope) < 0
            self._scales[g] += change
            self._owed -= self._H[:, part] @ (levels * change)

    def move_codes(self) -> None:
        """One column after the other takes the best codes, the others being as they are.

        With all else fixed, ``Ŵ[n, k] + (H Eᵀ)[k, n] / H[k, k]`` would be the best number: its
        nearest level is taken.
        """
        K = len(self._levels)
        for first in range(0, K, _COLUMNS):
            last = min(first + _COLUMNS, K)
            owed = self._owed[first:last].clone()
            changes = torch.zeros_like(owed)
            for k in range(first, last):
                if self._H[k, k] > 0:
                    change = self._move_column(k, owed[k - first] / self._H[k, k])
                    owed[k - first :].addr_(self._H[k, k:last], change, alpha=-1)
                    changes[k - first] = change
            self._owed -= self._H[:, first:last] @ changes

    def _move_column(self, k: int, wanted: Tensor) -> Tensor:
        """Move a column by about what is wanted [N], and return by how much it has moved."""
        g = k // self._size
        scales, zeros = self._scales[g], None if self._zeros is None else self._zeros[g]
        target = self._levels[k] + divided(wanted, scales)
        codes = nearest_codes(target, self._book, zeros).to(torch.uint8)
        fixed = scales == 0
        if self._keep is not None:
            fixed |= ~self._keep[k]
        codes = torch.where(fixed, self._codes[k], codes)
        levels = self._book.levels[codes.int()]
        if zeros is not None:
            levels -= zeros
        change = (levels - self._levels[k]) * scales
        self._codes[k], self._levels[k] = codes, levels
        return change
