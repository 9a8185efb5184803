"""quantization.descent against its definition: one column or group at a time, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gossamer as gs
from gossamer.formats.codebooks import storable
from gossamer.formats.grids import Grid, fit_grid
from gossamer.quantization.descent import Descent

TOLERANCE = 2e-4  # of weights of the order of 1, float32 sums over a few hundred columns

FORMS: list[tuple[str, int | None, dict[str, Any]]] = [
    ("int4", 64, {}),
    ("int4", 16, {"symmetric": False}),
    ("int4", None, {}),
    ("int4", 256, {"symmetric": False}),
    ("nf4", 64, {}),
    ("fp4", 32, {}),
    ("mxfp4", 32, {}),
]


@pytest.fixture(params=("scalar", "avx2", "avx512"))
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that has a descent of its own, forced."""
    name: str = request.param
    if name not in gs.cpu.available():
        pytest.skip(f"this machine has no {name}")
    with gs.cpu.force(name):
        yield name


def moment_of(K: int, dead: tuple[int, ...] = ()) -> Tensor:
    """Of inputs whose neighbours are alike, of different magnitudes, damped."""
    x = torch.randn(2 * K + 5, K)
    x[:, 1:] += 0.8 * x[:, :-1].clone()
    x *= torch.linspace(0.5, 2.0, K)
    x[:, list(dead)] = 0
    H = x.T @ x / len(x)
    H.diagonal().add_(0.03 * H.diagonal().mean() * (H.diagonal() > 0))
    return H


def total(W: Tensor, H: Tensor, grid: Grid, codes: Tensor) -> float:
    """tr((W - Ŵ) H (W - Ŵ)ᵀ)."""
    E = W.double() - grid.dequantize(codes).double()
    return float(((E @ H.double()) * E).sum())


def assert_codes(
    W: Tensor, H: Tensor, grid: Grid, before: Tensor, after: Tensor, keep: Tensor | None
) -> None:
    """Each code is the nearest to what would be best at its turn; ties may go either way."""
    V, new = grid.dequantize(before).double(), grid.dequantize(after).double()
    W, H = W.double(), H.double()
    size = grid.group_size or W.shape[1]
    for k in range(W.shape[1]):
        scales = grid.scales[:, k // size, None]
        zeros = 0 if grid.zeros is None else grid.zeros[:, k // size, None]
        fixed = scales[:, 0] == 0
        if keep is not None:
            fixed |= ~keep[:, k]
        if H[k, k] == 0:
            fixed = torch.ones_like(fixed)
        assert torch.equal(new[fixed, k], V[fixed, k])
        best = V[:, k] + (W - V) @ H[k] / H[k, k].clamp(min=1e-30)
        nearest = ((grid.levels - zeros) * scales - best[:, None]).abs().amin(1)
        assert bool(((new[:, k] - best).abs() <= nearest + TOLERANCE)[~fixed].all()), k
        V[:, k] = new[:, k]


def assert_scales(W: Tensor, H: Tensor, before: Grid, after: Grid, codes: Tensor) -> None:
    """Each scale is as good at its turn as the best one, rounded to what can be stored."""
    size = before.group_size or W.shape[1]
    now, H = before.scales.clone(), H.double()
    for g in range(now.shape[1]):
        part = slice(g * size, min((g + 1) * size, W.shape[1]))

        def left(scales: Tensor, now: Tensor = now, g: int = g) -> tuple[Tensor, Tensor]:
            changed = now.clone()
            changed[:, g] = scales
            E = W.double() - before.with_scales(changed).dequantize(codes).double()
            return ((E @ H) * E).sum(1), E

        old, E = left(now[:, g])
        levels = before.with_scales(torch.ones_like(now)).dequantize(codes)[:, part].double()
        slope = (levels * (E @ H)[:, part]).sum(1)
        curve = ((levels @ H[part, part]) * levels).sum(1)
        best = (now[:, g] + torch.where(curve > 0, slope / curve, 0.0)).float()
        rounded = storable(before.format, before.settings, before.group_size, best[:, None])
        reached, _ = left(after.scales[:, g])
        assert bool(
            (reached <= torch.minimum(old, left(rounded[:, 0])[0]) * (1 + 1e-4) + 1e-6).all()
        )
        now[:, g] = after.scales[:, g]


def assert_passes(W: Tensor, H: Tensor, grid: Grid, keep: Tensor | None = None) -> None:
    """Codes, scales and codes again, each checked; the total never grows, and falls."""
    codes = grid.round(W if keep is None else W * keep)
    descent = Descent(W, codes, grid, H, keep)
    totals = [total(W, H, grid, codes)]
    for step in ("codes", "scales", "codes"):
        getattr(descent, f"move_{step}")()
        after = descent.grid
        if step == "codes":
            assert_codes(W, H, grid, codes, descent.codes, keep)
        else:
            assert torch.equal(descent.codes, codes)
            assert_scales(W, H, grid, after, codes)
        grid, codes = after, descent.codes
        totals.append(total(W, H, grid, codes))
        assert totals[-1] <= totals[-2] * (1 + 1e-5) + 1e-6
    if W.numel() > 500:
        assert totals[-1] < 0.98 * totals[0]


@pytest.mark.parametrize(("form", "group_size", "settings"), FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_every_grid(
    isa: str, form: str, group_size: int | None, settings: dict[str, Any], masked: bool
) -> None:
    W = torch.randn(19, 147)
    W[4] = 0  # scales of 0
    keep = torch.rand(19, 147) > 0.3 if masked else None
    assert_passes(W, moment_of(147), fit_grid(form, group_size, settings, W), keep)


@pytest.mark.parametrize(
    ("N", "K"), [(1, 1), (31, 15), (33, 17), (1, 128), (65, 129), (3, 263), (32, 64)]
)
def test_tails(isa: str, N: int, K: int) -> None:
    W = torch.randn(N, K)
    assert_passes(W, moment_of(K), fit_grid("int4", 32, {}, W))


@pytest.mark.parametrize("form", ["int4", "nf4"])
def test_dead_columns_stay_as_they_are(isa: str, form: str) -> None:
    W, dead = torch.randn(20, 140), (0, 7, *range(32, 64), 139)
    assert_passes(W, moment_of(140, dead), fit_grid(form, 32, {}, W))


def test_nothing_moves_where_all_is_masked(isa: str) -> None:
    W = torch.randn(9, 70)
    grid = fit_grid("fp4", 32, {}, W)
    codes = torch.full((9, 70), 3, dtype=torch.uint8)
    descent = Descent(W, codes, grid, moment_of(70), torch.zeros(9, 70, dtype=torch.bool))
    descent.move_codes()
    assert torch.equal(descent.codes, codes)


def test_it_ends_where_no_code_alone_can_be_better() -> None:
    W, H = torch.randn(5, 24), moment_of(24)
    grid = fit_grid("int4", 16, {"scale_dtype": torch.float32}, W)
    descent = Descent(W, grid.round(W), grid, H)
    for _ in range(30):  # until nothing moves
        descent.move_codes()
    least = total(W, H, grid, descent.codes)
    for k in range(24):
        for step in (-1, 1):
            codes = descent.codes.int()
            codes[:, k] = (codes[:, k] + step).clamp(0, 15)
            assert total(W, H, grid, codes.to(torch.uint8)) >= least * (1 - 1e-5)


def test_threads_change_no_bit(isa: str) -> None:
    W, H = torch.randn(520, 200), moment_of(200)
    grid = fit_grid("int4", 64, {"symmetric": False}, W)
    codes, results = grid.round(W), []
    count = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            descent = Descent(W, codes, grid, H)
            descent.move_scales()
            descent.move_codes()
            descent.move_scales()
            results.append((descent.codes, descent.grid.scales))
        finally:
            torch.set_num_threads(count)
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])


@settings(max_examples=15, deadline=None)
@given(
    N=st.integers(1, 40),
    K=st.integers(1, 200),
    form=st.sampled_from(FORMS),
    samples=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_the_total_never_grows(
    N: int, K: int, form: tuple[str, int | None, dict[str, Any]], samples: int, seed: int
) -> None:
    torch.manual_seed(seed)
    W, x = torch.randn(N, K), torch.randn(samples, K)
    H, grid = x.T @ x / samples, fit_grid(*form, W)
    codes = torch.randint(0, 16, (N, K), dtype=torch.uint8)
    descent = Descent(W, codes, grid, H)
    before = total(W, H, grid, codes)
    for move in (descent.move_codes, descent.move_scales, descent.move_codes, descent.move_scales):
        move()
        after = total(W, H, descent.grid, descent.codes)
        assert after <= before + 1e-5 * (before + float(((W @ H) * W).sum()))
        before = after
