"""Damaged and hostile folders: an error that names the file, never a crash, never gigabytes."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gossamer.interop import read

from .foreign_files import fixture, write_folder

FAMILIES = ("gptq-asymmetric", "awq-auto-round", "compressed-tensors-pack4-asymmetric")


def folder_of(name: str, folder: Path) -> Path:
    tensors, _, config = fixture(name)
    return write_folder(folder, tensors, config)


def error_of(folder: Path) -> ValueError | None:
    """What reading all of a folder raises, which must be this; None where it is read."""
    try:
        for entry in read(folder):
            assert entry.value.shape
    except ValueError as error:
        return error
    return None


@pytest.mark.parametrize("name", FAMILIES)
def test_truncated_files(name, tmp_path):
    file = folder_of(name, tmp_path) / "model.safetensors"
    good = file.read_bytes()
    for length in (0, 7, 8, 100, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors: "):
            list(read(tmp_path))


@pytest.mark.parametrize("name", FAMILIES)
def test_changed_bytes_of_the_header(name, tmp_path):
    file = folder_of(name, tmp_path) / "model.safetensors"
    good = file.read_bytes()
    length = 8 + struct.unpack_from("<Q", good)[0]
    chosen = random.Random(0)
    refused = 0
    for _ in range(150):
        bad = bytearray(good)
        bad[chosen.randrange(length)] ^= 1 << chosen.randrange(8)
        file.write_bytes(bad)
        error = error_of(tmp_path)
        refused += error is not None
        assert error is None or str(error).startswith(str(tmp_path))
    assert refused > 100


def test_a_header_that_claims_too_much(tmp_path):
    folder = folder_of("awq", tmp_path)
    huge = {"layer.qweight": {"dtype": "I32", "shape": [2**40, 2**10], "data_offsets": [0, 2**52]}}
    text = json.dumps(huge).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        list(read(folder))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + text)
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        list(read(folder))


def test_no_weights(tmp_path):
    folder = folder_of("awq", tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        list(read(folder))


def test_a_tensor_in_two_files(tmp_path):
    folder = folder_of("awq", tmp_path)
    save_file({"layer.scales": torch.ones(1)}, folder / "more.safetensors")
    with pytest.raises(ValueError, match=r"tensor 'layer.scales' is in two files"):
        list(read(folder))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "wanted an object"),
        ({}, "weight_map: got NoneType"),
        ({"weight_map": {"a": "../model.safetensors"}}, "wanted a file of the folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "wanted a file of the folder"),
        ({"weight_map": {"a": 3}}, "got 3, wanted a file of the folder"),
        ({"weight_map": {"a": "missing.safetensors"}}, "'missing.safetensors' is missing"),
    ],
)
def test_wrong_indices(index, message, tmp_path):
    folder = folder_of("awq", tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        list(read(folder))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"quantization_config": ', "\xff"])
def test_wrong_configs(text, tmp_path):
    folder = folder_of("awq", tmp_path)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json: "):
        list(read(folder))


def test_an_absurd_group_size_allocates_nothing(tmp_path):
    tensors, expected, config = fixture("gptq-per-channel")
    folder = write_folder(tmp_path, tensors, {**config, "group_size": 2**60})
    (entry,) = read(folder)
    assert torch.equal(entry.value.dequantize().half(), expected)


def test_pickles_are_not_read(tmp_path):
    folder = folder_of("awq", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        list(read(folder))
