"""gs.save: a model as a folder of safetensors files and a JSON manifest."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _check
from .._progress import Progress
from .contents import DTYPES, Contents
from .manifest import (
    CONFIGURATIONS,
    VERSION,
    Manifest,
    StoredFile,
    StoredTensor,
    write_manifest,
)
from .pretrained import architecture_of, save_configuration, save_tokenizer

_ITEM_BYTES = {name: dtype.itemsize for dtype, name in DTYPES.items()}


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    max_shard_bytes: int = 5 << 30,
    source: Any = None,
    progress: bool | None = None,
) -> None:
    """Write a model, compressed or not, into a new folder.

    Parameters
    ----------
    model : nn.Module
        Any: a whole model, a block of one, or one layer.
    folder : str or Path
        A new folder, or an empty one. It appears when all is written.
    max_shard_bytes : int
        Tensors are distributed over files of this size at most; a larger tensor has one for itself.
    source : str, Path or tokenizer, optional
        The folder that a transformers model came from, whose tokenizer files are copied; or a
        tokenizer or processor, whose ``save_pretrained`` writes them.
    progress : bool, optional
        Show a bar on stderr: True, False, or where it is a terminal, after a second (None).

    Returns
    -------
    None

    Raises
    ------
    ValueError
        Where the folder holds something, or the model has tensors without values (on meta).
    TypeError
        Where an argument has another type, or a module or tensor cannot be saved without pickle.

    Notes
    -----
    The folder holds ``model.safetensors`` (several, if they would be too large) with the canonical
    tensors of the formats, under the names of the ``state_dict``; ``gossamer.json``, which says how
    each layer is stored, with a CRC-32 of every tensor; and of a transformers model its
    configuration. Tied tensors are written once. Nothing is pickled. Hooks, the training mode and
    ``requires_grad`` are not saved.

    Packed weights are unpacked one at a time: the peak of memory is the model and one layer.

    Examples
    --------
    >>> import tempfile
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    >>> folder = tempfile.mkdtemp()
    >>> gs.save(gs.compress(model, "int8", ignore="1"), folder)
    >>> dense = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    >>> gs.load(folder, dense)[0]
    Linear(in_features=64, out_features=64, bias=True, format=int8)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"save: model: got {_check.describe(model)}, wanted nn.Module")
    if type(max_shard_bytes) is not int or max_shard_bytes < 1:
        raise ValueError(f"save: max_shard_bytes: got {max_shard_bytes!r}, wanted a number >= 1")
    contents = Contents(model)
    with _new_folder(folder) as partial, torch.inference_mode(False), torch.no_grad():
        layout = _Layout.of(contents, max_shard_bytes)
        with Progress("saving", layout.total_bytes, progress) as shown:
            tensors = _write_shards(partial, contents, layout, shown)
        save_configuration(model, partial)
        save_tokenizer(source, partial)
        write_manifest(partial, _manifest(partial, contents, layout, tensors))


@contextmanager
def _new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its name at the end, or goes."""
    wanted = Path(os.path.abspath(folder))
    if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise ValueError(f"save: folder: {folder} is not empty; a new folder is wanted")
    partial = wanted.with_name(f".{wanted.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(wanted)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


# --- shards ---


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor is written."""

    shard: str
    offset: int  # in the file
    dtype: str
    shape: tuple[int, ...]
    persistent: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Headers of the files, and where in these each tensor is."""

    headers: dict[str, bytes]
    places: dict[str, _Place]

    @classmethod
    def of(cls, contents: Contents, max_shard_bytes: int) -> _Layout:
        shards: list[dict[str, _Place]] = []
        room = 0
        for name, tensor, persistent in contents.tensors():
            place = _Place("", 0, DTYPES[tensor.dtype], tuple(tensor.shape), persistent)
            if not shards or place.nbytes > room:
                shards.append({})
                room = max_shard_bytes
            room -= place.nbytes
            shards[-1][name] = place
        headers, places = {}, {}
        for index, shard in enumerate(shards):
            file = "model.safetensors"
            if len(shards) > 1:
                file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
            headers[file], placed = _arranged(file, shard)
            places.update(placed)
        return cls(headers, places)

    @property
    def total_bytes(self) -> int:
        return sum(place.nbytes for place in self.places.values())


def _arranged(file: str, shard: dict[str, _Place]) -> tuple[bytes, dict[str, _Place]]:
    """The header of a file, and its tensors: large elements first, so that all are aligned."""
    order = sorted(shard, key=lambda name: -_ITEM_BYTES[shard[name].dtype])
    entries: dict[str, Any] = {}
    offset = 0
    for name in order:
        place = shard[name]
        ends = [offset, offset + place.nbytes]
        entries[name] = {"dtype": place.dtype, "shape": place.shape, "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return header, {
        name: dataclasses.replace(
            shard[name], shard=file, offset=len(header) + entries[name]["data_offsets"][0]
        )
        for name in order
    }


def _write_shards(
    folder: Path, contents: Contents, layout: _Layout, shown: Progress
) -> dict[str, StoredTensor]:
    """Write the files one after the other, with one packed weight unpacked at a time."""
    stored: dict[str, StoredTensor] = {}
    tensors = ((layout.places[name], name, tensor) for name, tensor, _ in contents.tensors())
    for shard, group in groupby(tensors, key=lambda item: item[0].shard):
        with (folder / shard).open("wb") as out:
            out.write(layout.headers[shard])
            for place, name, tensor in group:
                data = bytes_of(tensor.cpu())
                out.seek(place.offset)
                out.write(data)
                stored[name] = StoredTensor(
                    shard, place.dtype, place.shape, zlib.crc32(data), place.persistent
                )
                shown.advance(place.nbytes)
    return stored


def bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor on the CPU, not copied where it is contiguous."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()


# --- the manifest ---


def _manifest(
    folder: Path, contents: Contents, layout: _Layout, tensors: dict[str, StoredTensor]
) -> Manifest:
    files = {file: StoredFile((folder / file).stat().st_size) for file in layout.headers}
    for name in CONFIGURATIONS:
        if (folder / name).exists():
            data = (folder / name).read_bytes()
            files[name] = StoredFile(len(data), zlib.crc32(data))
    return Manifest(
        gossamer=version("gossamer"),
        version=VERSION,
        architecture=architecture_of(contents.model),
        files=files,
        modules=contents.modules(),
        tensors=tensors,
        tied=contents.tied,
        shared=contents.shared,
        fused=contents.fused,
        records=contents.records(),
    )
