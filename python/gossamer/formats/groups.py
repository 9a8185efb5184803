"""What the formats share: pieces of a dense weight, groups along K, and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _check

_BLOCK_ROWS = 128  # formats with blocks can be divided at multiples of this
_CHUNK_ELEMENTS = 1 << 20  # of a weight in fp32 at a time: temporaries of 4 MiB


def dense_matrix(function: str, W: Tensor | np.ndarray[Any, Any], argument: str = "W") -> Tensor:
    """The argument as a tensor, which must be a floating-point [N, K] on the CPU."""
    W = torch.from_numpy(np.ascontiguousarray(W)) if isinstance(W, np.ndarray) else W
    what = f"{function}: {argument}: got {_check.describe(W)}"
    if not isinstance(W, Tensor) or not W.is_floating_point():
        raise TypeError(f"{what}, wanted floating point")
    if W.dim() != 2 or 0 in W.shape:
        raise ValueError(f"{what}, wanted [N, K] with N, K >= 1")
    _check.on_cpu(function, argument, W)
    return W.detach()


def finite_matrix(function: str, W: Tensor | np.ndarray[Any, Any], argument: str = "W") -> Tensor:
    """The same of an argument that float32 must be able to hold."""
    W = dense_matrix(function, W, argument)
    finite = torch.empty(W.shape[0], dtype=torch.bool)
    for rows in row_chunks(*W.shape):
        finite[rows] = W[rows].to(torch.float32).isfinite().all(1)
    refuse_rows(function, finite, argument)
    return W


def row_chunks(N: int, K: int, multiple: int = 1) -> Iterator[slice]:
    """Consecutive rows, all N of them, few enough for temporaries of their size to be cheap."""
    step = max(1, _CHUNK_ELEMENTS // (K * multiple)) * multiple
    return (slice(first, min(first + step, N)) for first in range(0, N, step))


def group_count(K: int, group_size: int | None) -> int:
    """Groups along K; the last may be short."""
    return 1 if group_size is None else -(-K // group_size)


def fitting_group_size(
    K: int, groups: int, hint: int | None, group_sizes: tuple[int | None, ...]
) -> int | None:
    """The hint if it gives this number of groups, else the first group size that does."""
    candidates = (hint, *group_sizes) if hint in group_sizes else group_sizes
    return next((G for G in candidates if group_count(K, G) == groups), hint)


def in_groups(W: Tensor, group_size: int | None) -> Tensor:
    """A [n, K] as float32 [n, groups, G], with zeros in the padding of the last group."""
    n, K = W.shape
    groups, size = group_count(K, group_size), group_size or K
    W = W.to(torch.float32)
    if groups * size != K:
        W = torch.nn.functional.pad(W, (0, groups * size - K))
    return W.reshape(n, groups, size)


def map_groups(
    W: Tensor, group_size: int | None, function: Callable[..., Tensor], *by_row: Tensor | None
) -> Tensor:
    """Apply a function to the groups of W, some rows at a time, and join the results.

    The function takes ``in_groups(W[rows])`` and ``t[rows]`` of the other tensors.
    """
    out: Tensor | None = None
    for rows in row_chunks(*W.shape):
        others = (None if t is None else t[rows] for t in by_row)
        part = function(in_groups(W[rows], group_size), *others)
        if out is None:
            out = part.new_empty(W.shape[0], *part.shape[1:])
        out[rows] = part
    assert out is not None  # N >= 1
    return out


def divided(values: Tensor, scales: Tensor) -> Tensor:
    """``values / scales`` in a new tensor, with 1 in the place of scales that are 0."""
    return values / torch.where(scales == 0, 1.0, scales)


def over_k(by_group: Tensor, group_size: int | None, K: int) -> Tensor:
    """What belongs to groups [n, groups], for every k: [n, K], or [n, 1] per channel."""
    if group_size is None:
        return by_group
    return by_group.repeat_interleave(group_size, 1)[:, :K]


def relative_error(dense: Tensor, weight: Any) -> float:
    """``|W - Ŵ| / |W|`` (Frobenius) of a Format and what it was made from, some rows at a time."""
    N, K = weight.shape
    error = norm = 0.0
    for rows in row_chunks(N, K, multiple=_BLOCK_ROWS):
        part = dense[rows].to(torch.float32)
        difference = weight.rows(rows.start, rows.stop).dequantize().sub_(part)
        error += torch.linalg.vector_norm(difference).item() ** 2
        norm += torch.linalg.vector_norm(part).item() ** 2
    return math.sqrt(error / norm) if norm > 0 else 0.0


def refuse_rows(function: str, finite: Tensor, argument: str = "W") -> None:
    """Raise ValueError where some rows [N] are not finite, naming them."""
    bad = (~finite).nonzero().flatten()
    if bad.numel():
        shown = ", ".join(map(str, bad[:8].tolist())) + (", ..." if bad.numel() > 8 else "")
        raise ValueError(f"{function}: {argument}: NaN or infinity in row(s) {shown}")


def check_tensor(
    name: str, argument: str, value: object, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]
) -> None:
    """The argument must be a tensor on the CPU of one of these dtypes and of this shape."""
    if not isinstance(value, Tensor) or value.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name}: {argument}: got {_check.describe(value)}, wanted {wanted}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: {argument}: got shape {list(value.shape)}, wanted {list(shape)}")
    _check.on_cpu(name, argument, value)


def check_matrix(name: str, argument: str, value: object, dtypes: tuple[torch.dtype, ...]) -> None:
    """The argument must be [rows, columns] of one of these dtypes, not empty, on the CPU."""
    fits = isinstance(value, Tensor) and value.dim() == 2 and 0 not in value.shape
    if not isinstance(value, Tensor) or not fits or value.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(
            f"{name}: {argument}: got {_check.describe(value)}, wanted {wanted} [N, K] with "
            "N, K >= 1"
        )
    _check.on_cpu(name, argument, value)


def check_kinds(function: str, kinds: list[Any], what: str) -> None:
    """Raise ValueError unless weights to be joined are of one kind."""
    if len(set(kinds)) != 1:
        raise ValueError(f"{function}: weights: got {what} {kinds}, wanted the same for all")
