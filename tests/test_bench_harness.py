"""The harness: what it measures and what it survives."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer.bench import harness
from gossamer.bench.harness import Contender, Timing, measure

FAST = {"threads": 1, "rounds": 3, "seconds_per_round": 0.001}


@pytest.fixture
def contenders(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module ``bench_contenders``, importable here and in the harness's processes."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("bench_contenders")


def test_outputs_come_back_by_case_and_contender(contenders: Any) -> None:
    entered = [
        Contender("once", contenders.scaled, {"factor": 1}),
        Contender("twice", contenders.scaled, {"factor": 2}),
        Contender("silent", contenders.silent),
    ]
    timings = measure(entered, [3, 5], **FAST)
    assert [[(t.name, t.case) for t in row] for row in timings] == [
        [("once", case), ("twice", case), ("silent", case)] for case in (0, 1)
    ]
    for row, case in zip(timings, (3, 5), strict=True):
        assert row[0].output is not None
        assert row[0].output.dtype == np.float32
        assert row[0].output.tolist() == [case, case]
        assert row[1].output is not None
        assert row[1].output.tolist() == [2 * case, 2 * case]
        assert row[2].output is None
        assert row[2].failure is None
        assert all(len(t.samples_ms) == 3 and min(t.samples_ms) > 0 for t in row)


def test_failures_stay_with_their_contender(
    contenders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = types.ModuleType("module_of_the_parent_only")
    exec("def build(): pass", lost.__dict__)
    monkeypatch.setitem(sys.modules, lost.__name__, lost)
    entered = [
        Contender("unimportable", lost.build),
        Contender("broken", contenders.broken),
        Contender("picky", contenders.picky),
        Contender("dying", contenders.dying),
        Contender("good", contenders.scaled, {"factor": 1}),
    ]
    cases = measure(entered, [0, 1, 2], **FAST)
    failures = {t.name: [row[i].failure for row in cases] for i, t in enumerate(cases[0])}
    assert all("module_of_the_parent_only" in str(f) for f in failures["unimportable"])
    assert failures["broken"] == ["ValueError: cannot be built"] * 3
    assert failures["picky"] == ["ValueError: zero is not for me", None, None]
    assert failures["dying"][0] is None
    assert all("SIGILL" in str(f) for f in failures["dying"][1:])
    assert failures["good"] == [None] * 3
    assert all(math.isnan(t.median_ms) and not t.noisy for t in cases[0] if t.failure)


def test_a_failure_while_timed_leaves_no_figure(contenders: Any) -> None:
    timing = measure([Contender("tiring", contenders.tiring)], [0], **FAST)[0][0]
    assert timing.failure is not None
    assert "StopIteration" in timing.failure
    assert timing.samples_ms == []


def test_an_output_of_another_type_is_a_failure(contenders: Any) -> None:
    timing = measure([Contender("texts", contenders.text)], [0], **FAST)[0][0]
    assert timing.failure is not None
    assert "returned str" in timing.failure


def test_a_quantized_output_comes_back_as_numbers(contenders: Any) -> None:
    timing = measure([Contender("rounded", contenders.rounded)], [0], **FAST)[0][0]
    assert timing.output is not None
    assert timing.output.tolist() == [0.5, 1.0]


def test_threads_and_environment_are_set_before_imports(contenders: Any) -> None:
    contender = Contender("settings", contenders.settings, environment={"OWN": "7", "ALL": "8"})
    timing = measure(
        [contender, Contender("plain", contenders.settings)],
        [0],
        **{**FAST, "threads": 2},
        environment={"ALL": "5"},
    )[0]
    assert timing[0].output is not None
    assert timing[0].output.tolist() == [2, 2, 8, 7, -1]
    assert timing[1].output is not None
    assert timing[1].output.tolist() == [2, 2, 5, -1, -1]
    assert "ALL" not in os.environ
    assert "OWN" not in os.environ


def test_others_are_stopped_while_one_runs(contenders: Any, tmp_path: Path) -> None:
    entered = [
        Contender("sleeper", contenders.sleeper, {"folder": tmp_path}),
        Contender("watcher", contenders.watcher, {"folder": tmp_path}),
    ]
    timings = measure(entered, [0], **FAST)[0]
    assert [t.failure for t in timings] == [None, None]
    assert timings[1].output is not None
    assert timings[1].output.tolist() == [1.0]


def test_no_child_survives_an_interrupt(contenders: Any) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        if "round 2" in text:
            raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        measure(
            [Contender("a", contenders.silent), Contender("b", contenders.silent)],
            [0],
            **FAST,
            on_progress=interrupt,
        )
    assert set(multiprocessing.active_children()) == before


def test_no_stopped_child_survives_a_killed_parent(tmp_path: Path) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from gossamer.bench.harness import Contender, measure
import bench_contenders

if __name__ == "__main__":
    sleeper = Contender("sleeper", bench_contenders.sleeper, {{"folder": Path({str(tmp_path)!r})}})
    measure([sleeper], [0], threads=1, on_progress=lambda done, _, __: done and time.sleep(60))
"""
    file = tmp_path / "parent.py"
    file.write_text(script)
    with subprocess.Popen([sys.executable, str(file)]) as parent:
        child = int(_wait_for(lambda: (tmp_path / "pid").read_text()))
        _wait_for(lambda: "T (stopped)" in Path(f"/proc/{child}/status").read_text())
        parent.kill()
    assert _wait_for(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child))


def _is_zombie(pid: int) -> bool:
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def _wait_for(condition: Any) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("waited for a minute")


def test_progress_counts_every_announced_step(contenders: Any) -> None:
    seen: list[tuple[int, int]] = []
    measure(
        [Contender("silent", contenders.silent), Contender("broken", contenders.broken)],
        [0, 1],
        **FAST,
        on_progress=lambda done, total, _: seen.append((done, total)),
    )
    total = harness.steps(2, 2, 3)
    assert seen == [(done, total) for done in range(total)]


def test_median_spread_and_noise() -> None:
    calm = Timing("calm", 0, samples_ms=[1.0, 1.0, 1.02, 0.99, 5.0])
    assert calm.median_ms == 1.0
    assert calm.spread == pytest.approx(0.02)
    assert not calm.noisy
    assert Timing("noisy", 0, samples_ms=[1.0, 1.2, 1.4]).noisy


@pytest.mark.parametrize("name", ["threads", "rounds", "seconds_per_round"])
def test_settings_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        measure([], [], **{**FAST, name: 0})


def test_names_must_differ(contenders: Any) -> None:
    with pytest.raises(ValueError, match="names must differ"):
        measure([Contender("a", contenders.silent)] * 2, [0], **FAST)


def test_the_self_check_is_plausible() -> None:
    check = harness.check_harness(rounds=5, seconds_per_round=0.002)
    assert 0 < check.low <= check.high < math.inf
    assert math.isfinite(check.ratio)
    assert check.ratio > 0
