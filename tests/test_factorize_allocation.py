"""The allocation of one budget to the spectra of several layers, against all possible ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.factorization.allocation import Curve, allocate, rank_curve


def curve_of(sigmas: list[float], N: int, K: int, worth: float = 1.0) -> Curve:
    """That of a layer [N, K]; the tail of the spectrum beyond the break-even counts too."""
    energies = torch.tensor(sorted(sigmas, reverse=True), dtype=torch.float64).square()
    total = float(energies.sum())
    largest = (N * K - 1) // (N + K)
    return rank_curve(energies[:largest], total, N + K, N * K, worth)


def points(curve: Curve) -> list[tuple[int, float]]:
    options = list(zip(curve.sizes.tolist(), curve.kept.tolist(), strict=True))
    return [(size, curve.worth * kept) for size, kept in [*options, (curve.dense_size, 1.0)]]


def value(curves: list[Curve], chosen: list[int]) -> float:
    return sum(points(curve)[option][1] for curve, option in zip(curves, chosen, strict=True))


def size(curves: list[Curve], chosen: list[int]) -> int:
    return sum(points(curve)[option][0] for curve, option in zip(curves, chosen, strict=True))


def best(curves: list[Curve], budget: int) -> float:
    """The most that any choice within the budget is worth."""
    found = 0.0
    for options in itertools.product(*map(points, curves)):
        if sum(cost for cost, _ in options) <= budget:
            found = max(found, sum(worth for _, worth in options))
    return found


def largest_step(curve: Curve) -> float:
    """The most that is gained from one point of the upper concave hull to the next."""
    hull = []
    for size_here, here in points(curve):
        chords = [
            before + (after - before) * (size_here - first) / (last - first)
            for (first, before), (last, after) in itertools.combinations(points(curve), 2)
            if first < size_here < last
        ]
        if all(chord <= here + 1e-12 for chord in chords):
            hull.append(here)
    return max(after - before for before, after in itertools.pairwise(hull))


SIGMAS = st.lists(st.floats(0.01, 10), min_size=6, max_size=6)


@given(st.lists(SIGMAS, min_size=1, max_size=3), st.floats(0, 1), st.integers(0, 2))
def test_within_one_step_of_the_optimum(spectra: list[list[float]], share: float, odd: int) -> None:
    curves = [curve_of(sigmas, 6 + odd, 9, 1.0 + odd) for sigmas in spectra]
    least, most = (sum(points(curve)[end][0] for curve in curves) for end in (0, -1))
    budget = int(least + share * (most - least))
    chosen = allocate(curves, budget)
    assert size(curves, chosen) <= budget
    step = max(map(largest_step, curves))
    assert value(curves, chosen) >= best(curves, budget) - step - 1e-12


@given(st.lists(SIGMAS, min_size=2, max_size=3), st.integers(0, 30))
def test_optimal_for_the_budget_that_is_spent(spectra: list[list[float]], steps: int) -> None:
    """At every budget where the steps along the hulls come out even."""
    curves = [curve_of(sigmas, 8, 8) for sigmas in spectra]
    # Without dense layers every step costs the same, and any budget of whole steps comes out even.
    curves = [Curve(c.ranks, c.sizes, c.kept, 10**9, c.worth) for c in curves]
    budget = 16 * (len(curves) + steps)
    chosen = allocate(curves, budget)
    assert value(curves, chosen) == pytest.approx(best(curves, budget), rel=1e-12)


def test_the_dense_layer_is_an_option() -> None:
    flat, steep = curve_of([1.0] * 64, 64, 64), curve_of([1.5**-i for i in range(64)], 64, 64)
    chosen = allocate([flat, steep], 64 * 64 + 128 * 12)
    assert chosen[0] == len(flat)
    assert chosen[1] + 1 == 12
    assert allocate([flat, steep], 2 * 64 * 64) == [len(flat), len(steep)]
    # Where a flat layer cannot be dense, it still gets what the budget has.
    chosen = allocate([flat, steep], 128 * 30)
    assert 128 * (chosen[0] + chosen[1] + 2) == 128 * 30


def test_layers_without_options_and_of_no_energy() -> None:
    none = curve_of([1.0], 1, 50)
    assert len(none) == 0
    zero = rank_curve(torch.zeros(3, dtype=torch.float64), 0.0, 16, 64, 1.0)
    assert allocate([none, zero], 50 + 16) == [0, 0]
    assert zero.smallest_keeping(1.0) == 0


def test_choices_of_one_layer() -> None:
    curve = curve_of([4.0, 2.0, 2.0, 1.0], 10, 10)
    assert curve.sizes.tolist() == [20, 40, 60, 80]
    assert curve.kept.tolist() == pytest.approx([16 / 25, 20 / 25, 24 / 25, 1])
    assert curve.smallest_keeping(0.8) == 1
    assert curve.smallest_keeping(0.81) == 2
    assert curve.largest_within(59.9) == 1
    assert curve.largest_within(19) is None
    short = curve_of([1.0] * 10, 10, 10)
    assert short.smallest_keeping(0.5) is None
