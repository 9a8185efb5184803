"""Formats that add a low-rank weight to another one, such as int4+low-rank.

The low-rank part makes up for what the base has lost, by rounding or pruning.
"""

from __future__ import annotations

from dataclasses import dataclass

from .fp4 import FP4, MXFP4
from .fp8 import FP8
from .int4 import Int4
from .int8 import Int8
from .low_rank_sum import LowRankSum, SparseLowRankSum
from .nf4 import NF4
from .sparse_float import SparseBF16, SparseFP32
from .sparse_integer import SparseInt4, SparseInt8


@dataclass(frozen=True, eq=False)
class Int8LowRank(LowRankSum, of=Int8):
    """An int8 weight and a low-rank one: ``W ≈ base + U V``.

    Parameters
    ----------
    base : Int8
        Shape (N, K), of any group size.
    low_rank : LowRank
        Of the same shape.

    Raises
    ------
    TypeError, ValueError
        Where a part is of another format, or their shapes differ.

    Examples
    --------
    >>> weight = gs.formats.Int8LowRank.quantize(torch.randn(64, 96), rank=8)
    >>> weight.rank, weight.low_rank.factors
    (8, 'int8')
    """

    base: Int8


@dataclass(frozen=True, eq=False)
class Int4LowRank(LowRankSum, of=Int4):
    """An int4 weight and a low-rank one: ``W ≈ base + U V``.

    Parameters
    ----------
    base : Int4
        Shape (N, K), symmetric or not.
    low_rank : LowRank
        Of the same shape.

    Raises
    ------
    TypeError, ValueError
        Where a part is of another format, or their shapes differ.

    Examples
    --------
    >>> W = torch.randn(64, 96)
    >>> weight = gs.formats.Int4LowRank.quantize(W, 32, rank=8, factors="bf16")
    >>> bool((weight.dequantize() - W).norm() < 0.9 * (weight.base.dequantize() - W).norm())
    True
    """

    base: Int4


@dataclass(frozen=True, eq=False)
class NF4LowRank(LowRankSum, of=NF4):
    """An nf4 weight and a low-rank one: ``W ≈ base + U V``.

    Parameters
    ----------
    base : NF4
        Shape (N, K).
    low_rank : LowRank
        Of the same shape.

    Raises
    ------
    TypeError, ValueError
        Where a part is of another format, or their shapes differ.

    Examples
    --------
    >>> gs.formats.NF4LowRank.quantize(torch.randn(64, 96), rank=8).base.group_size
    64
    """

    base: NF4


@dataclass(frozen=True, eq=False)
class FP4LowRank(LowRankSum, of=FP4):
    """An fp4 weight and a low-rank one: ``W ≈ base + U V``.

    Parameters
    ----------
    base : FP4
        Shape (N, K).
    low_rank : LowRank
        Of the same shape.

    Raises
    ------
    TypeError, ValueError
        Where a part is of another format, or their shapes differ.

    Examples
    --------
    >>> gs.formats.FP4LowRank.quantize(torch.randn(64, 96), rank=8).base.group_size
    32
    """

    base: FP4


@dataclass(frozen=True, eq=False)
class MXFP4LowRank(LowRankSum, of=MXFP4):
    """An mxfp4 weight and a low-rank one: ``W ≈ base + U V``.

    Parameters
    ----------
    base : MXFP4
        Shape (N, K).
    low_rank : LowRank
        Of the same shape.

    Raises
    ------
    TypeError, ValueError
        Where a part is of another format, or their shapes differ.

    Examples
    --------
    >>> gs.formats.MXFP4LowRank.quantize(torch.randn(64, 96), rank=8).shape
    (64, 96)
    """

    base: MXFP4


@dataclass(frozen=True, eq=False)
class FP8LowRank(LowRankSum, of=FP8):
    """An fp8 weight and a low-rank one: ``W ≈ base + U V``.

    Parameters
    ----------
    base : FP8
        Shape (N, K), of one scale per row or blocks.
    low_rank : LowRank
        Of the same shape.

    Raises
    ------
    TypeError, ValueError
        Where a part is of another format, or their shapes differ.

    Examples
    --------
    >>> gs.formats.FP8LowRank.quantize(torch.randn(64, 96), rank=8).low_rank.factors
    'bf16'
    """

    base: FP8


@dataclass(frozen=True, eq=False)
class SparseInt8LowRank(SparseLowRankSum, of=SparseInt8):
    """A sparse-int8 weight and a low-rank one: ``W ≈ base + U V``.

    Parameters
    ----------
    base : SparseInt8
        Shape (N, K).
    low_rank : LowRank
        Of the same shape.

    Raises
    ------
    TypeError, ValueError
        Where a part is of another format, or their shapes differ.

    Examples
    --------
    >>> W = torch.randn(64, 96)
    >>> pruned = gs.formats.SparseInt8.quantize(W.where(W.abs() > 0.7, 0.0))
    >>> low_rank = gs.formats.LowRank.quantize(W - pruned.dequantize(), rank=8, factors="int8")
    >>> gs.formats.SparseInt8LowRank(pruned, low_rank).nnz == pruned.nnz
    True
    """

    base: SparseInt8


@dataclass(frozen=True, eq=False)
class SparseInt4LowRank(SparseLowRankSum, of=SparseInt4):
    """A sparse-int4 weight and a low-rank one: ``W ≈ base + U V``.

    Parameters
    ----------
    base : SparseInt4
        Shape (N, K).
    low_rank : LowRank
        Of the same shape.

    Raises
    ------
    TypeError, ValueError
        Where a part is of another format, or their shapes differ.

    Examples
    --------
    >>> gs.formats.SparseInt4LowRank.quantize(torch.eye(64), 32, rank=8).nnz
    64
    """

    base: SparseInt4


@dataclass(frozen=True, eq=False)
class SparseBF16LowRank(SparseLowRankSum, of=SparseBF16):
    """A sparse-bf16 weight and a low-rank one: ``W ≈ base + U V``.

    Parameters
    ----------
    base : SparseBF16
        Shape (N, K).
    low_rank : LowRank
        Of the same shape.

    Raises
    ------
    TypeError, ValueError
        Where a part is of another format, or their shapes differ.

    Examples
    --------
    >>> gs.formats.SparseBF16LowRank.quantize(torch.eye(64), rank=8).low_rank.factors
    'bf16'
    """

    base: SparseBF16


@dataclass(frozen=True, eq=False)
class SparseFP32LowRank(SparseLowRankSum, of=SparseFP32):
    """A sparse-fp32 weight and a low-rank one: ``W ≈ base + U V``.

    Parameters
    ----------
    base : SparseFP32
        Shape (N, K).
    low_rank : LowRank
        Of the same shape.

    Raises
    ------
    TypeError, ValueError
        Where a part is of another format, or their shapes differ.

    Examples
    --------
    >>> base = gs.formats.SparseFP32.quantize(torch.eye(64))
    >>> low_rank = gs.formats.LowRank.from_factors(torch.ones(64, 1), torch.ones(1, 64))
    >>> gs.formats.SparseFP32LowRank(base, low_rank).dequantize()[0, :3]
    tensor([2., 1., 1.])
    """

    base: SparseFP32
