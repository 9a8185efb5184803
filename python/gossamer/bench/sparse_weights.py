"""Pruned weights for benchmarks: drawn by seed, so that every process makes the same ones."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gossamer.bench.peers.peer import Array

Mask = npt.NDArray[np.bool_]

ROW_DEVIATION = 0.75  # of the logarithm of the density of a row, in "uneven-rows"
DENSE_ROWS = 1 / 64  # that share of the rows is dense, in "dense-rows"
KINDS = 'uniform, uneven-rows, dense-rows, "n:m" such as 2:4, or "RxC" such as 1x4'


@dataclass(frozen=True)
class PrunedWeight:
    """A Gaussian weight (N, K) of which a share ``sparsity`` is zero.

    ``mask`` says where: "uniform" draws each weight for itself; in "uneven-rows" the densities of
    the rows are log-normal around the mean; in "dense-rows" one row in 64 is dense; "n:m" keeps n
    of m neighbours along K; "RxC" keeps or drops blocks of R out_features times C in_features.
    """

    N: int
    K: int
    sparsity: float
    mask: str = "uniform"

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"PrunedWeight: sparsity: {self.sparsity} given, wanted [0, 1)")
        if self.mask not in ("uniform", "uneven-rows", "dense-rows") and not _sizes(self.mask):
            raise ValueError(f"PrunedWeight: mask: got {self.mask!r}, wanted {KINDS}")

    def draw(self) -> Array:
        """The weight, (N, K), the same at every call."""
        random = np.random.default_rng(0)
        weight = random.standard_normal((self.N, self.K), dtype=np.float32) * np.float32(0.02)
        weight[~self._kept(random)] = 0
        return weight

    def _kept(self, random: np.random.Generator) -> Mask:
        density = 1 - self.sparsity
        sizes = _sizes(self.mask)
        if sizes and ":" in self.mask:
            return _n_of_m(self.N, self.K, *sizes, random)
        if sizes:
            return _blocks(self.N, self.K, density, *sizes, random)
        rows = np.full(self.N, density)
        if self.mask == "uneven-rows":
            rows = _log_normal(self.N, density, random)
        elif self.mask == "dense-rows":
            rows = _few_dense(self.N, density, random)
        return random.random((self.N, self.K), dtype=np.float32) < rows[:, None]


def fixed_sparsity(mask: str) -> float | None:
    """The sparsity of an "n:m" mask, which has no other."""
    sizes = _sizes(mask)
    return 1 - sizes[0] / sizes[1] if sizes and ":" in mask else None


def draw_input(M: int, K: int) -> Array:
    """Gaussian x (M, K), the same at every call."""
    return np.random.default_rng(1).standard_normal((M, K), dtype=np.float32)


def _sizes(mask: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"([1-9]\d*)[:x]([1-9]\d*)", mask)
    if not found or (":" in mask and int(found[1]) > int(found[2])):
        return None
    return int(found[1]), int(found[2])


def _n_of_m(N: int, K: int, n: int, m: int, random: np.random.Generator) -> Mask:
    groups = -(-K // m)
    order = random.random((N, groups, m), dtype=np.float32)
    largest = np.argpartition(-order, n - 1, axis=2)[..., :n]
    kept = np.zeros((N, groups, m), bool)
    np.put_along_axis(kept, largest, True, axis=2)
    return kept.reshape(N, groups * m)[:, :K]


def _blocks(
    N: int, K: int, density: float, rows: int, columns: int, random: np.random.Generator
) -> Mask:
    kept = random.random((-(-N // rows), -(-K // columns)), dtype=np.float32) < density
    return kept.repeat(rows, axis=0).repeat(columns, axis=1)[:N, :K]


def _log_normal(N: int, density: float, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Log-normal densities, at most 1, scaled by bisection until their mean is ``density``."""
    shape = np.exp(ROW_DEVIATION * random.standard_normal(N))
    low, high = 0.0, 1 / shape.min()
    for _ in range(60):
        middle = (low + high) / 2
        if np.minimum(shape * middle, 1).mean() < density:
            low = middle
        else:
            high = middle
    densities: npt.NDArray[np.float64] = np.minimum(shape * high, 1)
    return densities


def _few_dense(N: int, density: float, random: np.random.Generator) -> npt.NDArray[np.float64]:
    count = min(max(1, round(N * DENSE_ROWS)), int(N * density))
    rows = np.full(N, (N * density - count) / (N - count) if count < N else 1.0)
    rows[random.permutation(N)[:count]] = 1
    return rows
