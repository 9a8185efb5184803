"""A packed linear layer to try things on."""

from __future__ import annotations

from typing import Any

import torch

import gossamer as gs


def make_layer(
    N: int = 24, K: int = 70, *, bias: bool = True, group_size: int | None = None, **options: Any
) -> gs.nn.Linear:
    dense = torch.nn.Linear(K, N, bias=bias)
    return gs.nn.Linear.from_dense(dense, gs.Quantize("int8", group_size), **options)
