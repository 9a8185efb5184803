"""An upper bound of the spectral norm of what the factors leave over."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _ops_svd
from . import algebra
from .certificate import rounding
from .operators import Plain
from .problem import Problem

PASSES = 1
_PROBES = 16
_FACTOR = 3.0  # fails with a probability of 3 ** -16 = 2.3e-8
_COARSE, _COARSE_MARGIN, _MARGIN = 0.1, 1.05, 1.01


def bound(problem: Problem, U: Tensor, S: Tensor, V: Tensor, error: float, seed: int) -> float:
    """At least ``|R|_2`` with ``R = W - U S Vᵀ``, with a probability of 1 - 3^-16.

    For s independent standard normal vectors w and every matrix A,
    ``|A|_2 <= a sqrt(2 / pi) max |A w|`` but with a probability of ``a^-s`` (Halko, Martinsson and
    Tropp, 2011, lemma 4.1). Here ``A = Rᵀ R``, whose norm is ``|R|_2²``, and costs one read of W.

    Parameters
    ----------
    problem : Problem
        W.
    U, S, V : Tensor
        The factors of W.
    error : float
        The relative error; a large one does not need an accurate lane.
    seed : int
        The probes come from another stream of it.

    Returns
    -------
    float
        The bound.
    """
    coarse = error > _COARSE and problem.factors is torch.float32
    accurate = "f64" if problem.factors is torch.float64 else "f32"
    operator = Plain(problem.W, _ops_svd.best_lane() if coarse else accurate)
    probes = algebra.random_columns(V.shape[0], _PROBES, seed + 1, U.dtype)
    W_probes, back = operator.both(probes)
    inside = S[:, None] * algebra.cross(V, probes)
    rest = W_probes - algebra.times(U, inside)  # R w
    # Rᵀ R w = Wᵀ W w - Wᵀ U S Vᵀ w - V S Uᵀ R w, and Wᵀ U = V S
    rest = back - algebra.times(V, S[:, None] * (inside + algebra.cross(U, rest)))
    longest = float(rest.double().norm(dim=0).max())
    probed = math.sqrt(_FACTOR * math.sqrt(2 / math.pi) * longest)
    margin = _COARSE_MARGIN if coarse else _MARGIN
    return margin * probed + rounding(problem, len(S), problem.size)
