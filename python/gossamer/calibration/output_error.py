"""Errors of weights, and of the outputs that they make for inputs with a known second moment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..formats.groups import row_chunks


def root(square: float, of: float) -> float:
    """The root of one square against another; 0 where that is 0."""
    return math.sqrt(square / of) if of > 0 else 0.0


def squared_norm(W: Tensor) -> float:
    """The sum of squares, some rows at a time."""
    chunks = (W[rows].float() for rows in row_chunks(*W.shape))
    return math.fsum(torch.linalg.vector_norm(part).item() ** 2 for part in chunks)


def weighted_square(R: Tensor, moment: Tensor) -> float:
    """tr(R C Rᵀ), some rows at a time; not below 0."""
    parts = (R[rows] for rows in row_chunks(*R.shape))
    return max(0.0, math.fsum(inner(part @ moment, part) for part in parts))


def inner(A: Tensor, B: Tensor) -> float:
    """The sum of A * B."""
    return float((A * B).sum(dtype=torch.float64))
