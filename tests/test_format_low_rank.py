"""Formats low-rank and <base>+low-rank: bytes, states, rounding, errors."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import gossamer as gs
from gossamer.formats import BF16, FORMATS, FP32, Int4, Int4LowRank, Int8, Int8LowRank, LowRank
from gossamer.formats.low_rank_sum import LowRankSum, SparseLowRankSum

from .random_weights import low_rank_weight, numbers, random_low_rank, random_weight, same

EPS = torch.finfo(torch.float32).eps
SUMS: list[Any] = [form for form in FORMATS.values() if issubclass(form, LowRankSum)]
ALL: list[Any] = [LowRank, *SUMS]
RANKS = (1, 17, 33)
every = pytest.mark.parametrize("form", ALL, ids=[form.name for form in ALL])
sums = pytest.mark.parametrize("form", SUMS, ids=[form.name for form in SUMS])
formats_of_factors = pytest.mark.parametrize("factors", [FP32, BF16, Int8], ids=lambda f: f.name)


# --- canonical tensors and packed bytes ---


@every
@hypothesis.settings(max_examples=6)
@hypothesis.given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 140), st.integers(1, 40)),
    seed=st.integers(0, 2**31),
)
def test_pack_and_state_keep_every_bit(
    form: type[Any], shape: tuple[int, int, int], seed: int
) -> None:
    N, K, R = shape
    if form is LowRank:
        weight = random_low_rank(N, K, R, seed)
    else:
        weight = random_weight(form, N, K, form.group_sizes[seed % len(form.group_sizes)], seed)
    packed = weight.pack()
    assert weight.shape == (N, K)
    assert packed.numel() == weight.nbytes
    assert weight.bits_per_weight == 8 * packed.numel() / (N * K)
    assert same(form.unpack(packed), weight)
    assert same(gs.kernels.unpack(packed), weight)
    assert same(form.from_state(weight.state(), weight.group_size, K), weight)
    assert tuple(weight.state()) in form.state_forms


@every
@formats_of_factors
@pytest.mark.parametrize("R", RANKS)
def test_dequantize_is_the_sum_and_the_product(form: Any, factors: Any, R: int) -> None:
    weight = low_rank_weight(form, 35, 130, R, R, factors)
    low_rank = weight if form is LowRank else weight.low_rank
    assert (weight.rank, low_rank.factors) == (R, factors.name)
    U, V = low_rank.U.dequantize().double(), low_rank.V.dequantize().double()
    want, size = U @ V, U.abs() @ V.abs()
    if form is not LowRank:
        want, size = want + weight.base.dequantize(), size + weight.base.dequantize().abs()
    packed = weight.pack()
    for dense in (weight.dequantize(), gs.kernels.dequantize(packed)):
        assert dense.dtype is torch.float32
        assert bool(((dense - want).abs() <= (R + 2) * EPS * size).all())
    part = gs.kernels.dequantize(packed, 7, 20)
    assert torch.equal(part, gs.kernels.dequantize(packed)[7:20])


def test_the_bytes_are_those_of_the_parts() -> None:
    U, V = torch.randn(100, 17), torch.randn(17, 300)
    for factors, form in (("fp32", FP32), ("bf16", BF16), ("int8", Int8)):
        weight = LowRank.from_factors(U, V, factors)
        parts = form.quantize(V).pack("exact"), form.quantize(U).pack("exact")
        packed = weight.pack()
        assert packed.numel() == 128 + sum(part.numel() for part in parts)  # multiples of 64
        middle = 128 + parts[0].numel()
        assert torch.equal(packed[128:middle], parts[0])
        assert torch.equal(packed[middle:], parts[1])
    base = Int4.quantize(torch.randn(100, 300), 32)
    both = Int4LowRank(base, weight)
    assert both.nbytes == 128 + base.nbytes + weight.nbytes
    for kind, second in (("int8", "int8"), ("exact", "exact"), ("int8-group", "int8")):
        packed = both.pack(kind)
        assert torch.equal(packed[128 : 128 + base.nbytes], base.pack(kind))
        assert torch.equal(packed[128 + base.nbytes :], weight.pack(second))


@every
def test_what_the_header_says(form: Any) -> None:
    weight = low_rank_weight(form, 20, 70, 5, 3)
    for kind in form.activation_kinds:
        if kind == "int8-group" and weight.group_size is None:
            continue
        if form is LowRank and kind == "int8" and weight.factors != "int8":
            continue
        info = gs._ops_packing.packed_info(weight.pack(kind))
        assert (info.format, info.rank, info.activations) == (form.name, 5, kind)
        assert (info.out_features, info.in_features) == (20, 70)
        assert info.group_size == weight.group_size
        assert (info.sparse is not None) == issubclass(form, SparseLowRankSum)
    assert gs._ops_packing.packed_info(FP32.quantize(torch.ones(2, 3)).pack()).rank is None


@every
def test_damaged_bytes_are_refused(form: Any) -> None:
    weight = low_rank_weight(form, 20, 70, 5, 2)
    packed = weight.pack()
    for damaged in (packed[:-1], packed[:100], packed[:128], torch.cat([packed, packed[:64]])):
        with pytest.raises(ValueError, match=r"packed weight|bytes"):
            form.unpack(damaged.clone())
    base = weight if form is LowRank else weight.low_rank
    first = (weight.V if form is LowRank else weight.base).nbytes
    second = 128 + -(-first // 64) * 64
    places = [
        0,
        8,
        12,
        16,
        24,
        40,
        56,
        64,
        72,
        128,
        136,
        140,
        144,
        second,
        second + 12,
        second + 24,
    ]
    for offset in places:  # of the header, the sizes of the parts, and the headers of both
        damaged = packed.clone()
        damaged[offset] += 77
        with pytest.raises(ValueError, match=r"packed|format|factors|parts|bytes|N|K"):
            form.unpack(damaged)
    for other in (Int8.quantize(torch.randn(20, 70)), base if form is not LowRank else None):
        if other is not None:
            with pytest.raises(ValueError, match=f"is a weight of format {other.name}, wanted"):
                form.unpack(other.pack())


def test_a_sum_in_a_sum_is_refused() -> None:
    weight = low_rank_weight(Int8LowRank, 20, 70, 5, 1)
    packed, low_rank = weight.pack("exact"), weight.low_rank.pack()
    with pytest.raises(ValueError, match=r"sum|base"):
        gs._ops_packing.sum_pack(packed, low_rank)
    with pytest.raises(ValueError, match=r"factors: wanted fp32, bf16 or int8"):
        gs._ops_packing.low_rank_pack(low_rank, low_rank)
    mixed = gs._ops_packing.low_rank_pack(
        FP32.quantize(torch.ones(5, 7)).pack(), BF16.quantize(torch.ones(3, 5)).pack()
    )
    with pytest.raises(ValueError, match=r"LowRank: U, V: got bf16 and fp32, wanted one format"):
        gs.kernels.unpack(mixed)


@every
def test_rows_and_cat(form: Any) -> None:
    weight = low_rank_weight(form, 300, 70, 17, 4, Int8)
    parts = [weight.rows(0, 128), weight.rows(128, 300)]
    assert same(form.cat(parts), weight)
    torch.testing.assert_close(parts[1].dequantize(), weight.dequantize()[128:])
    for tensor in parts[0].state().values():
        numbers(tensor).zero_()  # in tensors of its own
    assert same(weight, low_rank_weight(form, 300, 70, 17, 4, Int8))
    with pytest.raises(ValueError, match=r"LowRank.cat: weights: got several V, wanted the same"):
        form.cat([weight, low_rank_weight(form, 300, 70, 17, 4 + 6 * 7 * 8, Int8)])
    with pytest.raises(ValueError, match=r"LowRank.cat: weights: got in_features, ranks and fact"):
        form.cat([weight, low_rank_weight(form, 300, 70, 16, 4, Int8)])


# --- made from dense weights ---


@pytest.mark.parametrize(("factors", "limit"), [("fp32", 1e-5), ("bf16", 4e-3), ("int8", 2e-2)])
def test_quantize_finds_a_matrix_of_that_rank(factors: str, limit: float) -> None:
    W = torch.randn(60, 17) @ torch.randn(17, 90)
    weight = LowRank.quantize(W, rank=17, factors=factors)
    assert float((weight.dequantize() - W).norm() / W.norm()) < limit
    assert weight.settings == {"rank": 17, "factors": factors}
    worse = LowRank.quantize(W, rank=16, factors=factors)
    tail = float(torch.linalg.svdvals(W)[16] / W.norm())
    assert float((worse.dequantize() - W).norm() / W.norm()) == pytest.approx(tail, rel=0.05)


@sums
def test_quantize_takes_the_largest_part_of_the_error(form: Any) -> None:
    W = torch.randn(64, 96)
    if issubclass(form, SparseLowRankSum):
        kept = W.where(W.abs() > 1.0, 0.0)
        base = form.base_format.quantize(kept, form.group_sizes[-1])
        low_rank = LowRank.quantize(W - base.dequantize(), rank=33, factors="fp32")
        weight = form(base, low_rank)
        assert weight.nnz == base.nnz
    else:
        weight = form.quantize(W, form.group_sizes[-1], rank=33, factors="fp32")
    error = W - weight.base.dequantize()
    tail = torch.linalg.svdvals(error)[33:].norm()
    assert float((W - weight.dequantize()).norm()) == pytest.approx(float(tail), rel=1e-3)
    usual = "int8" if form.activation_kinds[0] == "int8" else "bf16"
    again = form.quantize(W, rank=500)
    assert (again.low_rank.factors, again.rank) == (usual, 64)


def test_settings_of_the_base_are_passed_on() -> None:
    W = torch.randn(40, 70)
    weight = Int4LowRank.quantize(W, 16, rank=3, symmetric=False, scale_dtype=torch.bfloat16)
    assert weight.base.zero_points is not None
    assert weight.settings == {
        "rank": 3,
        "factors": "int8",
        "symmetric": False,
        "scale_dtype": torch.bfloat16,
    }
    assert same(Int4LowRank.quantize(W, weight.group_size, **weight.settings), weight)
    blocks = gs.formats.FP8LowRank.quantize(W, 128, rank=3, dtype=torch.float8_e5m2)
    assert list(blocks.state())[:2] == ["weight", "weight_scale_inv"]


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_read_as_float32(form: Any, dtype: torch.dtype) -> None:
    W = torch.randn(8, 70).to(dtype)
    assert same(form.quantize(W, rank=3), form.quantize(W.float(), rank=3))
    array = W.float().numpy()
    assert same(form.quantize(array, rank=3), form.quantize(W.float(), rank=3))


@every
def test_zeros_give_zeros(form: Any) -> None:
    weight = form.quantize(torch.zeros(20, 70), rank=5)
    assert not bool(weight.dequantize().any())
    assert same(form.unpack(weight.pack()), weight)


@every
def test_errors_of_quantize(form: Any) -> None:
    W, name = torch.randn(600, 40), form.__name__
    W[3, 5], W[599, 0] = float("nan"), float("-inf")
    wanted = rf"{name}.quantize: W: NaN or infinity in row\(s\) 3, 599$"
    with pytest.raises(ValueError, match=wanted):
        form.quantize(W)
    with pytest.raises(ValueError, match=r"quantize: factors: got 'int4', wanted one of fp32, bf"):
        form.quantize(torch.ones(3, 4), factors="int4")
    for rank in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=r"quantize: rank: got .*, wanted a number >= 1"):
            form.quantize(torch.ones(3, 4), rank=rank)


def test_errors_of_factors() -> None:
    U, V = BF16.quantize(torch.ones(3, 2)), BF16.quantize(torch.ones(2, 5))
    with pytest.raises(TypeError, match=r"LowRank: V: got Tensor, wanted FP32"):
        LowRank(U, torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"LowRank: U, V: got bf16 and fp32, wanted one format"):
        LowRank(U, FP32.quantize(torch.ones(2, 5)))
    with pytest.raises(ValueError, match=r"got shapes \(3, 2\) and \(3, 2\), wanted \(N, R\) and"):
        LowRank(U, U)
    with pytest.raises(ValueError, match=r"LowRank: U: got group_size 32, wanted one scale per"):
        LowRank(Int8.quantize(torch.ones(3, 64), 32), Int8.quantize(torch.ones(64, 5)))
    with pytest.raises(ValueError, match=r"LowRank.pack: activations: got 'int8', but the factors"):
        LowRank(U, V).pack("int8")
    with pytest.raises(ValueError, match=r"from_factors: V: NaN or infinity in row\(s\) 1"):
        LowRank.from_factors(torch.ones(3, 2), torch.tensor([[1.0], [float("inf")]]))
    with pytest.raises(TypeError, match=r"from_factors: U: got list"):
        LowRank.from_factors([[1.0]], torch.ones(1, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"BF16: values: got a torch.int8 tensor"):
        LowRank.from_state(
            {"low_rank_U": torch.ones(3, 2).char(), "low_rank_V": torch.ones(2, 5).bfloat16()}
        )


@sums
def test_errors_of_sums(form: Any) -> None:
    weight, name = low_rank_weight(form, 8, 64, 3, 0), form.__name__
    other = Int8 if form is not Int8LowRank else Int4
    with pytest.raises(
        TypeError, match=f"{name}: base: got .*, wanted {form.base_format.__name__}"
    ):
        form(other.quantize(torch.ones(8, 64)), weight.low_rank)
    with pytest.raises(TypeError, match=f"{name}: low_rank: got .*, wanted LowRank"):
        form(weight.base, weight.base)
    with pytest.raises(ValueError, match=rf"{name}: base, low_rank: got shapes \(8, 64\) and \(9,"):
        form(weight.base, random_low_rank(9, 64, 3, 0))
    with pytest.raises(ValueError, match=f"{name}.pack: activations: got 'int7', wanted"):
        weight.pack("int7")


def test_sparse_bases_are_laid_out_for_a_batch() -> None:
    weight = low_rank_weight(gs.formats.SparseInt8LowRank, 64, 128, 5, 0, Int8)
    assert weight.group_size is None
    for parts in (("bitmask",), ("spmm",), ("bitmask", "spmm")):
        packed = weight.pack(pattern="1x4", parts=parts)
        info = gs._ops_packing.packed_info(packed).sparse
        assert info is not None
        assert (info.pattern, info.parts) == ("1x4", parts)
        assert same(gs.kernels.unpack(packed), weight)
    few = gs.kernels.pack(weight, batch=1)
    assert torch.equal(few, weight.pack(batch=1))
    assert gs.kernels.path(few, 1) in ("gemv", "expand", "spmm")
    with pytest.raises(ValueError, match="batch"):
        weight.pack(batch=0)
