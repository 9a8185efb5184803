"""How weights are stored. A new format is one file here and one line in :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from .int8 import Int8

__all__ = ["FORMATS", "Format", "Int8"]


class Format(Protocol):
    """What every format offers; :class:`Int8` documents each member."""

    name: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]]

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

    @classmethod
    def quantize(cls, W: Any, group_size: int | None = None) -> Format:
        """Round a dense [N, K] weight."""
        ...

    def dequantize(self) -> Tensor:
        """Expand to float32 [N, K]."""
        ...

    def pack(self) -> Tensor:
        """Lay out for the kernels: uint8 [nbytes]."""
        ...

    @classmethod
    def unpack(cls, packed: Tensor) -> Format:
        """Undo pack(), exactly."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Give the canonical tensors, by the names in state_names."""
        ...

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], group_size: int | None = None) -> Format:
        """Undo state()."""
        ...


FORMATS: dict[str, type[Format]] = {Int8.name: Int8}
