"""GPTQ checkpoints: layers that gptqmodel and auto-round packed and dequantized themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gossamer.formats import Int4, Int8
from gossamer.interop import read

from .foreign_files import fixture, read_fixture, relative_error, write_folder

EXACT = {
    "gptq-symmetric": (Int4, 32, True),
    "gptq-asymmetric": (Int4, 32, False),
    "gptq-asymmetric-v2": (Int4, 32, False),
    "gptq-per-channel": (Int4, None, False),
    "gptq-auto-round": (Int4, 32, True),
    "gptq-auto-round-asymmetric": (Int4, 32, False),
    "gptq-8-bits": (Int8, 32, True),
}


@pytest.mark.parametrize("name", EXACT)
def test_codes_and_scales_are_those_of_the_file(name, tmp_path):
    weight, error, expected = read_fixture(name, tmp_path)
    kind, group_size, symmetric = EXACT[name]
    assert type(weight) is kind
    assert weight.group_size == group_size
    assert weight.settings.get("symmetric", True) == symmetric
    assert error == 0
    # The libraries multiply in float16: one rounding of the exact product.
    assert torch.equal(weight.dequantize().half(), expected)


def test_a_zero_point_of_0_borrows_from_its_neighbour_in_v1(tmp_path):
    v1, *_ = fixture("gptq-asymmetric")
    fields = v1["layer.qzeros"].numpy().view(np.uint32)[:, :, None] >> np.arange(0, 32, 4) & 15
    assert (fields == 15).any()  # what makes this fixture worth having
    weight, _, _ = read_fixture("gptq-asymmetric", tmp_path)
    assert (weight.zero_points == 0).any()


@pytest.mark.parametrize("name", ["gptq-activation-order", "gptq-8-bits-asymmetric"])
def test_what_no_format_can_hold_is_rounded_to_int8_and_says_so(name, tmp_path):
    weight, error, expected = read_fixture(name, tmp_path)
    assert isinstance(weight, Int8)
    assert weight.group_size == 32
    assert 0.002 < error < 0.007
    assert relative_error(weight.dequantize(), expected) == pytest.approx(error, rel=0.01)


def layer(K: int, N: int, G: int, bits: int = 4) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    groups = -(-K // G)

    def words(rows: int, columns: int) -> torch.Tensor:
        low, high = -(2**31), 2**31
        found = torch.randint(low, high, (rows, columns), generator=random, dtype=torch.int64)
        return found.to(torch.int32)

    return {
        "layer.qweight": words(K * bits // 32, N),
        "layer.qzeros": words(groups, N * bits // 32),
        "layer.scales": torch.rand(groups, N, generator=random).half(),
    }


def naive(tensors: dict[str, torch.Tensor], G: int, order: np.ndarray | None = None) -> np.ndarray:
    """The weight of a v2 layer of 4 bits, element by element: float64 [N, K]."""
    words = tensors["layer.qweight"].numpy().view(np.uint32)
    zeros = tensors["layer.qzeros"].numpy().view(np.uint32)
    scales = tensors["layer.scales"].double().numpy()
    K, N = 8 * words.shape[0], words.shape[1]
    W = np.empty((N, K))
    for n in range(N):
        for k in range(K):
            g = k // G if order is None else order[k]
            code = words[k // 8, n] >> (4 * (k % 8)) & 15
            zero = zeros[g, n // 8] >> (4 * (n % 8)) & 15
            W[n, k] = (int(code) - int(zero)) * scales[g, n]
    return W


V2 = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}


@pytest.mark.parametrize(
    ("K", "G", "held"),
    [(64, 16, 16), (192, 96, 32), (64, 48, 16), (1024, 512, 256), (64, 128, None), (72, 32, 32)],
)
def test_group_sizes_become_those_that_divide_them(K, G, held, tmp_path):
    tensors = layer(K, 16, G)
    (entry,) = read(write_folder(tmp_path, tensors, {**V2, "group_size": G}))
    assert isinstance(entry.value, Int4)
    assert entry.value.group_size == held
    assert np.array_equal(entry.value.dequantize().double().numpy(), naive(tensors, G))


def test_other_group_sizes_are_rounded(tmp_path):
    tensors = layer(80, 16, 40)
    (entry,) = read(write_folder(tmp_path, tensors, {**V2, "group_size": 40}))
    assert isinstance(entry.value, Int8)
    expected = torch.from_numpy(naive(tensors, 40))
    assert 0 < relative_error(entry.value.dequantize(), expected) < 0.01
    assert entry.error == pytest.approx(relative_error(entry.value.dequantize(), expected), 0.01)


def test_activation_order_takes_the_group_of_each_k(tmp_path):
    tensors = layer(64, 16, 32)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1)) // 32
    tensors["layer.g_idx"] = order.to(torch.int32)
    (entry,) = read(write_folder(tmp_path, tensors, {**V2, "group_size": 32}))
    expected = torch.from_numpy(naive(tensors, 32, order.numpy()))
    assert relative_error(entry.value.dequantize(), expected) < 0.01


def test_settings_of_single_layers(tmp_path):
    tensors = layer(64, 16, 32) | {
        name.replace("layer", "other"): tensor for name, tensor in layer(64, 16, 64, 8).items()
    }
    own = {"-:.*embed": {}, "+:oth.*": {"bits": 8, "group_size": 64}}
    config = {**V2, "group_size": 32, "dynamic": own}
    found = {entry.name: entry.value for entry in read(write_folder(tmp_path, tensors, config))}
    assert isinstance(found["layer.weight"], Int4)
    assert isinstance(found["other.weight"], Int8)


def test_quantize_config_beside_a_config_without_it(tmp_path):
    tensors, expected, config = fixture("gptq-symmetric")
    write_folder(tmp_path, tensors, {})
    (tmp_path / "config.json").write_text("{}")
    del config["quant_method"]
    (tmp_path / "quantize_config.json").write_text(str(config).replace("'", '"').lower())
    (entry,) = read(tmp_path)
    assert torch.equal(entry.value.dequantize().half(), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "bits: got 3, wanted 4 or 8"),
        ({"bits": "4"}, "bits: got '4', wanted int"),
        ({"group_size": 0}, "group_size: got 0"),
        ({"group_size": 64}, r"'layer.scales': got shape \[2, 32\], wanted \[1, 32\]"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format: got 'marlin'"),
        ({"dynamic": ["x"]}, r"dynamic: got \['x'\], wanted dict"),
        ({"dynamic": {"+:(": {}}}, "layer 'layer': got '\\(', which is no regular expression"),
        ({"dynamic": {"+:l.*": 3}}, "dynamic: .*: got 3, wanted an object"),
    ],
)
def test_wrong_settings_are_named(change, message, tmp_path):
    tensors, _, config = fixture("gptq-symmetric")
    folder = write_folder(tmp_path, tensors, {**config, **change})
    with pytest.raises(ValueError, match=message):
        list(read(folder))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("scales", None, "'layer.scales' is missing"),
        ("qzeros", None, "'layer.qzeros' is missing"),
        ("qweight", torch.zeros(8, 32), "'layer.qweight': got torch.float32 .* wanted int32"),
        ("qweight", torch.zeros(8, 0, dtype=torch.int32), "none of them empty"),
        ("qzeros", torch.zeros(2, 5, dtype=torch.int32), r"got shape \[2, 5\], wanted \[2, 4\]"),
        ("scales", torch.full((2, 32), torch.nan).half(), "layer 'layer': Int4: scales"),
        ("g_idx", torch.full((64,), 2, dtype=torch.int32), "layer.g_idx: some groups are not in"),
        ("g_idx", torch.full((64,), -7, dtype=torch.int32), "layer.g_idx: some groups are not in"),
        ("g_idx", torch.zeros(63, dtype=torch.int32), "'layer.g_idx': got shape"),
    ],
)
def test_wrong_tensors_are_named(part, value, message, tmp_path):
    tensors, _, config = fixture("gptq-symmetric")
    tensors.pop(f"layer.{part}")
    if value is not None:
        tensors[f"layer.{part}"] = value
    with pytest.raises(ValueError, match=message):
        list(read(write_folder(tmp_path, tensors, config)))


def test_as_auto_round_names_it(tmp_path):
    tensors, expected, config = fixture("gptq-auto-round-asymmetric")
    config |= {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}
    (entry,) = read(write_folder(tmp_path, tensors, config))
    assert torch.equal(entry.value.dequantize().half(), expected)
    config["packing_format"] = "auto_round:llm_compressor"
    wanted = r"quant_method: got 'auto-round' \(auto_round:llm_compressor\), wanted one of gptq"
    with pytest.raises(ValueError, match=wanted):
        list(read(write_folder(tmp_path, tensors, config)))
