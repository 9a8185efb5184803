"""Sparse weights from and to the matrices of torch (CSR, BSR) and of SciPy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import _check
from .groups import row_chunks
from .sparse import Sparse
from .sparse_mask import stored_weights

_Weight = TypeVar("_Weight", bound="SparseConverters")


@dataclass(frozen=True)
class Entries:
    """Entries of a matrix [N, K] by row, in any order within it; those of the same place add up."""

    starts: Tensor  # int64 [N + 1]
    columns: Tensor  # int64
    values: Tensor  # floating point
    shape: tuple[int, int]

    def dense(self, rows: slice) -> Tensor:
        """Some rows, in the dtype of the values."""
        first, last = int(self.starts[rows.start]), int(self.starts[rows.stop])
        counts = self.starts[rows.start : rows.stop + 1].diff()
        row = torch.arange(counts.numel()).repeat_interleave(counts)
        dense = self.values.new_zeros(counts.numel(), self.shape[1])
        where = (row, self.columns[first:last])
        return dense.index_put_(where, self.values[first:last], accumulate=True)


class SparseConverters(Sparse):
    """A sparse weight that can be made from sparse matrices, and become one."""

    @classmethod
    @abstractmethod
    def _from_entries(cls: type[_Weight], entries: Entries, **settings: Any) -> _Weight:
        """Sum the entries of each place, round as ``quantize`` does, and leave out the zeros."""

    @classmethod
    def from_csr(cls: type[_Weight], matrix: Tensor, **settings: Any) -> _Weight:
        """Take the entries of a torch CSR matrix.

        Parameters
        ----------
        matrix : Tensor
            Layout ``torch.sparse_csr``, shape (N, K), floating point. Column indices may be in any
            order; entries of the same place are summed, zeros dropped.
        **settings
            Of ``quantize``, for the formats that round to integers.

        Returns
        -------
        Sparse
            With float32 and bfloat16 values that are those of the matrix, rounded to the dtype;
            NaN and infinity are kept. Integers as ``quantize`` rounds the dense matrix.

        Raises
        ------
        TypeError, ValueError
            Where `matrix` has another layout or dtype, or indices outside of its shape.

        Examples
        --------
        >>> W = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        >>> gs.formats.SparseFP32.from_csr(W.to_sparse_csr()).dequantize()
        tensor([[0., 2.],
                [3., 0.]])
        """
        function = f"{cls.__name__}.from_csr"
        _check_torch(function, matrix, torch.sparse_csr, "CSR")
        shape, values = (matrix.shape[0], matrix.shape[1]), matrix.values().detach()
        starts, columns = matrix.crow_indices().long(), matrix.col_indices().long()
        _check_indices(function, starts, columns, values.numel(), shape)
        return cls._from_entries(Entries(starts, columns, values, shape), **settings)

    @classmethod
    def from_bsr(cls: type[_Weight], matrix: Tensor, **settings: Any) -> _Weight:
        """Take the entries of a torch BSR matrix: see :meth:`from_csr`.

        Parameters
        ----------
        matrix : Tensor
            Layout ``torch.sparse_bsr``, shape (N, K), floating point.
        **settings
            Of ``quantize``, for the formats that round to integers.

        Returns
        -------
        Sparse
            The zeros within blocks are not stored.

        Raises
        ------
        TypeError, ValueError
            Where `matrix` has another layout or dtype, or indices outside of its shape.
        """
        function = f"{cls.__name__}.from_bsr"
        _check_torch(function, matrix, torch.sparse_bsr, "BSR")
        shape, blocks = (matrix.shape[0], matrix.shape[1]), matrix.values().detach()
        count, height, width = blocks.shape
        starts, columns = matrix.crow_indices().long(), matrix.col_indices().long()
        _check_indices(function, starts, columns, count, (shape[0] // height, shape[1] // width))
        block_rows = torch.arange(starts.numel() - 1).repeat_interleave(starts.diff())
        row = block_rows[:, None, None] * height + torch.arange(height)[:, None]
        column = columns[:, None, None] * width + torch.arange(width)
        row, order = row.expand_as(blocks).flatten().sort(stable=True)
        counts = row.bincount(minlength=shape[0])
        entries = Entries(
            torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
            column.expand_as(blocks).flatten()[order],
            blocks.flatten()[order],
            shape,
        )
        return cls._from_entries(entries, **settings)

    @classmethod
    def from_scipy(cls: type[_Weight], matrix: Any, **settings: Any) -> _Weight:
        """Take the entries of a SciPy matrix: see :meth:`from_csr`.

        Parameters
        ----------
        matrix : scipy.sparse array or matrix
            Of any format, shape (N, K), float32, float64 or float16.
        **settings
            Of ``quantize``, for the formats that round to integers.

        Returns
        -------
        Sparse
            Entries of the same place are summed.

        Raises
        ------
        TypeError, ValueError
            Where `matrix` is something else, or has indices outside of its shape.
        ModuleNotFoundError
            Where SciPy is not installed.
        """
        function = f"{cls.__name__}.from_scipy"
        sparse = _scipy_sparse(function)
        if not sparse.issparse(matrix) or matrix.ndim != 2 or matrix.dtype.kind != "f":
            found = f"{type(matrix).__name__} {getattr(matrix, 'dtype', '')}".strip()
            raise TypeError(
                f"{function}: matrix: got {found}, wanted a scipy.sparse [N, K] of floating point"
            )
        if matrix.dtype.itemsize > 8:
            raise TypeError(f"{function}: matrix: got {matrix.dtype}, wanted float64 at most")
        rows = matrix.tocsr()
        starts = torch.from_numpy(rows.indptr.astype(np.int64))
        columns = torch.from_numpy(rows.indices.astype(np.int64))
        values = torch.from_numpy(rows.data.astype(rows.dtype.newbyteorder("=")))
        _check_indices(function, starts, columns, values.numel(), rows.shape)
        return cls._from_entries(Entries(starts, columns, values, tuple(rows.shape)), **settings)

    def to_csr(self) -> Tensor:
        """The stored weights as a torch CSR matrix.

        Returns
        -------
        Tensor
            Shape (N, K), float32, int64 indices: those of ``dequantize()`` that are stored.
        """
        starts, columns, values = _stored_entries(self)
        return torch.sparse_csr_tensor(
            starts, columns, values, size=self.shape, check_invariants=False
        )

    def to_bsr(self, block_size: tuple[int, int]) -> Tensor:
        """The stored weights as a torch BSR matrix.

        Parameters
        ----------
        block_size : (int, int)
            Rows and columns of a block; they divide N and K.

        Returns
        -------
        Tensor
            Shape (N, K), float32: every block that holds a stored weight.

        Raises
        ------
        ValueError
            Where blocks of this size do not divide the shape.
        """
        shape = self.shape
        if len(block_size) != 2 or any(
            b < 1 or n % b for n, b in zip(shape, block_size, strict=True)
        ):
            raise ValueError(
                f"{type(self).__name__}.to_bsr: block_size: got {block_size!r}, wanted two numbers "
                f"that divide {shape}"
            )
        return self.to_csr().to_sparse_bsr(tuple(block_size))

    def to_scipy(self) -> Any:
        """The stored weights as a SciPy matrix.

        Returns
        -------
        scipy.sparse.csr_array
            Shape (N, K), float32.

        Raises
        ------
        ModuleNotFoundError
            Where SciPy is not installed.
        """
        sparse = _scipy_sparse(f"{type(self).__name__}.to_scipy")
        starts, columns, values = (part.numpy() for part in _stored_entries(self))
        return sparse.csr_array((values, columns, starts), shape=self.shape)


def _check_torch(function: str, matrix: object, layout: torch.layout, name: str) -> None:
    if not isinstance(matrix, Tensor) or matrix.layout is not layout or matrix.dim() != 2:
        found = (
            _check.describe(matrix)
            if not isinstance(matrix, Tensor)
            else (f"a {matrix.layout} tensor of shape {list(matrix.shape)}")
        )
        raise TypeError(f"{function}: matrix: got {found}, wanted a torch {name} matrix [N, K]")
    if not matrix.is_floating_point():
        raise TypeError(f"{function}: matrix: got {matrix.dtype}, wanted floating point")
    _check.on_cpu(function, "matrix", matrix)


def _check_indices(
    function: str, starts: Tensor, columns: Tensor, count: int, shape: Sequence[int]
) -> None:
    """Check the indices of `count` entries or blocks [N, K]: torch and SciPy accept any."""
    N, K = shape
    if N < 1 or K < 1:
        raise ValueError(f"{function}: matrix: got shape {[N, K]}, wanted N, K >= 1")
    ends = (starts.numel(), int(starts[0]), int(starts[-1]), columns.numel())
    if ends != (N + 1, 0, count, count) or bool((starts.diff() < 0).any()):
        raise ValueError(f"{function}: matrix: its row pointers do not rise from 0 to {count}")
    if count and not 0 <= int(columns.min()) <= int(columns.max()) < K:
        raise ValueError(f"{function}: matrix: some column indices are not within [0, {K})")


def _stored_entries(weight: Sparse) -> tuple[Tensor, Tensor, Tensor]:
    """Row pointers, columns and float32 values of what is stored."""
    N, K = weight.shape
    columns, values = [], []
    for rows in row_chunks(N, K):
        stored = stored_weights(weight.mask[rows], K)
        columns.append(stored.nonzero()[:, 1])
        values.append(torch.masked_select(weight._dequantized(rows), stored))
    return weight._starts.clone(), torch.cat(columns), torch.cat(values)


def _scipy_sparse(function: str) -> Any:
    try:
        import scipy.sparse
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{function}: needs SciPy: pip install scipy") from error
    return scipy.sparse
