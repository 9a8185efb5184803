"""``gossamer bench sparse``: its weights, contenders, figures, tables and plot."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gossamer import cpu
from gossamer.bench import harness, results, sparse, sparse_contenders, sparse_tables
from gossamer.bench.commands import app
from gossamer.bench.harness import Contender, Timing
from gossamer.bench.peers import deepsparse, deepsparse_engine
from gossamer.bench.peers.torch_csr import CsrLinear
from gossamer.bench.results import Results
from gossamer.bench.sparse import Settings
from gossamer.bench.sparse_cases import Case, Goal, Point, parse_shapes, read_cases
from gossamer.bench.sparse_contenders import choose, copies, layer_bytes, layer_maker, twin_of
from gossamer.bench.sparse_plot import plot_break_even
from gossamer.bench.sparse_weights import PrunedWeight, draw_input
from gossamer.reporting import plots, readme

CASES = Path(__file__).parents[1] / "bench" / "sparse_cases.toml"
FAST = Settings(threads=1, rounds=2, seconds_per_round=0.001)
FAST_ROUNDS: Any = {"threads": 1, "rounds": 2, "seconds_per_round": 0.001}
SMALL = Case("small", ((48, 64),), (1, 3), (0.5, 0.75), ("int8", "torch-csr"), source="a test")


# --- weights ---


@pytest.mark.parametrize("mask", ["uniform", "uneven-rows", "dense-rows", "1x4", "16x1", "2x8"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_masks_have_the_sparsity_asked_for(mask: str, sparsity: float) -> None:
    weight = PrunedWeight(320, 256, sparsity, mask).draw()
    assert weight.shape == (320, 256)
    assert weight.dtype == np.float32
    assert (weight == 0).mean() == pytest.approx(sparsity, abs=0.03)
    assert (weight == PrunedWeight(320, 256, sparsity, mask).draw()).all()


def test_rows_are_uneven_where_they_should_be() -> None:
    def densities(mask: str) -> Any:
        return (PrunedWeight(640, 512, 0.8, mask).draw() != 0).mean(axis=1)

    even, uneven, few = densities("uniform"), densities("uneven-rows"), densities("dense-rows")
    assert even.std() < 0.03
    assert uneven.std() > 0.1
    assert (few == 1).sum() == 10
    assert few[few < 1].std() < 0.03


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 8), (4, 4)])
def test_n_of_m_neighbours_are_kept(n: int, m: int) -> None:
    kept = PrunedWeight(40, 16 * m, 0.5, f"{n}:{m}").draw() != 0
    assert (kept.reshape(-1, m).sum(axis=1) == n).all()


def test_blocks_are_kept_whole_at_edges_too() -> None:
    kept = PrunedWeight(30, 67, 0.5, "4x16").draw() != 0
    for n in range(0, 30, 4):
        for k in range(0, 67, 16):
            assert len(np.unique(kept[n : n + 4, k : k + 16])) == 1
    assert len(np.unique(kept)) == 2


@pytest.mark.parametrize(
    ("sparsity", "mask"),
    [(1.0, "uniform"), (-0.1, "uniform"), (0.5, "5:4"), (0.5, "odd"), (0, "0x4")],
)
def test_bad_weights_are_refused(sparsity: float, mask: str) -> None:
    with pytest.raises(ValueError, match="PrunedWeight"):
        PrunedWeight(8, 8, sparsity, mask)


# --- cases ---


def test_points_cover_the_grid_one_weight_after_another() -> None:
    case = Case("a", ((8, 16), (4, 4)), (1, 2), (0.5, 0.9), ("int8",), masks=("uniform", "1:4"))
    points = case.points()
    assert len(points) == 2 * 3 * 2
    assert points[0] == Point(PrunedWeight(8, 16, 0.5), 1)
    assert points[1] == Point(PrunedWeight(8, 16, 0.5), 2)
    assert [p.weight.sparsity for p in points if p.weight.mask == "1:4"] == [0.75] * 4
    assert (
        Case("b", ((4, 4),), (1,), (0.5,), ("int8",), cold_gib=0.5).points()[0].cold_bytes == 2**29
    )


def test_the_cases_of_the_repository_can_run() -> None:
    cases = read_cases(CASES)
    for case in cases:
        assert case.points()
        for goal in case.goals:
            names = [entrant.name for entrant in choose(case)]
            assert goal.contender in names
            assert (goal.over or goal.contender) in names
            assert goal.over_mask in ("", *case.masks)
            assert set(goal.M) <= set(case.M)
            sparsities = goal.at_least if isinstance(goal.at_least, dict) else {}
            assert {float(share) for share in sparsities} <= set(case.sparsity)
    assert [case.name for case in read_cases(CASES, "*cold")] == ["int8, cold", "int4, cold"]
    named = {name for case in cases for name in case.contenders}
    assert {"sparse-int8", "sparse-int4", "sparse-bf16", "sparse-fp32"} <= named
    with pytest.raises(ValueError, match="none matches 'nothing'"):
        read_cases(CASES, "nothing")


def test_bad_cases_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cases.toml"
    good = '[[case]]\nname="a"\nshapes=["8x8"]\nM=[1]\nsparsity=[0.5]\ncontenders=["int8"]\n'
    path.write_text(good)
    assert read_cases(path)[0].shapes == ((8, 8),)
    changes = [
        ("8x8", "8"),
        ("M=[1]", "M=[0]"),
        ("0.5", "1.5"),
        ('["int8"]', "[]"),
        ("name", "nom"),
    ]
    for text in ["", good + good, *(good.replace(*change) for change in changes)]:
        path.write_text(text)
        with pytest.raises(ValueError, match=r"cases\.toml"):
            read_cases(path)
    with pytest.raises(ValueError, match="got '8x'"):
        parse_shapes(["8x"])


# --- contenders ---


def test_dense_twins_join_by_themselves() -> None:
    case = Case("a", ((8, 8),), (1,), (0.5,), ("sparse-int8", "sparse-fp32", "torch-csr"))
    entrants = {entrant.name: entrant.twin for entrant in choose(case)}
    assert entrants == {
        "int8": "int8",
        "torch-fp32": "torch-fp32",
        "sparse-int8": "int8",
        "sparse-fp32": "torch-fp32",
        "torch-csr": "torch-fp32",
    }
    held = {e.name: e.environment for e in choose(Case(**{**vars(case), "isa": "avx2"}))}
    assert held["sparse-int8"] == held["int8"] == {"GOSSAMER_ISA": "avx2"}
    assert held["torch-fp32"]["ATEN_CPU_CAPABILITY"] == "avx2"
    vnni = {e.name: e.environment for e in choose(Case(**{**vars(case), "isa": "avx512vnni"}))}
    assert vnni["torch-fp32"] == {}
    with pytest.raises(ValueError, match="'magic' is no contender"):
        choose(Case("a", ((8, 8),), (1,), (0.5,), ("magic",)))
    with pytest.raises(ValueError, match="'int8/spmm' is no contender"):
        choose(Case("a", ((8, 8),), (1,), (0.5,), ("int8/spmm",)))
    with pytest.raises(ValueError, match="no path can be forced"):
        choose(Case("a", ((8, 8),), (1,), (0.5,), ("sparse-fp32/spmm",), cold_gib=1.0))
    with pytest.raises(ValueError, match="isa: 'sse2' is unknown"):
        choose(Case("a", ((8, 8),), (1,), (0.5,), ("int8",), isa="sse2"))


def test_csr_multiplies_as_dense_and_counts_its_indices() -> None:
    weight = PrunedWeight(20, 30, 0.8).draw()
    layer = CsrLinear(weight)
    for M in (1, 5):
        x = draw_input(M, 30)
        np.testing.assert_allclose(layer(torch.from_numpy(x)).numpy(), x @ weight.T, atol=1e-5)
    assert layer_bytes(layer) == 8 * np.count_nonzero(weight) + 4 * 21


def test_cold_copies_share_no_memory() -> None:
    for name in ("int8", "torch-fp32"):
        layer = layer_maker(name)(PrunedWeight(64, 64, 0.5).draw())
        made = copies(layer, 3 * layer_bytes(layer) - 1)
        stored = [m.packed if name == "int8" else m.weight for m in made]
        assert len({tensor.data_ptr() for tensor in stored}) == len(made) == 3
        x = torch.from_numpy(draw_input(2, 64))
        assert torch.equal(made[0](x), made[2](x))
    assert len(copies(layer, 1)) == 2


@pytest.mark.parametrize(
    "name",
    [
        *("sparse-int8", "sparse-int4", "sparse-bf16", "sparse-fp32", "compressed-sparse-fp32"),
        *("sparse-fp32/spmm", "sparse-fp32/gemv", "sparse-int8/expand", "sparse-int8/spmm"),
    ],
)
def test_our_sparse_layers_multiply_and_are_smaller(name: str) -> None:
    weight = PrunedWeight(96, 512, 0.8).draw()
    layer = layer_maker(name)(weight)
    x = draw_input(3, 512)
    y = layer(torch.from_numpy(x).to(sparse_contenders.input_dtype(name))).float().numpy()
    exact = x.astype(np.float64) @ weight.T
    limit = 0.2 if "int4" in name else 0.03 if "int8" in name else 1e-2 if "bf16" in name else 1e-5
    assert np.linalg.norm(y - exact) < limit * np.linalg.norm(exact)
    assert layer_bytes(layer) < layer_bytes(layer_maker(twin_of(name))(weight))


def test_what_compress_makes_can_run() -> None:
    weight = PrunedWeight(64, 64, 0.5).draw()
    layer = layer_maker("compressed-int8")(weight)
    assert torch.equal(layer(torch.ones(1, 64)), layer_maker("int8")(weight)(torch.ones(1, 64)))


# --- DeepSparse: the protocol without it, and itself where it is installed ---


@pytest.fixture
def engine_python(tmp_path: Path) -> str:
    """A Python whose engine multiplies by numpy, and says each call it made in a file."""
    fake = tmp_path / "fake_engine.py"
    fake.write_text(
        "import ctypes, sys, numpy as np\n"
        "ctypes.CDLL(None).prctl(1, 9)  # to be killed with its parent\n"
        "kind, given, out, cores, parent = sys.argv[1:]\n"
        "data = np.load(given)\n"
        "np.save(out, data['x'] @ data['weight'].T)\n"
        "print('done', flush=True)\n"
        "for line in sys.stdin:\n"
        f"    open({str(tmp_path / 'calls')!r}, 'a').write(line)\n"
        "    print('done', flush=True)\n"
    )
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$2" = -c ]; then echo 1.8.0; exit; fi\nshift 2\n'
        f'exec {sys.executable} {fake} "$@"\n'
    )
    python.chmod(0o755)
    return str(python)


def test_the_engine_is_stopped_between_calls(engine_python: str, tmp_path: Path) -> None:
    weight, x = PrunedWeight(16, 32, 0.5).draw(), draw_input(2, 32)
    engine = deepsparse.Engine(engine_python, "fp32", weight, x)
    try:
        np.testing.assert_allclose(engine.run(), x @ weight.T, rtol=1e-6)
        assert int((tmp_path / "calls").read_text()) == deepsparse.calls_of_engine(2, 16, 32) > 1
        status = Path(f"/proc/{engine._process.pid}/status")
        deadline = time.monotonic() + 10
        while "T (stopped)" not in status.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "T (stopped)" in status.read_text()
    finally:
        engine.end()


def test_an_engine_that_ends_is_told(engine_python: str) -> None:
    weight, x = PrunedWeight(16, 32, 0.5).draw(), draw_input(2, 32)
    engine = deepsparse.Engine(engine_python, "fp32", weight, x)
    engine._process.kill()
    engine._process.wait()
    with pytest.raises((OSError, RuntimeError)):
        engine.run()
    engine.end()


def test_the_time_of_an_engine_is_that_of_one_product(
    engine_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(contenders: Any, points: Any, **_: Any) -> Any:
        (point,) = points
        output = draw_input(1, 512) @ point.weight.draw().T
        return [[Timing(each.name, 0, [1000.0, 3000.0], output) for each in contenders]]

    monkeypatch.setattr(harness, "measure", measure)
    case = Case("engine", ((64, 512),), (1,), (0.5,), ("deepsparse-fp32",))
    settings = Settings(1, 2, 0.001, deepsparse_python=engine_python)
    measured = sparse.run_sparse([case], settings)
    dense, row = measured.rows
    assert (dense["ms"], row["contender"]) == (2000, "deepsparse-fp32")
    assert row["samples_ms"] == [1, 3]
    assert deepsparse.calls_of_engine(1, 64, 512) == 1000
    assert deepsparse.calls_of_engine(1024, 4096, 4096) == 1
    assert 0 < row["error"] < 1e-6
    assert measured.environment["versions"]["deepsparse"] == "1.8.0"


def test_an_engine_runs_in_the_harness(engine_python: str) -> None:
    build = sparse_contenders.build_deepsparse
    contender = Contender("engine", build, {"kind": "fp32", "python": engine_python})
    points = [Point(PrunedWeight(64, 512, 0.5), M) for M in (1, 2)]
    for point, (timing,) in zip(
        points, harness.measure([contender], points, **FAST_ROUNDS), strict=True
    ):
        assert timing.failure is None
        assert timing.output is not None
        exact = draw_input(point.M, 512) @ point.weight.draw().T
        np.testing.assert_allclose(timing.output, exact, rtol=1e-4, atol=1e-5)


def test_without_deepsparse_the_row_says_so() -> None:
    entrants = choose(Case("a", ((8, 8),), (1,), (0.5,), ("deepsparse-int8",)), "/no/python")
    assert entrants[1].absent is not None
    assert "/no/python" not in entrants[1].absent
    assert choose(Case("a", ((8, 8),), (1,), (0.5,), ("deepsparse-int8",)))[1].absent


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_the_model_given_to_deepsparse_multiplies(kind: str) -> None:
    onnx_reference = pytest.importorskip("onnx.reference", reason="onnx is not installed")
    weight, x = PrunedWeight(24, 64, 0.5).draw(), draw_input(3, 64)
    model = deepsparse_engine.make_model(weight, x, kind)
    (y,) = onnx_reference.ReferenceEvaluator(model).run(None, {"x": x})
    exact = x.astype(np.float64) @ weight.T
    limit = 1e-5 if kind == "fp32" else 0.03
    assert np.linalg.norm(y - exact) < limit * np.linalg.norm(exact)


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_deepsparse_itself_multiplies(kind: deepsparse.Kind) -> None:
    python = os.environ.get("GOSSAMER_DEEPSPARSE")
    if not python:
        pytest.skip("GOSSAMER_DEEPSPARSE names no Python that has DeepSparse")
    weight, x = PrunedWeight(64, 128, 0.8).draw(), draw_input(4, 128)
    engine = deepsparse.Engine(python, kind, weight, x)
    try:
        y, exact = engine.run(), x.astype(np.float64) @ weight.T
    finally:
        engine.end()
    limit = 1e-5 if kind == "fp32" else 0.03
    assert 0 < np.linalg.norm(y - exact) < limit * np.linalg.norm(exact)


# --- figures ---


def test_rows_hold_speed_error_and_share_of_the_roof(tmp_path: Path) -> None:
    seen: list[int] = []
    measured = sparse.run_sparse([SMALL], FAST, on_case=lambda part: seen.append(len(part.rows)))
    rows = measured.rows
    names = ["int8", "torch-fp32", "torch-csr"]
    assert [(r["sparsity"], r["M"], r["contender"]) for r in rows] == [
        (sparsity, M, name) for sparsity in (0.5, 0.75) for M in (1, 3) for name in names
    ]
    assert seen == [len(rows)]
    for row in rows:
        assert row["failure"] is None
        assert 0 < row["error"] < (0.03 if row["contender"] == "int8" else 1e-6)
        assert row["density"] == pytest.approx(1 - row["sparsity"], abs=0.05)
        assert row["ms"] == np.median(row["samples_ms"]) > 0
        assert ("roof_share" in row) == (row["M"] == 1)
        if row["M"] == 1:
            assert row["gb_per_second"] == pytest.approx(row["bytes"] / row["ms"] / 1e6)
            assert row["roof_share"] > 0
        twin = next(
            r
            for r in rows
            if r["contender"] == row["twin"]
            and (r["M"], r["sparsity"]) == (row["M"], row["sparsity"])
        )
        assert row["speedup"] == pytest.approx(twin["ms"] / row["ms"])
    assert rows[1]["bytes"] == 48 * 64 * 4
    results.write(tmp_path / "run.jsonl", measured)
    assert [row["kind"] for row in results.read(tmp_path / "run.jsonl").rows] == ["sparse"] * 12


def test_a_run_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_run_case", lambda case, *_: [{"case": case.name}])
    old = Results({"cpu": "x"}, [{"kind": "sparse", "case": "small", "ms": 1.0}])
    case = Case("other", ((8, 8),), (1,), (0.5,), ("torch-fp32",))
    measured = sparse.run_sparse([SMALL, case], FAST, before=old)
    assert measured.environment == {"cpu": "x"}
    assert [row["case"] for row in measured.rows] == ["small", "other"]


def test_a_cold_layer_is_timed() -> None:
    case = Case("cold", ((64, 64),), (1,), (0.5,), ("int8",), cold_gib=2**20 / 2**30)
    (row,) = sparse.run_sparse([case], FAST).rows
    assert row["failure"] is None
    assert row["cold_gib"] == 2**-10
    assert row["roof_share"] > 0


def test_a_missing_instruction_set_leaves_the_row() -> None:
    from gossamer import _C

    absent = [name for name in _C.isa_names() if name not in cpu.available()]
    if not absent:
        pytest.skip("this processor has every instruction set")
    case = Case("held", ((8, 8),), (1,), (0.5,), ("int8",), isa=absent[0])
    (row,) = sparse.run_sparse([case], FAST).rows
    assert row["failure"] == "not available on this processor"
    assert "not available" in sparse_tables.tables([row])[0].below


# --- tables, goals, the plot ---


def row_of(contender: str, ms: float, **changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "kind": "sparse",
        "case": "a",
        "N": 8,
        "K": 16,
        "M": 1,
        "mask": "uniform",
        "sparsity": 0.5,
        "cold_gib": 0.0,
        "isa": "",
        "contender": contender,
        "twin": twin_of(contender),
        "failure": None,
        "ms": ms,
        "speedup": 1.0,
        "noisy": False,
        "error": 0.01,
    }
    return {**usual, **changes}


def judged(goal: Goal, *rows: dict[str, Any]) -> list[sparse_tables.Verdict]:
    case = Case("a", ((8, 16),), (1, 2), (0.5, 0.9), ("sparse-int8",), goals=(goal,))
    return sparse_tables.judge(case, Results({"isas_available": ["avx2"]}, list(rows)))


def test_goals_are_met_by_the_slowest() -> None:
    rows = [
        row_of("int8", 4.0),
        row_of("sparse-int8", 2.0, roof_share=0.5),
        row_of("int8", 4.0, M=2),
        row_of("sparse-int8", 3.2, M=2, roof_share=0.9),
    ]
    (verdict,) = judged(Goal("sparse-int8", 1.25, "int8"), *rows)
    assert (verdict.reached, verdict.met) == (1.25, True)
    assert "M=2" in verdict.where
    assert not judged(Goal("sparse-int8", 1.3, "int8"), *rows)[0].met
    assert judged(Goal("sparse-int8", 1.3, "int8", roof=0.85), *rows)[0].met
    assert judged(Goal("sparse-int8", 1.3, "int8", M=(1,)), *rows)[0].met
    assert judged(Goal("sparse-int8", {"0.5": 1.2}, "int8"), *rows)[0].met
    assert judged(Goal("sparse-int8", {"0.9": 1.2}, "int8"), *rows) == []
    assert judged(Goal("sparse-int8", 1.0, "int8", with_isa="amx"), *rows) == []
    failed = [rows[0], row_of("sparse-int8", 2.0, failure="no")]
    assert judged(Goal("sparse-int8", 1.0, "int8"), *failed) == []


def test_a_goal_over_another_mask() -> None:
    rows = [row_of("sparse-int8", 2.0), row_of("sparse-int8", 2.5, mask="uneven-rows")]
    (verdict,) = judged(Goal("sparse-int8", 0.8, over_mask="uniform"), *rows)
    assert (verdict.reached, verdict.met) == (0.8, True)
    assert "uneven-rows" in verdict.where
    line = sparse_tables.goal_line(verdict)
    assert line.startswith("met    sparse-int8 over itself, uniform at 50 %: 0.80x, wanted 0.80x")


def test_tables_show_sparsities_across_and_what_is_missing() -> None:
    rows = [
        row_of("int8", 4.0, roof_share=0.25),
        row_of("sparse-int8", 2.0, speedup=2.0, noisy=True),
        row_of("int8", 4.0, mask="2:4", failure="broke"),
        row_of("deepsparse-int8", 0, failure="not installed"),
    ]
    (table,) = sparse_tables.tables(rows)
    assert table.title == "a, N=8 K=16"
    assert table.header == ["", "50 %", "2:4 50 %", "error"]
    assert table.lines == [
        ["M=1 int8", "4 (x1.00, 25%)", "-", "1.0e-02"],
        ["M=1 sparse-int8", "2 (x2.00, noisy)", "-", "1.0e-02"],
    ]
    assert table.below == "deepsparse-int8: not installed"
    held = [row_of("int8", 4.0, isa="avx2", cold_gib=1.5)]
    assert sparse_tables.tables(held)[0].title.endswith("going round 1.5 GiB, held to avx2")
    environment = {"cpu": "c", "threads": 2, "isa": "i", "torch": "t", "date": "d", "revision": ""}
    text = readme.render(Results(environment, rows))
    assert "| M=1 sparse-int8 | 2 (x2.00, noisy) | - | 1.0e-02 |" in text
    with pytest.raises(ValueError, match="no layer 9x9"):
        readme.render(Results(environment, rows), "9x9")


def test_break_even_lies_where_the_curve_stays_above_one() -> None:
    assert sparse_tables.break_even([(0.0, 0.5), (0.5, 1.5)]) == 0.25
    assert sparse_tables.break_even([(0.0, 1.2), (0.4, 0.9), (0.6, 1.1)]) == 0.5
    assert sparse_tables.break_even([(0.3, 1.0), (0.5, 2.0)]) == 0.3
    assert sparse_tables.break_even([(0.3, 1.5), (0.5, 0.9)]) is None
    assert sparse_tables.break_even([]) is None


def test_curves_hold_usual_rows_of_sparse_formats(tmp_path: Path) -> None:
    rows = [
        row_of("int8", 4.0),
        row_of("sparse-int8", 4.0, sparsity=0.9, speedup=2.0),
        row_of("sparse-int8", 5.0, speedup=0.8),
        row_of("sparse-int8", 1.0, speedup=9.0, N=4),
        row_of("sparse-int8", 1.0, speedup=9.0, sparsity=0.7, isa="avx2"),
        row_of("sparse-int8", 1.0, speedup=9.0, sparsity=0.7, mask="2:4"),
        row_of("sparse-int8", 1.0, speedup=9.0, sparsity=0.7, cold_gib=1.5),
        row_of("sparse-int8", 1.0, speedup=math.nan, M=4),
        row_of("sparse-fp32", 1.0, M=16, speedup=1.5),
    ]
    assert sparse_tables.break_even_curves(rows) == {
        "sparse-int8": {1: [(0.5, 0.8), (0.9, 2.0)]},
        "sparse-fp32": {16: [(0.5, 1.5)]},
    }
    with pytest.raises(ValueError, match="none of a sparse format"):
        plot_break_even(tmp_path / "none.png", rows[:1])
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(ValueError, match="panels: there are none"):
        plots.speedup_lines(tmp_path / "none.png", {}, "zeros, %", "dense")
    plot_break_even(tmp_path / "plots" / "even.png", rows)
    assert (tmp_path / "plots" / "even.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_writes_and_resumes(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    arguments = ["sparse", "--shapes", "16x32", "--m", "1", "--sparsity", "0.5", "--rounds", "1"]
    arguments += ["--contenders", "torch-fp32", "--threads", "1", "--json", str(path)]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert "sweep, N=16 K=32" in first.output
    text = path.read_text()
    again = CliRunner().invoke(app, [*arguments, "--resume"])
    assert again.exit_code == 0, again.output
    assert path.read_text() == text
    for bad in (["--m", "one"], ["--sparsity", "2"], ["--resume"]):
        done = CliRunner().invoke(app, ["sparse", *bad])
        assert isinstance(done.exception, ValueError)
