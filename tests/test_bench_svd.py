"""``gossamer bench svd``: its matrices, peers, figures, tables, and the timing side by side."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gossamer.bench import results, svd, svd_methods, svd_tables
from gossamer.bench.commands import app
from gossamer.bench.interleaved import Settings, time_interleaved
from gossamer.bench.results import Results
from gossamer.bench.svd_cases import SvdCase, read_svd_cases
from gossamer.bench.svd_matrices import KnownMatrix, rotate_rows
from gossamer.bench.svd_methods import (
    FULL,
    GRAM,
    KNOWN_RANK,
    OURS,
    Answer,
    methods_of_error,
    methods_of_rank,
    rank_for,
)
from gossamer.reporting import readme

CASES = Path(__file__).parents[1] / "bench" / "svd_cases.toml"
FAST = Settings(threads=1, rounds=1)
SMALL = SvdCase("small", "60x48", "power:0.5", rank=6, target_excess=0.2, over_peers=1.0)
BY_ERROR = SvdCase("by error", "60x48", "power:1", rel_error=0.3)


# --- matrices ---


@pytest.mark.parametrize(
    ("m", "n", "spectrum", "outliers"),
    [
        (96, 64, "power:0.5", 0),
        (40, 97, "power:1", 0),  # 97 is prime
        (80, 80, "flat", 0),
        (50, 70, "gaussian", 0),
        (96, 64, "rank:7", 0),
        (100, 72, "power:0.5", 8),
        (30, 72, "power:0.5", 8),
        (1, 16, "power:0.5", 0),
    ],
)
def test_matrices_have_the_singular_values_they_say(
    m: int, n: int, spectrum: str, outliers: int
) -> None:
    matrix = KnownMatrix(m, n, spectrum, outliers)
    W, values = matrix.draw(), matrix.singular_values()
    assert W.shape == (m, n)
    assert W.dtype == torch.float32
    assert values.shape == (min(m, n),)
    assert (values.diff() <= 0).all()
    torch.testing.assert_close(
        torch.linalg.svdvals(W.double()), values, rtol=0, atol=1e-6 * float(values[0])
    )
    assert torch.equal(W, KnownMatrix(m, n, spectrum, outliers).draw())
    if spectrum != "flat" or m < n:
        assert not torch.equal(W, KnownMatrix(m, n, spectrum, outliers, seed=1).draw())


@pytest.fixture(autouse=True)
def _without_sklearn(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would bring a second OpenMP runtime into the process of all tests."""
    monkeypatch.setitem(sys.modules, "sklearn", None)


def test_rotations_are_orthogonal_and_mix_every_row() -> None:
    Q = rotate_rows(torch.eye(48, dtype=torch.float64), torch.Generator().manual_seed(0))
    torch.testing.assert_close(Q @ Q.T, torch.eye(48, dtype=torch.float64))
    assert Q.abs().max() < 0.7
    assert (Q.abs() > 1e-4).double().mean() > 0.95


def test_outlier_columns_are_few_and_large() -> None:
    norms = KnownMatrix(128, 96, "power:0.5", 6).draw().norm(dim=0).sort(descending=True).values
    assert norms[5] > 8 * norms[6]
    assert norms[:6].mean() / norms[6:].mean() == pytest.approx(20, rel=0.2)


def test_the_gaussian_spectrum_is_that_of_a_gaussian_matrix() -> None:
    drawn = torch.randn(400, 300, generator=torch.Generator().manual_seed(0)).double() / 20
    values = KnownMatrix(400, 300, "gaussian").singular_values()
    assert (torch.linalg.svdvals(drawn) - values).abs().max() < 0.05


@pytest.mark.parametrize("spectrum", ["power", "power:x", "odd", "rank:x", ""])
def test_unknown_spectra_are_refused(spectrum: str) -> None:
    with pytest.raises(ValueError, match="KnownMatrix: spectrum"):
        KnownMatrix(8, 8, spectrum)


# --- cases ---


def test_the_cases_of_the_repository_are_those_of_the_goals() -> None:
    cases = {case.name: case for case in read_svd_cases(CASES)}
    assert cases["4096x4096 r=32"].over_full == 200
    assert cases["4096x4096 r=32"].target_excess == 3e-4
    assert cases["4096x4096 r=512"].over_peers == 4
    assert cases["1536x576 r=64"].over_peers == 3
    for name in ("11008x4096 r=128", "768x768 r=16", "outlier columns", "flat spectrum"):
        assert cases[name].over_peers == 1
    by_error = cases["rel_error 0.1"]
    assert (by_error.rel_error, by_error.spectrum) == (0.1, "power:1")
    assert (by_error.rank_within, by_error.time_within) == (0.02, 1.5)
    assert [case.name for case in read_svd_cases(CASES, "*r=16")] == ["768x768 r=16"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "different names are wanted"),
        ("[[case]]\nname='a'\nshape='8'\nspectrum='flat'\nrank=1", "shape"),
        ("[[case]]\nname='a'\nshape='8x8'\nspectrum='flat'", "one is wanted"),
        ("[[case]]\nname='a'\nshape='8x8'\nspectrum='flat'\nrank=9", "more than 8x8 has"),
        ("[[case]]\nname='a'\nshape='8x8'\nspectrum='flat'\nrank=1\nodd=2", "'a'.*odd"),
        ("[[case]]\nname='a'\nshape='8x8'\nspectrum='flat'\nrank=1", "no case is named"),
    ],
)
def test_bad_files_of_cases_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cases.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_svd_cases(path, "z")


# --- methods ---


def test_peers_reach_the_optimal_error() -> None:
    matrix = KnownMatrix(60, 48, "power:1")
    W, values = matrix.draw(), matrix.singular_values()
    for method in methods_of_rank((60, 48), 6, 1e-3):
        if method.name == OURS or method.absent:
            continue
        answer = method.answer(method.run(W))
        assert answer.left.shape == (60, 6)
        assert answer.right.shape == (6, 48)
        excess = svd.excess(svd.relative_residual(W, answer), values, 6)
        exact = method.name in (FULL, GRAM) or "niter=8" in method.name
        assert -1e-5 < excess < (1e-4 if exact else 1.0), method.name


@pytest.mark.parametrize("shape", [(60, 48), (48, 60)])
def test_full_solvers_find_the_rank_for_an_error(shape: tuple[int, int]) -> None:
    matrix = KnownMatrix(*shape, "power:1")
    W, smallest = matrix.draw(), rank_for(matrix.singular_values(), 0.3)
    names = []
    for method in methods_of_error(0.3, smallest):
        names.append(method.name)
        if method.cubic:
            answer = method.answer(method.run(W))
            assert answer.right.shape[0] == smallest
            assert svd.relative_residual(W, answer) <= 0.3
    assert names == [OURS, KNOWN_RANK, GRAM, FULL]


def test_the_smallest_rank_for_an_error() -> None:
    values = torch.tensor([2.0, 1.0, 1.0, 0.0]).double()
    assert rank_for(values, 0.99) == 1
    assert rank_for(values, math.sqrt(1 / 6) + 1e-9) == 2
    assert rank_for(values, 1e-9) == 3


def test_what_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = KnownMatrix(64, 64, "flat")
    W = matrix.draw()
    full = methods_of_rank((64, 64), 4, 1e-3)[-1]
    assert svd_methods.why_not(full, matrix, W) is None
    monkeypatch.setattr(svd_methods, "PREDICTED", 0.0)
    assert svd_methods.why_not(full, matrix, W) is None
    monkeypatch.setattr(svd_methods, "MOST_SECONDS", 0.0)
    assert "would take" in str(svd_methods.why_not(full, matrix, W))
    monkeypatch.setattr(svd_methods, "MOST_BYTES", 1)
    assert "GiB" in str(svd_methods.why_not(full, matrix, W))


def test_the_residual_is_that_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svd, "ROWS", 7)
    W = torch.randn(20, 12)
    answer = Answer(torch.randn(20, 3), torch.randn(3, 12))
    exact = (W - answer.left @ answer.right).norm() / W.norm()
    assert svd.relative_residual(W, answer) == pytest.approx(float(exact), rel=1e-5)


def test_where_the_optimal_error_is_zero_the_excess_is_finite() -> None:
    values = torch.tensor([1.0, 0.0]).double()
    assert svd.excess(1e-7, values, 1) == pytest.approx(0.1)
    assert svd.excess(0.5, torch.ones(4).double(), 3) == pytest.approx(0.0)


# --- timing side by side ---


def test_rounds_are_interleaved_and_run_backwards() -> None:
    calls: list[str] = []
    steps: list[str] = []

    def run(name: str) -> Any:
        def call() -> str:
            calls.append(name)
            time.sleep(0.002)
            return name.upper()

        return call

    looked: dict[str, str] = {}
    timings = time_interleaved(
        {"a": run("a"), "b": run("b")},
        rounds=2,
        seconds_per_round=1e-4,
        look=looked.__setitem__,
        on_step=steps.append,
    )
    assert looked == {"a": "A", "b": "B"}
    assert calls[-4:] == ["a", "b", "b", "a"]
    assert len(steps) == 2 * 3
    assert all(len(timing.samples_ms) == 2 for timing in timings.values())
    assert timings["a"].median_ms >= 2


def test_slow_calls_get_fewer_rounds_and_failing_ones_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gossamer.bench.interleaved.SLOW_SECONDS", 0.005)
    monkeypatch.setattr("gossamer.bench.interleaved.ONCE_SECONDS", 0.03)

    def fail() -> None:
        raise ArithmeticError("too odd\nfor words")

    runs = {"slow": lambda: time.sleep(0.01), "once": lambda: time.sleep(0.05), "odd": fail}
    timings = time_interleaved(runs, rounds=5, seconds_per_round=1e-3)
    assert [len(timing.samples_ms) for timing in timings.values()] == [3, 1, 0]
    assert timings["odd"].failure == "ArithmeticError: too odd"
    with pytest.raises(ValueError, match="rounds=0"):
        time_interleaved(runs, rounds=0)


# --- figures ---


def test_rows_hold_time_error_and_certificate(tmp_path: Path) -> None:
    seen: list[int] = []
    measured = svd.run_svd(
        [SMALL, BY_ERROR], FAST, on_case=lambda part: seen.append(len(part.rows))
    )
    rows = measured.rows
    assert seen == [len(rows) - 4, len(rows)]
    ours = svd_tables.found(rows, OURS)
    assert ours is not None
    assert ours["found_rank"] == 6
    assert ours["error"] <= ours["certificate"] < 1
    assert ours["passes"] > 0
    for row in rows:
        assert row["kind"] == "svd"
        if row["contender"].startswith("sklearn") and row["failure"]:
            assert row["failure"].startswith("not installed")
            continue
        assert row["failure"] is None, row
        assert row["ms"] > 0
        assert row["excess"] > -1e-4
    found = [row for row in rows if row["case"] == "by error"]
    smallest = rank_for(BY_ERROR.matrix.singular_values(), 0.3)
    assert {row["smallest_rank"] for row in found} == {smallest}
    assert found[0]["error"] <= 0.3
    results.write(tmp_path / "run.jsonl", measured)
    assert readme.render(results.read(tmp_path / "run.jsonl"), "small").startswith("**small: 60 x")


def test_a_run_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svd, "_run_case", lambda case, *_: [{"case": case.name}])
    old = Results({"cpu": "x"}, [{"kind": "svd", "case": "small", "ms": 1.0}])
    measured = svd.run_svd([SMALL, BY_ERROR], FAST, before=old)
    assert measured.environment == {"cpu": "x"}
    assert [row["case"] for row in measured.rows] == ["small", "by error"]


# --- tables and goals ---


def row_of(contender: str, ms: float, excess: float, **changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "kind": "svd",
        "case": "small",
        "m": 60,
        "n": 48,
        "spectrum": "power:0.5",
        "rank": 6,
        "rel_error": 0.0,
        "smallest_rank": 6,
        "target_excess": 0.2,
        "contender": contender,
        "failure": None,
        "ms": ms,
        "noisy": False,
        "found_rank": 6,
        "error": 0.5,
        "excess": excess,
    }
    return {**usual, **changes}


ROWS = [
    row_of(OURS, 2.0, 0.1, certificate=0.51),
    row_of("hasty", 1.0, 0.3),
    row_of("good", 8.0, 0.2, noisy=True),
    row_of("better", 9.0, 0.0),
    row_of("sklearn", 0, 0, failure="not installed"),
    row_of(FULL, 500.0, 0.0),
]


def test_the_fastest_peer_is_one_of_equal_error() -> None:
    peer = svd_tables.fastest_equal(ROWS)
    assert peer is not None
    assert peer["contender"] == "good"
    # Ours at an excess of 0.4: a peer at 0.3 is no worse.
    worse = [row_of(OURS, 2.0, 0.4), *ROWS[1:]]
    peer = svd_tables.fastest_equal(worse)
    assert peer is not None
    assert peer["contender"] == "hasty"
    assert svd_tables.fastest_equal([row_of(OURS, 2.0, 0.1), row_of("hasty", 1.0, 0.3)]) is None


def test_tables_show_ours_beside_that_peer() -> None:
    table = svd_tables.summary(ROWS)
    assert table.lines == [
        [
            *("small", "2", "6", "1.0e-01", "0.50000, 0.51000"),
            *("good: 8 ms, excess 2.0e-01", "4.00x", "250x"),
        ]
    ]
    (detail,) = svd_tables.tables(ROWS)
    assert detail.title == "small: 60 x 48, spectrum power:0.5, rank 6"
    assert ["good (fastest of equal error)", "8 noisy", "6", "0.500000", "+2.0e-01", "4.00"] in (
        detail.lines
    )
    assert detail.below == "sklearn: not installed"
    failed = [{**row, "failure": "broke"} for row in ROWS]
    assert svd_tables.summary(failed).lines == [["small", *"-" * 7]]
    environment = {"cpu": "c", "threads": 2, "isa": "i", "torch": "t", "date": "d", "revision": ""}
    measured = Results(environment, ROWS)
    assert "| small | 2 | 6 |" in readme.render(measured)
    assert "| hasty | 1 | 6 |" in readme.render(measured, "cases")
    with pytest.raises(ValueError, match="no layer 9x9"):
        readme.render(measured, "9x9")


def test_goals_of_a_rank() -> None:
    case = SvdCase("small", "60x48", "flat", 6, target_excess=0.2, over_peers=5, over_full=200)
    assert svd_tables.goal_lines(case, ROWS) == [
        "met    small: excess: 0.1, wanted at most 0.2",
        "met    small: true error over the certified: 0.98, wanted at most 1",
        "missed small: times faster than good: 4, wanted at least 5",
        f"met    small: times faster than {FULL}: 250, wanted at least 200",
    ]
    assert svd_tables.goal_lines(case, []) == []


def test_goals_of_an_error() -> None:
    by_error: dict[str, Any] = {"case": "by error", "rank": 0, "rel_error": 0.3, "error": 0.29}
    rows = [
        row_of(OURS, 4.0, 0.1, **{**by_error, "found_rank": 7}),
        row_of(KNOWN_RANK, 2.0, 0.1, **by_error),
        row_of(GRAM, 9.0, 0.0, **by_error),
        row_of("bad", 1.0, 0.0, **{**by_error, "error": 0.31}),
    ]
    assert svd_tables.goal_lines(BY_ERROR, rows) == [
        "missed by error: rank over the smallest: 0.167, wanted at most 0.02",
        "missed by error: time of the known rank: 2, wanted at most 1.5",
    ]
    (line,) = svd_tables.summary(rows).lines
    assert line[2] == "7 (smallest 6)"
    assert line[5].startswith(GRAM)


def test_the_command_prints_writes_and_resumes(tmp_path: Path) -> None:
    cases, path = tmp_path / "cases.toml", tmp_path / "run.jsonl"
    cases.write_text("[[case]]\nname='tiny'\nshape='24x16'\nspectrum='power:1'\nrank=2\n")
    arguments = ["svd", "--cases", str(cases), "--rounds", "1", "--threads", "1"]
    first = CliRunner().invoke(app, [*arguments, "--json", str(path)])
    assert first.exit_code == 0, first.output
    assert "tiny: 24 x 16" in first.output
    assert "tiny: excess" in first.output
    text = path.read_text()
    again = CliRunner().invoke(app, [*arguments, "--json", str(path), "--resume"])
    assert again.exit_code == 0, again.output
    assert path.read_text() == text
    refused = CliRunner().invoke(app, [*arguments, "--resume"])
    assert isinstance(refused.exception, ValueError)
