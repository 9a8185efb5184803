"""Layers and statistics of their inputs, for tests of the methods that round weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.calibration import Statistics
from gossamer.schemes import Quantize, Scheme

# One scheme of each format that has a grid, with and without zero points and groups.
SCHEMES = [
    "int8",
    "int8-g32",
    "int4-g64",
    "int4-g16-asym",
    "int4-per-channel",
    "int4-per-channel-asym",
    "nf4",
    "fp4",
    "mxfp4",
    "fp8",
    "fp8-e5m2",
    "fp8-block",
    "sparse-int8-g64",
    "sparse-int4-g32",
]


def scheme_of(name: str) -> Scheme:
    return Quantize(name).resolved()


def inputs(rows: int, K: int, seed: int) -> Tensor:
    """Correlated rows of x, with a few large columns."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(K, K, generator=random) / K**0.5 + 0.3 * torch.eye(K)
    mixing[:, :: max(K // 8, 1)] *= 5
    return torch.randn(rows, K, generator=random) @ mixing


def weight(N: int, K: int, seed: int) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed))


def statistics_of(x: Tensor) -> Statistics:
    magnitudes = x.abs().max().item()
    limit = 2 * magnitudes or 1.0
    return Statistics(
        rows=len(x),
        mean=x.mean(0),
        peak=x.abs().amax(0),
        squares=x.square().mean(0),
        moment=x.T @ x / len(x),
        low=x.min().item(),
        high=x.max().item(),
        histogram=torch.histc(x.abs(), 2048, 0, limit).double(),
        limit=limit,
    )


def output_error(W: Tensor, rounded: Any, moment: Tensor) -> float:
    """tr((W - Ŵ) H (W - Ŵ)ᵀ) in float64."""
    error = (W - rounded.dequantize()).double()
    return float(((error @ moment.double()) * error).sum())
