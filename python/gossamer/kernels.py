"""The research surface: every kernel on numpy arrays and torch tensors, ISA and threads forced.

Functions return the kind they were given. numpy arrays are read in place, except those that are
read-only or have a negative stride, which torch cannot wrap: these are copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _C, _check, _ops, formats
from ._products import (
    Array,
    as_tensor,
    check_format,
    isa_name,
    like,
    packed_weight,
    product,
)
from .formats import FORMATS, Format
from .formats.four_bit import FourBit
from .formats.low_rank_sum import SparseLowRankSum
from .formats.sparse import Sparse
from .kernels_sparse import path, sparse_choice, spmm
from .kernels_svd import cholesky_qr2, power_step, project, sketch
from .sparse_choice import USUAL_BATCH, Batch

__all__ = [
    "accumulate",
    "cholesky_qr2",
    "codebook",
    "dequantize",
    "matmul",
    "pack",
    "path",
    "power_step",
    "project",
    "quantize_rows",
    "sketch",
    "sparse_choice",
    "spmm",
    "unpack",
]


def quantize_rows(
    x: Array,
    isa: str | None = None,
    group_size: int | None = None,
    input_scale: float | None = None,
) -> tuple[Any, Any]:
    """Quantize rows of activations as the int8 kernels do.

    Parameters
    ----------
    x : Tensor or ndarray
        Shape (M, K), float32, float16 or (torch) bfloat16.
    isa : str, optional
        One of ``gs.cpu.available()``; None takes ``gs.cpu.isa()``.
    group_size : int, optional
        16, 32, 64, 128 or 256: that many consecutive k share a scale, as with
        ``activations="int8-group"``. None: one scale for each row.
    input_scale : float, optional
        The scale of all rows, as with ``activations="int8-static"``; not with `group_size`.

    Returns
    -------
    values : Tensor or ndarray
        Shape (M, K), int8, in [-127, 127].
    scales : Tensor or ndarray
        Shape (M,), or (M, ceil(K / group_size)), float32; NaN for a row or group that holds NaN or
        infinity.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Where `x`, `group_size` or `input_scale` does not fit, or `isa` is unknown or not available.

    Notes
    -----
    ``scale = max |x| / 127``, ``q = round_half_even(x * (127 / max |x|))``, with the maximum
    over the row or the group. A row of zeros gives zeros. With an input scale
    ``q = round_half_even(x * (1 / input_scale))``, clamped to [-127, 127].

    Examples
    --------
    >>> values, scales = gs.kernels.quantize_rows(np.array([[2.0, -1.0, 0.5]], dtype=np.float32))
    >>> values
    array([[127, -64,  32]], dtype=int8)
    >>> gs.kernels.quantize_rows(torch.ones(2, 100), group_size=32)[1].shape
    torch.Size([2, 4])
    """
    rows = as_tensor("quantize_rows", "x", x)
    _check.floating("quantize_rows", "x", rows)
    if rows.dim() != 2 or rows.shape[1] < 1:
        raise ValueError(
            f"quantize_rows: x: got {_check.describe(rows)}, wanted [M, K] with K >= 1"
        )
    _check.group_size("quantize_rows", group_size, FourBit.group_sizes)
    scale = _check.input_scale("quantize_rows", input_scale)
    if scale is not None and group_size is not None:
        raise ValueError(
            f"quantize_rows: input_scale: got {scale} with group_size {group_size}, wanted one of "
            "the two"
        )
    values, scales = _ops.quantize_rows(rows, isa_name("quantize_rows", isa), group_size, scale)
    return like(x, values), like(x, scales)


def pack(
    weight: Format,
    activations: str | None = None,
    *,
    batch: Batch | None = None,
    pattern: str | None = None,
    parts: tuple[str, ...] | None = None,
) -> Tensor:
    """Lay a weight out for the kernels, to be given to :func:`matmul` many times.

    Parameters
    ----------
    weight : Format
        Such as ``gs.formats.Int8.quantize(W)``.
    activations : str, optional
        "int8": each row of x is rounded as by :func:`quantize_rows`; "int8-group": each group of
        each row, the groups being those of the weight; "exact": x is multiplied as it is. None
        takes the usual kind of the format.
    batch, pattern, parts : optional
        Of the sparse formats: for how many rows of x, which blocks share a bit of the mask, and
        what the packed weight holds, as ``gs.formats.SparseInt8.pack`` says.

    Returns
    -------
    Tensor
        Shape (bytes,), uint8.

    Raises
    ------
    TypeError, ValueError
        Where `weight` is not of a known format, or the format does not offer what is asked for.

    Examples
    --------
    >>> packed = gs.kernels.pack(gs.formats.Int8.quantize(torch.randn(16, 64)))
    >>> gs.kernels.unpack(packed).shape
    (16, 64)
    """
    check_format("pack", weight)
    if isinstance(weight, Sparse | SparseLowRankSum):
        batch = USUAL_BATCH if batch is None else batch
        return weight.pack(activations, batch=batch, pattern=pattern, parts=parts)
    if (batch, pattern, parts) != (None, None, None):
        raise TypeError(f"pack: batch, pattern, parts: {weight.name} is not a sparse format")
    return weight.pack(activations)


def unpack(packed: Array) -> Format:
    """Undo :func:`pack`, exactly.

    Parameters
    ----------
    packed : Tensor or ndarray
        Shape (bytes,), uint8.

    Returns
    -------
    Format
        The canonical tensors, newly allocated.

    Raises
    ------
    TypeError, ValueError
        Where the bytes are not a packed weight.
    """
    return formats.unpack(as_tensor("unpack", "packed", packed))


def dequantize(weight: Format | Array, first_row: int = 0, last_row: int | None = None) -> Tensor:
    """Expand rows of a weight to dense, from the packed bytes that the kernels read.

    Parameters
    ----------
    weight : Format or packed uint8
        (N, K).
    first_row, last_row : int
        The rows [first_row, last_row); None is N.

    Returns
    -------
    Tensor
        Shape (last_row - first_row, K), float32. The same as ``weight.dequantize()``, which reads
        the canonical tensors.

    Raises
    ------
    TypeError, ValueError
        Where an argument does not fit.

    Examples
    --------
    >>> weight = gs.formats.Int4.quantize(torch.randn(5, 64))
    >>> bool((gs.kernels.dequantize(weight, 1, 3) == weight.dequantize()[1:3]).all())
    True
    """
    handle, _keep = packed_weight("dequantize", weight)
    last = handle.out_features if last_row is None else last_row
    if not 0 <= first_row <= last <= handle.out_features:
        raise ValueError(
            f"dequantize: first_row, last_row: got {first_row}, {last}, wanted rows of 0 to "
            f"{handle.out_features}"
        )
    return _ops.dequantize_rows(handle, first_row, last)


def codebook(name: str) -> dict[str, Any]:
    """What the kernels take the 16 codes of a 4-bit format for.

    Parameters
    ----------
    name : str
        "int4", "nf4", "fp4" or "mxfp4".

    Returns
    -------
    dict
        ``value``: 16 floats; ``s8``: the integers that stand for them where x is rounded to int8,
        ``value / unit + offset``, rounded; ``offset``; ``unit``.

    Raises
    ------
    ValueError
        For another name.

    Examples
    --------
    >>> gs.kernels.codebook("fp4")["value"][:8]
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    form = FORMATS.get(name)
    if form is None or not issubclass(form, FourBit):
        names = ", ".join(n for n, f in FORMATS.items() if issubclass(f, FourBit))
        raise ValueError(f"codebook: name: got {name!r}, wanted one of {names}")
    return dict(_C.codebook(name))


def matmul(
    x: Array,
    weight: Format | Array,
    bias: Array | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | np.dtype[Any] | type | None = None,
    isa: str | None = None,
    threads: int | None = None,
    path: str | None = None,
) -> Any:
    """``activation(x · Ŵᵀ + bias)``: the kernel behind ``gs.nn.Linear``, without autograd.

    Parameters
    ----------
    x : Tensor or ndarray
        Shape (..., K), float32, float16 or (torch) bfloat16.
    weight : Format or packed uint8
        (N, K). A format is packed in every call, for its usual activations; :func:`pack` it once
        for many, or for others.
    bias : Tensor or ndarray, optional
        Shape (N,), of one of the dtypes of x.
    activation : str
        "none", "relu", "gelu", "gelu_tanh" or "silu".
    out_dtype : torch.dtype or numpy dtype, optional
        Dtype of the result; None takes that of x.
    isa : str, optional
        One of ``gs.cpu.available()``; None takes ``gs.cpu.isa()``.
    threads : int, optional
        None takes ``torch.get_num_threads()``.
    path : str, optional
        How a sparse weight is multiplied: "gemv" (expanded in registers, for few rows), "expand"
        (to dense panels) or "spmm" (zeros are skipped); None or "auto" takes what :func:`path`
        says. Results differ by rounding.

    Returns
    -------
    Tensor or ndarray
        Shape (..., N), newly allocated.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Where an argument does not fit, `isa` is unknown or not available, or the weight was not
        packed for this path.

    Notes
    -----
    The packed weight says what happens to x: see :func:`pack`. The result has the same bits for any
    number of threads.

    Examples
    --------
    >>> weight = gs.formats.Int8.quantize(np.eye(3, dtype=np.float32))
    >>> gs.kernels.matmul(np.ones((2, 3), dtype=np.float32), weight, isa="scalar")
    array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
    """
    return product(
        "matmul",
        x,
        weight,
        bias,
        activation,
        out_dtype=out_dtype,
        isa=isa,
        threads=threads,
        path=path,
    )


def accumulate(
    a: Array, weight: Format | Array, isa: str | None = None, threads: int | None = None
) -> Any:
    """The integer sums ``a · valuesᵀ`` alone, without scales: exact, the same on every ISA.

    Parameters
    ----------
    a : Tensor or ndarray
        Shape (M, K), int8, any values.
    weight : Int8 or packed uint8
        (N, K).
    isa : str, optional
        One of ``gs.cpu.available()``; None takes ``gs.cpu.isa()``.
    threads : int, optional
        None takes ``torch.get_num_threads()``.

    Returns
    -------
    Tensor or ndarray
        Shape (M, N), int64.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Where an argument does not fit, or `isa` is unknown or not available.

    Examples
    --------
    >>> weight = gs.formats.Int8.quantize(np.eye(2, dtype=np.float32))
    >>> gs.kernels.accumulate(np.array([[1, -128]], dtype=np.int8), weight)
    array([[   127, -16256]])
    """
    rows = as_tensor("accumulate", "a", a)
    handle, _keep = packed_weight("accumulate", weight)
    wanted = f"int8 [M, {handle.in_features}]"
    if rows.dtype is not torch.int8:
        raise TypeError(f"accumulate: a: got {_check.describe(rows)}, wanted {wanted}")
    if rows.dim() != 2 or rows.shape[1] != handle.in_features:
        raise ValueError(f"accumulate: a: got {_check.describe(rows)}, wanted {wanted}")
    _check.on_cpu("accumulate", "a", rows)
    out = _ops.accumulate(
        handle, rows, _check.threads("accumulate", threads), isa_name("accumulate", isa)
    )
    return like(a, out)
