"""What holds for every format: exact packing, states, rows and cat, errors."""

from __future__ import annotations

import re
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import gossamer as gs
from gossamer.formats import BF16, FORMATS, FP8, FP32, Int4, Int8, LowRank
from gossamer.formats.four_bit import FourBit
from gossamer.formats.low_rank_sum import LowRankSum

from .random_weights import numbers, random_weight, same

FOUR_BIT = [form for form in FORMATS.values() if issubclass(form, FourBit)]
# Those with a low-rank part are rounded as a whole, not by rows: tests/test_format_low_rank.py.
ROUNDED_BY_ROWS = [form for form in FORMATS.values() if not issubclass(form, LowRank | LowRankSum)]
KINDS = [(form, group_size) for form in ROUNDED_BY_ROWS for group_size in form.group_sizes]
kinds = pytest.mark.parametrize(
    ("form", "group_size"), KINDS, ids=[f"{form.name}-{size}" for form, size in KINDS]
)
per_kind = hypothesis.settings(max_examples=10)
shapes = st.tuples(st.integers(1, 40), st.one_of(st.integers(1, 70), st.integers(71, 600)))


@kinds
@per_kind
@hypothesis.given(shape=shapes, seed=st.integers(0, 2**31))
def test_pack_state_and_kernels_keep_every_bit(
    form: type[Any], group_size: int | None, shape: tuple[int, int], seed: int
) -> None:
    weight = random_weight(form, *shape, group_size, seed)
    packed = weight.pack()
    assert packed.dtype is torch.uint8
    assert packed.numel() == weight.nbytes
    assert weight.bits_per_weight == 8 * packed.numel() / (shape[0] * shape[1])
    assert same(form.unpack(packed), weight)
    assert same(gs.kernels.unpack(packed), weight)
    assert same(form.from_state(weight.state(), group_size, shape[1]), weight)
    want = weight.dequantize()
    assert want.dtype is torch.float32
    torch.testing.assert_close(gs.kernels.dequantize(packed), want, rtol=0, atol=0, equal_nan=True)
    first, last = shape[0] // 3, shape[0] // 3 + 1
    part = gs.kernels.dequantize(packed, first, last)
    torch.testing.assert_close(part, want[first:last], rtol=0, atol=0, equal_nan=True)


@kinds
@pytest.mark.parametrize("shape", [(300, 70), (129, 129), (131, 1)])
@pytest.mark.parametrize("seed", [5, 7])  # int4: with zero points and without
def test_rows_and_cat(
    form: type[Any], group_size: int | None, shape: tuple[int, int], seed: int
) -> None:
    weight = random_weight(form, *shape, group_size, seed)
    parts = [weight.rows(0, 128), weight.rows(128, shape[0])]
    assert same(form.cat(parts), weight)
    dense = parts[-1].dequantize()
    want = weight.dequantize()[-dense.shape[0] :]
    torch.testing.assert_close(dense, want, rtol=0, atol=0, equal_nan=True)
    for tensor in parts[0].state().values():
        numbers(tensor).zero_()  # in tensors of its own
    assert same(weight, random_weight(form, *shape, group_size, seed))


def test_what_does_not_fit_together_is_not_joined() -> None:
    W = torch.randn(3, 64)
    for a, b in [
        (Int4.quantize(W, 16), Int4.quantize(W, 32)),
        (Int4.quantize(W, 16), Int4.quantize(W, 16, symmetric=False)),
        (Int4.quantize(W, 16), Int4.quantize(W, 16, scale_dtype=torch.float32)),
        (Int4.quantize(W, 16), Int4.quantize(W[:, :60], 16)),
        (FP8.quantize(W), FP8.quantize(W, dtype=torch.float8_e5m2)),
        (FP8.quantize(W, 128), FP8.quantize(W, 128)),
        (BF16.quantize(W), BF16.quantize(W[:, 1:])),
    ]:
        with pytest.raises(ValueError, match=r"cat: weights: got"):
            type(a).cat([a, b])
    with pytest.raises(ValueError, match=r"FP8.rows: first, last: got 1, 3"):
        FP8.quantize(W, 128).rows(1, 3)


@kinds
def test_quantize_refuses_nan_and_infinity_by_row(form: type[Any], group_size: int | None) -> None:
    W = torch.randn(600, 203)
    W[3, 5], W[599, 0] = float("nan"), float("-inf")
    with pytest.raises(
        ValueError, match=rf"{form.__name__}.quantize: W: NaN or infinity in row\(s\) 3, 599$"
    ):
        form.quantize(W, group_size)


@kinds
def test_quantize_of_adversarial_rows_is_finite(form: type[Any], group_size: int | None) -> None:
    W = torch.zeros(6, 100)
    W[1, 7] = 1e-45  # alone in a row of zeros
    W[2] = torch.linspace(-1e-41, 1e-41, 100)
    W[3], W[3, 50] = torch.randn(100), 1e6  # one outlier
    W[4, 0], W[4, 99] = -1.0, 1.0
    W[5] = 1e37 * torch.linspace(-1, 1, 100)
    weight = form.quantize(W, group_size)
    dense = weight.dequantize()
    assert bool(dense.isfinite().all())
    assert not bool(dense[0].any())
    largest = W.abs().amax(1) if form is not FP8 or group_size is None else W.abs().amax()
    # Nothing is off by more than a quarter of the largest weight (e2m1 and mxfp4 are the coarsest).
    assert bool(((dense - W).abs().amax(1) <= largest / 3.9 + 2.0**-126).all())
    assert same(form.unpack(weight.pack()), weight)


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_read_as_float32(
    form: type[Any], group_size: int | None, dtype: torch.dtype
) -> None:
    W = torch.randn(8, 70).to(dtype)
    assert same(form.quantize(W, group_size), form.quantize(W.float(), group_size))
    assert same(form.quantize(W.T.contiguous().T, group_size), form.quantize(W, group_size))


@kinds
def test_quantizing_in_pieces_changes_nothing(
    form: type[Any], group_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    W = torch.randn(300, 70)
    whole = form.quantize(W, group_size)
    dense = whole.dequantize()
    monkeypatch.setattr("gossamer.formats.groups._CHUNK_ELEMENTS", 500)
    assert same(form.quantize(W, group_size), whole)
    assert torch.equal(whole.dequantize(), dense)


@pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
def test_errors(form: type[Any]) -> None:
    W = torch.randn(20, 64)  # two panels
    name = form.__name__
    with pytest.raises(ValueError, match=f"{name}.quantize: group_size: got 48, wanted "):
        form.quantize(W, 48)
    with pytest.raises(ValueError, match=f"{name}.pack: activations: got 'int7', wanted '"):
        form.quantize(W).pack("int7")
    for wrong, error in (
        (torch.zeros(3), ValueError),
        (torch.zeros(3, 0), ValueError),
        (torch.zeros(3, 3, dtype=torch.int32), TypeError),
        (torch.empty(3, 3, device="meta"), RuntimeError),
        ([[1.0]], TypeError),
    ):
        with pytest.raises(error, match=f"{name}.quantize: W: "):
            form.quantize(wrong)
    other = Int8 if form is not Int8 else BF16
    wanted = re.escape(f"is a weight of format {other.name}, wanted {form.name}")
    with pytest.raises(ValueError, match=wanted):
        form.unpack(other.quantize(W).pack())
    packed = form.quantize(W).pack()
    for damaged in (packed[:-1], packed[:10], torch.cat([packed, packed]), packed[:0]):
        with pytest.raises(ValueError, match=r"packed weight|bytes"):
            form.unpack(damaged.clone())
    for offset in (0, 8, 12, 16, 24, 32, 40):  # magic, layout, format, N, K, G, activations
        if offset == 32 and (form in (BF16, FP32) or form not in ROUNDED_BY_ROWS):
            continue  # no groups, or those of a part: nothing reads how large they would be
        damaged = packed.clone()
        damaged[offset] += 77
        with pytest.raises(ValueError, match=r"packed|group|format|N|K"):
            form.unpack(damaged)


def test_registry() -> None:
    assert {name: form.name for name, form in FORMATS.items()} == {name: name for name in FORMATS}
    for form in FORMATS.values():
        assert set(form.state_names) == {name for names in form.state_forms for name in names}
        assert set(form.activation_kinds) <= {"int8", "exact", "int8-group"}


@pytest.mark.parametrize("form", FOUR_BIT, ids=[form.name for form in FOUR_BIT])
def test_codebooks_are_those_of_the_kernels(form: type[FourBit]) -> None:
    book = gs.kernels.codebook(form.name)
    middle = 8 if form is Int4 else 0
    want = torch.tensor(form.codebook, dtype=torch.float32) - middle
    assert book["value"] == want.tolist()
    steps = torch.tensor(book["s8"]) - book["offset"]
    error = (steps * book["unit"] - want).abs().max()
    assert error <= (1 / 254 if form.name == "nf4" else 0)


def test_codebook_of_another_name() -> None:
    with pytest.raises(ValueError, match="codebook: name: got 'int8', wanted one of int4, nf4"):
        gs.kernels.codebook("int8")
