"""How long the Krylov search runs: the block, the steps, and the test that ends it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._progress import Progress
from . import algebra
from .krylov import CHEAP_EIGENVALUES, Basis
from .operators import Operator

# By how much the error may exceed that of the best approximation of the same rank, relatively,
# unless the caller says otherwise.
EXCESS = 4e-4
# An adaptive rank may exceed the smallest possible one by this share of it, from the search.
_RANK_EXCESS = 0.005
# Beyond this share of the smaller side, one eigendecomposition of the whole costs less.
LARGEST_SHARE = 0.5


@dataclass(frozen=True)
class Target:
    """What is sought: a rank, or the share of the energy that may be left over.

    Attributes
    ----------
    rank : int or None
        The rank.
    remainder : float
        Where rank is None: the largest allowed ``|W - U S Vᵀ|² / |W|²``.
    excess : float
        Where there is a rank: by how much the error may exceed the smallest, relatively.
    """

    rank: int | None
    remainder: float = 0.0
    excess: float = EXCESS


@dataclass(frozen=True)
class Found:
    """A basis that has converged for the leading `rank` Ritz vectors."""

    basis: Basis
    energies: Tensor
    vectors: Tensor
    rank: int


def block_columns(rank: int | None, size: int) -> int:
    """The columns of a block.

    Small blocks capture more per product and per column of the basis (n = 4096, sigma_i = i^-1/2:
    rank 512 within 4e-4 by a basis of 1088 columns in blocks of 64, 1280 in blocks of 256), large
    ones need fewer steps. Up to 32 columns a step is bound by reading a W that is beyond the
    caches.
    """
    wanted = 32 if rank is None else 16 * math.ceil(rank / 16)
    return max(1, min(wanted, 32 if rank is None or rank <= 96 else 64, size))


def first_look(target: Target, block: int) -> int:
    """After how many blocks convergence is looked at first: a basis of 2 to 4 times the rank.

    A look in vain costs less than a block where the basis is small.
    """
    rank = target.rank or block
    more = 16 if target.excess >= 1e-3 and rank <= 32 else 48
    return max(3, math.ceil((2 * rank + more) / block))


def search(
    operator: Operator,
    target: Target,
    total: float,
    start: Tensor | int,
    largest: int,
    progress: Progress,
) -> Found | None:
    """Grow a Krylov basis until the target is met.

    Parameters
    ----------
    operator : Operator
        M, in a lane.
    target : Target
        What is sought.
    total : float
        The trace of M.
    start : Tensor or int
        The first block, or the seed of a random one.
    largest : int
        For how many columns of the basis the search is worth it.
    progress : Progress
        Advanced by the columns of each block.

    Returns
    -------
    Found or None
        None where the basis would need more than `largest` columns.
    """
    if isinstance(start, int):
        columns = block_columns(target.rank, operator.size)
        start = algebra.random_columns(operator.size, columns, start, operator.dtype)
    block = start.shape[1]
    blocks = first_look(target, block)
    basis = Basis(operator, start, (blocks + 2) * block)
    while blocks * block <= largest:
        while basis.width < blocks * block:
            basis.grow(last=basis.width + block == blocks * block)
            progress.advance(block)
        energies, vectors = basis.ritz()
        found, more = _look(basis, energies, vectors, target, total)
        if more == 0:
            return Found(basis, energies, vectors, found)
        blocks += more
    return None


def _look(
    basis: Basis, energies: Tensor, vectors: Tensor, target: Target, total: float
) -> tuple[int, int]:
    """The rank found, and how many blocks more are needed; 0 once it has converged."""
    if target.rank is not None:
        rank = target.rank
        left = max(total - float(energies[:rank].sum()), 0.0)
        allowed = 2 * target.excess * left
    else:
        enough = torch.nonzero(total - energies.cumsum(0) <= target.remainder * total)
        if not len(enough):
            return 0, _blocks_to_rank(basis, energies, target, total)
        rank = int(enough[0]) + 1
        allowed = max(1.0, _RANK_EXCESS * rank) * float(energies[rank - 1]) / 2
    if rank > basis.width - basis.block:  # too close to the end of the basis to tell
        return rank, math.ceil(rank / basis.block) + 2 - basis.width // basis.block
    noise = _noise(basis, total)
    return rank, _steps_to_converge(basis, energies[:rank], vectors[:, :rank], allowed, noise)


def _noise(basis: Basis, total: float) -> float:
    """What a block adds by the rounding of its products alone."""
    unit = {"bf16": 0.3 * 2.0**-9, "f32": 2.0**-22, "f64": 2.0**-51}[basis.operator.lane]
    return total * unit * unit


def _blocks_to_rank(basis: Basis, energies: Tensor, target: Target, total: float) -> int:
    """Blocks until the basis may hold the rank that leaves the allowed remainder.

    The leading third of the Ritz values has about converged, and every further column captures no
    more than the last of these: that bounds the rank from below. It needs a basis of twice as
    much.
    """
    third = max(1, basis.width // 3)
    missing = total - float(energies[:third].sum()) - target.remainder * total
    rank = third + missing / max(float(energies[third - 1]), 1e-300)
    width = max(4 * basis.width / 3, min(2 * rank, 1e9))
    return math.ceil((width - basis.width) / basis.block)


def _steps_to_converge(
    basis: Basis, energies: Tensor, vectors: Tensor, allowed: float, noise: float
) -> int:
    """Steps until what is still to be captured is below `allowed`.

    The gain falls from step to step by a factor f. What remains, half a step further, where the
    left vectors are, is about ``gain (f / (1 - f))^1.7``: a fit to spectra from i^-1 to Marchenko
    and Pastur's, within a factor of 2 of each (a geometric series is too low for slow
    convergence, where f grows, and too high for fast one).
    """
    gain, factor = _gain(basis, energies, vectors)
    if not math.isfinite(gain):
        return 1
    factor = min(max(factor, 0.05), 0.9)
    rest = gain * (factor / (1 - factor)) ** 1.7
    if rest <= allowed or gain <= noise:
        return 0
    most = max(1, basis.width // (3 * basis.block))
    return min(most, max(1, math.ceil(math.log(max(allowed, noise) / rest) / math.log(factor))))


def _gain(basis: Basis, energies: Tensor, vectors: Tensor) -> tuple[float, float]:
    """What the last step captured, and its ratio to what the step before did."""
    rank = len(energies)
    now = float(energies.sum())
    if basis.width <= CHEAP_EIGENVALUES:
        before, earlier = (float(basis.energies_before(i)[:rank].sum()) for i in (1, 2))
    else:
        before, earlier = (basis.captured_before(i, energies, vectors) for i in (1, 2))
    gain = max(now - before, 0.0)
    return gain, gain / (before - earlier) if before > earlier else 1.0
