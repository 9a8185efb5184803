"""The research surface of sparse weights: how they are multiplied, and products that skip zeros.

Its functions are those of :mod:`gossamer.kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _check
from ._products import Array, isa_name, packed_weight, product
from .formats import Format, SparseFP32
from .formats.sparse import Sparse
from .sparse_choice import USUAL_BATCH, Batch, SparseChoice


def path(
    weight: Format | Array, M: int, dtype: torch.dtype = torch.float32, isa: str | None = None
) -> str:
    """How :func:`matmul` multiplies a sparse weight with M rows.

    Parameters
    ----------
    weight : Format or packed uint8
        A sparse one.
    M : int
        Rows of x.
    dtype : torch.dtype
        Of x: float32, bfloat16 or float16.
    isa : str, optional
        None takes ``gs.cpu.isa()``.

    Returns
    -------
    str
        "gemv", "expand" or "spmm".

    Raises
    ------
    TypeError, ValueError
        Where an argument does not fit, or the weight is dense.

    Examples
    --------
    >>> weight = gs.formats.SparseFP32.quantize(torch.eye(64))
    >>> gs.kernels.path(weight.pack(parts=("bitmask",)), 256)
    'expand'
    """
    handle, _keep = packed_weight("path", weight)
    if dtype not in _check.DTYPES:
        raise TypeError(f"path: dtype: got {dtype}, wanted float32, bfloat16 or float16")
    if M < 0:
        raise ValueError(f"path: M: got {M}, wanted a number >= 0")
    return handle.kernel.path_of(M, _check.DTYPES[dtype], isa_name("path", isa))


def sparse_choice(
    weight: Format,
    batch: Batch = USUAL_BATCH,
    activations: str | None = None,
    pattern: str | None = None,
    isa: str | None = None,
) -> SparseChoice:
    """How a sparse weight is packed for these batches, whether dense would be faster, and why.

    Parameters
    ----------
    weight : Format
        A sparse one.
    batch : int, "large" or a tuple of these
        As of :func:`pack`, and so the next two.
    activations : str, optional
        What happens to x.
    pattern : str, optional
        Of the blocks of zeros.
    isa : str, optional
        Of this processor or another; None takes ``gs.cpu.isa()``.

    Returns
    -------
    SparseChoice
        ``parts``, ``few``, ``many``, ``keep_dense``, ``reason``. ``pack(weight, parts=...)``
        overrules it.

    Raises
    ------
    TypeError, ValueError
        Where an argument does not fit.

    Examples
    --------
    >>> weight = gs.formats.SparseInt8.quantize(torch.ones(16, 64))
    >>> gs.kernels.sparse_choice(weight).keep_dense
    True
    """
    if not isinstance(weight, Sparse):
        raise TypeError(
            f"sparse_choice: weight: got {_check.describe(weight)}, wanted a sparse format"
        )
    isa_name("sparse_choice", isa)
    return weight.choice(batch, activations, pattern, isa)


def spmm(
    weight: Format | Array | Any,
    x: Array,
    isa: str | None = None,
    threads: int | None = None,
) -> Any:
    """``x · Wᵀ`` with a sparse W, always by skipping its zeros.

    Parameters
    ----------
    weight : SparseFP32, SparseInt8, torch sparse tensor, scipy.sparse or packed uint8
        (N, K). CSR, BSR and COO matrices become :class:`SparseFP32`. Packed bytes must hold the
        part "spmm"; anything else is packed in every call.
    x : Tensor or ndarray
        Shape (..., K), float32, float16 or (torch) bfloat16. With SparseInt8 each row is rounded
        to int8.
    isa : str, optional
        One of ``gs.cpu.available()``; None takes ``gs.cpu.isa()``.
    threads : int, optional
        None takes ``torch.get_num_threads()``.

    Returns
    -------
    Tensor or ndarray
        Shape (..., N), newly allocated, in the dtype of x. A row of x with NaN or infinity gives a
        row of NaN, whatever is multiplied with it.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Where an argument does not fit, or the weight cannot be multiplied so: other formats, and
        int8 with groups.

    Examples
    --------
    >>> W = torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]])
    >>> gs.kernels.spmm(W.to_sparse_csr(), torch.tensor([[1.0, 10.0]]))
    tensor([[20.,  3.,  0.]])
    """
    packed = weight
    if not _is_array(weight):
        sparse = weight if isinstance(weight, Sparse) else _from_matrix(weight)
        packed = sparse.pack(parts=("spmm",))
    return product("spmm", x, packed, isa=isa, threads=threads, path="spmm")


def _is_array(value: object) -> bool:
    """Whether this is packed bytes or may be taken for them: no sparse matrix."""
    return isinstance(value, np.ndarray) or (
        isinstance(value, Tensor) and value.layout is torch.strided
    )


def _from_matrix(matrix: Any) -> SparseFP32:
    if not isinstance(matrix, Tensor):
        return SparseFP32.from_scipy(matrix)
    if matrix.layout is torch.sparse_bsr:
        return SparseFP32.from_bsr(matrix)
    if matrix.layout is torch.sparse_coo:
        matrix = matrix.coalesce().to_sparse_csr()
    return SparseFP32.from_csr(matrix)
