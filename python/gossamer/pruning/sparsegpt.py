"""SparseGPT: pruned weights are made up for by those that come after them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from .. import _check
from ..calibration.known import factor_of
from ..calibration.obs import Factor, Select, update
from ..calibration.statistics import Statistics
from ..formats.grids import Grid
from ..formats.groups import finite_matrix
from .arguments import above_zero
from .patterns import block_keys, over_weights
from .pruned import Pruned
from .refining import refined
from .selecting import keep_largest

if TYPE_CHECKING:
    from .prune import Prune


@dataclass(frozen=True)
class SparseGPT:
    """Zero weights one column after the other, and let the later ones make up for each.

    With C = E[x xᵀ] of the inputs and V the pruned weight, ``tr((W - V) C (W - V)ᵀ)`` is the mean
    squared error of the outputs. The columns of W are gone through from the first to the last; the
    error of a zero is spread over the columns that are still to come such that this grows the
    least. Which weights go is decided for 128 columns at a time, when their turn comes, from the
    values that they have by then and from what each would cost.

    After that pass, with the mask fixed, the weights that stay move to where the error is least, by
    conjugate gradients: the pass could move only what came after each zero.

    Parameters
    ----------
    damping : float
        This share of the mean of C's diagonal is added to the diagonal: above 0.
    iterations : int
        Steps of the conjugate gradients, from 0: as published, without them.

    Raises
    ------
    ValueError
        For a number out of range; when used: without statistics of the inputs, or with NaN.

    Notes
    -----
    `scope` "layer" takes the same share of each 128 columns, over all rows together; "row" takes it
    in each row. Other weights change: results are not a subset of W.

    With a grid, weights are rounded as they are passed, the later ones make up for that too, and
    the mask takes account of it. With `iterations` they leave the grid again, for a method of
    rounding to bring them back.

    Before "gptq" in a recipe: without `iterations` one pass finds zeros and codes. With them, zeros
    are chosen among weights that are not rounded, the others refined, and GPTQ then makes up for
    each rounding within what stays. That is better on SmolLM2 (50 % zeros, int4 in groups of 64,
    16 windows to calibrate: perplexity 36.9; 40.0 with a mask that takes account of the grid; 38.3
    rounded to nearest).

    References
    ----------
    Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    2023. Boža, "Fast and Optimal Weight Update for Pruned Large Language Models", 2024, for what
    the best weights of a mask are worth.

    Examples
    --------
    >>> gs.Prune(0.5, method=gs.pruning.SparseGPT(damping=0.1)).scope
    'layer'
    """

    name: ClassVar[str] = "sparsegpt"
    needs: ClassVar[str] = "moment"
    scopes: ClassVar[tuple[str, ...]] = ("layer", "row")

    damping: float = 0.01
    iterations: int = 12

    def __post_init__(self) -> None:
        above_zero("SparseGPT", "damping", self.damping)
        _check.whole_number("SparseGPT", "iterations", self.iterations, 0)

    def prune(
        self,
        W: Tensor,
        statistics: Statistics | None,
        prune: Prune,
        grid: Grid | None = None,
        sparsity: float | None = None,
    ) -> Pruned:
        """Prune the weight of one layer.

        Parameters
        ----------
        W : Tensor
            Shape (N, K), float32, bfloat16 or float16.
        statistics : Statistics
            Of the inputs of the layer, with their moment.
        prune : Prune
            The sparsity, the scope and the pattern.
        grid : Grid, optional
            What the weights that stay are rounded to.
        sparsity : float, optional
            In the place of that of `prune`.

        Returns
        -------
        Pruned
            The values, and which of them stay; without `iterations` also their codes on the grid.
        """
        W = finite_matrix("SparseGPT", W).float()
        moment, factored = factor_of("SparseGPT", statistics, W.shape[1], damping=self.damping)
        select: Select | None = None
        if prune.n_of_m is None:
            share = prune.sparsity if sparsity is None else sparsity
            assert share is not None
            by_row = prune.scope == "row"
            select = partial(keep_costliest, share=share, by_row=by_row, block=prune.block)
        found = update(W, factored, select=select, n_of_m=prune.n_of_m, grid=grid)
        assert found.keep is not None
        if not self.iterations:
            return Pruned(found.values, found.keep, found.codes, grid)
        target = W.masked_fill(factored.dead, 0.0)
        H = _damped(moment, factored)
        return Pruned(refined(target, found.values, found.keep, H, self.iterations), found.keep)


def _damped(moment: Tensor, factored: Factor) -> Tensor:
    """What was factored; dead inputs have the same on their diagonal as the damping of others."""
    H, alive = moment.clone(), moment.diagonal()[~factored.dead]
    mean = float(alive.mean()) if len(alive) else 1.0
    H.diagonal().add_(factored.damping * mean)
    return H


def keep_costliest(
    scores: Tensor, first: int, *, share: float, by_row: bool, block: tuple[int, int]
) -> Tensor:
    """Which weights of a block of columns stay.

    Parameters
    ----------
    scores : Tensor
        float32, shape (N, B): what zeroing each would cost.
    first : int
        The first of the columns, a multiple of the width of a block.
    share : float
        Of all weights, or blocks, up to here, ``round(share * n)`` go; so it is exact at the end.
    by_row : bool
        Of each row; else over all rows.
    block : tuple of int
        Rows and columns that live or die together.

    Returns
    -------
    Tensor
        bool, shape (N, B).
    """
    keys = block_keys(scores.sqrt(), block)  # the norm of roots is the root of the sum
    rows, columns = keys.shape
    before = first // block[1]
    each = 1 if by_row else rows
    go = round(share * each * (before + columns)) - round(share * each * before)
    together = keys if by_row else keys.view(1, -1)
    keep = keep_largest(together, together.shape[1] - go).view(rows, columns)
    return over_weights(keep, block)[: scores.shape[0], : scores.shape[1]]
