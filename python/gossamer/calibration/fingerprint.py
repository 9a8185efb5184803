"""A fingerprint of work on a model, by which what was interrupted is known again."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten


def fingerprint(model: nn.Module, settings: Mapping[str, Any], batches: Collection[Any]) -> str:
    """Of everything that decides what settings and a calibration make of a model."""
    sums = hashlib.sha256()
    for name, value in settings.items():
        sums.update(f"{name} {value!r}\n".encode())
    for name, tensor in model.state_dict().items():
        sums.update(f"{name} {_checksum(tensor)}\n".encode())
    for batch in batches:
        leaves, shape = tree_flatten(batch)
        sums.update(repr(shape).encode())
        for leaf in leaves:
            text = _checksum(leaf) if isinstance(leaf, Tensor) else repr(leaf)
            sums.update(f"{text}\n".encode())
    return sums.hexdigest()


def _checksum(tensor: Tensor) -> str:
    data: Any = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {zlib.crc32(data)}"
