"""formats.SparseInt8, SparseInt4, SparseBF16, SparseFP32: canonical tensors and packed bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import gossamer as gs
from gossamer import _ops, _ops_packing
from gossamer.formats import (
    BF16,
    Int4,
    Int8,
    SparseBF16,
    SparseFP32,
    SparseInt4,
    SparseInt8,
)
from gossamer.formats.sparse import Sparse
from gossamer.sparse_choice import PATTERNS

FORMS: list[type[Any]] = [SparseInt8, SparseInt4, SparseBF16, SparseFP32]
forms = pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
BLOCKS = {"any": (1, 1), "1x4": (1, 4), "1x16": (1, 16), "4x1": (4, 1), "16x1": (16, 1)}
shapes = st.tuples(st.integers(1, 40), st.one_of(st.integers(1, 70), st.integers(71, 600)))


def pruned(
    N: int, K: int, density: float, seed: int = 0, block: tuple[int, int] = (1, 1)
) -> Tensor:
    """Normal weights of which whole blocks are zero, and no others."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = block
    kept = torch.rand(-(-N // rows), -(-K // columns), generator=random) < density
    kept = kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:N, :K]
    W = torch.randn(N, K, generator=random)
    return torch.where(kept, W + W.sign(), 0.0)  # nothing that integers round to zero


def bits(tensor: Tensor) -> Tensor:
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    return tensor.view(sizes[tensor.dtype.itemsize])


def same(a: Sparse, b: Sparse) -> bool:
    """Equal bits in all canonical tensors."""
    left, right = a.state(), b.state()
    return (type(a), a.shape, a.group_size, list(left)) == (
        type(b),
        b.shape,
        b.group_size,
        list(right),
    ) and all(
        left[name].dtype == right[name].dtype and torch.equal(bits(left[name]), bits(right[name]))
        for name in left
    )


def parts_of(form: type[Any]) -> list[tuple[str, ...]]:
    spmm = [("spmm",), ("bitmask", "spmm")] if form in (SparseInt8, SparseFP32) else []
    return [("bitmask",), *spmm]


class TestCanonicalTensors:
    def test_fp32(self) -> None:
        W = torch.zeros(2, 10)
        W[0, 0], W[0, 9], W[1, 8] = 1.5, -2.0, 3.0
        weight = SparseFP32.quantize(W)
        assert weight.mask.tolist() == [[1, 2], [0, 1]]
        assert weight.values.tolist() == [1.5, -2.0, 3.0]
        assert (weight.nnz, weight.sparsity, weight.shape) == (3, 17 / 20, (2, 10))
        assert list(weight.state()) == ["weight_mask", "weight"]

    def test_int4_codes_lie_as_in_the_dense_format(self) -> None:
        scales = torch.tensor([[1.0], [0.5]])
        mask = torch.tensor([[0b101], [0b010]], dtype=torch.uint8)
        values = torch.tensor([0x1F, 0x09], dtype=torch.uint8)  # 7, -7; 1
        weight = SparseInt4(mask, values, scales, None, 3)
        assert weight.dequantize().tolist() == [[7.0, 0.0, -7.0], [0.0, 0.5, 0.0]]
        assert list(weight.state()) == ["weight_mask", "weight", "weight_scale"]

    @forms
    @hypothesis.given(shape=shapes, density=st.floats(0, 1), seed=st.integers(0, 2**31))
    @hypothesis.settings(max_examples=15)
    def test_mask_says_what_is_not_zero(
        self, form: type[Any], shape: tuple[int, int], density: float, seed: int
    ) -> None:
        W = pruned(*shape, density, seed)
        weight = form.quantize(W)
        dense = weight.dequantize()
        want = np.packbits((dense != 0).numpy(), axis=1, bitorder="little")
        np.testing.assert_array_equal(weight.mask.numpy(), want)
        assert weight.nnz == int((dense != 0).sum())
        assert torch.equal(dense != 0, (W != 0) & (dense != 0))  # zeros stay zeros
        twin = weight.dense()
        expanded = twin if isinstance(twin, Tensor) else twin.dequantize()
        assert torch.equal(expanded, dense)
        assert same(form.from_dense(twin), weight)

    def test_twins_round_as_the_dense_format(self) -> None:
        W = pruned(20, 300, 0.5)
        for group_size in Int8.group_sizes:
            weight = SparseInt8.quantize(W, group_size)
            assert torch.equal(weight.dense().values, Int8.quantize(W, group_size).values)
        for group_size in Int4.group_sizes:
            weight4 = SparseInt4.quantize(W, group_size)
            assert torch.equal(weight4.dense().codes, Int4.quantize(W, group_size).codes)
            assert weight4.settings == {}
        brain = SparseInt4.quantize(W, 64, scale_dtype=torch.bfloat16)
        assert brain.settings == {"scale_dtype": torch.bfloat16}
        assert torch.equal(SparseBF16.quantize(W).dense().values, W.bfloat16())
        assert torch.equal(SparseFP32.quantize(W).dense(), W)

    def test_what_is_rounded_to_zero_is_not_stored(self) -> None:
        W = torch.tensor([[1.0, 1e-6, 0.5], [1.0, 2.0, 3.0]])
        assert SparseInt8.quantize(W).mask.tolist() == [[0b101], [0b111]]
        assert SparseBF16.quantize(W * 1e-44).mask.tolist() == [[0b000], [0b000]]

    @forms
    def test_stored_zeros_are_dropped(self, form: type[Any]) -> None:
        weight = form.quantize(pruned(9, 75, 0.5))
        single = weight._single(0, weight.nnz).clone()
        single[::3] = -0.0 if single.is_floating_point() else 0
        zeroed = form(weight.mask, form._stored(single), weight.scales, weight.group_size, 75)
        assert zeroed.nnz == int((single != 0).sum())
        assert bool((zeroed._single(0, zeroed.nnz) != 0).all())
        want = weight._levels(slice(0, 9)).clone()
        want[want != 0] = single
        assert torch.equal(zeroed._levels(slice(0, 9)), want)

    def test_nan_and_infinity_are_of_canonical_tensors_only(self) -> None:
        W = torch.tensor([[float("nan"), 0.0, float("inf"), -0.0, 1e-45]])
        weight = SparseFP32.from_dense(W)
        assert weight.mask.tolist() == [[0b10101]]
        torch.testing.assert_close(weight.dequantize(), W, rtol=0, atol=0, equal_nan=True)
        brain = SparseBF16.from_dense(BF16(W.bfloat16()))
        assert brain.mask.tolist() == [[0b00101]]
        with pytest.raises(
            ValueError, match=r"SparseBF16.quantize: W: NaN or infinity in row\(s\) 1"
        ):
            SparseBF16.quantize(torch.tensor([[1.0], [3.4e38]]))


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[], Sparse]:
    def make() -> Sparse:
        weight = SparseInt8.quantize(pruned(4, 21, 0.5), 32)
        tensors = {
            "mask": weight.mask.clone(),
            "values": weight.values.clone(),
            "scales": weight.scales,
            "group_size": 32,
            "in_features": 21,
        }
        change(tensors)
        return SparseInt8(**tensors)

    return make


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t["mask"].__setitem__((0, 2), 32), ValueError, "mask: bits beyond in_features"),
        (lambda t: t["mask"].bitwise_not_(), ValueError, "SparseInt8: mask: bits beyond"),
        (
            lambda t: t.update(mask=t["mask"].int()),
            TypeError,
            "SparseInt8: mask: got a torch.int32",
        ),
        (
            lambda t: t.update(mask=t["mask"][:, :2]),
            ValueError,
            r"mask: got shape .* wanted \[N, 3",
        ),
        (lambda t: t.update(values=t["values"][1:]), ValueError, "SparseInt8: values: got shape"),
        (lambda t: t.update(values=t["values"][None]), ValueError, "SparseInt8: values: got shape"),
        (lambda t: t.update(values=t["values"].short()), TypeError, "SparseInt8: values: .*int16"),
        (
            lambda t: t.update(scales=t["scales"] * torch.nan),
            ValueError,
            "scales: some are infinite",
        ),
        (lambda t: t.update(scales=t["scales"] - 9), ValueError, "scales: some are negative"),
        (lambda t: t.update(scales=None), TypeError, "SparseInt8: scales: got NoneType None"),
        (lambda t: t.update(group_size=16), ValueError, "SparseInt8: group_size: got 16"),
        (lambda t: t.update(in_features=30), ValueError, "SparseInt8: mask: got shape"),
    ],
)
def test_what_does_not_fit_together(
    change: Callable[[dict[str, Any]], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        damaged(change)()


def test_more_that_does_not_fit() -> None:
    mask = torch.tensor([[0b111]], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"SparseInt4: values: .* last high half is not 0"):
        SparseInt4(mask, torch.tensor([0x11, 0x11], dtype=torch.uint8), torch.ones(1, 1), None, 3)
    with pytest.raises(TypeError, match=r"SparseFP32: scales: got .* wanted None"):
        SparseFP32(mask, torch.ones(3), torch.ones(1, 1), None, 3)
    with pytest.raises(ValueError, match=r"SparseInt4.from_dense: weight: has zero points"):
        SparseInt4.from_dense(Int4.quantize(torch.randn(2, 32), 16, symmetric=False))
    for form in (SparseInt8, SparseInt4, SparseBF16):
        with pytest.raises(TypeError, match=f"{form.__name__}.from_dense: weight: got"):
            form.from_dense(torch.randn(2, 32))  # type: ignore[arg-type]


class TestPacked:
    @forms
    @hypothesis.given(
        shape=shapes,
        density=st.sampled_from([0.0, 0.03, 0.5, 0.95, 1.0]),
        block=st.sampled_from(list(BLOCKS)),
        seed=st.integers(0, 2**31),
    )
    @hypothesis.settings(max_examples=12)
    def test_every_pattern_and_part_keeps_every_bit(
        self, form: type[Any], shape: tuple[int, int], density: float, block: str, seed: int
    ) -> None:
        weight = form.quantize(pruned(*shape, density, seed, BLOCKS[block]), None)
        dense = weight.dequantize()
        smallest = []
        for pattern in PATTERNS:
            for parts in parts_of(form):
                packed = weight.pack(pattern=pattern, parts=parts)
                info = _ops_packing.packed_info(packed).sparse
                assert info is not None
                assert (info.nnz, info.pattern, info.parts) == (weight.nnz, pattern, parts)
                assert same(form.unpack(packed), weight)
                assert torch.equal(gs.kernels.dequantize(packed), dense)
                if parts == ("bitmask",):
                    smallest.append(packed.numel())
        assert weight.pack(parts=("bitmask",)).numel() == min(smallest)
        assert weight.pack().numel() == weight.nbytes

    @pytest.mark.parametrize("K", [1, 3, 4, 15, 16, 17, 63, 64, 65, 255, 256, 257, 300])
    @pytest.mark.parametrize("N", [1, 15, 16, 17])
    def test_tails_and_empty_rows(self, N: int, K: int) -> None:
        W = pruned(N, K, 0.4)
        W[N // 2] = 0
        for form in FORMS:
            weight = form.quantize(W, None)
            for parts in parts_of(form):
                packed = weight.pack(parts=parts)
                assert same(form.unpack(packed), weight)
                rows = gs.kernels.dequantize(packed, N // 2, N)
                assert torch.equal(rows, weight.dequantize()[N // 2 :])

    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_nan_infinity_and_denormals_survive(self, pattern: str) -> None:
        W = pruned(33, 130, 0.5)
        special = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-45, -1e-40, 3e-39])
        W[torch.rand(W.shape) < 0.2] = 0
        W.view(-1)[::11] = special.repeat(1000)[: W.view(-1)[::11].numel()]
        for weight in (SparseFP32.from_dense(W), SparseBF16.from_dense(BF16(W.bfloat16()))):
            for parts in parts_of(type(weight)):
                packed = weight.pack(pattern=pattern, parts=parts)
                assert same(type(weight).unpack(packed), weight)
                got = gs.kernels.dequantize(packed)
                assert torch.equal(bits(got), bits(weight.dequantize()))

    @forms
    @pytest.mark.parametrize("block", [name for name in BLOCKS if name != "any"])
    def test_blocks_are_found_and_smaller(self, form: type[Any], block: str) -> None:
        weight = form.quantize(pruned(64, 512, 0.5, 1, BLOCKS[block]), None)
        packed = weight.pack(parts=("bitmask",))
        info = _ops_packing.packed_info(packed).sparse
        assert info is not None
        assert info.pattern == block
        assert packed.numel() < weight.pack(pattern="any", parts=("bitmask",)).numel()

    def test_bytes_of_a_large_weight(self) -> None:
        weight = SparseInt8.quantize(torch.randn(4096, 4096).where(torch.rand(4096, 4096) < 0.5, 0))
        assert weight.pack(parts=("bitmask",)).numel() <= 0.63 * 4096 * 4096
        assert weight.nbytes == weight.pack().numel()
        assert weight.bits_per_weight == 8 * weight.nbytes / 4096**2

    @forms
    def test_damaged_masks_and_offsets_are_refused(self, form: type[Any]) -> None:
        weight = form.quantize(pruned(40, 600, 0.5), None)
        for parts in parts_of(form):
            packed = weight.pack(pattern="any", parts=parts)
            refused = 0
            for byte in range(40, min(packed.numel(), 8000), 61):
                bad = packed.clone()
                bad[byte] ^= 1 << byte % 8
                try:
                    found = form.unpack(bad)
                except ValueError:
                    refused += 1
                else:  # a value or a scale: the rest is as it was
                    assert found.shape == weight.shape
            assert refused > 10
            for size in (packed.numel() - 1, packed.numel() // 2, 64, 10):
                with pytest.raises(ValueError, match=r"packed weight|part spmm"):
                    form.unpack(packed[:size].clone())

    def test_every_bit_of_the_offsets_and_masks_matters(self) -> None:
        weight = SparseInt8.quantize(pruned(16, 64, 0.5))
        packed = weight.pack(pattern="any", parts=("bitmask",))
        values = weight.nnz
        masks = packed.numel() - -(-(values + 64) // 64) * 64 - 128  # 16 * 64 bits, before values
        offsets = masks - 64
        for byte in (*range(offsets, offsets + 16), *range(masks, masks + 128)):
            for bit in (0, 7):
                bad = packed.clone()
                bad[byte] ^= 1 << bit
                with pytest.raises(ValueError, match="packed weight: sparse-int8"):
                    SparseInt8.unpack(bad)

    def test_arguments(self) -> None:
        weight = SparseInt8.quantize(pruned(5, 70, 0.5), 32)
        for arguments, message in (
            (
                {"pattern": "2x2"},
                "SparseInt8.pack: pattern: got '2x2', wanted None or one of 'any'",
            ),
            ({"parts": ("csr",)}, r"SparseInt8.pack: parts: got \('csr',\), wanted some of"),
            ({"parts": ()}, r"SparseInt8.pack: parts: got \(\)"),
            ({"batch": 0}, "SparseInt8.pack: batch: got int 0, wanted numbers >= 1 or 'large'"),
            ({"batch": ()}, "SparseInt8.pack: batch: is empty"),
            ({"batch": (1, "big")}, "SparseInt8.pack: batch: got str 'big'"),
            ({"parts": ("spmm",)}, "parts: got .*, but zeros are skipped only in"),
        ):
            with pytest.raises(ValueError, match=message):
                weight.pack(**arguments)
        with pytest.raises(TypeError, match="pack: batch, pattern, parts: int8 is not a sparse"):
            gs.kernels.pack(weight.dense(), batch=1)
        packed = gs.kernels.pack(weight, "int8-group", batch=1, pattern="1x4")
        assert same(SparseInt8.unpack(packed), weight)


class TestHandles:
    """torch.library ops check packed bytes once."""

    def test_one_handle_for_the_same_bytes(self) -> None:
        packed = SparseFP32.quantize(pruned(20, 70, 0.5)).pack()
        handle = _ops.checked_handle(packed)
        assert _ops.checked_handle(packed) is handle
        assert _ops.checked_handle(packed.clone()) is not handle
        key = id(packed)
        assert key in _ops._handles
        del packed
        assert key not in _ops._handles

    def test_changed_bytes_are_checked_again(self) -> None:
        packed = SparseFP32.quantize(pruned(20, 70, 0.5)).pack()
        other = SparseFP32.quantize(pruned(30, 70, 0.5)).pack()
        handle = _ops.checked_handle(packed)
        packed.add_(0)
        assert _ops.checked_handle(packed) is not handle
        packed.set_(other)
        assert _ops.checked_handle(packed).out_features == 30
        y = torch.ops.gossamer.linear(torch.ones(1, 70), packed, None, 30)
        assert y.shape == (1, 30)
        packed.zero_()
        with pytest.raises(ValueError, match="packed weight"):
            _ops.checked_handle(packed)

    def test_inference_tensors_have_no_version(self) -> None:
        with torch.inference_mode():
            packed = SparseFP32.quantize(pruned(20, 70, 0.5)).pack().clone()
            assert packed.is_inference()
            assert _ops.checked_handle(packed).out_features == 20
            assert id(packed) not in _ops._handles
