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
    def shape(self) -> tuple[int, int]: ...
    @property
    def group_size(self) -> int | None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def bits_per_weight(self) -> float: ...
    @classmethod
    def quantize(cls, W: Any, group_size: int | None = None) -> Format: ...
    def dequantize(self) -> Tensor: ...
    def pack(self) -> Tensor: ...
    @classmethod
    def unpack(cls, packed: Tensor) -> Format: ...
    def state(self) -> dict[str, Tensor]: ...
    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], group_size: int | None = None) -> Format: ...


FORMATS: dict[str, type[Format]] = {Int8.name: Int8}
