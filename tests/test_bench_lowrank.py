"""``gossamer bench lowrank`` and ``quality-lowrank``: contenders, figures, tables, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from gossamer.bench import lowrank, lowrank_quality, lowrank_quality_tables, lowrank_tables, results
from gossamer.bench.commands import app
from gossamer.bench.interleaved import Settings
from gossamer.bench.lowrank_cases import FitCase, LayerCase, LowRankGoal, read_lowrank_cases
from gossamer.bench.lowrank_contenders import Problem, build, check_name
from gossamer.bench.lowrank_quality import AWARE, DATA_FREE, DENSE, Entry, QualitySettings
from gossamer.bench.results import Results
from gossamer.bench.subjects import SUBJECTS, Subject
from gossamer.reporting import readme

CASES = Path(__file__).parents[1] / "bench" / "lowrank_cases.toml"
FAST = Settings(threads=1, rounds=1)
LOW_RANK = LayerCase("low", 64, 96, (1, 5), 8, ("torch-bf16", "two torch-bf16"), weight="low-rank")
SUM = LayerCase("sum", 64, 128, (1, 3), 8, ("int8",), dtype="float32")
ENVIRONMENT = {"cpu": "c", "threads": 2, "isa": "i", "torch": "t", "date": "d", "revision": ""}


# --- cases ---


def test_the_cases_of_the_repository_can_run() -> None:
    cases = read_lowrank_cases(CASES)
    layers = [case for case in cases if isinstance(case, LayerCase)]
    fits = [case for case in cases if isinstance(case, FitCase)]
    assert {case.M for case in layers} == {(1, 16, 256)}
    assert [(fit.layers, fit.rank, fit.N, fit.K) for fit in fits] == [(32, 32, 4096, 4096)]
    first = layers[0]
    assert (first.rank, first.parameter_ratio, first.weight) == (512, 0.25, "low-rank")
    for case in layers:
        for name in case.contenders:
            check_name(name)
        for goal in case.goals:
            assert {goal.contender, goal.over} <= set(case.contenders)
    assert [case.name for case in read_lowrank_cases(CASES, "int8*")] == ["int8 + rank 32"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "different names are wanted"),
        ("[[layer]]\nname='a'\nN=8\nK=8\nM=[1]\nrank=9\ncontenders=['bf16']", "rank"),
        (
            "[[layer]]\nname='a'\nN=8\nK=8\nM=[1]\nrank=2\ncontenders=['bf16']\ndtype='int8'",
            "dtype",
        ),
        ("[[fit]]\nname='a'\nodd=1", "'a'.*odd"),
    ],
)
def test_bad_files_of_cases_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cases.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_lowrank_cases(path)


# --- contenders ---


@pytest.mark.parametrize(
    "name",
    [
        *("torch-int8", "two torch-int8", "low-rank", "low-rank-int4", "odd", "int4-g128+low"),
        *("odd+low-rank", "int4+low-rank-int4", "odd + two torch-bf16", "int4 + two torch-fp8"),
    ],
)
def test_unknown_contenders_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no contender"):
        check_name(name)
    case = LayerCase("a", 8, 8, (1,), 2, ("torch-fp32", name))
    with pytest.raises(ValueError, match="is no contender"):
        lowrank.run_lowrank([case], FAST)


@pytest.mark.parametrize(
    ("name", "dtype", "limit"),
    [
        ("torch-fp32", "float32", 1e-6),
        ("torch-bf16", "bfloat16", 1e-2),
        ("two torch-fp32", "float32", 1e-6),
        ("two torch-bf16", "bfloat16", 2e-2),
        ("bf16", "bfloat16", 1e-2),
        ("low-rank-fp32", "float32", 1e-5),
        ("low-rank-bf16", "bfloat16", 2e-2),
        ("low-rank-int8", "bfloat16", 5e-2),
    ],
)
def test_contenders_multiply_with_a_low_rank_weight(name: str, dtype: str, limit: float) -> None:
    case = LayerCase("a", 64, 96, (3,), 8, (name,), dtype=dtype, weight="low-rank")
    assert _error(name, case) < limit


@pytest.mark.parametrize("scheme", ["int4-g32", "int8", "sparse-int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_are_closer_than_their_base(scheme: str, dtype: str) -> None:
    torch_name = "torch-fp32" if dtype == "float32" else "torch-bf16"
    case = LayerCase("a", 64, 128, (3,), 24, (scheme,), dtype=dtype, sparsity=0.5)
    base = _error(scheme, case)
    together = _error(f"{scheme}+low-rank", case)
    beside = _error(f"{scheme} + two {torch_name}", case)
    assert 0 < together < base
    assert 0 < beside < base
    problem = Problem.draw(case)
    assert build(f"{scheme}+low-rank", case, problem).nbytes > build(scheme, case, problem).nbytes


def _error(name: str, case: LayerCase) -> float:
    problem = Problem.draw(case)
    x = torch.randn(3, case.K, generator=torch.Generator().manual_seed(1))
    x = x.to(getattr(torch, case.dtype))
    exact = x.double() @ problem.W.double().T
    entrant = build(name, case, problem)
    assert entrant.nbytes > 0
    return float((entrant.product(x).double() - exact).norm() / exact.norm())


def test_the_weight_is_what_the_case_says() -> None:
    low = Problem.draw(LOW_RANK)
    assert torch.linalg.matrix_rank(low.W) == 8
    U, V = low.factors()
    torch.testing.assert_close(U @ V, low.W)
    gaussian = Problem.draw(LayerCase("a", 64, 96, (1,), 8, ("bf16",), sparsity=0.5))
    assert (gaussian.W == 0).double().mean() == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="factors are wanted"):
        gaussian.factors()


# --- figures ---


def test_rows_hold_speed_error_and_bytes(tmp_path: Path) -> None:
    seen: list[int] = []
    measured = lowrank.run_lowrank(
        [LOW_RANK, SUM], FAST, on_case=lambda part: seen.append(len(part.rows))
    )
    rows = measured.rows
    assert seen == [4, 6]
    assert [(row["M"], row["contender"]) for row in rows[:4]] == [
        (M, name) for M in (1, 5) for name in LOW_RANK.contenders
    ]
    for row in rows:
        assert row["failure"] is None, row
        assert 0 < row["error"] < 0.03
        assert row["ms"] > 0
    assert rows[0]["speedup"] == 1
    assert rows[1]["speedup"] == pytest.approx(rows[0]["ms"] / rows[1]["ms"])
    assert rows[0]["bytes"] == 64 * 96 * 2
    assert rows[1]["bytes"] == 8 * (64 + 96) * 2
    results.write(tmp_path / "run.jsonl", measured)
    text = readme.render(results.read(tmp_path / "run.jsonl"), "low")
    assert text.startswith("**low: N=64 K=96 rank 8, bfloat16")
    assert "**sum" not in text


def test_a_contender_that_cannot_be_built_leaves_a_row() -> None:
    case = LayerCase("a", 8, 8, (1,), 2, ("torch-fp32", "two torch-fp32"))
    fine, failed = lowrank.run_lowrank([case], FAST).rows
    assert fine["failure"] is None
    assert "factors are wanted" in failed["failure"]
    assert "two torch-fp32: ValueError" in lowrank_tables.tables([fine, failed])[0].below


def test_a_run_is_gone_on_with() -> None:
    old = Results({"cpu": "x"}, [{"kind": "lowrank", "case": "low", "ms": 1.0}])
    measured = lowrank.run_lowrank([LOW_RANK], FAST, before=old)
    assert measured == old


def test_fits_of_corrections_are_timed() -> None:
    fit = FitCase("fits", 64, 128, layers=2, rank=8, scheme="int4-g32")
    rows = lowrank.run_lowrank([fit], FAST).rows
    by_name = {row["contender"]: row for row in rows}
    plain, corrected = by_name[lowrank.COMPRESSED], by_name[lowrank.CORRECTED]
    assert corrected["error"] < plain["error"]
    alone = corrected["seconds"] - plain["seconds"]
    assert by_name[lowrank.CORRECTION]["seconds"] == pytest.approx(alone)
    full = by_name["torch.linalg.svd, one layer x 2"]
    assert full["layers_timed"] == 1
    assert full["error"] == pytest.approx(corrected["error"], rel=0.1)


# --- tables and goals ---


def row_of(contender: str, M: int, ms: float, **changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "kind": "lowrank",
        "case": "low",
        "N": 64,
        "K": 96,
        "M": M,
        "rank": 8,
        "dtype": "bfloat16",
        "sparsity": 0.0,
        "contender": contender,
        "failure": None,
        "ms": ms,
        "speedup": 1.0,
        "noisy": False,
        "error": 0.01,
        "bytes": 2_000_000,
    }
    return {**usual, **changes}


def fit_row(contender: str, seconds: float, error: float | None) -> dict[str, Any]:
    row = {"kind": "lowrank-fit", "case": "fits", "N": 8, "K": 16, "layers": 2, "rank": 2}
    return row | {"contender": contender, "seconds": seconds, "error": error, "failure": None}


def test_tables_show_rows_across_and_fits_in_seconds() -> None:
    rows = [
        row_of("bf16", 1, 4.0),
        row_of("low-rank-bf16", 1, 2.0, speedup=2.0, noisy=True),
        row_of("bf16", 5, 8.0),
        row_of("low-rank-bf16", 5, 0, failure="broke"),
        row_of("odd", 1, 0, failure="broke too"),
        fit_row(lowrank.CORRECTION, 3.25, None),
        fit_row("torch.linalg.svd, one layer x 2", 240.0, 0.0962),
    ]
    layer, fits = lowrank_tables.tables(rows)
    assert layer.header == ["", "M=1", "M=5", "MB", "error"]
    assert layer.lines == [
        ["bf16", "4 (x1.00)", "8 (x1.00)", "2.00", "1.00e-02"],
        ["low-rank-bf16", "2 (x2.00, noisy)", "-", "2.00", "1.00e-02"],
    ]
    assert layer.below == "odd: broke too"
    assert fits.lines == [
        [lowrank.CORRECTION, "3.25", "-"],
        ["torch.linalg.svd, one layer x 2", "240.00", "0.0962"],
    ]
    text = readme.render(Results(ENVIRONMENT, rows))
    assert "| low-rank-bf16 | 2 (x2.00, noisy) | - | 2.00 | 1.00e-02 |" in text
    assert "| correction alone | 3.25 | - |" in readme.render(Results(ENVIRONMENT, rows), "fits")


def test_goals_are_judged_where_they_are_closest() -> None:
    goals = (
        LowRankGoal("low-rank-bf16", "bf16", 0.8, parameters=True),
        LowRankGoal("low-rank-bf16", "bf16", 3.0),
        LowRankGoal("low-rank-bf16", "bf16", 3.0, M=(1,)),
        LowRankGoal("low-rank-bf16", "odd", 3.0),
    )
    # R (N + K) / (N K) = 0.2083
    case = LayerCase("low", 64, 96, (1, 5), 8, ("bf16",), goals=goals)
    rows = [
        row_of("bf16", 1, 8.0),
        row_of("low-rank-bf16", 1, 2.0),
        row_of("bf16", 5, 5.0),
        row_of("low-rank-bf16", 5, 2.0),
    ]
    assert lowrank_tables.goal_lines(case, rows) == [
        "missed low: low-rank-bf16 over bf16 x 0.208 (the parameters): 0.52x at M=5, wanted 0.80x",
        "missed low: low-rank-bf16 over bf16: 2.50x at M=5, wanted 3.00x",
        "met    low: low-rank-bf16 over bf16: 4.00x at M=1, wanted 3.00x",
    ]
    fit = FitCase("fits", 8, 16, 2, 2, seconds=3.0)
    assert lowrank_tables.goal_lines(fit, [fit_row(lowrank.CORRECTION, 3.25, None)]) == [
        "missed fits: 3.2 s, wanted at most 3 s"
    ]


def test_the_command_prints_writes_and_resumes(tmp_path: Path) -> None:
    cases, path = tmp_path / "cases.toml", tmp_path / "run.jsonl"
    cases.write_text(
        "[[layer]]\nname='tiny'\nN=16\nK=32\nM=[1]\nrank=2\ncontenders=['torch-fp32', 'int8']\n"
        "dtype='float32'\ngoals=[{contender='int8', over='torch-fp32', at_least=1e-9}]\n"
    )
    arguments = ["lowrank", "--cases", str(cases), "--rounds", "1", "--threads", "1"]
    first = CliRunner().invoke(app, [*arguments, "--json", str(path)])
    assert first.exit_code == 0, first.output
    assert "tiny: N=16 K=32 rank 2" in first.output
    assert "met    tiny: int8 over torch-fp32" in first.output
    text = path.read_text()
    again = CliRunner().invoke(app, [*arguments, "--json", str(path), "--resume"])
    assert again.exit_code == 0, again.output
    assert path.read_text() == text


# --- quality ---

SETTINGS = QualitySettings(
    1,
    windows=2,
    calibration=1,
    subjects=("minilm",),
    schemes=("int4-g32",),
    smaller_groups=(),
    ranks=(4,),
    parameters=(0.5,),
)


@pytest.fixture
def small_subject(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand a small network in for MiniLM; notes each time that it is judged."""
    judged: list[str] = []

    def load() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128)), None

    def judge(model: nn.Module, tokenizer: Any, windows: int, step: Any) -> dict[str, float]:
        judged.append(str(model))
        step(1, 1)
        return {"SimLex999": 0.5, "Lee": 0.25}

    subject = Subject((), load, lambda _: lambda _: lambda: None, list, judge, lambda windows: 1)
    batches = [torch.randn(8, 256, generator=torch.Generator().manual_seed(0))]
    monkeypatch.setitem(SUBJECTS, "minilm", subject)
    monkeypatch.setitem(lowrank_quality.IGNORED, "minilm", None)
    monkeypatch.setattr(lowrank_quality, "calibration_batches", lambda *_: batches)
    monkeypatch.setattr(lowrank_quality, "similarity", lambda *_: 0.99)
    return judged


def test_the_entries_are_those_of_the_issue() -> None:
    entries = QualitySettings(2).entries()
    assert entries[0] == Entry()
    assert entries[0].name == DENSE
    assert Entry("int4-g64", 16, aware=True) in entries
    assert Entry("int4-per-channel", 64) in entries
    assert Entry("int4-g32") in entries
    assert len(entries) == 1 + 2 * (1 + 3 * 2) + 2 + 4 * 2
    assert Entry(parameters=0.7, aware=True).name == "factorized to 70% of the parameters"
    assert Entry(parameters=0.7, aware=True).method == AWARE
    assert Entry("int4-g32").method == ""
    for wrong in ({"subjects": ("odd",)}, {"windows": 0}):
        with pytest.raises(ValueError, match="QualitySettings"):
            QualitySettings(2, **wrong)  # type: ignore[arg-type]


def test_every_form_is_judged_once(small_subject: list[str], tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    path = tmp_path / "run.jsonl"
    measured = lowrank_quality.run_quality(
        SETTINGS,
        on_row=lambda part: results.write(path, part),
        on_progress=lambda *step: steps.append(step),
    )
    forms = [(row["form"], row["method"]) for row in measured.rows]
    assert forms == [
        (DENSE, ""),
        ("int4-g32", ""),
        ("int4-g32 + rank 4", DATA_FREE),
        ("int4-g32 + rank 4", AWARE),
        ("factorized to 50% of the parameters", DATA_FREE),
        ("factorized to 50% of the parameters", AWARE),
    ]
    assert [row["failure"] for row in measured.rows] == [None] * 6
    dense, int4, corrected, _, factorized, _ = (row["bytes"] for row in measured.rows)
    assert int4 < corrected < dense
    assert factorized < dense
    assert measured.rows[0]["quality"]["similarity"] == 0.99
    done, total, _ = steps[-1]
    assert done == total
    again = lowrank_quality.run_quality(SETTINGS, before=results.read(path))
    assert len(small_subject) == 6
    assert [row["form"] for row in again.rows] == [form for form, _ in forms]


def test_other_settings_and_failures_are_judged_again(small_subject: list[str]) -> None:
    usual: dict[str, Any] = {"kind": "lowrank-quality", "model": "minilm", "form": DENSE}
    usual |= {"method": "", "windows": 2, "calibration": 0, "seed": 0, "failure": None}
    usual |= {"bytes": 1, "quality": {"Lee": 0.1}}
    settings = QualitySettings(1, 2, 1, 0, ("minilm",), (), (), (), ())
    (row,) = lowrank_quality.run_quality(settings, before=Results({}, [usual])).rows
    assert row is usual
    for changed in ({"windows": 4}, {"failure": "broke"}):
        before = Results({}, [usual | changed])
        rows = lowrank_quality.run_quality(settings, before=before).rows
        assert rows[0]["quality"]["Lee"] == 0.25
    assert len(small_subject) == 2


def test_a_form_that_fails_says_why(
    small_subject: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> nn.Module:
        raise RuntimeError("no\nsuch luck")

    monkeypatch.setattr(lowrank_quality, "apply", fail)
    settings = QualitySettings(1, 2, 1, 0, ("minilm",), ("int4-g32",), (), (), ())
    dense, int4 = lowrank_quality.run_quality(settings).rows
    assert dense["failure"] is None
    assert int4["failure"] == "RuntimeError: no"
    assert "minilm: int4-g32 : RuntimeError: no" in lowrank_quality_tables.below([dense, int4])


def quality_row(
    model: str, form: str, method: str, value: float, size: float = 1e6
) -> dict[str, Any]:
    metrics = {"smollm2": {"perplexity": value}, "minilm": {"similarity": value, "Lee": value}}
    return {
        "kind": "lowrank-quality",
        "model": model,
        "form": form,
        "method": method,
        "windows": 16,
        "calibration": 32 if method == AWARE else 0,
        "seed": 0,
        "bytes": size,
        "quality": metrics[model],
        "failure": None,
    }


def test_the_quality_table_holds_both_models_and_both_ways() -> None:
    rows = [
        quality_row("smollm2", DENSE, "", 12.0),
        quality_row("smollm2", "int4-g64 + rank 16", DATA_FREE, 14.0, 2e6),
        quality_row("smollm2", "int4-g64 + rank 16", AWARE, 13.0, 2e6),
        quality_row("smollm2", "factorized", DATA_FREE, 14.0, 2e6),
        quality_row("smollm2", "factorized", AWARE, 15.0, 2.2e6),
        quality_row("minilm", DENSE, "", 1.0),
        quality_row("minilm", "int4-g64 + rank 16", AWARE, 0.9, 2e6),
    ]
    header, lines = lowrank_quality_tables.table(rows)
    assert header[:4] == ["", "SmolLM2, MB", "perplexity", "MiniLM, MB"]
    assert lines == [
        [DENSE, "1.0", "12.00", "1.0", "1.0000", "-", "1.0000"],
        [
            *("int4-g64 + rank 16", "2.0", "14.00 / 13.00"),
            *("2.0", "- / 0.9000", "- / -", "- / 0.9000"),
        ],
        ["factorized", "2.0 / 2.2", "14.00 / 15.00", "-", "-", "-", "-"],
    ]
    below = lowrank_quality_tables.below(rows)
    assert "SmolLM2, perplexity: activation-aware is better in 1 of 2" in below
    assert "perplexity on [16] x 512 tokens, calibrated with [32] x 512 tokens" in below
    assert "MiniLM, Lee" not in below
    text = readme.render(Results(ENVIRONMENT, rows))
    assert "| factorized | 2.0 / 2.2 | 14.00 / 15.00 | - | - | - | - |" in text
    with pytest.raises(ValueError, match="there are none"):
        lowrank_quality_tables.table([])


def test_the_bytes_are_those_of_the_linear_layers() -> None:
    table = nn.Embedding(10, 8)
    head = nn.Linear(8, 10, bias=False)
    head.weight = table.weight
    model = nn.ModuleList([table, nn.Linear(8, 4, bias=False), head])
    assert lowrank_quality.linear_bytes(model) == 8 * 4 * 4
