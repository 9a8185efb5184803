"""All singular vectors from one eigendecomposition, for large ranks and small matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from . import algebra
from .problem import Problem


def left_vectors(problem: Problem, lane: str) -> tuple[Tensor, Tensor]:
    """All left singular vectors of W, or eigenvectors of ``W C Wᵀ``, and their energies.

    Parameters
    ----------
    problem : Problem
        W [m, n] and C.
    lane : str
        "f32" or "f64": in what the Gram matrix is summed. Its square of the condition number hides
        singular values below 1e-3 (or 1e-7) of the largest.

    Returns
    -------
    vectors : Tensor
        [m, min(m, n)]: by eigenvectors of W Wᵀ, or W times those of Wᵀ W, not normalised.
    energies : Tensor
        [min(m, n)], float64, largest first.
    """
    dtype = torch.float64 if lane == "f64" else torch.float32
    W = problem.W.to(dtype)
    C = None if problem.C is None else problem.C.to(dtype)
    m, n = W.shape
    if m <= n:
        columns = W.T.contiguous()
        weighted = columns if C is None else algebra.times(C, columns)
        energies, vectors = _eigen(algebra.cross(columns, weighted))
        return vectors.to(dtype), energies
    G = algebra.cross(W, W)
    root = None if C is None else _root(C)
    if root is not None:
        G = algebra.times(root, algebra.times(G, root))
    energies, vectors = _eigen(G)
    if root is not None:
        vectors = algebra.times(root, vectors)
    return algebra.times(W, vectors), energies


def _eigen(G: Tensor) -> tuple[Tensor, Tensor]:
    energies, vectors = algebra.eigen((G + G.T) / 2)
    return energies.double().clamp_min(0), vectors


def _root(C: Tensor) -> Tensor:
    values, vectors = algebra.eigen(C)
    return algebra.times(vectors * values.clamp_min(0).sqrt(), vectors.T)


def exact_left_vectors(problem: Problem) -> tuple[Tensor, Tensor]:
    """The left singular vectors of W by LAPACK, in float64 where W is small or float64."""
    W = problem.W
    W = W.double() if W.dtype is torch.float64 or min(W.shape) <= 256 else W.float()
    with algebra.one_thread():
        U, S, _ = torch.linalg.svd(W, full_matrices=False)
    return U, S.double().square()
