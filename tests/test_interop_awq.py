"""AWQ checkpoints: layers that AutoAWQ and auto-round packed and dequantized themselves."""

from __future__ import annotations

import pytest
import torch

from gossamer.formats import Int4
from gossamer.interop import read

from .foreign_files import fixture, read_fixture, write_folder


@pytest.mark.parametrize(("name", "group_size"), [("awq", 64), ("awq-auto-round", 32)])
def test_codes_and_scales_are_those_of_the_file(name, group_size, tmp_path):
    weight, error, expected = read_fixture(name, tmp_path)
    assert isinstance(weight, Int4)
    assert weight.group_size == group_size
    assert weight.zero_points is not None
    assert error == 0
    # The libraries multiply in float16: one rounding of the exact product.
    assert torch.equal(weight.dequantize().half(), expected)


def test_dense_tensors_come_as_they_are(tmp_path):
    tensors, _, config = fixture("awq")
    tensors["norm.weight"] = torch.randn(7).to(torch.bfloat16)
    found = {entry.name: entry.value for entry in read(write_folder(tmp_path, tensors, config))}
    assert list(found) == ["norm.weight", "layer.weight"]
    assert torch.equal(found["norm.weight"], tensors["norm.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 8}, "bits: got 8, wanted 4"),
        ({"version": "gemv"}, "layer 'layer': version: got 'gemv', wanted 'gemm'"),
        ({"group_size": 32}, r"'layer.scales': got shape \[2, 32\], wanted \[4, 32\]"),
    ],
)
def test_wrong_settings_are_named(change, message, tmp_path):
    tensors, _, config = fixture("awq")
    with pytest.raises(ValueError, match=message):
        list(read(write_folder(tmp_path, tensors, {**config, **change})))


def test_version_may_be_in_capitals(tmp_path):
    tensors, _, config = fixture("awq")
    assert len(list(read(write_folder(tmp_path, tensors, {**config, "version": "GEMM"})))) == 1


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_a_missing_tensor_is_named(part, tmp_path):
    tensors, _, config = fixture("awq")
    del tensors[f"layer.{part}"]
    with pytest.raises(ValueError, match=f"tensor 'layer.{part}' is missing"):
        list(read(write_folder(tmp_path, tensors, config)))


def test_as_auto_round_names_it(tmp_path):
    tensors, expected, config = fixture("awq-auto-round")
    config |= {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"}
    (entry,) = read(write_folder(tmp_path, tensors, config))
    assert torch.equal(entry.value.dequantize().half(), expected)
