"""Who runs in ``gossamer bench svd``: ours and the peers, as functions of a matrix and a rank."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.bench.svd_matrices import KnownMatrix

OURS = "gossamer"
KNOWN_RANK = "gossamer, told the rank"
FULL = "torch.linalg.svd"
GRAM = "torch.linalg.eigh of the Gram matrix"
NITER = (0, 1, 2, 3, 4, 6, 8)
MOST_SECONDS = 60.0
MOST_BYTES = 8 * 2**30
PREDICTED = 2e10  # from that many m n min(m, n) on the time of a full solver is predicted first

RankOf = Callable[[Tensor], int]  # of all singular values, largest first


@dataclass(frozen=True)
class Answer:
    """An approximation ``left @ right``: shapes (m, r), (r, n); ``info`` of ours."""

    left: Tensor
    right: Tensor
    info: Any = None


@dataclass(frozen=True)
class Method:
    """``run(W)`` returns what ``answer`` turns, outside the clock, into an ``Answer``.

    ``cubic`` says that the time grows with m n min(m, n), whatever the rank. ``absent`` tells why
    it cannot run.
    """

    name: str
    run: Callable[[Tensor], Any]
    answer: Callable[[Any], Answer]
    cubic: bool = False
    absent: str | None = None


def methods_of_rank(shape: tuple[int, int], rank: int, excess: float) -> list[Method]:
    """Everyone, asked for ``rank`` columns of a matrix of ``shape``; ours told the ``excess``."""
    most = min(shape)
    widths = dict.fromkeys(min(rank + extra, most) for extra in (10, 32, rank // 4))
    return [
        _ours(OURS, rank=rank, excess=excess),
        *(_svd_lowrank(rank, width, niter) for width in widths for niter in NITER),
        _sklearn(rank),
        _gram(lambda values: rank),
        _full(lambda values: rank),
    ]


def methods_of_error(rel_error: float, smallest_rank: int) -> list[Method]:
    """Those that find the rank for an error, and ours told the ``smallest_rank`` that has it."""
    return [
        _ours(OURS, rel_error=rel_error),
        _ours(KNOWN_RANK, rank=smallest_rank),
        _gram(lambda values: rank_for(values, rel_error)),
        _full(lambda values: rank_for(values, rel_error)),
    ]


def rank_for(values: Tensor, rel_error: float) -> int:
    """The smallest rank whose tail is at most ``rel_error`` of all; ``values`` largest first."""
    tails = values.square().flip(0).cumsum(0).flip(0)  # tails[r]: squared error of rank r
    return int((tails > rel_error**2 * tails[0]).sum())


def why_not(method: Method, matrix: KnownMatrix, W: Tensor) -> str | None:
    """Why ``method`` is left out: not there, too much memory, or more than a minute."""
    if method.absent or not method.cubic:
        return method.absent
    k = min(matrix.m, matrix.n)
    needed = 4 * (3 * W.numel() + 6 * k * k)
    if needed > MOST_BYTES:
        return f"skipped: would need {needed / 2**30:.0f} GiB"
    if W.numel() * k < PREDICTED:
        return None
    quarter = W[: matrix.m // 4, : matrix.n // 4].contiguous()
    method.run(quarter[:64, :64])  # loads what is loaded at the first call
    start = time.perf_counter()
    method.run(quarter)
    predicted = 64 * (time.perf_counter() - start)
    return f"skipped: would take {predicted:.0f} s" if predicted > MOST_SECONDS else None


def _ours(name: str, **wanted: Any) -> Method:
    def run(W: Tensor) -> Any:
        from gossamer.svd import truncated_svd

        return truncated_svd(W, progress=False, **wanted)

    return Method(name, run, lambda raw: Answer(raw[0] * raw[1], raw[2].T, raw[3]))


def _svd_lowrank(rank: int, width: int, niter: int) -> Method:
    def run(W: Tensor) -> Any:
        torch.manual_seed(0)
        return torch.svd_lowrank(W, q=width, niter=niter)

    def answer(raw: Any) -> Answer:
        U, S, V = raw
        return Answer((U * S)[:, :rank], V[:, :rank].T)

    return Method(f"torch.svd_lowrank niter={niter} q={width}", run, answer)


def _sklearn(rank: int) -> Method:
    there = importlib.util.find_spec("sklearn") is not None

    def run(W: Tensor) -> Any:
        from sklearn.utils.extmath import randomized_svd

        return randomized_svd(W.numpy(), n_components=rank, n_iter="auto", random_state=0)

    def answer(raw: Any) -> Answer:
        U, S, right = raw
        return Answer(torch.from_numpy(U * S), torch.from_numpy(np.ascontiguousarray(right)))

    absent = None if there else "not installed: pip install scikit-learn"
    return Method("sklearn randomized_svd auto", run, answer, absent=absent)


def _full(rank_of: RankOf) -> Method:
    def run(W: Tensor) -> Any:
        return torch.linalg.svd(W, full_matrices=False)

    def answer(raw: Any) -> Answer:
        U, S, right = raw
        rank = rank_of(S.double())
        return Answer(U[:, :rank] * S[:rank], right[:rank])

    return Method(FULL, run, answer, cubic=True)


def _gram(rank_of: RankOf) -> Method:
    def run(W: Tensor) -> tuple[Tensor, Tensor]:
        wide = W.shape[0] <= W.shape[1]
        values, vectors = torch.linalg.eigh(W @ W.T if wide else W.T @ W)
        rank = rank_of(values.flip(0).clamp_min(0).double().sqrt())
        top = vectors[:, vectors.shape[1] - rank :]
        return (top, top.T @ W) if wide else (W @ top, top.T)

    return Method(GRAM, run, lambda raw: Answer(*raw), cubic=True)
