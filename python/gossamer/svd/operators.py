"""The positive semidefinite matrices whose leading eigenvectors are sought, as products.

``Plain``: ``Wᵀ W``, searched among the right vectors. ``Weighted``: ``W C Wᵀ``, searched among
the left ones. Both take a block X in two halves, ``H = first(X)`` and ``M X = second(H)``, so that
the last step of a search can stop half way: the energy that span(X) captures is known from H.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _ops_svd
from . import algebra


class Plain:
    """``M = Wᵀ W`` [n, n]: H = W X [m, b], M X = Wᵀ H.

    Parameters
    ----------
    W : Tensor
        [m, n]; float64 for the lane "f64", else any dtype of the kernels.
    lane : str
        "bf16", "f32" or "f64".
    fine : bool, optional
        Inner products in float64: in float32, the squares of small singular values drown in the
        rounding of large ones.
    """

    def __init__(self, W: Tensor, lane: str, fine: bool = False) -> None:
        self.W, self.lane, self.fine, self.passes = W, lane, fine, 0
        self.dtype = torch.float64 if lane == "f64" else torch.float32
        self.size, self.half_size = W.shape[1], W.shape[0]

    def first(self, X: Tensor) -> Tensor:
        """``W X``."""
        self.passes += 1
        if self.lane == "f64":
            return self.W @ X
        return _ops_svd.sketch(self.W, X, self.lane)

    def second(self, H: Tensor) -> Tensor:
        """``Wᵀ H``."""
        self.passes += 1
        if self.lane == "f64":
            return self.W.T @ H
        return _ops_svd.project(self.W, H, self.lane)

    def both(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """``W X`` and ``Wᵀ W X`` in one read of W."""
        if self.lane == "f64":
            H = self.first(X)
            return H, self.second(H)
        self.passes += 1
        return _ops_svd.power_step(self.W, X, self.lane)

    def inner(self, halves: Tensor, H: Tensor) -> Tensor:
        """The share of M between the blocks of two halves: ``halvesᵀ H``."""
        return _inner(halves, H, self.fine)

    def left(self, H: Tensor) -> Tensor:
        """Left vectors of W from halves: they are some already."""
        return H


class Weighted:
    """``M = W C Wᵀ`` [m, m]: H = Wᵀ X [n, b], M X = W (C H).

    Parameters
    ----------
    W, C : Tensor
        [m, n] and [n, n]; float64 for the lane "f64", else any dtype of the kernels.
    lane : str
        "bf16", "f32" or "f64".
    fine : bool, optional
        Inner products in float64.
    """

    def __init__(self, W: Tensor, C: Tensor, lane: str, fine: bool = False) -> None:
        self._W, self._C = Plain(W, lane), Plain(C, lane)
        self.lane, self.fine, self.dtype = lane, fine, self._W.dtype
        self.size, self.half_size = W.shape

    @property
    def passes(self) -> int:
        """How often W was read."""
        return self._W.passes

    def first(self, X: Tensor) -> Tensor:
        """``Wᵀ X``."""
        return self._W.second(X)

    def second(self, H: Tensor) -> Tensor:
        """``W C H``."""
        return self._W.first(self._C.first(H))

    def both(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """``Wᵀ X`` and ``W C Wᵀ X``."""
        H = self.first(X)
        return H, self.second(H)

    def inner(self, halves: Tensor, H: Tensor) -> Tensor:
        """The share of M between the blocks of two halves: ``halvesᵀ C H``."""
        return _inner(halves, self._C.first(H), self.fine)

    def left(self, H: Tensor) -> Tensor:
        """Left vectors of W from halves: another half step."""
        return self.second(H)


Operator = Plain | Weighted


def _inner(A: Tensor, B: Tensor, fine: bool) -> Tensor:
    return algebra.cross(A.double(), B.double()) if fine else algebra.cross(A, B)
