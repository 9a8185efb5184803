"""The tensors of a folder of safetensors files, mapped into memory and read one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INDEX = "model.safetensors.index.json"


class TensorFiles:
    """Tensors by name, whichever file of the folder holds them.

    Parameters
    ----------
    folder : Path
        With one or more ``*.safetensors``; an index, where there is one, says which hold what.

    Raises
    ------
    ValueError
        Where there is none, one is damaged, or a name is in two.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        from safetensors import safe_open  # not before something is read

        self._files: dict[str, Any] = {}  # by the name of a tensor
        for path in self._paths():
            with reading(path):
                file: Any = safe_open(path, framework="pt")
            for name in list(file.keys()):
                if name in self._files:
                    raise ValueError(f"{folder}: tensor {name!r} is in two files")
                self._files[name] = file

    def _paths(self) -> list[Path]:
        index = self.folder / INDEX
        if not index.exists():
            found = sorted(self.folder.glob("*.safetensors"))
            if not found:
                raise ValueError(f"{self.folder}: holds no *.safetensors")
            return found
        shards = json_file(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{index}: weight_map: got {type(shards).__name__}, wanted names")
        for shard in set(shards.values()):
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ValueError(f"{index}: weight_map: got {shard!r}, wanted a file of the folder")
            if not (self.folder / shard).is_file():
                raise ValueError(f"{index}: {shard!r} is missing")
        return [self.folder / shard for shard in sorted(set(shards.values()))]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def get(
        self, name: str, dtypes: tuple[torch.dtype, ...] | None = None, dims: int | None = None
    ) -> Tensor:
        """One of the tensors.

        Parameters
        ----------
        name : str
            Its name.
        dtypes : tuple of torch.dtype, optional
            Those it may have.
        dims : int, optional
            How many dimensions it must have, none of them empty.

        Raises
        ------
        ValueError
            Where it is missing, or something else.
        """
        if name not in self._files:
            raise ValueError(f"{self.folder}: tensor {name!r} is missing")
        with reading(self.folder, name):
            tensor: Tensor = self._files[name].get_tensor(name)
        got = f"{self.folder}: tensor {name!r}: got {tensor.dtype} of shape {list(tensor.shape)}"
        if dtypes is not None and tensor.dtype not in dtypes:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f"{got}, wanted {wanted}")
        if dims is not None and (tensor.dim() != dims or 0 in tensor.shape):
            raise ValueError(f"{got}, wanted {dims} dimensions, none of them empty")
        return tensor

    def find(
        self, name: str, dtypes: tuple[torch.dtype, ...] | None = None, dims: int | None = None
    ) -> Tensor | None:
        """The same, or None where there is no such tensor."""
        return self.get(name, dtypes, dims) if name in self._files else None

    def shaped(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor of this name as it is, if it has this shape; else ValueError."""
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{self.folder}: tensor {name!r}: got shape {list(tensor.shape)}, "
                f"wanted {list(shape)}"
            )
        return tensor


@contextmanager
def reading(path: Path, name: str | None = None) -> Iterator[None]:
    """Says in an error which file and tensor it comes from."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        tensor = "" if name is None else f"tensor {name!r}: "
        raise ValueError(f"{path}: {tensor}{error}") from error


def json_file(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    ValueError
        Where it cannot be read or is something else.
    """
    with reading(path):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: got {type(found).__name__}, wanted an object")
    return found
