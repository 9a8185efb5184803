"""How weights are stored. A new format is one file here and one line in :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from .. import _ops_packing
from .bf16 import BF16
from .fp4 import FP4, MXFP4
from .fp8 import FP8
from .fp32 import FP32
from .int4 import Int4
from .int8 import Int8
from .low_rank import LowRank
from .nf4 import NF4
from .sparse_float import SparseBF16, SparseFP32
from .sparse_integer import SparseInt4, SparseInt8
from .sums import (
    FP4LowRank,
    FP8LowRank,
    Int4LowRank,
    Int8LowRank,
    MXFP4LowRank,
    NF4LowRank,
    SparseBF16LowRank,
    SparseFP32LowRank,
    SparseInt4LowRank,
    SparseInt8LowRank,
)

__all__ = [
    "BF16",
    "FORMATS",
    "FP4",
    "FP8",
    "FP32",
    "MXFP4",
    "NF4",
    "FP4LowRank",
    "FP8LowRank",
    "Format",
    "Int4",
    "Int4LowRank",
    "Int8",
    "Int8LowRank",
    "LowRank",
    "MXFP4LowRank",
    "NF4LowRank",
    "SparseBF16",
    "SparseBF16LowRank",
    "SparseFP32",
    "SparseFP32LowRank",
    "SparseInt4",
    "SparseInt4LowRank",
    "SparseInt8",
    "SparseInt8LowRank",
    "unpack",
]


class Format(Protocol):
    """What every format offers; :class:`Int8` documents each member."""

    name: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]]  # all that a state may have
    state_forms: ClassVar[tuple[tuple[str, ...], ...]]  # each a whole state
    activation_kinds: ClassVar[tuple[str, ...]]  # "int8", "int8-group", "exact"; first the default
    group_sizes: ClassVar[tuple[int | None, ...]]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        ...

    @property
    def group_size(self) -> int | None:
        """Weights along K that share a scale; None where a whole row does."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight."""
        ...

    @property
    def bits_per_weight(self) -> float:
        """Bits of the packed weight for each of its N * K weights."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of quantize(), beside the group size, that are not the usual ones."""
        ...

    @classmethod
    def quantize(cls, W: Any, group_size: int | None = None) -> Format:
        """Round a dense [N, K] weight."""
        ...

    def dequantize(self) -> Tensor:
        """Expand to float32 [N, K]."""
        ...

    def pack(self, activations: str | None = None) -> Tensor:
        """Lay out for the kernels, which round x or do not: uint8 [nbytes]."""
        ...

    @classmethod
    def unpack(cls, packed: Tensor) -> Format:
        """Undo pack(), exactly."""
        ...

    def rows(self, first: int, last: int) -> Format:
        """Copy the rows [first, last) of the canonical tensors."""
        ...

    @classmethod
    def cat(cls, weights: Sequence[Any]) -> Format:
        """Join weights of this format along N; ValueError where they do not fit together."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Give the canonical tensors, by the names in state_names."""
        ...

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        group_size: int | None = None,
        in_features: int | None = None,
    ) -> Format:
        """Undo state()."""
        ...


FORMATS: dict[str, type[Format]] = {
    Int8.name: Int8,
    Int4.name: Int4,
    NF4.name: NF4,
    FP4.name: FP4,
    MXFP4.name: MXFP4,
    FP8.name: FP8,
    BF16.name: BF16,
    SparseInt8.name: SparseInt8,
    SparseInt4.name: SparseInt4,
    SparseBF16.name: SparseBF16,
    SparseFP32.name: SparseFP32,
    FP32.name: FP32,
    LowRank.name: LowRank,
    Int8LowRank.name: Int8LowRank,
    Int4LowRank.name: Int4LowRank,
    NF4LowRank.name: NF4LowRank,
    FP4LowRank.name: FP4LowRank,
    MXFP4LowRank.name: MXFP4LowRank,
    FP8LowRank.name: FP8LowRank,
    SparseInt8LowRank.name: SparseInt8LowRank,
    SparseInt4LowRank.name: SparseInt4LowRank,
    SparseBF16LowRank.name: SparseBF16LowRank,
    SparseFP32LowRank.name: SparseFP32LowRank,
}


def unpack(packed: Tensor) -> Format:
    """The canonical tensors of a packed weight of any format.

    Parameters
    ----------
    packed : Tensor
        Shape (bytes,), uint8, from ``Format.pack``.

    Returns
    -------
    Format
        Of the class that was packed.

    Raises
    ------
    TypeError, ValueError
        Where the bytes are not a packed weight.

    Examples
    --------
    >>> type(unpack(NF4.quantize(torch.randn(16, 64)).pack())).__name__
    'NF4'
    """
    return FORMATS[_ops_packing.packed_info(packed).format].unpack(packed)
