"""Layers whose groups are not consecutive k: GPTQ with activation order stores the group of each k.

No format of ours can hold them: a group is G consecutive k, and the columns of a weight cannot be
sorted without sorting x. They are expanded, and rounded to int8 in groups of 32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .integer_codes import MIDDLE, Converted, rounded
from .tensor_files import TensorFiles


def activation_order(
    files: TensorFiles, name: str, K: int, groups: int, group_size: int | None
) -> Tensor | None:
    """The group of each k, int64 [K]; None where groups are consecutive k.

    Raises
    ------
    ValueError
        Where the tensor has another dtype or shape, or a group does not exist.
    """
    order = files.find(name, (torch.int32, torch.int64), 1)
    if order is None or bool((order == -1).all()):  # compressed-tensors: not sorted
        return None
    order = files.shaped(name, order, (K,)).long()
    if bool(((order < 0) | (order >= groups)).any()):
        raise ValueError(f"{name}: some groups are not in 0 to {groups - 1}")
    usual = torch.arange(K) // (K if group_size is None else group_size)
    return None if bool((order == usual).all()) else order


def in_activation_order(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, order: Tensor, bits: int
) -> Converted:
    """A weight ``(code[n, k] - zeros[n, order[k]]) * scales[n, order[k]]``.

    Parameters
    ----------
    codes : Tensor
        Shape (N, K), uint8, one to a byte.
    scales : Tensor
        Shape (N, groups), floating point.
    zeros : Tensor, optional
        Shape (N, groups), uint8; None is half the range everywhere.
    order : Tensor
        Shape (K,), int64: the group of each k.
    bits : int
        Of a code, 4 or 8.
    """
    dense = codes.to(torch.float32)
    scales = scales.to(torch.float32)
    for n, row in enumerate(dense):  # by rows: zeros and scales of each k are as large as these
        row -= MIDDLE[bits] if zeros is None else zeros[n].to(torch.float32)[order]
        row *= scales[n][order]
    return rounded(dense)
