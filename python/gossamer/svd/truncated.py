"""The leading singular triplets of a dense matrix, with a certificate of their error."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._progress import Progress
from . import certificate, finish, spectral
from . import problem as problems
from .search import EXCESS, Target, first_look
from .solve import Solution, solve


@dataclass(frozen=True)
class SVDInfo:
    """What :func:`gossamer.truncated_svd` found, and how.

    Attributes
    ----------
    rank : int
        r, the number of triplets.
    rel_error : float
        An upper bound of ``|W - U S Vᵀ|_F / |W|_F``; with a weight C that of the norm
        ``|E|² = trace(E C Eᵀ)``.
    spectral_bound : float
        An upper bound of the largest singular value of ``W - U S Vᵀ``, in the units of W, that
        holds with a probability of at least 1 - 1e-7 (docs/svd.md).
    passes : int
        How often W was read.
    seconds : float
        The time it took.
    method : str
        "krylov", "gram", "svd", or "zero" for a matrix of zeros.
    """

    rank: int
    rel_error: float
    spectral_bound: float
    passes: int
    seconds: float
    method: str


def truncated_svd(
    W: Any,
    rank: int | None = None,
    *,
    rel_error: float | None = None,
    energy: float | None = None,
    excess: float = EXCESS,
    weight: Any = None,
    seed: int = 0,
    progress: bool | None = None,
) -> tuple[Any, Any, Any, SVDInfo]:
    """Compute the leading singular triplets of a matrix, ``W ~ U diag(S) Vᵀ``, fast.

    A randomized block Krylov search in the bf16 lane, one accurate pass in float32 (float64 for
    float64), and a certificate of the error that is added up in float64. The error exceeds that
    of the best approximation of the same rank by about 1e-4 to 3e-4 of it. Large ranks, and small
    matrices, take one eigendecomposition of the Gram matrix. docs/svd.md tells how.

    Parameters
    ----------
    W : numpy.ndarray or torch.Tensor
        [m, n] in float32, bfloat16, float16 or float64.
    rank : int, optional
        r, from 1 to min(m, n). Exactly one of rank, rel_error and energy is given.
    rel_error : float, optional
        The smallest rank is found whose certified relative Frobenius error is at most this; within
        about 1 % of the smallest possible rank.
    energy : float, optional
        The same for the share of ``|W|_F²`` to be kept: ``rel_error = sqrt(1 - energy)``.
    excess : float
        By how much the error at a given rank may exceed that of the best approximation, relatively:
        the search goes on until its estimate says so. From 1e-6 to 1.
    weight : numpy.ndarray or torch.Tensor, optional
        C [n, n], symmetric and positive semidefinite, such as the second moment ``E[x xᵀ]`` of
        what W is multiplied with. The result then is the best in ``|E|² = trace(E C Eᵀ)``, the
        mean of ``|E x|²``: ``U U ᵀ W`` with the leading eigenvectors U of ``W C Wᵀ``. C may be
        singular.
    seed : int, optional
        Of the random start. The same seed gives the same bits, for any number of threads.
    progress : bool, optional
        Show a progress bar: always, never, or (None) where it takes over a second in a terminal.

    Returns
    -------
    U, S, V : numpy.ndarray or torch.Tensor
        [m, r], [r] and [n, r], as W in kind; float32, float64 for a W in float64. U and V have
        orthonormal columns, S is sorted, and the largest entry of each column of U is positive.
    info : SVDInfo
        The rank, the certified error, and how it was found.

    Raises
    ------
    TypeError
        For what is no matrix of these dtypes, or no number.
    ValueError
        For NaN or Inf, an empty matrix, a rank or tolerance out of range, a weight that is not
        symmetric or not [n, n], or a tolerance below the rounding of the factors.

    Notes
    -----
    Block Krylov: Musco and Musco, "Randomized Block Krylov Methods for Stronger and Faster
    Approximate Singular Value Decomposition", NeurIPS 2015. The two-stage scheme: Halko,
    Martinsson and Tropp, "Finding Structure with Randomness", SIAM Review 53, 2011.

    Examples
    --------
    >>> W = torch.randn(300, 20) @ torch.randn(20, 200)
    >>> U, S, V, info = gs.truncated_svd(W, rank=20)
    >>> bool((W - (U * S) @ V.T).norm() <= info.rel_error * W.norm()), info.rel_error < 1e-5
    (True, True)
    >>> U, S, V, info = gs.truncated_svd(W, rel_error=0.5)
    >>> info.rank < 20, info.rel_error <= 0.5
    (True, True)
    """
    started = time.perf_counter()
    values = problems.matrix("W", W)
    target = problems.target(rank, rel_error, energy, (values.shape[0], values.shape[1]))
    target = replace(target, excess=problems.excess(excess))
    start = problems.seed(seed)
    problem = problems.prepare(
        values, None if weight is None else problems.matrix("weight", weight)
    )
    total = first_look(target, 32) * 32
    with Progress("truncated_svd", total, progress) as shown:
        if problem.energy > 0:
            solution = solve(problem, target, start, shown)
            factors, info = _result(problem, solution, start, started)
        else:
            factors, info = _zero(problem, target, started)
    U, S, V = factors
    if problem.transposed:
        U, V = V, U
    U, V = finish.with_signs(U, V)
    if isinstance(W, Tensor):
        return U, S, V, info
    return U.numpy(), S.numpy(), V.numpy(), info


def _result(
    problem: problems.Problem, solution: Solution, seed: int, started: float
) -> tuple[tuple[Tensor, Tensor, Tensor], SVDInfo]:
    rank = solution.rank
    U, S, V = finish.triplets(solution.found, rank)
    error = certificate.of_factors(problem, solution.squared, rank)
    error /= math.sqrt(problem.energy)
    spectral_bound = spectral.bound(problem, U, S, V, error, seed)
    if problem.C is None:
        spectral_bound = min(spectral_bound, error * math.sqrt(problem.energy))
    info = SVDInfo(
        rank,
        error,
        spectral_bound * problem.scale,
        solution.passes + spectral.PASSES,
        time.perf_counter() - started,
        solution.method,
    )
    return (U, S * problem.scale, V), info


def _zero(
    problem: problems.Problem, target: Target, started: float
) -> tuple[tuple[Tensor, Tensor, Tensor], SVDInfo]:
    rank = target.rank or 1
    m, n = problem.W.shape
    U = torch.eye(m, rank, dtype=problem.factors)
    V = torch.eye(n, rank, dtype=problem.factors)
    info = SVDInfo(rank, 0.0, 0.0, 1, time.perf_counter() - started, "zero")
    return (U, torch.zeros(rank, dtype=problem.factors), V), info
