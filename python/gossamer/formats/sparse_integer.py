"""Formats sparse-int8 and sparse-int4: integers that are not zero, with scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import _check
from .four_bit import SCALE_DTYPES, join_halves
from .groups import check_tensor
from .int4 import Int4
from .int8 import Int8
from .sparse_converters import Entries, SparseConverters
from .sparse_mask import compress

_MIDDLE = 8  # the code of zero
_Weight = TypeVar("_Weight", bound="SparseInteger")


@dataclass(frozen=True, eq=False)
class SparseInteger(SparseConverters):
    """What the two formats share: values that are scaled."""

    state_names: ClassVar[tuple[str, ...]] = ("weight_mask", "weight", "weight_scale")
    state_forms: ClassVar[tuple[tuple[str, ...], ...]] = (state_names,)
    activation_kinds: ClassVar[tuple[str, ...]] = ("int8", "exact", "int8-group")

    @classmethod
    def _from_entries(cls: type[_Weight], entries: Entries, **settings: Any) -> _Weight:
        dense = entries.dense(slice(0, entries.shape[0]))
        quantize: Any = cls.quantize  # type: ignore[attr-defined]
        return quantize(dense, **settings)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class SparseInt8(SparseInteger):
    """A weight of which the values that are not zero are stored as int8, scaled as :class:`Int8`.

    Parameters
    ----------
    mask : Tensor
        Shape (N, ceil(K / 8)), uint8: bit k % 8, lowest first, of byte k // 8 of row n is 1 where
        W[n, k] is stored. Bits beyond K are 0.
    values : Tensor
        Shape (nnz,), int8, by row and then by k. Zeros among them are dropped.
    scales : Tensor
        Shape (N, groups), float32, finite and >= 0, with ``groups = ceil(K / G)``, or 1 where
        ``group_size`` is None.
    group_size : int, optional
        G: 32, 64 or 128 consecutive k share a scale, zeros counted; the last group may be short.
        None: one scale per output channel.
    in_features : int, optional
        K; None takes eight for each byte of a row of the mask.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, the mask has bits beyond K, there are more or
        fewer values than bits, or a scale is negative, infinite or NaN.

    Examples
    --------
    >>> weight = gs.formats.SparseInt8.quantize(torch.tensor([[1.0, 0.0, -0.5], [0.0, 0.0, 0.0]]))
    >>> weight.mask.tolist(), weight.values.tolist()
    ([[5], [0]], [127, -64])
    """

    name: ClassVar[str] = "sparse-int8"
    group_sizes: ClassVar[tuple[int | None, ...]] = Int8.group_sizes
    value_dtype: ClassVar[torch.dtype] = torch.int8
    scale_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)

    def _check_scales(self, kind: str) -> None:
        super()._check_scales(kind)
        if self.scales is not None and bool((self.scales < 0).any()):
            raise ValueError("SparseInt8: scales: some are negative")

    @classmethod
    def quantize(
        cls, W: Tensor | np.ndarray[Any, Any], group_size: int | None = None
    ) -> SparseInt8:
        """Round a dense weight as :meth:`Int8.quantize` does, and leave out what is zero.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64 (read as float32).
        group_size : int, optional
            None (one scale per output channel), 32, 64 or 128.

        Returns
        -------
        SparseInt8
            New tensors; ``W`` is left as it is. Values that are rounded to 0 are not stored.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN or infinity (the rows are named) or is not a matrix.
        """
        return cls.from_dense(Int8.quantize(cls._finite_matrix(W, group_size), group_size))

    @classmethod
    def from_dense(cls, weight: Int8) -> SparseInt8:
        """Leave out the zeros of an int8 weight.

        Parameters
        ----------
        weight : Int8
            Of any group size.

        Returns
        -------
        SparseInt8
            Exactly the same weight, with its scales.

        Raises
        ------
        TypeError
            Where `weight` is something else.
        """
        if not isinstance(weight, Int8):
            raise TypeError(
                f"SparseInt8.from_dense: weight: got {_check.describe(weight)}, wanted Int8"
            )
        N, K = weight.shape
        mask, values = compress(lambda rows: weight.values[rows], N, K)
        return cls(mask, values, weight.scales, weight.group_size, K)

    def dense(self) -> Int8:
        """The same weight in the dense format.

        Returns
        -------
        Int8
            With the scales of this one.
        """
        assert self.scales is not None  # __post_init__ has checked it
        return Int8(self._all_levels(), self.scales, self.group_size)


@dataclass(frozen=True, eq=False)
class SparseInt4(SparseInteger):
    """A weight of which the codes that are not zero are stored, scaled as symmetric :class:`Int4`.

    Parameters
    ----------
    mask : Tensor
        Shape (N, ceil(K / 8)), uint8: bit k % 8, lowest first, of byte k // 8 of row n is 1 where
        W[n, k] is stored. Bits beyond K are 0.
    values : Tensor
        Shape (ceil(nnz / 2),), uint8: two codes to a byte, by row and then by k, the first in the
        low half; a code is the value + 8. Codes of 0 are dropped. After an odd number of codes the
        last high half is 0.
    scales : Tensor
        Shape (N, groups), float16, bfloat16 or float32, finite, of any sign; ``groups =
        ceil(K / G)``, or 1 where ``group_size`` is None.
    group_size : int, optional
        G: 16, 32, 64, 128 or 256 consecutive k share a scale, zeros counted; the last group may be
        short. None: one scale per output channel.
    in_features : int, optional
        K; None takes eight for each byte of a row of the mask.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, the mask has bits beyond K, there are more or
        fewer codes than bits, or a scale is infinite or NaN.

    Examples
    --------
    >>> weight = gs.formats.SparseInt4.quantize(torch.tensor([[-8.0, 0.0, 3.0, 7.0]]), None)
    >>> weight.mask.tolist(), [hex(byte) for byte in weight.values.tolist()]
    ([[13]], ['0xb0', '0xf'])
    """

    name: ClassVar[str] = "sparse-int4"
    group_sizes: ClassVar[tuple[int | None, ...]] = Int4.group_sizes
    value_dtype: ClassVar[torch.dtype] = torch.uint8
    scale_dtypes: ClassVar[tuple[torch.dtype, ...]] = SCALE_DTYPES

    def _single(self, first: int, last: int) -> Tensor:
        codes = self.values[first // 2 : -(-last // 2)]
        both = torch.stack([codes & 15, codes >> 4], 1).flatten()
        return both[first % 2 : first % 2 + last - first].view(torch.int8) - _MIDDLE

    @classmethod
    def _stored(cls, single: Tensor) -> Tensor:
        codes = (single + _MIDDLE).view(torch.uint8)
        return join_halves(codes[None], codes.numel())[0]

    def _check_values(self, nnz: int) -> None:
        check_tensor("SparseInt4", "values", self.values, (torch.uint8,), (-(-nnz // 2),))
        if nnz % 2 and int(self.values[-1]) > 15:
            raise ValueError(
                "SparseInt4: values: the number of codes is odd, but the last high half is not 0"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What ``quantize`` must be told, beside the group size, for another weight like this."""
        dtype = None if self.scales is None else self.scales.dtype
        return {} if dtype is torch.float16 else {"scale_dtype": dtype}

    @classmethod
    def quantize(
        cls,
        W: Tensor | np.ndarray[Any, Any],
        group_size: int | None = 128,
        *,
        scale_dtype: torch.dtype | None = None,
    ) -> SparseInt4:
        """Round a dense weight as :meth:`Int4.quantize` does, and leave out what is zero.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64 (read as float32).
        group_size : int, optional
            16, 32, 64, 128 or 256, or None for one scale per output channel.
        scale_dtype : torch.dtype, optional
            float16, bfloat16 or float32. None: float16 where every scale that is not 0 is a normal
            number in it, else float32.

        Returns
        -------
        SparseInt4
            New tensors; ``W`` is left as it is. Values that are rounded to 0 are not stored.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN or infinity (the rows are named) or is not a matrix, or a scale is
            too large for `scale_dtype`.
        """
        W = cls._finite_matrix(W, group_size)
        return cls.from_dense(Int4.quantize(W, group_size, scale_dtype=scale_dtype))

    @classmethod
    def from_dense(cls, weight: Int4) -> SparseInt4:
        """Leave out the zeros of a symmetric int4 weight.

        Parameters
        ----------
        weight : Int4
            Of any group size, without zero points.

        Returns
        -------
        SparseInt4
            Exactly the same weight, with its scales.

        Raises
        ------
        TypeError, ValueError
            Where `weight` is something else, or has zero points.
        """
        if not isinstance(weight, Int4):
            raise TypeError(
                f"SparseInt4.from_dense: weight: got {_check.describe(weight)}, wanted Int4"
            )
        if weight.zero_points is not None:
            raise ValueError("SparseInt4.from_dense: weight: has zero points, wanted symmetric")
        N, K = weight.shape
        mask, single = compress(lambda rows: _levels(weight.codes[rows], K), N, K)
        return cls(mask, cls._stored(single), weight.scales, weight.group_size, K)

    def dense(self) -> Int4:
        """The same weight in the dense format.

        Returns
        -------
        Int4
            With the scales of this one.
        """
        assert self.scales is not None  # __post_init__ has checked it
        K = self.shape[1]
        codes = (self._all_levels() + _MIDDLE).view(torch.uint8)
        return Int4(join_halves(codes, K), self.scales, self.group_size, K)


def _levels(codes: Tensor, K: int) -> Tensor:
    """Codes [n, ceil(K / 2)] as int8 [n, K]."""
    both = torch.stack([codes & 15, codes >> 4], 2).view(codes.shape[0], -1)[:, :K]
    return both.view(torch.int8) - _MIDDLE
