"""Passes of the truncated SVD and Cholesky QR, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gossamer as gs
from gossamer import _C, _ops_svd

EPS = 2.0**-24
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BEST = _ops_svd.best_lane()
LANES = ["f32"] if BEST == "f32" else ["f32", "bf16"]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
lanes = pytest.mark.parametrize("lane", LANES)


def assert_product(got: Tensor, A: Tensor, B: Tensor, lane: str, summed: int) -> None:
    """Entry by entry the bound of svd.h; `summed` terms are added in float32."""
    A, B = A.double(), B.double()
    rounding = 2 * summed * EPS + (2.0**-7 + 2.0**-16 if lane == "bf16" else 0)
    exact = A @ B
    assert got.dtype is torch.float32
    assert got.is_contiguous()
    assert torch.all((got - exact).abs() <= rounding * (A.abs() @ B.abs()) + EPS * exact.abs())


def assert_passes(W: Tensor, X: Tensor, lane: str, isa: str | None = None) -> None:
    m, n = W.shape
    Y = gs.kernels.sketch(W, X, lane, isa)
    assert_product(Y, W, X, lane, n)
    assert_product(gs.kernels.project(W, Y, lane, isa), W.T, Y, lane, min(m, 256))
    fused_Y, Z = gs.kernels.power_step(W, X, lane, isa)
    assert torch.equal(fused_Y, Y)
    assert_product(Z, W.T, Y, lane, m)


@dtypes
@lanes
def test_dtypes_and_lanes(dtype: torch.dtype, lane: str) -> None:
    assert_passes(torch.randn(301, 203).to(dtype), torch.randn(203, 37), lane)


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(DTYPES),
    st.sampled_from(LANES),
    st.integers(0, 2**31),
)
def test_any_shape(m: int, n: int, l: int, dtype: torch.dtype, lane: str, seed: int) -> None:  # noqa: E741
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(m, n, generator=generator).to(dtype)
    assert_passes(W, torch.randn(n, l, generator=generator), lane)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@lanes
def test_large_matrix_is_read_once(dtype: torch.dtype, lane: str) -> None:
    """More than 8 MiB: the fused step, whose last rows and columns fill no block."""
    assert_passes(torch.randn(2100, 2053).to(dtype), torch.randn(2053, 18), lane)


def test_every_isa(isa: str) -> None:
    assert_passes(torch.randn(150, 77), torch.randn(77, 21), "f32", isa)
    if _C.svd_has_lane("bf16", isa):
        assert_passes(torch.randn(150, 77), torch.randn(77, 21), "bf16", isa)


@lanes
@pytest.mark.parametrize("shape", [(2500, 1000, 33), (40, 300, 5), (1000, 48, 48)])
def test_threads_do_not_change_a_bit(lane: str, shape: tuple[int, int, int]) -> None:
    m, n, l = shape  # noqa: E741
    W, X, Y = torch.randn(m, n), torch.randn(n, l), torch.randn(m, l)

    def passes(threads: int) -> tuple[Tensor, ...]:
        how: dict[str, Any] = {"lane": lane, "threads": threads}
        fused = gs.kernels.power_step(W, X, **how)
        return gs.kernels.sketch(W, X, **how), gs.kernels.project(W, Y, **how), *fused

    one = passes(1)
    for threads in (2, 3, 5):
        assert all(torch.equal(a, b) for a, b in zip(one, passes(threads), strict=True))


@lanes
def test_slices_are_read_in_place(lane: str) -> None:
    buffer = torch.randn(90, 100)
    W, S = torch.randn(60, 200)[:, 7:97], buffer[:, 3:24]
    assert torch.equal(
        gs.kernels.sketch(W, S, lane), gs.kernels.sketch(W.contiguous(), S.contiguous(), lane)
    )
    Y = torch.randn(60, 50)[:, :11]
    assert torch.equal(
        gs.kernels.project(W, Y, lane), gs.kernels.project(W.contiguous(), Y.contiguous(), lane)
    )


def test_transposed_matrices_are_copied() -> None:
    W, X = torch.randn(30, 50).T, torch.randn(4, 30).T
    assert_product(gs.kernels.sketch(W, X), W, X, "f32", 30)


def test_long_sums_are_accurate() -> None:
    """One large entry would swallow the small ones in a float32 sum."""
    W = torch.full((100_000, 1), 2.0**-13)
    Y = torch.ones(100_000, 1)
    Y[0] = 2.0**24
    exact = (W.double().T @ Y.double()).item()
    assert abs(gs.kernels.project(W, Y).item() - exact) <= 257 * EPS * exact
    assert gs.kernels.project(torch.ones(2**24 + 512, 1), torch.ones(2**24 + 512, 1)).item() == (
        2**24 + 512
    )


def test_bf16_lane_rounds_as_bfloat16() -> None:
    if BEST == "f32":
        pytest.skip("this machine has no bf16 lane")
    X = torch.eye(4)
    W = torch.tensor([[1 + 2.0**-9, -1.01, 3.4e38, 1e-40]])
    wanted = W.to(torch.bfloat16).float()
    wanted[0, 3] = 0
    got = gs.kernels.sketch(W[:, [0, 1]], torch.eye(2), "bf16")
    assert torch.equal(got, wanted[:, :2])
    assert gs.kernels.sketch(W[:, [2]], X[:1, :1], "bf16").isinf().all()
    assert gs.kernels.sketch(W[:, [3]], X[:1, :1], "bf16").item() == 0


@lanes
def test_nan_and_infinity_propagate(lane: str) -> None:
    W = torch.randn(40, 30)
    W[3, 4], W[5, 6] = torch.nan, torch.inf
    Y, Z = gs.kernels.power_step(W, torch.randn(30, 3), lane)
    assert (~Y.isfinite()).all(1).nonzero().flatten().tolist() == [3, 5]
    assert not Z.isfinite().any()


def test_numpy() -> None:
    random = np.random.default_rng(0)
    W, X = (random.standard_normal(shape, dtype=np.float32) for shape in ((20, 12), (12, 3)))
    Y = gs.kernels.sketch(W, X)
    assert isinstance(Y, np.ndarray)
    np.testing.assert_allclose(Y, W @ X, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gs.kernels.project(W, Y), W.T @ Y, rtol=1e-5, atol=1e-4)
    assert all(isinstance(part, np.ndarray) for part in gs.kernels.power_step(W, X))
    assert all(isinstance(part, np.ndarray) for part in gs.kernels.cholesky_qr2(W))


def test_errors() -> None:
    W, X = torch.randn(6, 4), torch.randn(4, 2)
    kernels = gs.kernels
    cases: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "sketch: W: got dtype torch.float64", lambda: kernels.sketch(W.double(), X)),
        (TypeError, "sketch: X: got dtype torch.bfloat16", lambda: kernels.sketch(W, X.bfloat16())),
        (TypeError, "project: W: got list", lambda: kernels.project([1.0], X)),
        (ValueError, r"sketch: X: got .*, wanted \[4, l\]", lambda: kernels.sketch(W, W)),
        (ValueError, r"project: Y: got .*, wanted \[6, l\]", lambda: kernels.project(W, X)),
        (ValueError, r"power_step: W: got .*\[m, n\]", lambda: kernels.power_step(W[0], X)),
        (ValueError, r"sketch: W: .*both >= 1", lambda: kernels.sketch(W[:0], X)),
        (ValueError, r"sketch: X: .*l >= 1", lambda: kernels.sketch(W, X[:, :0])),
        (ValueError, "sketch: lane: got 'fp8'", lambda: kernels.sketch(W, X, "fp8")),
        (ValueError, "sketch: isa: got 'sse9'", lambda: kernels.sketch(W, X, isa="sse9")),
        (ValueError, "sketch: threads: got 0", lambda: kernels.sketch(W, X, threads=0)),
        (RuntimeError, "sketch: W: is on meta", lambda: kernels.sketch(W.to("meta"), X)),
        (RuntimeError, "sketch: X: is on meta", lambda: kernels.sketch(W, X.to("meta"))),
        (
            RuntimeError,
            "power_step: lane: 'bf16' needs .* not scalar",
            lambda: kernels.power_step(W, X, "bf16", isa="scalar"),
        ),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


# --- Cholesky QR ---


def assert_qr(X: Tensor, residual: float) -> tuple[Tensor, Tensor]:
    """Orthonormal to rounding, triangular, and X again: column by column, relative to its length.

    Entries of QᵀQ are sums of products of unit vectors: about sqrt(256) roundings by chance.
    """
    Q, R = gs.kernels.cholesky_qr2(X)
    l = X.shape[1]  # noqa: E741
    gram = Q.double().T @ Q.double()
    assert (gram - torch.eye(l)).norm() <= 32 * EPS * l**0.5
    assert torch.equal(R, R.triu())
    assert (R.diagonal() >= 0).all()
    error = (X.double() - Q.double() @ R.double()).norm(dim=0)
    assert (error <= residual * X.double().norm(dim=0)).all()
    return Q, R


@given(st.integers(1, 60), st.integers(0, 300), st.integers(0, 2**31))
def test_qr_of_random_columns(l: int, more: int, seed: int) -> None:  # noqa: E741
    X = torch.randn(l + more, l, generator=torch.Generator().manual_seed(seed))
    assert_qr(X, 2000 * EPS)


def test_qr_agrees_with_lapack() -> None:
    X = torch.randn(500, 40)
    Q, R = assert_qr(X, 100 * EPS)
    wanted_Q, wanted_R = torch.linalg.qr(X.double())
    signs = wanted_R.diagonal().sign()
    assert (Q - wanted_Q * signs).abs().max() < 1e-5
    assert (R - wanted_R * signs[:, None]).abs().max() < 1e-4


def test_qr_of_graded_columns() -> None:
    scales = torch.logspace(-6, 0, 30)
    for order in (scales, scales.flip(0)):
        assert_qr(torch.randn(400, 30) * order, 200 * EPS)


@pytest.mark.parametrize("exponent", [-25, 15, 25])
def test_qr_where_squares_leave_the_range(exponent: int) -> None:
    assert_qr(torch.randn(200, 10) * 10.0**exponent, 200 * EPS)


def test_qr_of_dependent_columns() -> None:
    X = torch.randn(300, 20)
    X[:, 7] = X[:, 2] - 3 * X[:, 11]
    assert_qr(X, 50 * EPS)
    X[:, 7] += 1e-5 * torch.randn(300)
    assert_qr(X, 50 * EPS)
    assert_qr(torch.randn(300, 3) @ torch.randn(3, 20), 50 * EPS)


@pytest.mark.parametrize("condition", [1e1, 1e2, 1e3, 1e4, 1e6])
def test_qr_of_nearly_dependent_columns(condition: float) -> None:
    left = torch.linalg.qr(torch.randn(600, 24, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))[0]
    X = (left * torch.logspace(0, -float(np.log10(condition)), 24)) @ right
    assert_qr(X.float(), 32 * EPS * min(condition, 1e3))


def test_qr_of_zeros() -> None:
    X = torch.randn(50, 6)
    X[:, [0, 4]] = 0
    _, R = assert_qr(X, 50 * EPS)
    assert R[:, 0].abs().max() == 0
    _, R = assert_qr(torch.zeros(5, 5), 0)
    assert R.abs().max() == 0


def test_qr_does_not_depend_on_threads() -> None:
    for X in (torch.randn(3000, 70), torch.ones(300, 40)):
        one, three = (gs.kernels.cholesky_qr2(X, threads=threads) for threads in (1, 3))
        assert torch.equal(one[0], three[0])
        assert torch.equal(one[1], three[1])


def test_qr_errors() -> None:
    X = torch.randn(4, 3)
    X[2, 1] = torch.nan
    for kind, message, value in (
        (ValueError, "1 <= l <= m", torch.randn(3, 4)),
        (ValueError, "1 <= l <= m", torch.randn(3)),
        (TypeError, "X: got dtype torch.float64", torch.randn(4, 3).double()),
        (ValueError, "holds NaN or infinity", X),
    ):
        with pytest.raises(kind, match=message):
            gs.kernels.cholesky_qr2(value)
