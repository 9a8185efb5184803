"""formats.Int8: quantization, canonical tensors, packing."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from gossamer.formats import FORMATS, Int8

group_sizes = st.sampled_from([None, 32, 64, 128])
shapes = st.tuples(st.integers(1, 40), st.integers(1, 300))


def random_weight(shape: tuple[int, int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


@hypothesis.given(shape=shapes, group_size=group_sizes, seed=st.integers(0, 2**31))
def test_quantize_equals_its_definition(
    shape: tuple[int, int], group_size: int | None, seed: int
) -> None:
    W = random_weight(shape, seed)
    weight = Int8.quantize(W, group_size)
    N, K = shape
    size = group_size or K
    for g in range(weight.scales.shape[1]):
        group = W[:, g * size : (g + 1) * size]
        amax = group.abs().amax(1)
        assert torch.equal(weight.scales[:, g], amax / 127)
        q = (group * (127 / amax)[:, None]).round().to(torch.int8)
        assert torch.equal(weight.values[:, g * size : (g + 1) * size], q)
    assert weight.shape == (N, K)


@hypothesis.given(shape=shapes, group_size=group_sizes, seed=st.integers(0, 2**31))
def test_dequantize_is_within_half_a_step(
    shape: tuple[int, int], group_size: int | None, seed: int
) -> None:
    W = random_weight(shape, seed)
    weight = Int8.quantize(W, group_size)
    step = weight.scales.repeat_interleave(group_size or shape[1], 1)[:, : shape[1]]
    error = (weight.dequantize() - W).abs()
    # 127 / amax, its product with w, the scale and the result are each rounded.
    assert bool((error <= step.double() / 2 * (1 + 2**-13)).all())


@hypothesis.given(shape=shapes, group_size=group_sizes, seed=st.integers(0, 2**31))
def test_unpack_undoes_pack(shape: tuple[int, int], group_size: int | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
    groups = 1 if group_size is None else -(-shape[1] // group_size)
    scales = torch.rand(shape[0], groups, generator=generator)
    weight = Int8(values, scales, group_size)
    packed = weight.pack()
    assert packed.dtype == torch.uint8
    assert packed.numel() == weight.nbytes
    again = Int8.unpack(packed)
    assert torch.equal(again.values, values)
    assert torch.equal(again.scales, scales)
    assert again.group_size == group_size


def test_pack_reads_strided_tensors() -> None:
    values = torch.randint(-128, 128, (64, 20), dtype=torch.int8).T
    again = Int8.unpack(Int8(values, torch.rand(1, 20).T).pack())
    assert torch.equal(again.values, values)


def test_denormal_scales_survive_packing() -> None:
    scales = torch.tensor([[1e-42], [1e-45]])
    again = Int8.unpack(Int8(torch.ones(2, 3, dtype=torch.int8), scales).pack())
    assert torch.equal(again.scales, scales)
    assert int((again.scales > 0).sum()) == 2


def test_halves_round_to_even() -> None:
    weight = Int8.quantize(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]))
    assert weight.values.tolist() == [[127, 0, 2, 2, 0, -2]]


def test_scaling_by_a_power_of_two_changes_scales_only() -> None:
    W = torch.randn(9, 200)
    plain, scaled = Int8.quantize(W, 64), Int8.quantize(W * 2.0**-20, 64)
    assert torch.equal(plain.values, scaled.values)
    assert torch.equal(plain.scales * 2.0**-20, scaled.scales)


def test_permuting_channels_permutes_the_result() -> None:
    W, order = torch.randn(9, 200), torch.randperm(9)
    plain, permuted = Int8.quantize(W), Int8.quantize(W[order])
    assert torch.equal(plain.values[order], permuted.values)
    assert torch.equal(plain.scales[order], permuted.scales)


def test_groups_confine_outliers() -> None:
    W = torch.randn(16, 256)
    W[:, 0] = 100.0
    errors = [
        float((Int8.quantize(W, G).dequantize() - W)[:, 128:].norm()) for G in (None, 128, 32)
    ]
    assert errors[1] < errors[0] / 10
    assert errors[2] <= errors[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_read_as_float32(dtype: torch.dtype) -> None:
    W = torch.randn(8, 70).to(dtype)
    weight, want = Int8.quantize(W), Int8.quantize(W.float())
    assert torch.equal(weight.values, want.values)
    assert torch.equal(weight.scales, want.scales)


def test_numpy_weights() -> None:
    W = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    assert torch.equal(Int8.quantize(W.T).values, Int8.quantize(torch.from_numpy(W).T).values)


def test_zero_rows_and_tiny_rows() -> None:
    W = torch.zeros(4, 5)
    W[1, 2] = 1e-45  # its scale would be below the smallest float32
    W[2, :2] = torch.tensor([1e-41, -5e-42])
    W[3, 0] = -1e38
    weight = Int8.quantize(W)
    assert not bool(weight.values[0].any())
    assert float(weight.scales[0, 0]) == 0
    assert weight.values[2].tolist() in ([127, -64, 0, 0, 0], [127, -63, 0, 0, 0])
    assert weight.values[3].tolist() == [-127, 0, 0, 0, 0]
    assert bool(((weight.dequantize() - W).abs() <= W.abs() * 0.01 + 1e-43).all())


def test_large_weights_are_quantized_in_pieces() -> None:
    W = torch.randn(700, 3001)
    weight = Int8.quantize(W)
    assert torch.equal(weight.values[500:], Int8.quantize(W[500:]).values)


def test_nan_and_infinity_name_the_rows() -> None:
    W = torch.randn(600, 2003)
    W[3, 5], W[599, 0] = float("nan"), float("-inf")
    with pytest.raises(ValueError, match=r"Int8.quantize: W: NaN or infinity in row\(s\) 3, 599$"):
        Int8.quantize(W)
    W[:] = float("inf")
    with pytest.raises(ValueError, match=r"row\(s\) 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.$"):
        Int8.quantize(W)


def test_bits_per_weight_counts_everything() -> None:
    weight = Int8.quantize(torch.randn(256, 1024))
    assert 8 < weight.bits_per_weight < 8.2
    grouped = Int8.quantize(torch.randn(256, 1024), 32)
    assert grouped.bits_per_weight > 8 + 32 / 32


@pytest.mark.parametrize("group_size", [None, 32, 64, 128])
@pytest.mark.parametrize("K", [1, 20, 32, 33, 64, 65, 100, 128, 129, 300])
def test_state_keeps_the_group_size(K: int, group_size: int | None) -> None:
    weight = Int8.quantize(torch.randn(3, K), group_size)
    state = weight.state()
    assert tuple(state) == Int8.state_names
    again = Int8.from_state(state, group_size)
    assert again.group_size == group_size
    # Without the hint, a group size that means the same.
    assert torch.equal(Int8.from_state(state).dequantize(), weight.dequantize())


def test_registry() -> None:
    assert FORMATS["int8"] is Int8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 3), torch.ones(2, 1)), TypeError, "Int8: values: .*float32"),
        ((torch.zeros(2, 3).char(), torch.ones(2, 1).double()), TypeError, "Int8: scales: .*64"),
        ((torch.zeros(2, 3).char(), torch.ones(2)), ValueError, r"scales: got shape \[2\]"),
        ((torch.zeros(2, 3).char(), torch.ones(2, 2), 32), ValueError, r"wanted \[2, 1\]"),
        ((torch.zeros(2, 3).char(), -torch.ones(2, 1)), ValueError, "scales: some are negative"),
        ((torch.zeros(2, 3).char(), torch.ones(2, 1) * torch.nan), ValueError, "NaN"),
        ((torch.zeros(2, 3).char(), torch.ones(2, 1), 48), ValueError, "group_size: got 48"),
        ((torch.zeros(0, 3).char(), torch.ones(0, 1)), TypeError, "N, K >= 1"),
    ],
)
def test_wrong_canonical_tensors(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Int8(*arguments)


@pytest.mark.parametrize(
    ("W", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"wanted \[N, K\]"),
        (torch.zeros(3, 0), ValueError, r"wanted \[N, K\]"),
        (torch.zeros(3, 3, dtype=torch.int32), TypeError, "wanted floating point"),
        (torch.empty(3, 3, device="meta"), RuntimeError, "is on meta"),
        ([[1.0]], TypeError, "got list"),
    ],
)
def test_wrong_weights(W: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Int8.quantize(W)


def test_damaged_bytes_are_refused() -> None:
    packed = Int8.quantize(torch.randn(8, 64)).pack()
    for damaged in (packed[:-1], packed[:10], torch.cat([packed, packed]), packed[:0]):
        with pytest.raises(ValueError, match="packed"):
            Int8.unpack(damaged.clone())
    for offset in (0, 8, 16, 24, 32):  # magic, layout, N, K, G
        damaged = packed.clone()
        damaged[offset] += 77
        with pytest.raises(ValueError, match=r"packed|int8"):
            Int8.unpack(damaged)
    with pytest.raises(TypeError, match=r"packed: .*wanted a uint8 tensor"):
        Int8.unpack(packed.float())
