"""Patterns of zeros: blocks of weights that live or die together, and N of each M."""

from __future__ import annotations

import re

import torch
from torch import Tensor

# Output channels x input features.
BLOCKS: dict[str, tuple[int, int]] = {
    "1x4": (1, 4),
    "4x1": (4, 1),
    "1x16": (1, 16),
    "16x1": (16, 1),
}


def parse_n_of_m(pattern: str | None) -> tuple[int, int] | None:
    """(2, 4) of "2:4"; None where the pattern is not of this kind."""
    found = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    if found is None:
        return None
    N, M = map(int, found.groups())
    if not 1 <= N <= M:
        raise ValueError(f"Prune: pattern: got {pattern!r}, wanted N:M with 1 <= N <= M")
    return N, M


def block_keys(W: Tensor, block: tuple[int, int]) -> Tensor:
    """The L2 norm of each block [n, k] as an integer: int32, the order is that of the norms.

    The bits of floats that are not negative are ordered as the floats are. A block that reaches
    over the edge is filled up with zeros.
    """
    if block == (1, 1):
        return W.to(torch.float32).abs().contiguous().view(torch.int32)
    height, width = block
    n, k = W.shape
    padded = torch.nn.functional.pad(W.to(torch.float64), (0, -k % width, 0, -n % height))
    split = padded.view(padded.shape[0] // height, height, -1, width)
    norms: Tensor = torch.linalg.vector_norm(split, dim=(1, 3)).to(torch.float32)
    return norms.contiguous().view(torch.int32)


def over_weights(blocks: Tensor, block: tuple[int, int]) -> Tensor:
    """What belongs to blocks, for each of their weights."""
    if block == (1, 1):
        return blocks
    return blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
