"""The canonical tensors of sparse weights: a mask, the values it says are stored, and scales."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import _check
from .groups import (
    check_matrix,
    check_tensor,
    dense_matrix,
    group_count,
    over_k,
    refuse_rows,
    row_chunks,
)
from .sparse_mask import compress, join, mask_columns, row_starts

_Weight = TypeVar("_Weight", bound="SparseTensors")


@dataclass(frozen=True, eq=False)
class SparseTensors(ABC):
    """A weight of which only the values that are not zero are stored.

    The base of :class:`SparseInt8`, :class:`SparseInt4`, :class:`SparseBF16` and
    :class:`SparseFP32`, which say what a value is.

    Parameters
    ----------
    mask : Tensor
        Shape (N, ceil(K / 8)), uint8: bit k % 8, lowest first, of byte k // 8 of row n is 1 where
        W[n, k] is stored. Bits beyond K are 0.
    values : Tensor
        One dimension: the stored values, by row and then by k. Zeros among them are dropped.
    scales : Tensor, optional
        As the dense format has them; None where that has none.
    group_size : int, optional
        Of the scales.
    in_features : int, optional
        K; None takes eight for each byte of a row of the mask.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, the mask has bits beyond K, there are more or
        fewer values than bits, or a scale is infinite or NaN.
    """

    name: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]] = ("weight_mask", "weight")
    state_forms: ClassVar[tuple[tuple[str, ...], ...]] = (state_names,)
    activation_kinds: ClassVar[tuple[str, ...]] = ("exact",)
    group_sizes: ClassVar[tuple[int | None, ...]] = (None,)
    value_dtype: ClassVar[torch.dtype]
    scale_dtypes: ClassVar[tuple[torch.dtype, ...]] = ()  # none: there are no scales
    _dense_dtype: ClassVar[torch.dtype] = torch.float32  # in which a dense weight must be finite

    mask: Tensor
    values: Tensor
    scales: Tensor | None = None
    group_size: int | None = None
    in_features: int | None = None

    # --- what each format says ---

    @classmethod
    @abstractmethod
    def from_dense(cls: type[_Weight], weight: Any) -> _Weight:
        """Leave out the zeros of a weight in the dense format."""

    @abstractmethod
    def dense(self) -> Any:
        """The same weight in the dense format."""

    def _single(self, first: int, last: int) -> Tensor:
        """The values [first, last), one to an element."""
        return self.values[first:last]

    @classmethod
    def _stored(cls, single: Tensor) -> Tensor:
        """Undo :meth:`_single`."""
        return single

    def _check_values(self, nnz: int) -> None:
        check_tensor(type(self).__name__, "values", self.values, (self.value_dtype,), (nnz,))

    # --- checks ---

    def __post_init__(self) -> None:
        kind = type(self).__name__
        _check.group_size(kind, self.group_size, self.group_sizes)
        check_matrix(kind, "mask", self.mask, (torch.uint8,))
        columns = self.mask.shape[1]
        K = 8 * columns if self.in_features is None else self.in_features
        object.__setattr__(self, "in_features", K)  # the dataclass is frozen
        if columns != mask_columns(K):
            raise ValueError(
                f"{kind}: mask: got shape {list(self.mask.shape)}, wanted [N, {mask_columns(K)}] "
                f"for in_features {K}"
            )
        if K % 8 and bool((self.mask[:, -1] >> K % 8).any()):
            raise ValueError(f"{kind}: mask: bits beyond in_features {K} are set")
        self._check_values(self.nnz)
        self._check_scales(kind)
        self._drop_zeros()

    def _check_scales(self, kind: str) -> None:
        if not self.scale_dtypes:
            if self.scales is not None:
                raise TypeError(f"{kind}: scales: got {_check.describe(self.scales)}, wanted None")
            return
        N, K = self.shape
        groups = (N, group_count(K, self.group_size))
        check_tensor(kind, "scales", self.scales, self.scale_dtypes, groups)
        assert self.scales is not None  # check_tensor has seen it
        if not bool(self.scales.isfinite().all()):
            raise ValueError(f"{kind}: scales: some are infinite or NaN")

    def _drop_zeros(self) -> None:
        if bool((self._single(0, self.nnz) != 0).all()):
            return
        mask, single = compress(self._levels, *self.shape)
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "values", self._stored(single))
        self.__dict__.pop("_starts")

    @classmethod
    def _finite_matrix(cls, W: Tensor | np.ndarray[Any, Any], group_size: int | None) -> Tensor:
        """The arguments of ``quantize``, checked."""
        function = f"{cls.__name__}.quantize"
        _check.group_size(function, group_size, cls.group_sizes)
        W = dense_matrix(function, W)
        finite = torch.empty(W.shape[0], dtype=torch.bool)
        for rows in row_chunks(*W.shape):
            finite[rows] = W[rows].to(cls._dense_dtype).isfinite().all(1)
        refuse_rows(function, finite)
        return W

    # --- what is known of the weight ---

    @cached_property
    def _starts(self) -> Tensor:
        return row_starts(self.mask)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): out_features and in_features."""
        assert self.in_features is not None  # __post_init__ sets it
        return self.mask.shape[0], self.in_features

    @property
    def nnz(self) -> int:
        """How many values are stored."""
        return int(self._starts[-1])

    @property
    def sparsity(self) -> float:
        """Share of the N * K weights that are not stored."""
        N, K = self.shape
        return 1 - self.nnz / (N * K)

    # --- dense ---

    def _levels(self, rows: slice) -> Tensor:
        """Some rows as dense, before scales: [n, K]."""
        first, last = int(self._starts[rows.start]), int(self._starts[rows.stop])
        return join(self.mask[rows], self._single(first, last), self.shape[1])

    def _all_levels(self) -> Tensor:
        """All rows as dense, before scales: [N, K]."""
        return torch.cat([self._levels(rows) for rows in row_chunks(*self.shape)])

    def dequantize(self) -> Tensor:
        """The weight that the kernels multiply with.

        Returns
        -------
        Tensor
            Shape (N, K), float32, newly allocated.
        """
        out = torch.empty(self.shape, dtype=torch.float32)
        for rows in row_chunks(*self.shape):
            out[rows] = self._dequantized(rows)
        return out

    def _dequantized(self, rows: slice) -> Tensor:
        levels = self._levels(rows).to(torch.float32)
        if self.scales is None:
            return levels
        scales = self.scales[rows].to(torch.float32)
        return levels.mul_(over_k(scales, self.group_size, self.shape[1]))
