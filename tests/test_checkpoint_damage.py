"""Checkpoints that were changed, by accident or by someone who means harm: a clean error, always.

It names the file, and nothing is allocated that the files do not hold.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import gossamer as gs
from gossamer.checkpoint import load, save

from .checkpoints import read_plain, rewrite, same_outputs

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
MANIFEST = "gossamer.json"
X = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))


def make() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(40, 9), nn.LayerNorm(9), nn.GRUCell(9, 4))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two files."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 9), nn.LayerNorm(9), nn.GRUCell(9, 4))
    gs.compress(model, "int4-g32-asym", targets=[nn.Linear, nn.GRUCell])
    folder = tmp_path_factory.mktemp("checkpoint") / "out"
    save(model, folder, max_shard_bytes=400)
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *SHARDS}
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def largest_kib() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def error_of(folder: Path) -> str:
    """What loading says; it must not load, nor take memory."""
    before = largest_kib()
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        load(folder, make())
    assert str(caught.value).startswith("load: ")
    assert largest_kib() - before < 100 << 10
    return str(caught.value)


def test_the_checkpoint_is_right_without_damage(folder: Path) -> None:
    first, second = load(folder, make()), load(folder, make())
    assert same_outputs(first, second, X)


# --- accidents ---


@pytest.mark.parametrize("name", [MANIFEST, *SHARDS])
def test_a_file_that_ends_early_is_noticed(name: str, folder: Path) -> None:
    file = folder / name
    data = file.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0] if name in SHARDS else 0
    places = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) // 2, len(data) - 2}
    for place in sorted(place for place in places if 0 <= place < len(data) - 1):
        file.write_bytes(data[:place])
        assert name in error_of(folder), place
    file.write_bytes(data + b"\0")
    assert name in error_of(folder)
    file.unlink()
    assert name in error_of(folder)


@pytest.mark.parametrize("name", [MANIFEST, *SHARDS])
def test_a_changed_bit_is_noticed(name: str, folder: Path) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    bits = random.Random(2)
    for place in bits.sample(range(len(data)), 120):
        changed = data.copy()
        changed[place] ^= 1 << bits.randrange(8)
        file.write_bytes(changed)
        assert name in error_of(folder), place


def test_a_changed_tensor_is_named(folder: Path) -> None:
    tensors = read_plain(folder)["tensors"]
    for shard in SHARDS:
        file = folder / shard
        data = bytearray(file.read_bytes())
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        for name, entry in header.items():
            assert tensors[name]["shard"] == shard
            changed = data.copy()
            changed[8 + size + entry["data_offsets"][1] - 1] ^= 16
            file.write_bytes(changed)
            assert f"{shard}: '{name}': its checksum is wrong" in error_of(folder)
        file.write_bytes(data)


def test_files_that_were_exchanged_are_noticed(folder: Path) -> None:
    first, second = (folder / name for name in SHARDS)
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    assert SHARDS[0] in error_of(folder) or SHARDS[1] in error_of(folder)


# --- a manifest that is wrong ---


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"7",
        b'"gossamer"',
        b"\xff\xfe\x00",
        b'{"version": 1}',
        b'{"version": true}',
        b'{"version": -1}',
        b'{"version": "1"}',
        b"[" * 200_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b'{"version": ' + b"9" * 5_000 + b"}",
        b'{"version": 1e999}',
        b'{"version": 1, "version": 2, "modules": {"a": 1, "a": 2}}',
    ],
)
def test_what_is_no_manifest_is_refused(text: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(text)
    assert MANIFEST in error_of(folder)


def test_a_newer_version_is_named(folder: Path) -> None:
    rewrite(folder, {"version": 2, "gossamer": "7.5.1", "unknown": [1]})
    assert "version: is 2, of gossamer 7.5.1" in error_of(folder)
    assert "versions up to 1" in error_of(folder)


def in_manifest(*path: str, to: Any) -> Callable[[Path], None]:
    """A change of one value; `to` is that, or what makes it of the old one."""

    def change(folder: Path) -> None:
        plain = read_plain(folder)
        inner = plain
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to(inner[path[-1]]) if callable(to) else to
        rewrite(folder, plain)

    return change


def without(*path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        plain = read_plain(folder)
        inner = plain
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        rewrite(folder, plain)

    return change


WEIGHT = ("modules", "0", "weights", "weight")
TENSOR = ("tensors", "0.weight_scale")
CHANGES: list[tuple[Callable[[Path], None], str]] = [
    (in_manifest(*WEIGHT, "format", to="int5"), r"module '0': format: got 'int5'"),
    (in_manifest(*WEIGHT, "format", to="nf4"), r"'0.weight_zero_point'"),
    (in_manifest(*WEIGHT, "format", to="int8"), r"module '0'.*weight"),
    (in_manifest(*WEIGHT, "format", to="sparse-int4"), r"module '0': .*'0.weight_mask'"),
    (in_manifest(*WEIGHT, "group_size", to=128), r"module '0': weight: group_size: got 128"),
    (in_manifest(*WEIGHT, "group_size", to=1 << 60), r"module '0'.*group_size"),
    (in_manifest(*WEIGHT, "in_features", to=1 << 60), r"module '0': tensor '0.weight'"),
    (in_manifest(*WEIGHT, "in_features", to=-40), r"module '0': tensor '0.weight'"),
    (in_manifest(*WEIGHT, "activations", to="int9"), r"module '0': .*activations: got 'int9'"),
    (in_manifest(*WEIGHT, "dtype", to="int8"), r"module '0': dtype: got 'int8'"),
    (in_manifest(*WEIGHT, "dtype", to=3), r"dtype: got 3"),
    (in_manifest(*WEIGHT, "batch", to=[0]), r"module '0'.*batch"),
    (in_manifest(*WEIGHT, "weight_error", to="small"), r"weight_error: got 'small'"),
    (in_manifest("modules", "0", "kind", to="Sequential"), r"module '0': kind: got 'Sequential'"),
    (in_manifest("modules", "0", "kind", to="Conv2d"), r"module '0': settings: has no"),
    (in_manifest("modules", "0", "settings", "in_features", to=1 << 62), r"module '0'"),
    (in_manifest("modules", "0", "settings", "in_features", to="40"), r"in_features: got '40'"),
    (in_manifest("modules", "0", "settings", "activation", to="gelus"), r"module '0'.*activation"),
    (in_manifest("modules", "0", "settings", "more", to=1), r"module '0': settings"),
    (in_manifest("modules", "0", "tied_to", to="9"), r"modules: '0': tied_to"),
    (in_manifest("modules", "0", "tied_to", to="2"), r"module '0'"),
    (in_manifest("modules", "2", "settings", "hidden_size", to=1 << 40), r"module '2'"),
    (in_manifest("modules", "2", "weights", to={}), r"module '2'|has '2"),
    (in_manifest("modules", "7", to={"kind": "Linear", "settings": {}, "weights": {}}), "'7'"),
    (without("modules", "0"), r"'0\."),
    (without("modules", "2", "weights", "weight_hh"), r"2"),
    (without("tensors", "1.bias"), r"'1.bias'"),
    (without("tensors", "0.weight"), r"'0.weight'"),
    (without("tensors", "2.bias_ih"), r"'2.bias_ih'"),
    (in_manifest("tensors", to=lambda old: {**old, "1.more": old["1.bias"]}), "has no '1.more'"),
    (in_manifest(*TENSOR, "dtype", to="F64"), r"'0.weight_scale': got F16.*wanted F64"),
    (in_manifest(*TENSOR, "dtype", to="F7"), r"'0.weight_scale': got F16.*wanted F7"),
    (in_manifest(*TENSOR, "shape", to=[1 << 40, 1 << 40]), r"'0.weight_scale': got F16"),
    (in_manifest(*TENSOR, "shape", to=[-9, -2]), r"'0.weight_scale'"),
    (in_manifest(*TENSOR, "shape", to=18), r"shape: got 18"),
    (in_manifest(*TENSOR, "crc32", to=7), r"'0.weight_scale': its checksum is wrong"),
    (
        in_manifest(*TENSOR, "shard", to="../out/" + SHARDS[0]),
        r"'0.weight_scale': shard: got '\.\.",
    ),
    (in_manifest(*TENSOR, "shard", to="/etc/passwd"), r"shard: got '/etc/passwd'"),
    (in_manifest(*TENSOR, "shard", to="model.safetensors"), r"shard: got 'model.safetensors'"),
    (in_manifest(*TENSOR, "shard", to=SHARDS[1]), r"has surplus '0.weight_scale'|has no '0.w"),
    (in_manifest("files", "../x", to={"bytes": 1}), r"files: got '\.\./x'"),
    (in_manifest("files", SHARDS[0], "bytes", to=1 << 60), rf"{SHARDS[0]}: has \d+ bytes"),
    (in_manifest("tied", "3.weight", to="1.weight"), r"'3.weight'"),
    (in_manifest("tied", "3.weight", to="no.weight"), r"tied: '3.weight'"),
    (in_manifest("shared", "9.a", to="1"), r"'9.a'"),
    (in_manifest("shared", "1", to="9"), r"'1'"),
    (in_manifest("records", "8", to={}), r"records: '8': is not in the model"),
    (in_manifest("records", "1", to={"opinions": []}), r"records: '1': got 'opinions'"),
    (in_manifest("records", "1", to={"fusions": [{"module": 3}]}), r"records: '1'.*module"),
    (in_manifest("fused", to="all"), r"fused: got 'all'"),
]


@pytest.mark.parametrize("index", range(len(CHANGES)))
def test_a_wrong_value_is_named(index: int, folder: Path) -> None:
    change, named = CHANGES[index]
    change(folder)
    assert re.search(named, error_of(folder), re.DOTALL)


def values(plain: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in JSON."""
    if path:
        yield path
    if isinstance(plain, dict | list):
        items = plain.items() if isinstance(plain, dict) else enumerate(plain)
        for key, item in items:
            yield from values(item, (*path, key))


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["Linear", "int8", "F32", "0.weight", "1", "", "2.bias_hh", "float32"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_value_in_the_manifest_is_safe(data: st.DataObject, whole: Path, folder: Path) -> None:
    """With a checksum that is right: an error, or the same model."""
    plain = copy.deepcopy(read_plain(whole))
    place = data.draw(st.sampled_from(list(values(plain))))
    inner = plain
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = data.draw(ANY)
    rewrite(folder, plain)
    found = attempt(folder)
    if isinstance(found, ValueError):
        assert str(folder) in str(found)
    elif place[0] != "modules":  # such as another dtype that the layer says its weight has
        assert same_outputs(found, load(whole, make()), X)


def attempt(folder: Path) -> nn.Module | ValueError:
    try:
        return load(folder, make())
    except ValueError as error:
        return error


# --- files of tensors that are wrong ---


def header(entries: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(dtype: str, shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "content",
    [
        header({}, size=1 << 60),
        header({}, size=(1 << 64) - 1),
        header({}, size=(1 << 63) - 8),
        header({}, size=99 << 20),
        header({}, size=0),
        header(b"{"),
        header(b"[" * 5_000),
        header(b"\xff" * 64),
        header({"1.bias": entry("F32", [1 << 62], 0, 4)}, bytes(4)),
        header({"1.bias": entry("F32", [1 << 31, 1 << 31, 1 << 31], 0, 4)}, bytes(4)),
        header({"1.bias": entry("F32", [9], 0, 1 << 60)}, bytes(36)),
        header({"1.bias": entry("F32", [9], 1 << 60, (1 << 60) + 36)}, bytes(36)),
        header({"1.bias": entry("F32", [9], 36, 0)}, bytes(36)),
        header({"1.bias": entry("F32", [-9], 0, 36)}, bytes(36)),
        header({"1.bias": entry("X32", [9], 0, 36)}, bytes(36)),
        header({"1.bias": entry("F64", [9], 0, 36)}, bytes(36)),
        header({"1.bias": {"dtype": "F32"}}, bytes(36)),
        header({"1.bias": entry("F32", [9], 0, 36)}, bytes(36)),
    ],
)
def test_a_hostile_file_of_tensors_is_refused(content: bytes, folder: Path) -> None:
    name = read_plain(folder)["tensors"]["1.bias"]["shard"]
    (folder / name).write_bytes(content)
    files = read_plain(folder)["files"]
    rewrite(folder, {"files": files | {name: {"bytes": len(content)}}})
    assert name in error_of(folder)


@pytest.mark.parametrize("name", [MANIFEST, SHARDS[0]])
def test_what_is_no_file_is_refused(name: str, folder: Path) -> None:
    file = folder / name
    file.unlink()
    replacements: list[Callable[[], Any]] = [
        file.mkdir,
        lambda: os.mkfifo(file),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to(folder),
        lambda: file.symlink_to(file),
        lambda: file.symlink_to(folder / "nowhere"),
    ]
    for replace in replacements:
        replace()
        assert name in error_of(folder)
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()


def test_links_to_the_right_files_are_followed(whole: Path, tmp_path: Path) -> None:
    """The cache of the Hugging Face hub is made of links."""
    for file in whole.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert same_outputs(load(tmp_path, make()), load(whole, make()), X)
