"""Writing tensors into safetensors files of a limited size, as transformers names them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .tensor_files import INDEX

_METADATA = {"format": "pt"}  # without it, transformers refuses a file


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> None:
    """Write tensors as they come, into model.safetensors or several numbered files and an index.

    Parameters
    ----------
    folder : Path
        Where.
    tensors : iterable of (str, Tensor)
        By name; one file of them is held at a time.
    max_shard_bytes : int
        Of a file; a larger tensor has one for itself.
    """
    from safetensors.torch import save_file  # not before something is written

    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        save_file(held, folder / f"{len(shards)}.partial", _METADATA)
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > max_shard_bytes:
            flush()
            size = 0
        held[name] = _own(tensor)
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    _name_shards(folder, shards, total)


def _name_shards(folder: Path, shards: list[list[str]], total: int) -> None:
    count = len(shards)
    files = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    files = files if count > 1 else ["model.safetensors"]
    for index, file in enumerate(files):
        (folder / f"{index}.partial").rename(folder / file)
    if count > 1:
        held = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": held}, indent=2)
        (folder / INDEX).write_text(index_text + "\n", encoding="utf-8")


def _own(tensor: Tensor) -> Tensor:
    """The tensor in memory that it has for itself, as safetensors wants it."""
    alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    return (
        tensor
        if alone and tensor.is_contiguous()
        else tensor.clone(memory_format=torch.contiguous_format)
    )
