"""Masks of sparse weights: a bit for each weight, and the values whose bit is set, row by row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .groups import row_chunks

_SET_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def mask_columns(K: int) -> int:
    """Bytes of a row of the mask."""
    return -(-K // 8)


def row_starts(mask: Tensor) -> Tensor:
    """Where the values of each row begin, and their number: int64 [N + 1]."""
    counts = _SET_BITS[mask.numpy()].sum(1, dtype=np.int64)
    return torch.from_numpy(np.concatenate([np.zeros(1, np.int64), counts.cumsum()]))


def stored_weights(mask: Tensor, K: int) -> Tensor:
    """Which weights the mask [n, ceil(K / 8)] says are stored: bool [n, K]."""
    bits = np.unpackbits(mask.numpy(), axis=1, count=K, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_))


def split(dense: Tensor) -> tuple[Tensor, Tensor]:
    """The mask of a dense [n, K], and its values that are not zero."""
    stored = dense != 0
    mask = np.packbits(stored.numpy(), axis=1, bitorder="little")
    return torch.from_numpy(mask), torch.masked_select(dense, stored)


def join(mask: Tensor, values: Tensor, K: int) -> Tensor:
    """Undo :func:`split`: dense [n, K]."""
    dense = values.new_zeros(mask.shape[0], K)
    return dense.masked_scatter_(stored_weights(mask, K), values)


def compress(rows: Callable[[slice], Tensor], N: int, K: int) -> tuple[Tensor, Tensor]:
    """Split a dense [N, K] that is made some rows at a time."""
    mask = torch.empty(N, mask_columns(K), dtype=torch.uint8)
    values = []
    for part in row_chunks(N, K):
        mask[part], of_part = split(rows(part))
        values.append(of_part)
    return mask, torch.cat(values)
