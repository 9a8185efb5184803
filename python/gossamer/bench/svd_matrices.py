"""Matrices of which all singular values are known, so that the optimal error is, too.

W = L diag(s) Rᵀ with orthogonal L and R that are cheap to apply: a random sign, a random
permutation and a Kronecker product of two small random orthogonal matrices, twice. Every entry of
W mixes all singular values, and 11008 x 4096 takes seconds where QR of Gaussian blocks takes
minutes. All of it is computed in float64 and rounded to float32 once, which moves a singular value
by about 1e-7 of the largest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

OUTLIER_RATIO = 20.0  # norm of an outlier column over that of another
KINDS = '"power:P" (sigma_i = i^-P), "flat", "gaussian" or "rank:K" (i^-1/2, and 0 from K on)'


@dataclass(frozen=True)
class KnownMatrix:
    """A matrix (m, n) with the singular values of ``spectrum``.

    ``spectrum`` is "power:P" (sigma_i = i^-P), "flat" (all 1), "gaussian" (as a Gaussian matrix of
    this shape has them) or "rank:K" (i^-1/2 for i <= K, else 0). With ``outlier_columns`` = o, o of
    the singular values belong to o columns whose norm is 20 times that of the others.
    """

    m: int
    n: int
    spectrum: str
    outlier_columns: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.m < 1 or self.n < 1 or not 0 <= self.outlier_columns < min(self.m, self.n):
            given = f"{self.m} x {self.n}, {self.outlier_columns} outlier columns"
            raise ValueError(f"KnownMatrix: got {given}; fewer outliers than rows, columns wanted")
        self._plain_values(1)

    def singular_values(self) -> Tensor:
        """All of them, shape (min(m, n),), float64, largest first."""
        return torch.cat(self._values()).sort(descending=True).values

    def draw(self) -> Tensor:
        """The matrix, float32, the same at every call."""
        generator = torch.Generator().manual_seed(self.seed)
        outliers, plain = self._values()
        o = self.outlier_columns
        W = torch.zeros(self.n, self.m, dtype=torch.float64)  # transposed: rows are columns of W
        W.diagonal()[: o + len(plain)] = torch.cat([outliers, plain])
        W[o:] = rotate_rows(W[o:], generator)
        if o:
            W[:o] = _orthogonal(o, generator) @ W[:o]
            W = W[torch.randperm(self.n, generator=generator)]
        return rotate_rows(W.T.contiguous(), generator).float()

    def _values(self) -> tuple[Tensor, Tensor]:
        """Those of the outlier columns, and the others, float64."""
        o = self.outlier_columns
        plain = self._plain_values(min(self.m, self.n) - o)
        usual_norm = float(plain.norm()) / math.sqrt(self.n - o)
        outliers = torch.linspace(1.5, 0.5, o, dtype=torch.float64) * OUTLIER_RATIO * usual_norm
        return outliers, plain

    def _plain_values(self, count: int) -> Tensor:
        kind, _, number = self.spectrum.partition(":")
        i = torch.arange(1, count + 1, dtype=torch.float64)
        try:
            if kind == "power":
                return i ** -float(number)
            if kind == "rank":
                return torch.where(i <= int(number), i**-0.5, 0.0)
        except ValueError as error:
            raise ValueError(f"KnownMatrix: spectrum: {self.spectrum!r}: {error}") from error
        if self.spectrum == "flat":
            return torch.ones(count, dtype=torch.float64)
        if self.spectrum == "gaussian":
            return _gaussian_values(count, min(self.m, self.n) / max(self.m, self.n))
        raise ValueError(f"KnownMatrix: spectrum: got {self.spectrum!r}, wanted {KINDS}")


def rotate_rows(X: Tensor, generator: torch.Generator) -> Tensor:
    """Q X for X (n, c) and an orthogonal Q (n, n), in about 8 n^1.5 c operations."""
    n, c = X.shape
    a = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    for _ in range(2):
        signs = torch.randint(0, 2, (n, 1), generator=generator) * 2 - 1
        X = (X * signs)[torch.randperm(n, generator=generator)]
        X = _orthogonal(n // a, generator).to(X.dtype) @ X.reshape(a, n // a, c)
        X = (_orthogonal(a, generator).to(X.dtype) @ X.reshape(a, -1)).reshape(n, c)
    return X


def _orthogonal(n: int, generator: torch.Generator) -> Tensor:
    gaussian = torch.randn(n, n, dtype=torch.float64, generator=generator)
    Q: Tensor = torch.linalg.qr(gaussian).Q
    return Q


def _gaussian_values(count: int, aspect: float) -> Tensor:
    """Quantiles of the law of Marchenko and Pastur: where the singular values of a Gaussian lie."""
    low, high = (1 - math.sqrt(aspect)) ** 2, (1 + math.sqrt(aspect)) ** 2
    # x = low + (high - low) sin^2 t takes the square roots out of the density.
    t = torch.linspace(0, math.pi / 2, 20001, dtype=torch.float64)
    x = low + (high - low) * t.sin() ** 2
    density = (t.sin() * t.cos()) ** 2 / x.clamp_min(1e-300)
    share = torch.cumulative_trapezoid(density.nan_to_num(), t)
    wanted = (torch.arange(count, 0, -1, dtype=torch.float64) - 0.5) / count
    places = torch.searchsorted(share / share[-1], wanted).clamp_max(len(share) - 1)
    values: Tensor = x[1:][places].sqrt()
    return values
