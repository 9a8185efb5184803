"""gossamer.json: what a checkpoint holds, written with a checksum and read with every check."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .typed import from_plain, to_plain

FILE = "gossamer.json"
VERSION = 1
_MOST_BYTES = 1 << 28  # of the manifest: a million tensors have less
_SHARD = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors")
_DIGEST = "checksum"
CONFIGURATIONS = ("config.json", "generation_config.json")  # of transformers


@dataclass(frozen=True)
class StoredFile:
    """A file that belongs to the checkpoint.

    Attributes
    ----------
    bytes : int
        Its size.
    crc32 : int or None
        Of its bytes; None for shards, where each tensor has one.
    """

    bytes: int
    crc32: int | None = None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a shard.

    Attributes
    ----------
    shard : str
        Name of the file.
    dtype : str
        As safetensors has it, such as "F16".
    shape : tuple of int
        Its shape.
    crc32 : int
        Of its bytes.
    persistent : bool
        Whether it is in the ``state_dict``; buffers that are not are filled where a model has them.
    """

    shard: str
    dtype: str
    shape: tuple[int, ...]
    crc32: int
    persistent: bool = True


@dataclass(frozen=True)
class StoredWeight:
    """A packed weight, whose canonical tensors are in the shards.

    Attributes
    ----------
    format : str
        A name in ``gs.formats.FORMATS``.
    in_features : int
        K.
    group_size : int or None
        Weights along K that share a scale.
    activations : str
        What the kernels do to x.
    dtype : str
        What the layer says its weight has, such as "float32".
    weight_error : float or None
        ``|W - Ŵ| / |W|``, where it was known.
    dense_bytes : int or None
        Of the dense weight, where it was known.
    batch : tuple of int or str, or None
        Rows of x that a sparse weight is laid out for; None: the usual ones.
    input_scale : float or None
        Of x, where that was calibrated.
    """

    format: str
    in_features: int
    group_size: int | None
    activations: str
    dtype: str
    weight_error: float | None = None
    dense_bytes: int | None = None
    batch: tuple[int | str, ...] | None = None
    input_scale: float | None = None


@dataclass(frozen=True)
class StoredModule:
    """A module that takes the place of one of the dense model.

    Attributes
    ----------
    kind : str
        A name in ``kinds.KINDS``.
    settings : dict
        What it is made with, beside weights.
    weights : dict of str to StoredWeight
        By the names that torch has for them.
    tied_to : str or None
        The layer whose packed weight an embedding reads.
    """

    kind: str
    settings: dict[str, Any]
    weights: dict[str, StoredWeight] = field(default_factory=dict)
    tied_to: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of a checkpoint beside its tensors.

    Attributes
    ----------
    gossamer : str
        Version of the library that wrote it.
    version : int
        Of the format of checkpoints.
    architecture : str or None
        Name of the class in transformers.
    files : dict of str to StoredFile
        Shards and configurations, by name.
    modules : dict of str to StoredModule
        By name, parents before what is inside them.
    tensors : dict of str to StoredTensor
        Each once, by its first name.
    tied : dict of str to str
        Further names of tensors, and the first ones.
    shared : dict of str to str
        Further names of modules, and the first ones.
    fused : tuple of str
        Modules that hold layers which compute as one.
    records : dict
        By module: what compress() and factorize() remember for the report.
    """

    gossamer: str
    version: int
    architecture: str | None
    files: dict[str, StoredFile]
    modules: dict[str, StoredModule]
    tensors: dict[str, StoredTensor]
    tied: dict[str, str]
    shared: dict[str, str]
    fused: tuple[str, ...]
    records: dict[str, dict[str, Any]]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write gossamer.json, an entry a line."""
    plain = to_plain(manifest)
    plain[_DIGEST] = _digest(plain)
    lines = []
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            entries = [f"  {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items()]
            lines.append(f" {json.dumps(key)}: {{\n" + ",\n".join(entries) + "\n }")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    (folder / FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read gossamer.json; whatever is wrong with it is a ValueError that names the file."""
    file = folder / FILE
    start = f"load: {file}"
    if not folder.is_dir() or not file.exists():
        raise ValueError(f"load: folder: {folder} holds no {FILE}, which gs.save writes")
    if regular_size(file) > _MOST_BYTES:
        raise ValueError(f"{start}: has more than {_MOST_BYTES} bytes, which no manifest has")
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        digest = plain.pop(_DIGEST, None) if isinstance(plain, dict) else None
        found = _digest(plain)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{start}: is no JSON: {error}") from error
    if not isinstance(plain, dict):
        raise ValueError(f"{start}: got {type(plain).__name__}, wanted a dict")
    _check_version(start, plain)
    if digest != found:
        raise ValueError(f"{start}: its checksum is wrong: it was changed after it was written")
    manifest: Manifest = from_plain(Manifest, plain, start)
    _check_names(start, manifest)
    return manifest


def regular_size(file: Path) -> int:
    """Bytes of a file, which must be a file."""
    try:
        status = file.stat()
    except OSError as error:
        raise ValueError(f"load: {file}: cannot be read: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"load: {file}: is no file")
    return status.st_size


def _check_version(start: str, plain: dict[str, Any]) -> None:
    version = plain.get("version")
    if type(version) is not int or version < 1:
        raise ValueError(f"{start}: version: got {version!r}, wanted a number >= 1")
    if version > VERSION:
        raise ValueError(
            f"{start}: version: is {version}, of gossamer {str(plain.get('gossamer'))[:40]}; this "
            f"gossamer reads versions up to {VERSION}: install a newer one"
        )


def _check_names(start: str, manifest: Manifest) -> None:
    """Names of files, and of tensors and modules that refer to others."""
    for name in manifest.files:
        if not _SHARD.fullmatch(name) and name not in CONFIGURATIONS:
            raise ValueError(f"{start}: files: got {name!r}, which is no name of a file of gs.save")
    for name, tensor in manifest.tensors.items():
        if not _SHARD.fullmatch(tensor.shard) or tensor.shard not in manifest.files:
            raise ValueError(f"{start}: tensors: {name!r}: shard: got {tensor.shard!r}, no shard")
    for name, first in manifest.tied.items():
        if first not in manifest.tensors or name in manifest.tensors:
            raise ValueError(f"{start}: tied: {name!r}: {first!r} is no other tensor")
    for name, module in manifest.modules.items():
        if module.tied_to is not None and module.tied_to not in manifest.modules:
            raise ValueError(f"{start}: modules: {name!r}: tied_to: no module {module.tied_to!r}")


def _digest(plain: Any) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
