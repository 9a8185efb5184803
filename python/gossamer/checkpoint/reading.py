"""The tensors of a checkpoint, memory-mapped, each compared with what the manifest says of it."""

from __future__ import annotations

import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .manifest import Manifest, StoredTensor, regular_size
from .writing import bytes_of

_MAPPED_BYTES = 1 << 26  # read before a file is mapped anew, so that what was read leaves memory


class Shards:
    """The files of a checkpoint.

    Parameters
    ----------
    folder : Path
        That holds them.
    manifest : Manifest
        What must be in them.

    Raises
    ------
    ValueError
        Where a file is missing, or another one than the manifest says.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self._tensors = folder, manifest.tensors
        self._mapped: Any = None
        self._name, self._left = "", 0
        by_shard: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
        for name, tensor in manifest.tensors.items():
            by_shard[tensor.shard][name] = tensor
        for file, stored in manifest.files.items():
            size = regular_size(folder / file)
            if size != stored.bytes:
                raise ValueError(f"load: {folder / file}: has {size} bytes, wanted {stored.bytes}")
            if stored.crc32 is not None and stored.crc32 != zlib.crc32(
                (folder / file).read_bytes()
            ):
                raise ValueError(
                    f"load: {folder / file}: its checksum is wrong: it was changed after it was "
                    "written"
                )
        for file, tensors in by_shard.items():
            self._check_header(file, tensors)

    def tensor(self, name: str) -> Tensor:
        """Read a tensor.

        Parameters
        ----------
        name : str
            One of the manifest.

        Returns
        -------
        Tensor
            In the file's memory: to be copied, or packed, before the next is read.

        Raises
        ------
        ValueError
            Where its bytes were changed.
        """
        stored = self._tensors[name]
        if stored.shard != self._name or self._left <= 0:
            self._mapped = _open(self.folder / stored.shard)
            self._name, self._left = stored.shard, _MAPPED_BYTES
        tensor: Tensor = self._mapped.get_tensor(name)
        data = bytes_of(tensor)
        self._left -= data.nbytes
        if zlib.crc32(data) != stored.crc32:
            raise ValueError(
                f"load: {self.folder / stored.shard}: {name!r}: its checksum is wrong: its bytes "
                "were changed after they were written"
            )
        return tensor

    def _check_header(self, file: str, wanted: dict[str, StoredTensor]) -> None:
        """The names, dtypes and shapes in a file are those of the manifest."""
        path = self.folder / file
        opened = _open(path)
        found = set(opened.keys())
        for what, names in (("no", wanted.keys() - found), ("surplus", found - wanted.keys())):
            if names:
                raise ValueError(f"load: {path}: has {what} {', '.join(map(repr, sorted(names)))}")
        for name, stored in wanted.items():
            header = opened.get_slice(name)
            dtype, shape = header.get_dtype(), tuple(header.get_shape())
            if (dtype, shape) != (stored.dtype, stored.shape):
                raise ValueError(
                    f"load: {path}: {name!r}: got {dtype} of shape {list(shape)}, wanted "
                    f"{stored.dtype} of shape {list(stored.shape)}"
                )


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    regular_size(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"load: {path}: is no file of tensors: {error}") from error
