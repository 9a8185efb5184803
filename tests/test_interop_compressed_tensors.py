"""compressed-tensors checkpoints: layers that the library compressed and decompressed itself."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from gossamer.formats import FP8, Int4, Int8
from gossamer.interop import read

from .foreign_files import fixture, read_fixture, relative_error, write_folder

EXACT = {
    "pack4": (Int4, 32, "exact"),
    "pack4-asymmetric": (Int4, 32, "exact"),
    "pack4-per-channel": (Int4, None, "exact"),  # an odd K, words with unused fields
    "pack8": (Int8, 32, "exact"),
    "int8": (Int8, None, "int8"),
    "int8-groups": (Int8, 32, "exact"),
    "int8-tensor": (Int8, None, "exact"),
    "int4-in-int8": (Int4, 32, "int8"),
    "fp8": (FP8, None, "exact"),
    "fp8-tensor": (FP8, None, "exact"),
    "fp8-blocks": (FP8, 128, "exact"),
}


@pytest.mark.parametrize("name", EXACT)
def test_codes_and_scales_are_those_of_the_file(name, tmp_path):
    weight, error, expected = read_fixture(f"compressed-tensors-{name}", tmp_path)
    kind, group_size, _ = EXACT[name]
    assert type(weight) is kind
    assert weight.group_size == group_size
    assert error == 0
    # The library computes in the dtype of the scales.
    assert torch.equal(weight.dequantize().to(expected.dtype), expected)


@pytest.mark.parametrize("name", ["pack8-asymmetric", "int8-asymmetric", "fp8-small-blocks"])
def test_what_no_format_can_hold_is_rounded_to_int8_and_says_so(name, tmp_path):
    weight, error, expected = read_fixture(f"compressed-tensors-{name}", tmp_path)
    assert isinstance(weight, Int8)
    assert weight.group_size == 32
    assert 0.002 < error < 0.007
    assert relative_error(weight.dequantize(), expected) == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize("name", EXACT)
def test_activations_are_those_of_the_config(name, tmp_path):
    tensors, _, config = fixture(f"compressed-tensors-{name}")
    (entry,) = read(write_folder(tmp_path, tensors, config))
    assert entry.activations == EXACT[name][2]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, "exact"),
        ({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}, "int8"),
        ({"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": False}, "int8"),
        ({"num_bits": 8, "type": "int", "strategy": "group", "group_size": 32}, "int8-group"),
        ({"num_bits": 8, "type": "int", "strategy": "group", "group_size": 16}, "int8"),
        ({"num_bits": 8, "type": "float", "strategy": "token"}, "exact"),
        ({"num_bits": 4, "type": "int", "strategy": "token"}, "exact"),
    ],
)
def test_kinds_of_activations(given, wanted, tmp_path):
    tensors, _, config = fixture("compressed-tensors-pack4")
    config["config_groups"]["group_0"]["input_activations"] = given
    (entry,) = read(write_folder(tmp_path, tensors, config))
    assert entry.activations == wanted


STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_scale_for_all_rows_of_x(shape, tmp_path):
    tensors, _, config = fixture("compressed-tensors-int8")
    config["config_groups"]["group_0"]["input_activations"] = STATIC
    tensors["layer.input_scale"] = torch.full(shape, 0.125)
    (entry,) = read(write_folder(tmp_path, tensors, config))
    assert (entry.activations, entry.input_scale) == ("int8", 0.125)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_of_x_that_is_none(scale, tmp_path):
    tensors, _, config = fixture("compressed-tensors-int8")
    config["config_groups"]["group_0"]["input_activations"] = STATIC
    tensors["layer.input_scale"] = torch.tensor([scale])
    with pytest.raises(ValueError, match="layer 'layer': input_scale: got"):
        list(read(write_folder(tmp_path, tensors, config)))


@pytest.mark.parametrize("scale", [None, torch.ones(2)])
def test_a_static_layer_without_its_scale(scale, tmp_path):
    tensors, _, config = fixture("compressed-tensors-int8")
    config["config_groups"]["group_0"]["input_activations"] = STATIC
    if scale is not None:
        tensors["layer.input_scale"] = scale
    with pytest.raises(ValueError, match=r"layer\.input_scale"):
        list(read(write_folder(tmp_path, tensors, config)))


def test_scales_of_dynamic_activations_and_of_the_cache_are_left_out(tmp_path):
    tensors, _, config = fixture("compressed-tensors-int8")
    one = torch.ones(1)
    extra = {"layer.input_scale": one, "layer.input_zero_point": one, "attention.k_scale": one}
    names = [entry.name for entry in read(write_folder(tmp_path, {**tensors, **extra}, config))]
    assert names == ["layer.weight"]


def test_groups_of_a_mixed_model(tmp_path):
    packed, _, config = fixture("compressed-tensors-pack4")
    plain, expected, other = fixture("compressed-tensors-int8")
    tensors = packed | {name.replace("layer", "model.head"): t for name, t in plain.items()}
    tensors["dense.weight"] = torch.randn(3, 4)
    own = other["config_groups"]["group_0"] | {"targets": ["re:.*head"], "format": "int-quantized"}
    config["config_groups"]["group_0"]["format"] = "pack-quantized"
    config["config_groups"]["group_1"] = own
    config["format"] = "mixed-precision"
    found = {entry.name: entry.value for entry in read(write_folder(tmp_path, tensors, config))}
    assert isinstance(found["layer.weight"], Int4)
    assert isinstance(found["model.head.weight"], Int8)
    assert torch.equal(found["model.head.weight"].dequantize(), expected)
    assert isinstance(found["dense.weight"], torch.Tensor)


def test_activation_order_by_groups(tmp_path):
    tensors, expected, config = fixture("compressed-tensors-pack4")
    order = torch.arange(64).flip(0) // 32
    tensors["layer.weight_g_idx"] = order.to(torch.int32)
    scales = tensors["layer.weight_scale"]
    (entry,) = read(write_folder(tmp_path, tensors, config))
    usual = expected / scales[:, torch.arange(64) // 32]
    assert relative_error(entry.value.dequantize(), usual * scales[:, order]) < 0.007
    tensors["layer.weight_g_idx"] = torch.full((64,), -1, dtype=torch.int32)  # not sorted
    (entry,) = read(write_folder(tmp_path, tensors, config))
    assert torch.equal(entry.value.dequantize(), expected)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "nvfp4-pack-quantized", "format: got 'nvfp4-pack-quantized'"),
        (("config_groups",), [], "config_groups: got"),
        (("config_groups", "group_0", "targets"), ["re:x"], "got no targets for it"),
        (("config_groups", "group_0", "weights", "num_bits"), 3, "got 3 bits of int"),
        (("config_groups", "group_0", "weights", "group_size"), -5, "group_size: got -5"),
        (("config_groups", "group_0", "weights", "group_size"), 16, "weight_scale': got shape"),
        (("config_groups", "group_0", "weights", "strategy"), "block", "block_structure: got None"),
    ],
)
def test_wrong_settings_are_named(path, value, message, tmp_path):
    tensors, _, config = fixture("compressed-tensors-pack4")
    config = copy.deepcopy(config)
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=f"layer 'layer': .*{message}|{message}"):
        list(read(write_folder(tmp_path, tensors, config)))


@pytest.mark.parametrize(
    ("name", "part", "value", "message"),
    [
        ("pack4", "weight_shape", torch.tensor([32, 2**60]), "weight_shape: got"),
        ("pack4", "weight_shape", torch.tensor([32, -64]), "weight_shape: got"),
        ("pack4", "weight_shape", torch.tensor([64]), "weight_shape: got"),
        ("pack4", "weight_shape", None, "'layer.weight_shape' is missing"),
        ("pack4", "weight_scale", None, "'layer.weight_scale' is missing"),
        ("pack4", "weight_packed", torch.zeros(32, 8), "wanted int32"),
        ("pack4", "weight_scale", torch.zeros(32, 3), "weight_scale': got shape"),
        ("pack4", "weight_scale", torch.full((32, 2), torch.inf), "scales: some are infinite"),
        ("int8", "weight", torch.zeros(32, 64), "'layer.weight': got torch.float32"),
        ("int8", "weight", torch.zeros(32, 64, 1, dtype=torch.int8), "wanted 2 dimensions"),
        ("int4-in-int8", "weight", torch.full((16, 64), 9, dtype=torch.int8), "more than 4 bits"),
        ("fp8", "weight", torch.zeros(16, 64, dtype=torch.int8), "wanted float8_e4m3fn"),
        ("fp8-blocks", "weight_scale", torch.ones(2, 2), "weight_scale': got shape"),
        ("pack4-asymmetric", "weight_zero_point", None, "weight_zero_point' is missing"),
        ("int8-asymmetric", "weight_zero_point", None, "weight_zero_point' is missing"),
        ("pack4-asymmetric", "weight_zero_point", torch.zeros(1, 1, 1), "weight_zero_point': got"),
    ],
)
def test_wrong_tensors_are_named(name, part, value, message, tmp_path):
    tensors, _, config = fixture(f"compressed-tensors-{name}")
    tensors.pop(f"layer.{part}")
    if value is not None:
        tensors[f"layer.{part}"] = value
    with pytest.raises(ValueError, match=message):
        list(read(write_folder(tmp_path, tensors, config)))
