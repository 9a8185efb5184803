"""From a basis Q of left vectors to singular triplets: one accurate pass, and small matrices.

``T = Wᵀ Q`` in the accurate lane, so that the singular values, and the certificate, do not inherit
the noise of the lane that found Q. Then ``Q Tᵀ = U diag(S) Vᵀ``, from a QR of T and the SVD of its
core in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import algebra
from .operators import Plain
from .problem import Problem

_EVEN = 30.0


@dataclass(frozen=True)
class Approximation:
    """``Q Tᵀ``, the part of W in the span of Q, ordered by what each column captures.

    Attributes
    ----------
    Q : Tensor
        [m, p], orthonormal columns.
    T : Tensor
        [n, p], ``Wᵀ Q`` to rounding.
    CT : Tensor
        [n, p], ``C T`` to rounding; T without a C.
    energies : Tensor
        [p], float64, largest first: ``|Wᵀ q|²``, or ``qᵀ W C Wᵀ q``.
    defect : float
        ``|QᵀQ - I|_F``.
    """

    Q: Tensor
    T: Tensor
    CT: Tensor
    energies: Tensor
    defect: float


def accurate_pass(problem: Problem, operator: Plain, Q: Tensor) -> Approximation:
    """Multiply W with Q, and turn Q so that its first columns capture the most.

    Parameters
    ----------
    problem : Problem
        W and C.
    operator : Plain
        W in the accurate lane.
    Q : Tensor
        [m, p], orthonormal columns.

    Returns
    -------
    Approximation
        With p columns.
    """
    if Q.dtype is not operator.dtype:
        Q = algebra.orthonormal(Q.to(operator.dtype))[0]
    T = operator.second(Q)
    weight = None if problem.C is None else Plain(problem.C, operator.lane)
    CT = T if weight is None else weight.first(T)
    turn = algebra.eigen(_symmetric(algebra.cross(T.double(), CT.double())))[1]
    Q, T = algebra.times(Q, turn), algebra.times(T, turn)
    CT = T if weight is None else weight.first(T)
    energies = (T.double() * CT.double()).sum(0).clamp_min(0)
    overlap = algebra.cross(Q, Q).double()
    defect = float((overlap - torch.eye(Q.shape[1], dtype=torch.float64)).square().sum().sqrt())
    return Approximation(Q, T, CT, energies, defect)


def _symmetric(G: Tensor) -> Tensor:
    return (G + G.T) / 2


def triplets(found: Approximation, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, r], S [r] and V [n, r] of the first `rank` columns of an approximation.

    Without a weight the columns of T are orthogonal
    to rounding in units of the largest, which is enough where the smallest is not much smaller.
    """
    Q, T = found.Q[:, :rank], found.T[:, :rank]
    lengths = T.double().square().sum(0).sqrt()
    if found.CT is found.T and bool(lengths[-1] * _EVEN > lengths[0]):
        U, S, V = Q, lengths.to(Q.dtype), (T / lengths).to(Q.dtype)
    else:
        basis, R = algebra.orthonormal(T.contiguous())
        with algebra.one_thread():
            right, values, left = torch.linalg.svd(R, full_matrices=False)
        U, S, V = algebra.times(Q, left.T), values.to(Q.dtype), algebra.times(basis, right)
    return U, S, V


def with_signs(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """The same pairs, each u with its entry of the largest size positive."""
    largest = U.gather(0, U.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(U.dtype)
    return U * signs, V * signs
