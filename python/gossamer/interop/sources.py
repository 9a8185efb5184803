"""Which family of checkpoints a folder or file is, and its reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import awq, compressed_tensors, gguf, gptq
from .entries import Entry
from .gguf_file import GGUFFile
from .tensor_files import TensorFiles, json_file

Reader = Callable[[TensorFiles, Mapping[str, Any]], Iterator[Entry]]
# By quant_method. A new family of safetensors is a line here and a file with its reader.
READERS: dict[str, Reader] = {
    "gptq": gptq.read,
    "awq": awq.read,
    "compressed-tensors": compressed_tensors.read,
}
# auto-round writes the layouts of others: by its packing_format, whose.
_AUTO_ROUND = {"auto_round:auto_gptq": "gptq", "auto_round:auto_awq": "awq"}
_GPTQ_CONFIG = "quantize_config.json"  # where AutoGPTQ had it at first, beside config.json


@dataclass(frozen=True)
class Source:
    """Somebody else's checkpoint.

    Attributes
    ----------
    path : Path
        The folder, or the GGUF file.
    entries : iterator of Entry
        Its weights, read as they are asked for.
    gguf : GGUFFile or None
        The file, where it is one.
    """

    path: Path
    entries: Iterator[Entry]
    gguf: GGUFFile | None = None


def is_foreign(path: str | Path) -> bool:
    """Whether something is a quantized checkpoint that others wrote, by its name and config.

    Parameters
    ----------
    path : str or Path
        A folder or a file.

    Returns
    -------
    bool
        True for a GGUF file, a folder with one and without a config.json, and a folder whose
        config.json holds a quantization_config, of whatever method. :func:`load` refuses methods
        that it does not know.

    Raises
    ------
    ValueError
        Where config.json is damaged.
    """
    path = Path(path)
    if _gguf_path(path) is not None:
        return True
    return path.is_dir() and _quantization_config(path) is not None


def open_source(path: str | Path) -> Source:
    """Find out what a checkpoint is, and begin to read it.

    Raises
    ------
    ValueError
        Where it is of no family that is known here, or damaged.
    """
    path = Path(path)
    file = _gguf_path(path)
    if file is not None:
        opened = GGUFFile(file)
        return Source(file, gguf.read(opened), opened)
    config = _quantization_config(path) if path.is_dir() else None
    if config is None:
        raise ValueError(
            f"interop: {path}: wanted a GGUF file, or a folder whose config.json holds a "
            "quantization_config"
        )
    return Source(path, READERS[_method(path, config)](TensorFiles(path), config))


def _method(path: Path, config: Mapping[str, Any]) -> str:
    """The name in READERS."""
    method, packing = config.get("quant_method"), config.get("packing_format")
    if method == "auto-round" and packing in _AUTO_ROUND:
        return _AUTO_ROUND[packing]
    if not isinstance(method, str) or method not in READERS:
        what = f"{method!r} ({packing})" if method == "auto-round" else repr(method)
        raise ValueError(
            f"interop: {path}: quant_method: got {what}, wanted one of {', '.join(READERS)}"
        )
    return method


def read(path: str | Path) -> Iterator[Entry]:
    """The weights of somebody else's checkpoint, one by one.

    Parameters
    ----------
    path : str or Path
        A folder of GPTQ, AWQ (version "gemm") or compressed-tensors, or a GGUF file.

    Returns
    -------
    iterator of Entry
        Quantized weights as formats of ours, everything else as tensors, under the names that
        transformers has for them. A tensor is read from the mapped file when it is asked for.

    Raises
    ------
    ValueError
        Where the checkpoint is of no family that is known here, or something in it is missing,
        wrong or damaged; it names the tensor or layer.
    """
    yield from open_source(path).entries


def _gguf_path(path: Path) -> Path | None:
    """The GGUF file that is meant; None where none is."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = list(path.glob("*.gguf"))
    return found[0] if len(found) == 1 else None


def _quantization_config(folder: Path) -> Mapping[str, Any] | None:
    """The settings in config.json or, of GPTQ, in a file of their own; None without any."""
    config = folder / "config.json"
    found = json_file(config).get("quantization_config") if config.is_file() else None
    if isinstance(found, dict):
        return found
    own = folder / _GPTQ_CONFIG
    return {"quant_method": "gptq", **json_file(own)} if own.is_file() else None
