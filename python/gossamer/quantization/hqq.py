"""HQQ: half-quadratic quantization, without data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..formats import Format
from ..formats.clipping import Search, block_sums
from ..formats.grids import Grid, fit_grid
from ..formats.groups import divided, in_groups, row_chunks
from ..schemes import Scheme
from .rounding import checked, fraction, masked

if TYPE_CHECKING:
    from ..calibration import Statistics

_BETA, _GROWTH = 10.0, 1.1  # of the quadratic penalty, for errors in units of the scale
_TINIEST = 1e-6  # an error, in units of the scale, that counts as none


@dataclass(frozen=True)
class HQQ:
    """Choose scales and zeros by a norm that forgives a few large errors.

    Lowers ``Σ |W - Ŵ|^p`` over each group, with p < 1: most weights come close to a level, and a
    few far out may lose more. No data is looked at.

    Parameters
    ----------
    iterations : int
        Half-quadratic steps.
    p : float
        In (0, 1].

    Raises
    ------
    ValueError
        For a setting out of its range.

    Notes
    -----
    Each step splits off the large errors, ``e = shrink(W - Ŵ)``, and fits what is left, ``W - e``,
    by least squares: the zero ``mean(code - (W - e) / s)``, rounded to a whole number, where the
    format has zeros that may move, then the scale. The penalty on ``W - Ŵ - e`` grows from step to
    step. Of the scales of ``quantize`` and those of all steps, the best by the norm are taken among
    those that lose no more squares than ``quantize`` does: a norm with p < 1 alone would clip large
    weights, on which the outputs depend most.

    References
    ----------
    Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023.

    Examples
    --------
    >>> from gossamer.quantization import HQQ
    >>> HQQ().round(torch.randn(8, 64), gs.Quantize("int4-g64-asym").resolved()).shape
    (8, 64)
    """

    name: ClassVar[str] = "hqq"
    needs: ClassVar[str] = "nothing"

    iterations: int = 20
    p: float = 0.7

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, int) or self.iterations < 1:
            raise ValueError(f"HQQ: iterations: got {self.iterations!r}, wanted a number >= 1")
        fraction("HQQ", "p", self.p, 0, 1)

    def round(
        self,
        W: Tensor,
        scheme: Scheme,
        statistics: Statistics | None = None,
        keep: Tensor | None = None,
    ) -> Format:
        """Round the weight of one layer.

        Parameters
        ----------
        W : Tensor
            Shape (N, K), float32, bfloat16, float16 or float64.
        scheme : Scheme
            Of the result: a format with a grid.
        statistics : Statistics, optional
            Not looked at.
        keep : Tensor, optional
            Bool (N, K): what is False is zero in the result.

        Returns
        -------
        Format
            Of the class that the scheme names.

        Raises
        ------
        ValueError
            For NaN or infinity, shapes that do not fit, or a format that has no grid.
        """
        W = masked(checked("HQQ.round", W, keep), keep)
        grid = fit_grid(scheme.format, scheme.group_size, scheme.settings, W)
        grid = self._fit(W, grid)
        sparse = scheme.format.startswith("sparse-")
        weight: Format = grid.to_format(grid.round(W), sparse=sparse)
        return weight

    def _fit(self, W: Tensor, grid: Grid) -> Grid:
        scales = grid.scales.clone()
        zeros = None if grid.zeros is None else grid.zeros.clone()
        present = in_groups(torch.ones(1, W.shape[1]), grid.group_size)  # 0 in padding
        for rows in row_chunks(W.shape[0], W.shape[1], grid.row_block):
            search = _Search(grid, in_groups(W[rows], grid.group_size), rows, present, self.p)
            self._descend(search)
            scales[rows] = search.scales
            if zeros is not None and search.zeros is not None:
                zeros[rows] = search.zeros
        fitted = grid.with_scales(scales)
        return replace(fitted, zeros=zeros)

    def _descend(self, search: _Search) -> None:
        """Half-quadratic steps, of which the best is kept."""
        scales, zeros, beta = search.scales, search.zeros, _BETA
        for _ in range(self.iterations):
            levels = search.levels(scales, zeros)
            target = divided(search.groups, scales[:, :, None])
            target -= _shrink(target - levels, beta, self.p)
            if zeros is not None and search.asymmetric:
                offset = ((levels - target) * search.weights).sum(2)
                offset /= search.weights.sum(2)
                moved = (zeros + offset).round_().clamp_(0, 15)
                levels += (zeros - moved)[:, :, None]
                zeros = moved
            scales = scales * search.least_squares(levels, target)
            search.attempt(scales, zeros)
            beta *= _GROWTH


class _Search(Search):
    """By the norm, among scales that lose no more by squares than the first ones."""

    def __init__(self, grid: Grid, groups: Tensor, rows: slice, present: Tensor, p: float) -> None:
        self._p = p
        self._limit: Tensor | None = None
        super().__init__(grid, groups, rows, present)

    def loss_of(self, scales: Tensor, zeros: Tensor | None) -> Tensor:
        """The norm of a group, to the power p."""
        size = self.errors(scales, zeros).abs_().mul_(self.weights)
        squares = block_sums(size.square().sum(2), self.grid.row_block)
        norms = block_sums(size.pow_(self._p).sum(2), self.grid.row_block)
        if self._limit is None:
            self._limit = squares
        return torch.where(squares <= self._limit, norms, torch.inf)


def _shrink(error: Tensor, beta: float, p: float) -> Tensor:
    """The e that minimizes ``|e|^p + beta / 2 (e - error)²``, nearly: what is large remains."""
    size = error.abs().clamp_(min=_TINIEST)
    return error.sign().mul_((size - size.pow(p - 1) / beta).clamp_(min=0))
