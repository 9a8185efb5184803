"""The OBS column update against its definition: one column at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.calibration.obs import Factor, Updated, factor, update
from gossamer.formats.grids import Grid, fit_grid

TOLERANCE = 2e-4  # of weights of the order of 1, float32 sums over a few hundred columns


def correlated(rows: int, K: int) -> Tensor:
    """Activations whose neighbouring features are alike, of different magnitudes."""
    x = torch.randn(rows, K)
    x[:, 1:] += 0.8 * x[:, :-1].clone()
    return x * torch.linspace(0.5, 2.0, K)


def moment_of(K: int) -> Tensor:
    x = correlated(3 * K + 5, K)
    return x.T @ x / len(x)


def damped(moment: Tensor, used: Factor) -> Tensor:
    H = moment.double()
    dead = H.diagonal() == 0
    mean = H.diagonal()[~dead].mean()
    H[dead, dead] = 1.0
    return H + used.damping * mean * torch.eye(len(H), dtype=torch.float64)


class Steps:
    """The definition, told the values that the columns became.

    At each column the weights are those of exact arithmetic after the same decisions, so that a
    decision that float32 takes otherwise than float64 spoils no later column.
    """

    def __init__(self, W: Tensor, moment: Tensor, used: Factor, values: Tensor) -> None:
        self.w = W.double()
        self.w[:, used.dead] = 0.0
        self.inverse = damped(moment, used).inverse()
        self.values = values.double()
        self.loss = 0.0

    def take(self, j: int) -> None:
        error = (self.w[:, j] - self.values[:, j]) / self.inverse[j, j]
        self.loss += float((error.square() * self.inverse[j, j]).sum())
        self.w -= torch.outer(error, self.inverse[j])
        column = self.inverse[:, j].clone()
        self.inverse -= torch.outer(column, column) / self.inverse[j, j]


def distances(grid: Grid, w: Tensor, j: int) -> Tensor:
    """How far weights [N] of column j are from the nearest number of their row's grid."""
    group = j // (grid.group_size or 10**9)
    zeros = 0 if grid.zeros is None else grid.zeros[:, group, None]
    numbers = (grid.levels - zeros) * grid.scales[:, group, None]
    return (w[:, None] - numbers).abs().amin(1)


def assert_steps(
    W: Tensor, moment: Tensor, used: Factor, got: Updated, grid: Grid | None = None
) -> None:
    """Each value is the nearest to the weight that it replaces, or that weight, or zero."""
    steps = Steps(W, moment, used, got.values)
    order = range(W.shape[1]) if used.order is None else used.order.tolist()
    for j in order:
        w, v = steps.w[:, j], steps.values[:, j]
        kept = torch.ones(len(W), dtype=torch.bool) if got.keep is None else got.keep[:, j]
        allowed = distances(grid, w, j) if grid is not None else torch.zeros(len(W))
        assert bool(((w - v).abs() <= allowed + TOLERANCE)[kept].all()), j
        assert bool((v[~kept] == 0).all())
        steps.take(j)
    assert got.loss == pytest.approx(steps.loss, rel=2e-3, abs=1e-9)
    if grid is not None:
        assert got.codes is not None
        dequantized = grid.dequantize(got.codes)
        assert torch.equal(dequantized, got.values)


FORMS: list[tuple[str, int | None, dict[str, Any]]] = [
    ("int4", 32, {}),
    ("int4", 16, {"symmetric": False}),
    ("int4", None, {}),
    ("int8", None, {}),
    ("nf4", 64, {}),
    ("fp8", None, {}),
]


@pytest.mark.parametrize(("form", "group_size", "settings"), FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_every_grid(
    isa: str, form: str, group_size: int | None, settings: dict[str, Any], masked: bool
) -> None:
    W, moment = torch.randn(19, 67), moment_of(67)
    grid = fit_grid(form, group_size, settings, W)
    used = factor(moment)
    keep = torch.rand(19, 67) > 0.5 if masked else None
    got = update(W, used, grid=grid, keep=keep)
    assert_steps(W, moment, used, got, grid)
    assert got.keep is None if keep is None else torch.equal(got.keep, keep)


@pytest.mark.parametrize(
    ("N", "K"),
    [(31, 1), (17, 15), (1, 16), (33, 17), (15, 127), (16, 128), (129, 129), (3, 263), (1, 1)],
)
def test_tails(N: int, K: int) -> None:
    W, moment = torch.randn(N, K), moment_of(K)
    used = factor(moment)
    grid = fit_grid("int4", 32, {}, W)
    assert_steps(W, moment, used, update(W, used, grid=grid), grid)
    keep = torch.rand(N, K) > 0.5
    assert_steps(W, moment, used, update(W, used, keep=keep))


def test_many_rows_and_columns_do_not_depend_on_threads(isa: str) -> None:
    W, moment = torch.randn(257, 300), moment_of(300)
    grid = fit_grid("int4", 64, {}, W)

    def half(scores: Tensor, first: int) -> Tensor:
        return scores >= scores.median(1, keepdim=True).values

    results = []
    count = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            used = factor(moment, order=True)
            results.append((used.lower, update(W, used, grid=grid, select=half)))
        finally:
            torch.set_num_threads(count)
    (L, first), *others = results
    for lower, other in others:
        assert torch.equal(lower, L)
        assert torch.equal(other.values, first.values)
        assert torch.equal(other.codes, first.codes)
        assert torch.equal(other.keep, first.keep)
        assert other.loss == first.loss


def test_a_diagonal_moment_rounds_to_nearest(isa: str) -> None:
    W = torch.randn(9, 200)
    W[:, 3] = 0
    W[2] = 0  # scales of zero
    for form, group_size, settings in FORMS:
        grid = fit_grid(form, group_size, settings, W).with_scales(
            fit_grid(form, group_size, settings, W).scales
        )
        got = update(W, factor(torch.rand(200).add(0.1).diag()), grid=grid)
        wanted = grid.dequantize(grid.round(W))
        assert torch.equal(got.values, wanted), form


def objective(W: Tensor, V: Tensor, H: Tensor) -> float:
    D = W.double() - V.double()
    return float(((D @ H) * D).sum())


@pytest.mark.parametrize("seed", range(4))
def test_loss_is_the_objective_and_below_rounding_to_nearest(seed: int) -> None:
    torch.manual_seed(seed)
    W, moment = torch.randn(24, 160), moment_of(160)
    for order in (False, True):
        used = factor(moment, order=order)
        H = damped(moment, used)
        for form, group_size, settings in FORMS:
            grid = fit_grid(form, group_size, settings, W)
            got = update(W, used, grid=grid)
            error = objective(W, got.values, H)
            assert got.loss == pytest.approx(error, rel=1e-3)
            assert error < 0.9 * objective(W, grid.dequantize(grid.round(W)), H)
        keep = torch.rand(24, 160) > 0.5
        pruned = update(W, used, keep=keep)
        assert pruned.loss == pytest.approx(objective(W, pruned.values, H), rel=1e-3)
        assert pruned.loss < 0.9 * objective(W, W * keep, H)


@pytest.mark.parametrize("with_grid", [False, True])
@pytest.mark.parametrize("K", [64, 129, 300])
def test_select_sees_the_scores_of_its_time(K: int, with_grid: bool) -> None:
    W, moment = torch.randn(21, K), moment_of(K)
    grid = fit_grid("int4", None, {}, W) if with_grid else None
    seen: list[tuple[int, Tensor, Tensor]] = []

    def select(scores: Tensor, first: int) -> Tensor:
        keep = scores >= scores.median(1, keepdim=True).values
        seen.append((first, scores, keep))
        return keep

    used = factor(moment)
    got = update(W, used, select=select, grid=grid)
    assert_steps(W, moment, used, got, grid)
    assert got.keep is not None
    assert [first for first, _, _ in seen] == list(range(0, K, 128))
    steps = Steps(W, moment, used, got.values)
    for j in range(K):
        for first, scores, keep in seen:
            if first == j:
                columns = slice(first, first + 128)
                wanted = (steps.w[:, columns] / used.lower.double().diagonal()[columns]).square()
                torch.testing.assert_close(scores.double(), wanted, rtol=1e-2, atol=1e-3)
                assert torch.equal(got.keep[:, columns], keep)
        steps.take(j)


@pytest.mark.parametrize(("n", "m", "K"), [(2, 4, 136), (1, 3, 131), (8, 16, 70), (5, 40, 200)])
@pytest.mark.parametrize("with_grid", [False, True])
def test_n_of_m(isa: str, n: int, m: int, K: int, with_grid: bool) -> None:
    W, moment = torch.randn(18, K), moment_of(K)
    grid = fit_grid("int4", None, {}, W) if with_grid else None
    used = factor(moment)
    got = update(W, used, n_of_m=(n, m), grid=grid)
    assert_steps(W, moment, used, got, grid)
    assert got.keep is not None
    steps = Steps(W, moment, used, got.values)
    pivots = used.lower.double().diagonal()
    for j in range(K):
        if j % m == 0:
            keep = got.keep[:, j : j + m]
            assert bool((keep.sum(1) == min(n, keep.shape[1])).all())
            scores = (steps.w[:, j : j + m] / pivots[j : j + m]).square()
            least = scores.masked_fill(~keep, torch.inf).amin(1)
            most = scores.masked_fill(keep, 0.0).amax(1)
            assert bool((most <= least * 1.001 + 1e-4).all())
        steps.take(j)


@pytest.mark.parametrize("form", ["int4", "nf4"])
def test_order_is_a_permutation_of_columns(form: str) -> None:
    W, moment = torch.randn(17, 150), moment_of(150)
    used = factor(moment, order=True)
    assert used.order is not None
    assert torch.equal(used.order.sort().values, torch.arange(150))
    assert bool((moment.diagonal()[used.order].diff() <= 0).all())
    keep = torch.rand(17, 150) > 0.3
    grid = fit_grid(form, 64, {}, W)
    for mask in (None, keep):
        got = update(W, used, grid=grid, keep=mask)
        assert_steps(W, moment, used, got, grid)


@pytest.mark.parametrize("group_size", [16, 50, 64, 128, 192, None])
@pytest.mark.parametrize("selecting", [False, True])
def test_refit_gets_groups_as_they_are_by_then(group_size: int | None, selecting: bool) -> None:
    K = 300
    W, moment = torch.randn(20, K), moment_of(K)
    groups = -(-K // (group_size or K))
    scales, zeros = torch.ones(20, groups), torch.full((20, groups), 8.0)
    start = Grid("int4", scales.clone(), zeros.clone(), group_size, {"symmetric": False})
    seen: list[tuple[slice, Tensor]] = []

    def refit(group: Tensor, columns: slice) -> tuple[Tensor, Tensor | None]:
        fitted = fit_grid("int4", None, {"symmetric": False}, group)
        assert fitted.zeros is not None
        at = len(seen)
        scales[:, at], zeros[:, at] = fitted.scales[:, 0], fitted.zeros[:, 0]
        seen.append((columns, group))
        return scales[:, at], zeros[:, at]

    def select(scores: Tensor, first: int) -> Tensor:
        return scores >= scores.median(1, keepdim=True).values

    used = factor(moment)
    got = update(W, used, grid=start, refit=refit, select=select if selecting else None)
    grid = start.with_scales(scales, zeros)
    assert_steps(W, moment, used, got, grid)
    size = group_size or K
    starts = [columns.start for columns, _ in seen]
    assert starts == list(range(0, K, size))
    steps = Steps(W, moment, used, got.values)
    for j in range(K):
        if j in starts:
            columns, group = seen[starts.index(j)]
            assert columns == slice(j, min(j + size, K))
            if got.keep is None:
                assert (group - steps.w[:, columns]).abs().max() < TOLERANCE
            else:
                kept = got.keep[:, columns] & (group != 0)
                assert (group - steps.w[:, columns]).abs()[kept].max() < TOLERANCE
                if size <= 128:
                    assert bool((group[~got.keep[:, columns]] == 0).all())
        steps.take(j)


def test_dead_columns_become_zero() -> None:
    x = correlated(90, 40)
    x[:, [0, 17, 39]] = 0
    moment, W = x.T @ x, torch.randn(8, 40)
    for order in (False, True):
        used = factor(moment, order=order)
        assert used.dead.nonzero().flatten().tolist() == [0, 17, 39]
        grid = fit_grid("int4", None, {}, W)
        got = update(W, used, grid=grid)
        assert bool((got.values[:, used.dead] == 0).all())
        assert_steps(W, moment, used, got, grid)
    dead = factor(torch.zeros(5, 5))
    assert bool(dead.dead.all())
    assert update(torch.ones(2, 5), dead, keep=torch.ones(2, 5).bool()).loss == 0


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_fewer_samples_than_columns(rows: int) -> None:
    x, W = correlated(rows, 64), torch.randn(8, 64)
    moment = x.T @ x
    used = factor(moment)
    keep = torch.rand(8, 64) > 0.5
    got = update(W, used, keep=keep)
    assert_steps(W, moment, used, got)
    assert ((W - got.values) @ x.T).norm() < 0.9 * ((W - W * keep) @ x.T).norm()


def test_constant_input() -> None:
    moment, W = torch.ones(48, 48), torch.randn(6, 48)
    used = factor(moment)
    got = update(W, used, grid=fit_grid("int4", None, {}, W))
    nearest = fit_grid("int4", None, {}, W)
    assert (W - got.values).sum(1).abs().max() < float(nearest.scales.abs().max())
    assert_steps(W, moment, used, got, nearest)


def check_raises(kind: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_update_errors() -> None:
    W, used, ordered = torch.randn(3, 8), factor(torch.eye(8)), factor(torch.eye(8), order=True)
    grid = fit_grid("int4", 16, {}, W.repeat(1, 4))
    small = Grid("int4", torch.ones(3, 2), torch.full((3, 2), 8.0), 4, {})
    keep = torch.ones(3, 8, dtype=torch.bool)

    def refit(group: Tensor, columns: slice) -> tuple[Tensor, Tensor | None]:
        return torch.ones(3), None

    for kind, message, arguments in (
        (ValueError, "nothing to do", {}),
        (ValueError, "one mask", {"keep": keep, "n_of_m": (2, 4)}),
        (ValueError, "keep: got .* wanted bool", {"keep": keep[:, :7]}),
        (ValueError, "keep: got .* wanted bool", {"keep": keep.float()}),
        (ValueError, "grid.scales: got", {"grid": grid}),
        (ValueError, "refit: wanted a grid", {"refit": refit, "keep": keep}),
        (ValueError, "refit: returned zeros None", {"refit": refit, "grid": small}),
        (ValueError, "n_of_m: got", {"n_of_m": (5, 4)}),
        (ValueError, "divides the group size", {"n_of_m": (1, 3), "grid": small, "refit": refit}),
        (ValueError, "select: returned", {"select": lambda scores, first: scores}),
    ):
        check_raises(kind, message, lambda arguments=arguments: update(W, used, **arguments))
    check_raises(ValueError, "is ordered", lambda: update(W, ordered, n_of_m=(2, 4)))
    check_raises(ValueError, "is ordered", lambda: update(W, ordered, grid=small, refit=refit))
    check_raises(ValueError, r"wanted \[N, 8\]", lambda: update(W[:, :7], used, keep=keep))
    check_raises(TypeError, "got dtype", lambda: update(W.double(), used, keep=keep))
    huge, alike = torch.full((1, 8), 1e38), factor(torch.ones(8, 8), damping=1e-3)
    check_raises(ValueError, "left the range", lambda: update(huge, alike, keep=~keep[:1]))
    W[1, 1] = torch.inf
    check_raises(ValueError, "W: holds NaN", lambda: update(W, used, keep=keep))
