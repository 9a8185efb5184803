"""Small dense linear algebra whose bits do not depend on the number of threads.

Products over a long dimension go through the passes of ``_ops_svd`` (float32) or through torch
(float64). LAPACK is called with one thread: its results depend on the count, and for the small
matrices it gets here one thread is as fast as several.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import _ops_svd

_MOST_CONDITION, _WELL_CONDITIONED = 1e6, 4.0


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch with one thread inside the block: LAPACK's results depend on the number."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def cross(A: Tensor, B: Tensor) -> Tensor:
    """``Aᵀ B`` of two tall matrices, in their dtype: float32 or float64."""
    if A.dtype is torch.float64:
        return A.T @ B
    return _ops_svd.project(A, B)


def times(A: Tensor, B: Tensor) -> Tensor:
    """``A B`` of a tall matrix and a small one, in the dtype of A."""
    if A.dtype is torch.float64:
        return A @ B.double()
    return _ops_svd.sketch(A, B.float().contiguous())


def eigen(G: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and eigenvectors of a symmetric matrix."""
    with one_thread():
        values, vectors = torch.linalg.eigh(G)
    return values.flip(0), vectors.flip(1)


def eigenvalues(G: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, largest first."""
    with one_thread():
        values: Tensor = torch.linalg.eigvalsh(G).flip(0)
    return values


def inverse_factor(gram: Tensor) -> tuple[Tensor | None, float]:
    """R^-1 that makes X R^-1 orthonormal, for gram = Xᵀ X; None if singular. And how R spreads.

    Parameters
    ----------
    gram : Tensor
        [b, b], float64.
    """
    with one_thread():
        L, failed = torch.linalg.cholesky_ex(gram)
        pivots = L.diagonal()
        spread = float(pivots.max() / pivots.min())
        if failed.item() or not spread < _MOST_CONDITION:
            return None, spread
        return torch.linalg.inv_ex(L)[0].T, spread


def orthonormal(X: Tensor) -> tuple[Tensor, Tensor]:
    """``X = Q R``, Q with orthonormal columns to rounding in the dtype of X; R is float64.

    Cholesky QR, twice, with the Gram matrix in float64 (Fukaya et al., 2014): safe while the
    condition number of X stays below 1e6, since the second round repairs what the first one
    loses. A well-conditioned X has nothing to repair. Beyond, and for a singular X, Householder's
    QR.
    """
    Q, R = X, torch.eye(X.shape[1], dtype=torch.float64)
    for _ in range(2):
        wide = Q.double()
        gram = wide.T @ wide
        inverse, spread = inverse_factor(gram)
        if inverse is None:
            with one_thread():
                Q, R = torch.linalg.qr(X.double())
            return Q.to(X.dtype).contiguous(), R
        R = inverse.T @ gram @ R
        Q = times(Q, inverse)
        if spread < _WELL_CONDITIONED:
            break
    return Q, R


def random_columns(rows: int, columns: int, seed: int, dtype: torch.dtype) -> Tensor:
    """A matrix of independent standard normal numbers from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).to(dtype)
