"""The OBS column update: what GPTQ, SparseGPT and both at once have in common.

Weights of a layer are rounded or pruned column by column. After each, the columns that are left
move so that they make up for the error, as far as the second moments H of the layer's inputs allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .. import _check
from .._ops_calibration import BLOCK, Columns
from ..formats.grids import Grid
from ..svd import algebra
from .inverse_factor import Factor, factor, is_finite

__all__ = ["Factor", "Refit", "Select", "Updated", "factor", "update"]

# (weights of a group [N, G], its columns) -> scales [N] and zeros [N] or None, as they are stored.
Refit: TypeAlias = Callable[[Tensor, slice], tuple[Tensor, Tensor | None]]
# (scores [N, B], first column) -> bool [N, B], what stays.
Select: TypeAlias = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Updated:
    """A weight after the column update, columns in the order of the weight.

    Attributes
    ----------
    values : Tensor
        float32 [N, K], zero where pruned.
    codes : Tensor or None
        uint8 [N, K], indices into the levels of the grid.
    keep : Tensor or None
        bool [N, K], what was not pruned.
    loss : float
        ``tr((W - V) H (W - V)ᵀ)`` with the damped H, W without its dead columns.
    """

    values: Tensor
    codes: Tensor | None
    keep: Tensor | None
    loss: float


def update(
    W: Tensor,
    factor: Factor,
    *,
    grid: Grid | None = None,
    refit: Refit | None = None,
    keep: Tensor | None = None,
    select: Select | None = None,
    n_of_m: tuple[int, int] | None = None,
) -> Updated:
    """Round and prune a weight column by column, each time moving the columns that are left.

    With the factor ``H^-1 = L Lᵀ``, for j = 0 .. K - 1, in the order of the factor::

        v       = 0 where pruned, else round(w_j)
        e       = (v - w_j) / L[j, j]
        w_k    += e L[k, j]        for k > j
        loss   += Σ e²

    GPTQ is this with a grid, SparseGPT with a mask that is chosen on the way; with both, weights
    that stay are rounded, and the rest makes up for either error in one pass.

    Parameters
    ----------
    W : Tensor
        float32 [N, K].
    factor : Factor
        Of the second moments [K, K] of the inputs. Columns of dead inputs count as zero.
    grid : Grid, optional
        What weights are rounded to; without one they are pruned only.
    refit : callable, optional
        Is given the weights of a group [N, G], as the columns before have left them (0 where a
        mask already prunes them), and its slice of columns, before the group is rounded. Returns
        its scales [N], zeros [N] or None. Not with an ordered factor.
    keep : Tensor, optional
        bool [N, K], a fixed mask: False is pruned.
    select : callable, optional
        Chooses the mask 128 columns (or fewer) at a time: is given the scores ``(w / L[j, j])²`` of
        the weights at that time, float32 [N, B], and the first column in the order of the factor;
        returns bool [N, B], what stays.
    n_of_m : tuple of int, optional
        Keep the n weights of each m in a row that score highest when the update reaches them. Not
        with an ordered factor.

    Returns
    -------
    Updated
        The same for every number of threads.

    Raises
    ------
    ValueError
        Where shapes do not fit, W holds NaN or infinity, or arguments exclude each other.
    TypeError
        For another dtype.

    Notes
    -----
    Blocks of 128 columns: inside, the loop above runs in C++ over rows side by side; what a block
    owes those before it is one matrix product. Sources: Frantar et al., "GPTQ" (2022); Frantar,
    Alistarh, "SparseGPT" (2023); Hassibi, Stork, "Optimal Brain Surgeon" (1992).

    Examples
    --------
    >>> x = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    >>> W = torch.tensor([[1.0, 2.0]])
    >>> first = torch.tensor([[False, True]])
    >>> update(W, factor(x.T @ x, damping=0.0), keep=first).values  # the second makes up for both
    tensor([[0., 3.]])
    """
    _check_update(W, factor, grid, refit, keep, select, n_of_m)
    K, order = W.shape[1], factor.order
    W = W.detach().masked_fill(factor.dead, 0.0)
    columns = Columns(W if order is None else W[:, order], factor.lower)
    if keep is not None:
        columns.use_mask(keep if order is None else keep[:, order])
    elif select is not None or n_of_m is not None:
        columns.use_mask(torch.ones_like(W, dtype=torch.bool), *(n_of_m or (0, 0)))
    group = K
    if grid is not None:
        group = min(grid.group_size or K, K)
        _use_grid(columns, grid, group, order)
    outer, inner = _widths(None if refit is None else group, 1 if n_of_m is None else n_of_m[1])
    for first, last in _spans(0, K, outer):
        _collect(columns, 0, first, last)
        for start, stop in _spans(first, last, inner):
            _collect(columns, first, start, stop)
            if select is not None and (start - first) % BLOCK == 0:
                _select(columns, select, start, min(start + BLOCK, last))
            if refit is not None and start % group == 0:
                _refit(columns, refit, start, min(start + group, K))
            columns.update(start, stop)
    return _updated(columns, order)


def _widths(group: int | None, m: int) -> tuple[int, int]:
    """How many columns are brought up to date together, and updated in one call.

    Neither cuts a group whose scales are fitted on the way, nor m columns that share a mask.
    """
    block = BLOCK // m * m
    if group is None:
        return block, block
    return (block // group * group, group) if group <= block else (group, block)


def _spans(first: int, last: int, width: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, width):
        yield start, min(start + width, last)


def _collect(columns: Columns, since: int, first: int, last: int) -> None:
    """Add to columns what the errors of those from `since` on have left them."""
    if since < first:
        owed = algebra.times(columns.L[first:last, since:first], columns.E[since:first])
        columns.W[first:last] += owed


def _use_grid(columns: Columns, grid: Grid, group: int, order: Tensor | None) -> None:
    K = len(columns.W)
    places = torch.arange(K) if order is None else order
    scales = columns.padded(grid.scales.T, torch.float32)
    zeros = None if grid.zeros is None else columns.padded(grid.zeros.T, torch.float32)
    columns.use_grid(scales, zeros, (places // group).to(torch.int32))
    if grid.thresholds is None:
        columns.use_uniform(float(grid.levels[0]), float(grid.levels[-1]))
    else:
        columns.use_codebook(grid.levels.contiguous(), grid.thresholds.contiguous())


def _select(columns: Columns, select: Select, first: int, last: int) -> None:
    scores = columns.W[first:last, : columns.N] / columns.L.diagonal()[first:last, None]
    keep = select(scores.square_().T.contiguous(), first)
    if keep.dtype is not torch.bool or keep.shape != (columns.N, last - first):
        raise ValueError(
            f"update: select: returned {_check.describe(keep)}, wanted bool "
            f"[{columns.N}, {last - first}]"
        )
    assert columns.keep is not None
    columns.keep[first:last, : columns.N] = keep.T


def _refit(columns: Columns, refit: Refit, first: int, last: int) -> None:
    W = columns.W[first:last, : columns.N]
    if columns.keep is not None:
        W = W * columns.keep[first:last, : columns.N]
    scales, zeros = refit(W.T.contiguous(), slice(first, last))
    for name, value, before in (
        ("scales", scales, columns.scales),
        ("zeros", zeros, columns.zeros),
    ):
        if (value is None) != (before is None):
            raise ValueError(f"update: refit: returned {name} {value!r}, the grid has {before!r}")
        if value is not None and value.shape != (columns.N,):
            raise ValueError(
                f"update: refit: returned {name}: {_check.describe(value)}, wanted [{columns.N}]"
            )
    columns.set_scales(first, scales, zeros)


def _updated(columns: Columns, order: Tensor | None) -> Updated:
    def restored(transposed: Tensor) -> Tensor:
        matrix = transposed[:, : columns.N].T
        if order is None:
            return matrix.contiguous()
        unordered = torch.empty(matrix.shape, dtype=matrix.dtype)
        unordered[:, order] = matrix
        return unordered

    loss = math.fsum(columns.loss.tolist()) if is_finite(columns.loss) else math.inf
    if loss == math.inf:
        raise ValueError("update: W: its updates left the range of float32")
    return Updated(
        values=restored(columns.W),
        codes=None if columns.codes is None else restored(columns.codes),
        keep=None if columns.keep is None else restored(columns.keep).bool(),
        loss=loss,
    )


def _check_update(
    W: Tensor,
    factor: Factor,
    grid: Grid | None,
    refit: Refit | None,
    keep: Tensor | None,
    select: Select | None,
    n_of_m: tuple[int, int] | None,
) -> None:
    if W.dtype is not torch.float32:
        raise TypeError(f"update: W: got dtype {W.dtype}, wanted float32")
    _check.on_cpu("update", "W", W)
    K = len(factor.dead)
    if W.dim() != 2 or W.shape[1] != K or not len(W):
        raise ValueError(f"update: W: got {_check.describe(W)}, wanted [N, {K}], as the factor")
    if not is_finite(W):
        raise ValueError("update: W: holds NaN or infinity")
    masks = sum(mask is not None for mask in (keep, select, n_of_m))
    if masks > 1:
        raise ValueError("update: got two of keep, select and n_of_m, wanted one mask")
    if grid is None and masks == 0:
        raise ValueError("update: got neither grid nor keep, select or n_of_m: nothing to do")
    if keep is not None and (keep.dtype is not torch.bool or keep.shape != W.shape):
        raise ValueError(f"update: keep: got {_check.describe(keep)}, wanted bool {list(W.shape)}")
    if refit is not None and grid is None:
        raise ValueError("update: refit: wanted a grid to refit")
    if factor.order is not None and (refit is not None or n_of_m is not None):
        name = "refit" if refit is not None else "n_of_m"
        raise ValueError(f"update: {name}: the factor is ordered, wanted one with order=False")
    if grid is not None:
        _check_grid(W, grid)
    if n_of_m is not None:
        _check_n_of_m(n_of_m, grid if refit is not None else None)


def _check_grid(W: Tensor, grid: Grid) -> None:
    N, K = W.shape
    wanted = [N, -(-K // (grid.group_size or K))]
    for name, value in (("scales", grid.scales), ("zeros", grid.zeros)):
        if value is not None and list(value.shape) != wanted:
            raise ValueError(f"update: grid.{name}: got {_check.describe(value)}, wanted {wanted}")
    if not 2 <= len(grid.levels) <= 256:
        raise ValueError(f"update: grid.levels: got {len(grid.levels)}, wanted 2 to 256")


def _check_n_of_m(n_of_m: tuple[int, int], refitted: Grid | None) -> None:
    n, m = n_of_m
    if not (0 <= n <= m and 1 <= m <= BLOCK):
        raise ValueError(f"update: n_of_m: got {n_of_m!r}, wanted 0 <= n <= m <= {BLOCK}")
    size = None if refitted is None else refitted.group_size
    if size is not None and size % m:
        raise ValueError(
            f"update: n_of_m: got {n_of_m!r}, wanted an m that divides the group size, {size}"
        )
