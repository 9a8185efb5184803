"""Gram matrices of activations on every instruction set and in both lanes, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer import _C
from gossamer._ops_calibration import gram

EPS = 2.0**-24


def lanes() -> list[str]:
    return ["f32", "bf16"] if _C.svd_has_lane("bf16", "") else ["f32"]


def assert_gram(x: Tensor, lane: str) -> None:
    G, exact = gram(x, lane), x.double().T @ x.double()
    relative = 2 * len(x) * EPS + (0 if lane == "f32" else 2.0**-7 + 2.0**-16)
    bound = relative * (x.double().abs().T @ x.double().abs()) + 1e-30
    assert G.dtype is torch.float32
    assert bool(((G - exact).abs() <= bound).all())
    assert torch.equal(G, G.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("K", [1, 15, 16, 17, 33, 127, 128, 129, 307])
def test_tails(isa: str, dtype: torch.dtype, K: int) -> None:
    for T in (1, 16, 67, 257):
        x = torch.randn(T, K).to(dtype)
        for lane in lanes():
            assert_gram(x, lane)


@pytest.mark.parametrize("T", [1023, 1024, 1025, 4099])
def test_many_rows(isa: str, T: int) -> None:
    for lane in lanes():
        assert_gram(torch.randn(T, 45), lane)


def test_bf16_is_exact_for_its_own_numbers() -> None:
    if "bf16" not in lanes():
        pytest.skip("this machine has no bf16 lane")
    x = torch.randint(-8, 9, (500, 70)).float()
    assert torch.equal(gram(x, "bf16").double(), x.double().T @ x.double())
    assert torch.equal(gram(x), gram(x, "bf16"))


def test_rows_apart_and_columns_apart() -> None:
    wide = torch.randn(40, 100)
    assert torch.equal(gram(wide[:, 3:40]), gram(wide[:, 3:40].contiguous()))
    assert torch.equal(gram(wide[::2]), gram(wide[::2].contiguous()))
    assert torch.equal(gram(wide.T), gram(wide.T.contiguous()))


def test_threads_change_nothing(isa: str) -> None:
    x = torch.randn(1500, 200)
    for lane in lanes():
        one = gram(x, lane, threads=1)
        assert all(torch.equal(gram(x, lane, threads=threads), one) for threads in (2, 3, 5))


def test_nan_stays_in_its_row_and_column() -> None:
    x = torch.randn(30, 40)
    x[7, 11] = torch.nan
    for lane in lanes():
        spoilt = gram(x, lane).isnan()
        assert bool(spoilt[11].all())
        assert bool(spoilt[:, 11].all())
        assert int(spoilt.sum()) == 79


def test_errors() -> None:
    for kind, message, call in (
        (ValueError, r"gram: x: got .* wanted \[T, K\]", lambda: gram(torch.ones(3))),
        (ValueError, r"gram: x: got .* wanted \[T, K\]", lambda: gram(torch.ones(0, 3))),
        (TypeError, "gram: x: got dtype torch.float64", lambda: gram(torch.ones(2, 3).double())),
        (ValueError, "gram: lane: got 'f16'", lambda: gram(torch.ones(2, 3), "f16")),
    ):
        with pytest.raises(kind, match=message):
            call()


def test_missing_lane() -> None:
    import gossamer as gs

    with gs.cpu.force("scalar"), pytest.raises(RuntimeError, match="avx512bf16 or amx, not scalar"):
        gram(torch.ones(2, 3), "bf16")
