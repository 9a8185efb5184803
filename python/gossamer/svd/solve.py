"""Which method runs: coarse Krylov search, fine Krylov search, Gram matrix, LAPACK's SVD."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _ops_svd
from .._progress import Progress
from . import algebra, certificate, finish, gram
from .finish import Approximation
from .operators import Operator, Plain, Weighted
from .problem import Problem
from .search import LARGEST_SHARE, Found, Target, search

# Up to this size of the smaller side LAPACK's SVD, and the Gram matrix, take about 1 ms, which the
# steps of a search alone would take. An unknown rank needs more steps.
_SMALL_SVD, _SMALL_GRAM, _SMALL_ADAPTIVE = 48, 128, 256


@dataclass(frozen=True)
class Candidates:
    """Left vectors in the order of their energies, before the accurate pass.

    Attributes
    ----------
    method : str
        "krylov", "gram" or "svd".
    take : callable
        The orthonormal basis [m, p] of the first p of them.
    most : int
        The largest p.
    rank : int
        The rank found for the target.
    floor : float
        The share of the energy left over below which the noise of the method has a say.
    """

    method: str
    take: Callable[[int], Tensor]
    most: int
    rank: int
    floor: float


@dataclass(frozen=True)
class Solution:
    """An approximation, the rank to cut it at, the bound of its squared error, and how it came."""

    found: Approximation
    rank: int
    squared: float
    method: str
    passes: int


def solve(problem: Problem, target: Target, seed: int, progress: Progress) -> Solution:
    """The best approximation of a rank, or the smallest rank that meets a tolerance."""
    accurate = Plain(problem.W, "f64" if problem.W.dtype is torch.float64 else "f32")
    passes = 0
    solution: Solution | None = None
    for candidates, read in _attempts(problem, target, seed, progress):
        passes += read
        if candidates is None:
            continue
        fitted = _fit(problem, target, candidates, accurate)
        if fitted is not None:
            found, rank, squared = fitted
            method = candidates.method
            solution = Solution(found, rank, squared, method, passes + accurate.passes)
            if squared >= candidates.floor * problem.energy:
                return solution
    if solution is None:
        raise ValueError(
            "truncated_svd: the tolerance is below the rounding of "
            f"{'float64' if problem.factors is torch.float64 else 'float32'} factors"
        )
    return solution


def _fit(
    problem: Problem, target: Target, candidates: Candidates, accurate: Plain
) -> tuple[Approximation, int, float] | None:
    """The accurate pass over as many columns as the target needs; None where these are too few."""
    columns = target.rank or min(candidates.most, candidates.rank + 2 + candidates.rank // 50)
    while True:
        found = finish.accurate_pass(problem, accurate, candidates.take(columns))
        squared = certificate.squared_errors(problem, found)
        if target.rank is not None:
            return found, target.rank, float(squared[-1])
        allowed = target.remainder * problem.energy
        for rank, bound in enumerate(squared.tolist(), 1):
            if certificate.of_factors(problem, bound, rank) ** 2 <= allowed:
                return found, rank, bound
        if columns == candidates.most:
            return None
        missing = (float(squared[-1]) - allowed) / max(float(found.energies[-1]), 1e-300)
        columns = min(candidates.most, columns + max(2, math.ceil(min(1.1 * missing, 1e9))))


def _attempts(
    problem: Problem, target: Target, seed: int, progress: Progress
) -> Iterator[tuple[Candidates | None, int]]:
    """Methods from the fastest to the most exact, and how often each has read W."""
    size = min(problem.W.shape)
    rank = target.rank
    small = _SMALL_ADAPTIVE if rank is None else _SMALL_GRAM
    if rank is None:
        worth = target.remainder > (1e-8 if problem.factors is torch.float32 else 1e-13)
    else:
        worth = 2 * rank + 32 <= LARGEST_SHARE * size
    if size > small and worth:
        yield from _searches(problem, target, seed, progress)
    last = 0.0 if problem.factors is torch.float32 else 1e-11  # what float64 sums still resolve
    if size > _SMALL_SVD or problem.C is not None:
        for lane in ("f32", "f64") if size > _SMALL_ADAPTIVE else ("f64",):
            vectors, energies = gram.left_vectors(problem, lane)
            floor = 1e-3 if lane == "f32" else last
            yield _by_all(problem, target, vectors, energies, "gram", floor), 1
    if problem.C is None:
        yield _by_all(problem, target, *gram.exact_left_vectors(problem), "svd", 0.0), 1


def _searches(
    problem: Problem, target: Target, seed: int, progress: Progress
) -> Iterator[tuple[Candidates | None, int]]:
    start: Tensor | int = seed
    largest = int(LARGEST_SHARE * min(problem.W.shape))
    for operator, floor in _levels(problem, target):
        found = search(operator, target, problem.energy, start, largest, progress)
        if found is None:
            yield None, operator.passes
            return
        yield _by_search(found, floor(found.rank)), operator.passes
        start = found.basis.search_vectors(found.vectors[:, : found.basis.block])


def _levels(problem: Problem, target: Target) -> Iterator[tuple[Operator, Callable[[int], float]]]:
    """M in finer and finer lanes, and the share of the energy where the noise of each begins.

    Rounding to bf16 adds a matrix E to W of 2^-9 * 0.3 |W|, spread over all its directions: that
    part of it that meets r columns, r / min(m, n), may cost their energy, four times over for
    good measure.
    """
    size = min(problem.W.shape)
    W = problem.W.float() if problem.W.dtype is torch.float64 else problem.W
    C = None if problem.C is None else problem.C.float()

    def coarse_floor(rank: int) -> float:
        return 4 * (0.3 * 2.0**-9) ** 2 * rank / size / (2 * target.excess)

    yield _operator(W, C, _ops_svd.best_lane(), False), coarse_floor
    single = problem.factors is torch.float32
    yield _operator(W, C, "f32", True), lambda rank: 0.0 if single else 1e-11
    if not single:
        yield _operator(problem.W, problem.C, "f64", True), lambda rank: 0.0


def _operator(W: Tensor, C: Tensor | None, lane: str, fine: bool) -> Operator:
    return Plain(W, lane, fine) if C is None else Weighted(W, C, lane, fine)


def _by_search(found: Found, floor: float) -> Candidates:
    return Candidates(
        "krylov",
        lambda p: found.basis.left_vectors(found.energies[:p], found.vectors[:, :p]),
        found.basis.width,
        found.rank,
        floor,
    )


def _by_all(
    problem: Problem, target: Target, vectors: Tensor, energies: Tensor, method: str, floor: float
) -> Candidates:
    enough = certificate.after(energies) <= target.remainder * problem.energy
    rank = int(enough.nonzero()[0]) + 1

    def take(p: int) -> Tensor:
        lengths = vectors[:, :p].norm(dim=0)
        return algebra.orthonormal(vectors[:, :p] / lengths.clamp_min(1e-30))[0]

    return Candidates(method, take, len(energies), rank, floor)
