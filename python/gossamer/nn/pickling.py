"""Canonical tensors in a form that pickle can hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def to_pickle(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, torch.dtype]]:
    """Tensors with their dtypes, as bytes where elements are bytes: pickle cannot load float8."""
    return {
        name: (tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor, tensor.dtype)
        for name, tensor in state.items()
    }


def from_pickle(state: Mapping[str, tuple[Tensor, torch.dtype]]) -> dict[str, Tensor]:
    """The tensors that :func:`to_pickle` was given."""
    return {name: tensor.view(dtype) for name, (tensor, dtype) in state.items()}
