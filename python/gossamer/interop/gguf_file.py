"""The header and the tensors of a GGUF file, mapped into memory.

Every length in the header is checked against the size of the file before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# By number, as ggml has them: name, values in a block, bytes of a block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
# By number: how struct calls them.
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file.

    Attributes
    ----------
    type : str
        "F32", "Q4_0", ...
    shape : tuple of int
        As torch has it: the last dimension is contiguous.
    first : int
        Its first byte.
    row_bytes : int
        Bytes of a row, the last dimension.
    """

    type: str
    shape: tuple[int, ...]
    first: int
    row_bytes: int

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(np.prod(self.shape[:-1], dtype=object))


class GGUFFile:
    """A GGUF file of version 2 or 3.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    metadata : dict
        By key; None for an array.
    tensors : dict of str to TensorInfo
        By name.

    Raises
    ------
    ValueError
        Where it is something else, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        with self._parsing():
            # Copy on write, so that torch sees memory that it may write to.
            self._bytes = np.memmap(path, np.uint8, mode="c")
            self._at = 0
            self._read_header()

    def rows(self, name: str) -> Tensor:
        """The bytes of a tensor, as they are: uint8 [rows, bytes of a row]."""
        info = self.tensors[name]
        count = info.rows * info.row_bytes
        part = self._bytes[info.first : info.first + count]
        return torch.from_numpy(part).view(info.rows, info.row_bytes)

    @contextmanager
    def _parsing(self) -> Iterator[None]:
        try:
            yield
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path}: is damaged or truncated: {error}") from error
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path}: {error}") from error

    def _read_header(self) -> None:
        magic, version = self._numbers("4sI")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"got {magic!r}, version {version}, wanted GGUF of version 2 or 3")
        tensors, fields = self._numbers("QQ")
        for _ in range(fields):
            key = self._string()
            self.metadata[key] = self._value(*self._numbers("I"))
        found = [self._tensor_info() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"general.alignment: got {alignment!r}, wanted a number >= 1")
        data = -(-self._at // alignment) * alignment
        for name, info in found:
            self._add(name, TensorInfo(info.type, info.shape, data + info.first, info.row_bytes))

    def _add(self, name: str, info: TensorInfo) -> None:
        if name in self.tensors:
            raise ValueError(f"tensor {name!r}: is there twice")
        if info.first + info.rows * info.row_bytes > len(self._bytes):
            raise ValueError(
                f"tensor {name!r}: {info.type} of shape {list(info.shape)} does not fit into the "
                f"{len(self._bytes)} bytes of the file"
            )
        self.tensors[name] = info

    def _tensor_info(self) -> tuple[str, TensorInfo]:
        """The name of a tensor and what is known of it, from the start of the data."""
        name = self._string()
        (dimensions,) = self._numbers("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name!r}: got {dimensions} dimensions, wanted 1 to 4")
        shape = self._numbers("Q" * dimensions)[::-1]
        number, first = self._numbers("IQ")
        if number not in TYPES:
            names = ", ".join(name for name, _, _ in TYPES.values())
            raise ValueError(f"tensor {name!r}: got ggml type {number}, wanted one of {names}")
        kind, values, size = TYPES[number]
        if 0 in shape or shape[-1] % values:
            raise ValueError(f"tensor {name!r}: got shape {list(shape)} for {kind}")
        return name, TensorInfo(kind, shape, first, shape[-1] // values * size)

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._numbers(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise ValueError(f"metadata: got a value of type {kind}, which does not exist")
        kind, count = self._numbers("IQ")
        if kind == _STRING:
            for _ in range(count):
                self._skip(*self._numbers("Q"))
        elif kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
        else:
            raise ValueError(f"metadata: got an array of type {kind}, which is not read")
        return None

    def _numbers(self, kinds: str) -> tuple[Any, ...]:
        """The next numbers, little-endian; struct.error at the end of the file."""
        found = struct.unpack_from("<" + kinds, self._bytes.data, self._at)
        self._at += struct.calcsize("<" + kinds)
        return found

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        first = self._at
        self._skip(length)
        return bytes(self._bytes[first : self._at]).decode("utf-8")

    def _skip(self, length: int) -> None:
        if length > len(self._bytes) - self._at:
            raise ValueError(f"is damaged or truncated: {length} bytes are missing at {self._at}")
        self._at += length
