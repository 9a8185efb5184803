"""``gossamer bench quality``: the methods, their rows, tables and the Pareto front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gossamer.bench import methods, methods_quality, methods_tables, quality_subjects
from gossamer.bench.methods import DENSE, OURS
from gossamer.bench.results import Results


def row(group: str, method: str, perplexity: float, **others: Any) -> dict[str, Any]:
    return {
        "kind": "method-quality",
        "model": "smollm2",
        "group": group,
        "method": method,
        "tool": OURS,
        "windows": 2,
        "calibration": 2,
        "bytes": 50_000_000,
        "seconds": 100.0,
        "quality": {"perplexity": perplexity},
        "failure": None,
        **others,
    }


ROWS = [
    row("dense", DENSE, 20.0, bytes=400_000_000, seconds=30.0),
    row("int4-g64", "rtn", 30.0, seconds=2.0),
    row("int4-g64", "gptq", 24.0, model_seconds=60.0),
    row("int4-g64", "gptq", 26.0, tool="other", seconds=300.0, bytes=400_000_000),
    row("int8", "rtn", 20.1, bytes=110_000_000, seconds=2.0),
    {**row("nf4", "rtn", 1.0), "failure": "RuntimeError: no", "quality": {}, "bytes": 0},
]


class TestMethods:
    def test_names_are_unique(self) -> None:
        names = [method.full_name for method in methods.METHODS]
        assert len(set(names)) == len(names)
        assert "int4-g64: awq + gptq" in names

    def test_choose(self) -> None:
        found = methods.choose(["int8: *", "2:4: wanda"])
        assert [method.full_name for method in found] == [
            "int8: rtn",
            "int8: smoothquant",
            "int8: smoothquant + gptq, some x exact",
            "2:4: wanda",
        ]
        with pytest.raises(ValueError, match="matches none of"):
            methods.choose(["nothing"])

    def test_what_needs_text_is_calibrated(self) -> None:
        from gossamer.recipe import as_recipe

        for method in methods.METHODS:
            if method.steps:
                wants = as_recipe("test", list(method.steps), None).wants_calibration
                assert method.calibrated or not wants, method.full_name


class TestTables:
    def test_cells(self) -> None:
        header, lines = methods_tables.flat_table(ROWS, "smollm2")
        assert header[2] == "perplexity"
        assert lines[2] == ["int4-g64", "gptq", "24.00", "60%", "50.0", "100", "40"]
        assert lines[3] == ["int4-g64", "gptq (other)", "26.00", "40%", "50.0", "300", "240"]
        assert lines[5][2] == "RuntimeError: no"
        tables = methods_tables.tables(ROWS)
        assert [table.title.split(", ")[1] for table in tables] == [
            "dense",
            "int4-g64",
            "int8",
            "nf4",
        ]

    def test_front(self) -> None:
        found = methods_tables.front(ROWS, "smollm2")
        assert [(item["group"], item["method"]) for item in found] == [
            ("int4-g64", "gptq"),
            ("int8", "rtn"),
            ("dense", DENSE),
        ]

    def test_the_front_as_a_table(self) -> None:
        shown = methods_tables.front(ROWS, "smollm2")
        _, lines = methods_tables.flat_table(ROWS, "smollm2", shown)
        assert sorted(line[1] for line in lines) == [DENSE, "gptq", "rtn"]
        assert ["int4-g64", "gptq", "24.00", "60%", "50.0", "100", "40"] in lines

    def test_plot(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        methods_tables.plot_front(tmp_path / "front.png", ROWS, "smollm2")
        assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
        for alone in (ROWS[:1], ROWS[1:]):
            with pytest.raises(ValueError, match="not both dense and compressed"):
                methods_tables.plot_front(tmp_path / "front.png", alone, "smollm2")
        with pytest.raises(ValueError, match="none of minilm"):
            methods_tables.plot_front(tmp_path / "front.png", ROWS, "minilm")


class TestRun:
    def test_rows_and_going_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loads = []

        def load() -> tuple[nn.Module, None]:
            torch.manual_seed(0)
            loads.append(1)
            return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)), None

        def judge(model: nn.Module, tokenizer: None, windows: int) -> dict[str, float]:
            return {
                "error": float((model(torch.ones(1, 64)) - load()[0](torch.ones(1, 64))).norm())
            }

        subject = quality_subjects.QualitySubject(
            "toy",
            load,
            (),
            lambda tokenizer, windows: [{"input": torch.randn(windows, 64)}],
            torch.no_grad()(judge),
        )
        monkeypatch.setitem(quality_subjects.QUALITY_SUBJECTS, "toy", subject)
        settings = methods_quality.QualitySettings(
            1, 4, 40, ("toy",), ("dense*", "int4-per-channel: gptq*", "*(hqq)")
        )
        seen: list[Results] = []
        found = methods_quality.run_quality(settings, on_row=seen.append)
        assert [row["method"] for row in found.rows] == [DENSE, "gptq", "gptq", "hqq"]
        assert len(seen) == 4
        assert found.rows[0]["quality"]["error"] == 0
        assert found.rows[1]["quality"]["error"] > 0
        assert "No module named" in found.rows[2]["failure"]  # tools that are not installed
        before = len(loads)
        again = methods_quality.run_quality(settings, before=found)
        assert again.rows[:2] == found.rows[:2]
        assert len(loads) - before == 2  # for the two that failed

    def test_settings(self) -> None:
        with pytest.raises(ValueError, match="subjects: \\['none'\\] unknown"):
            methods_quality.QualitySettings(1, subjects=("none",))
        with pytest.raises(ValueError, match="wanted >= 1"):
            methods_quality.QualitySettings(1, 0)
