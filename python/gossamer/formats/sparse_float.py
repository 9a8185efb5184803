"""Formats sparse-fp32 and sparse-bf16: the values that are not zero, as floating point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import _check
from .bf16 import BF16
from .groups import dense_matrix
from .sparse_converters import Entries, SparseConverters
from .sparse_mask import compress

_Weight = TypeVar("_Weight", bound="SparseFloat")


@dataclass(frozen=True, eq=False)
class SparseFloat(SparseConverters):
    """What the two formats share: values that are not scaled."""

    @classmethod
    def quantize(
        cls: type[_Weight], W: Tensor | np.ndarray[Any, Any], group_size: int | None = None
    ) -> _Weight:
        """Leave out the zeros of a dense weight, and those that its values are rounded to.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64.
        group_size : None
            There are no groups.

        Returns
        -------
        SparseFloat
            New tensors; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN, infinity or numbers that round to it (the rows are named), or is
            not a matrix. ``from_dense`` and the converters keep those.
        """
        return cls._compressed(cls._finite_matrix(W, group_size))

    @classmethod
    def _compressed(cls: type[_Weight], W: Tensor) -> _Weight:
        N, K = W.shape
        mask, values = compress(lambda rows: W[rows].to(cls.value_dtype), N, K)
        return cls(mask, values, in_features=K)

    @classmethod
    def _from_entries(cls: type[_Weight], entries: Entries, **settings: Any) -> _Weight:
        if settings:
            raise TypeError(f"{cls.__name__}: got {', '.join(settings)}: its values have no scales")
        N, K = entries.shape
        mask, values = compress(lambda rows: entries.dense(rows).to(cls.value_dtype), N, K)
        return cls(mask, values, in_features=K)


@dataclass(frozen=True, eq=False)
class SparseFP32(SparseFloat):
    """A weight of which the values that are not zero are stored as float32.

    Parameters
    ----------
    mask : Tensor
        Shape (N, ceil(K / 8)), uint8: bit k % 8, lowest first, of byte k // 8 of row n is 1 where
        W[n, k] is stored. Bits beyond K are 0.
    values : Tensor
        Shape (nnz,), float32, by row and then by k. Zeros among them are dropped; NaN, infinity
        and denormals are kept.
    scales, group_size : None
        There are no scales.
    in_features : int, optional
        K; None takes eight for each byte of a row of the mask.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, the mask has bits beyond K, or there are more or
        fewer values than bits.

    Examples
    --------
    >>> weight = gs.formats.SparseFP32.quantize(torch.tensor([[0.0, 1.5, 0.0], [2.5, 0.0, -1.0]]))
    >>> weight.mask.tolist(), weight.values.tolist(), weight.sparsity
    ([[2], [5]], [1.5, 2.5, -1.0], 0.5)
    """

    name: ClassVar[str] = "sparse-fp32"
    value_dtype: ClassVar[torch.dtype] = torch.float32

    @classmethod
    def from_dense(cls, weight: Tensor) -> SparseFP32:
        """Leave out the zeros of a dense tensor.

        Parameters
        ----------
        weight : Tensor
            Shape (N, K), float32. NaN and infinity are kept.

        Returns
        -------
        SparseFP32
            Exactly the same weight, except that -0.0 becomes 0.0.

        Raises
        ------
        TypeError, ValueError
            Where `weight` is something else.
        """
        matrix = dense_matrix("SparseFP32.from_dense", weight)
        if matrix.dtype is not torch.float32:
            raise TypeError(f"SparseFP32.from_dense: W: got {matrix.dtype}, wanted float32")
        return cls._compressed(matrix)

    def dense(self) -> Tensor:
        """The same weight as a dense tensor, which ``torch.nn.functional.linear`` takes.

        Returns
        -------
        Tensor
            Shape (N, K), float32, newly allocated.
        """
        return self._all_levels()


@dataclass(frozen=True, eq=False)
class SparseBF16(SparseFloat):
    """A weight of which the values that are not zero are stored as bfloat16.

    Parameters
    ----------
    mask : Tensor
        Shape (N, ceil(K / 8)), uint8: bit k % 8, lowest first, of byte k // 8 of row n is 1 where
        W[n, k] is stored. Bits beyond K are 0.
    values : Tensor
        Shape (nnz,), bfloat16, by row and then by k. Zeros among them are dropped; NaN, infinity
        and denormals are kept.
    scales, group_size : None
        There are no scales.
    in_features : int, optional
        K; None takes eight for each byte of a row of the mask.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, the mask has bits beyond K, or there are more or
        fewer values than bits.

    Examples
    --------
    >>> weight = gs.formats.SparseBF16.quantize(torch.tensor([[0.0, 1.00390625], [-2.0, 0.0]]))
    >>> weight.dequantize()
    tensor([[ 0.,  1.],
            [-2.,  0.]])
    """

    name: ClassVar[str] = "sparse-bf16"
    value_dtype: ClassVar[torch.dtype] = torch.bfloat16
    _dense_dtype: ClassVar[torch.dtype] = torch.bfloat16

    @classmethod
    def from_dense(cls, weight: BF16) -> SparseBF16:
        """Leave out the zeros of a bf16 weight.

        Parameters
        ----------
        weight : BF16
            NaN and infinity are kept.

        Returns
        -------
        SparseBF16
            Exactly the same weight, except that -0.0 becomes 0.0.

        Raises
        ------
        TypeError
            Where `weight` is something else.
        """
        if not isinstance(weight, BF16):
            raise TypeError(
                f"SparseBF16.from_dense: weight: got {_check.describe(weight)}, wanted BF16"
            )
        return cls._compressed(weight.values)

    def dense(self) -> BF16:
        """The same weight in the dense format.

        Returns
        -------
        BF16
            In a tensor of its own.
        """
        return BF16(self._all_levels())
