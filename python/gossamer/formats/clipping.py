"""A search for the scales of groups that lose least, by a weighted sum of squares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .codebooks import codebook, nearest_levels, storable
from .groups import divided, in_groups, row_chunks

if TYPE_CHECKING:
    from .grids import Grid

_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)  # of the range of a group
_LEAST_SQUARES_STEPS = 2
_MIDDLE, _CODES = 8, 15  # of int4


def best_scales(grid: Grid, W: Tensor, importance: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros [N, groups] that lose no more than those of the grid.

    Parameters
    ----------
    grid : Grid
        Where the search begins.
    W : Tensor
        Shape (N, K), finite.
    importance : Tensor
        Float32 (K,), finite, >= 0: the factor of each column's squared error.
    """
    scales = grid.scales.clone()
    zeros = None if grid.zeros is None else grid.zeros.clone()
    weights = in_groups(importance[None] / importance.max().clamp(min=1e-30), grid.group_size)
    for rows in row_chunks(W.shape[0], W.shape[1], grid.row_block):
        search = Search(grid, in_groups(W[rows], grid.group_size), rows, weights)
        search.shrink()
        for _ in range(_LEAST_SQUARES_STEPS):
            search.improve()
        scales[rows] = search.scales
        if zeros is not None and search.zeros is not None:
            zeros[rows] = search.zeros
    return scales, zeros


class Search:
    """The best scales so far of some rows, in groups.

    Attributes
    ----------
    scales, zeros : Tensor
        Float32 [n, groups]; zeros may be None.
    asymmetric : bool
        Whether zeros may move.
    loss : Tensor
        Float32 [n, groups], or equal for all rows of a block: what they lose.
    """

    def __init__(self, grid: Grid, groups: Tensor, rows: slice, weights: Tensor) -> None:
        self.grid, self.groups, self.weights = grid, groups, weights
        self._book = codebook(grid.format, grid.settings)
        self.asymmetric = not grid.settings.get("symmetric", True)
        self.scales = grid.scales[rows].clone()
        self.zeros = None if grid.zeros is None else grid.zeros[rows].clone()
        self.loss = self.loss_of(self.scales, self.zeros)

    def levels(self, scales: Tensor, zeros: Tensor | None) -> Tensor:
        """Level less zero of each weight: [n, groups, G]."""
        by_weight = None if zeros is None else zeros[:, :, None]
        return nearest_levels(divided(self.groups, scales[:, :, None]), self._book, by_weight)

    def attempt(self, scales: Tensor, zeros: Tensor | None = None) -> None:
        """Take these scales, and zeros if given, where they lose less."""
        scales = storable(self.grid.format, self.grid.settings, self.grid.group_size, scales)
        zeros = self.zeros if zeros is None else zeros
        loss = self.loss_of(scales, zeros)
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.scales = torch.where(better, scales, self.scales)
        if zeros is not None and self.zeros is not None:
            self.zeros = torch.where(better, zeros, self.zeros)

    def shrink(self) -> None:
        """Try parts of the range, which clip a few large weights and make all steps finer."""
        low, high = self.groups.aminmax(dim=2)
        shares: tuple[float, ...] = (*_SHARES, *(-share for share in _SHARES))
        if self.asymmetric:
            self._shrink_both_ends(low.clamp_(max=0), high.clamp_(min=0))
            return
        whole = self.scales
        if self.grid.format == "int4":
            whole = torch.where(-low > high, low, high) / -_MIDDLE
        elif self.grid.format == "mxfp4":
            shares = (2.0, 0.5)
        elif self.grid.format != "nf4":  # levels of both signs are alike
            shares = _SHARES[1:]
        for share in shares:
            self.attempt(whole * share)

    def _shrink_both_ends(self, low: Tensor, high: Tensor) -> None:
        for low_share in _SHARES[:-1]:
            for high_share in _SHARES[:-1]:
                scales = (high * high_share - low * low_share) / _CODES
                self.attempt(scales, divided(-low * low_share, scales).round_().clamp_(0, _CODES))

    def improve(self) -> None:
        """Try the least-squares scales for the levels that the weights have."""
        levels = self.levels(self.scales, self.zeros)
        self.attempt(self.least_squares(levels, self.groups))

    def least_squares(self, levels: Tensor, target: Tensor) -> Tensor:
        """The factors of levels [n, groups, G] that come closest to a target; 1 for no levels."""
        weighted = levels * self.weights
        above = block_sums((weighted * target).sum(2), self.grid.row_block)
        below = block_sums((weighted * levels).sum(2), self.grid.row_block)
        return torch.where(below > 0, above / below, 1.0)

    def loss_of(self, scales: Tensor, zeros: Tensor | None) -> Tensor:
        """What a group would lose."""
        error = self.errors(scales, zeros).square_().mul_(self.weights)
        return block_sums(error.sum(2), self.grid.row_block)

    def errors(self, scales: Tensor, zeros: Tensor | None) -> Tensor:
        """Rounded less given, of each weight: [n, groups, G]."""
        return self.levels(scales, zeros).mul_(scales[:, :, None]).sub_(self.groups)


def block_sums(values: Tensor, rows: int) -> Tensor:
    """The sum over each block of that many rows, for each of its rows: [n, groups]."""
    if rows == 1:
        return values
    n = len(values)
    padded = torch.nn.functional.pad(values, (0, 0, 0, -n % rows))
    sums = padded.view(-1, rows, values.shape[1]).sum(1)
    return sums.repeat_interleave(rows, 0)[:n]


def block_means(values: Tensor, rows: int) -> Tensor:
    """The mean over each block of that many rows, for each of its rows: [n, groups]."""
    values = values.double()  # in which the mean of equal float32 is exact
    return (block_sums(values, rows) / block_sums(torch.ones_like(values), rows)).float()
