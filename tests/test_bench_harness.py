"""The harness, the peers and the linear benchmark: what they measure and what they survive."""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gossamer.bench import conv, environment, harness, linear, results, rows
from gossamer.bench.conv_peers import choose_peers
from gossamer.bench.harness import Contender, Timing, measure
from gossamer.bench.linear import Layer
from gossamer.bench.peers import BASELINE, PEERS, int4_groups
from gossamer.bench.results import Results
from gossamer.bench.roof import Roof

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
from gossamer.bench.conv_peers import choose_peers
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
    _wait_for(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child))


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


def test_every_installed_peer_computes_the_product() -> None:
    others = [name for name in PEERS if not name.startswith("gossamer-")]
    others = [name for name in others if not name.endswith(("-g64", "-g128"))]
    others += ["gossamer-int8", "gossamer-int8-bf16"]
    measured = linear.run_linear(
        [Layer(64, 128, (3,))], threads=1, peers=others, rounds=1, seconds_per_round=0.001
    )
    rows = [row for row in measured.rows if row["kind"] == "linear"]
    assert [row["contender"] for row in rows] == [BASELINE, *(n for n in others if n != BASELINE)]
    for row in rows:
        peer = PEERS[row["contender"]]
        if peer.missing():
            assert row["failure"] == peer.missing()
        else:
            limit = {"fp32": 1e-6, "bf16": 1e-2, "int8": 4e-2}[peer.arithmetic]
            limit = 0.2 if "int4" in peer.name else limit
            assert row["failure"] is None, row
            assert 0 < row["error"] < limit, row


def test_rows_hold_speed_error_and_roof(tmp_path: Path) -> None:
    import gossamer as gs

    isas = ["scalar", "amx"]
    measured = linear.run_linear(
        [Layer(32, 48, (1, 5), name="small", source="a test")],
        threads=1,
        peers=["gossamer-int8"],
        isas=isas,
        rounds=3,
        seconds_per_round=0.001,
    )
    roof, *rows = measured.rows
    assert roof["kind"] == "roof"
    packed = gs.Quantize("int8").quantize(torch.zeros(32, 48)).nbytes
    assert set(roof["gb_per_second"]) == {str(packed), "6144"}
    names = ["torch-fp32", "gossamer-int8", "gossamer-int8@scalar", "gossamer-int8@amx"]
    assert [(row["M"], row["contender"]) for row in rows] == [(M, n) for M in (1, 5) for n in names]
    for row in rows:
        if row["contender"].endswith("amx") and "amx" not in gs.cpu.available():
            assert row["failure"] == "not available on this processor"
            continue
        assert row["failure"] is None
        assert row["gops"] == pytest.approx(2e-6 * row["M"] * 32 * 48 / row["ms"])
        assert row["roof"] in ("compute", "bandwidth")
        assert row["roof_share"] > 0
        assert len(row["samples_ms"]) == 3
        assert row["ms"] == np.median(row["samples_ms"])
    path = tmp_path / "run.jsonl"
    results.write(path, measured)
    read = results.read(path)
    assert read.environment["threads"] == 1
    assert [r["kind"] for r in read.rows] == ["roof"] + ["linear"] * 8


def test_unknown_contenders_are_named() -> None:
    layers = [Layer(8, 8, (1,))]
    with pytest.raises(ValueError, match=r"\['magic'\] is no peer; there are torch-fp32"):
        linear.run_linear(layers, threads=1, peers=["magic"])
    with pytest.raises(ValueError, match=r"'sse2' is no ISA; there are scalar"):
        linear.run_linear(layers, threads=1, isas=["sse2"])
    with pytest.raises(ValueError, match=r"schemes: \['int3'\] is no scheme; there are int8"):
        linear.run_linear(layers, threads=1, schemes=["int3"])


def test_shapes_are_read_from_text() -> None:
    assert linear.parse_shapes("8x16, 4x2", "1,3") == [Layer(8, 16, (1, 3)), Layer(4, 2, (1, 3))]
    for shapes, m in (("8", "1"), ("8x", "1"), ("8x8x8", "1"), ("8x8", "0"), ("8x8", "")):
        with pytest.raises(ValueError, match="parse_shapes"):
            linear.parse_shapes(shapes, m)


def test_layers_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "cases.toml"
    path.write_text('[[layer]]\nname = "a"\nN = 8\nK = 16\nM = [1, 2]\nisas = ["avx2"]\n')
    assert linear.read_layers(path) == [Layer(8, 16, (1, 2), name="a", isas=("avx2",))]
    for text in ("", "[[layer]]\nN = 8\nK = 8\n", "[[layer]]\nN = 8\nK = 8\nM = [1]\nx = 1\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"cases\.toml"):
            linear.read_layers(path)


@pytest.mark.parametrize("file", ["cases.toml", "int4_cases.toml"])
def test_the_cases_of_the_repository_can_run(file: str) -> None:
    layers = linear.read_layers(Path(__file__).parents[1] / "bench" / file)
    for layer in layers:
        entrants = linear.choose_entrants(layer, [], [], [])
        names = [entrant.peer.name for entrant in entrants]
        assert names[0] == BASELINE
        assert len(set(names)) == len(names)


def test_schemes_and_globs_choose_entrants() -> None:
    layer = Layer(8, 8, (1,), peers=("*-int4-g32",), schemes=("int4",), isas=("avx2",))
    names = [entrant.peer.name for entrant in linear.choose_entrants(layer, [], [], [])]
    ours = ["gossamer-int4", "gossamer-int4-bf16", "gossamer-int4@avx2"]
    assert names[0] == BASELINE
    assert names[-3:] == ours
    assert all(name.endswith("-int4-g32") for name in names[1:-3])
    assert "onnxruntime-int4-g32" in names
    given = linear.choose_entrants(layer, ["torch-bf16"], ["int8-g32"], [])
    assert [entrant.peer.name for entrant in given] == [
        *(BASELINE, "torch-bf16", "gossamer-int8-g32", "gossamer-int8-g32-bf16"),
        "gossamer-int8-g32@avx2",
    ]
    usual = linear.choose_entrants(Layer(8, 8, (1,)), [], [], [])
    assert [e.peer.name for e in usual if "int4" in e.peer.name] == []


def test_weights_are_counted_with_their_scales() -> None:
    import gossamer as gs

    assert PEERS["torch-fp32"].weight_bytes(8, 32) == 1024
    assert PEERS["onnxruntime-int4-g32"].weight_bytes(8, 64) == 8 * 64 // 2 + 4 * 16
    stored = gs.Quantize("int4-g32").quantize(torch.zeros(8, 64))
    assert PEERS["gossamer-int4-g32"].weight_bytes(8, 64) == stored.nbytes
    assert PEERS["gossamer-int8"].arithmetic == "int8"
    assert PEERS["gossamer-int8-weight-only"].arithmetic == PEERS["gossamer-fp8"].arithmetic
    assert PEERS["gossamer-fp8"].arithmetic == "bf16"


def test_int4_groups_are_rounded_and_packed() -> None:
    weight = np.array([[7, -7, 3.4, 0], [0, 0, 0, 0]], np.float32)
    values, scales = int4_groups.quantize(weight, 4)
    assert values.tolist() == [[7, -7, 3, 0], [0, 0, 0, 0]]
    assert scales.tolist() == [[1], [0]]
    assert int4_groups.pack(values).tolist() == [[0x97, 0x03], [0, 0]]
    with pytest.raises(ValueError, match="no multiple of the group size 3"):
        int4_groups.quantize(weight, 3)


def test_the_binding_roof_is_the_larger_share() -> None:
    roof = Roof({"amx-int8": 4e12, "vnni-int8": 1e12, "fma-f32": 1e11}, {100: 1e9, 400: 2e9})
    assert roof.share(1e-6, 200, 100, "int8", None) == (pytest.approx(0.1), "bandwidth")
    assert roof.share(1e-6, 2 * 10**6, 100, "int8", None) == (pytest.approx(0.5), "compute")
    assert roof.share(4e-6, 2 * 10**6, 100, "int8", "avx512vnni")[0] == pytest.approx(0.5)
    assert roof.share(1e-6, 2 * 10**6, 100, "int8", "avx2")[1] == "bandwidth"
    assert roof.share(1e-6, 50_000, 400, "fp32", None) == (pytest.approx(0.5), "compute")
    # No bfloat16 instruction was measured, so float32 carries it; held to an ISA, nothing does.
    assert roof.computing(1e-6, 50_000, "bf16", None) == pytest.approx(0.5)
    assert roof.computing(1e-6, 50_000, "bf16", "avx512vnni") is None


def test_errors_are_relative_and_need_the_same_shape() -> None:
    exact = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert rows.relative_error(np.array([[3, 4.5]], np.float32), exact) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="wanted"):
        rows.relative_error(np.zeros((2, 1), np.float32), exact)


STRIDED = conv.ConvLayer("strided", 8, 16, 3, 9, stride=2, groups=4)


def test_convolutions_are_timed_beside_their_error() -> None:
    measured = conv.run_conv(
        [STRIDED],
        threads=1,
        batches=(1, 2),
        schemes=["int8"],
        rounds=2,
        seconds_per_round=0.001,
    )
    names = [peer.name for peer in choose_peers(["int8"])]
    assert names[-2:] == ["gossamer-int8", "gossamer-int8-bf16"]
    assert [(r["layer"], r["batch"], r["contender"]) for r in measured.rows] == [
        ("strided", batch, name) for batch in (1, 2) for name in names
    ]
    for row in measured.rows:
        assert row["failure"] is None, row
        limit = 1e-6 if "fp32" in row["contender"] else 4e-2
        assert 0 < row["error"] < limit, row
        assert len(row["samples_ms"]) == 2
        if row["contender"] == "torch-fp32-channels-last":
            assert row["speedup"] == 1


def test_operations_of_a_convolution() -> None:
    # 5 x 5 outputs of 16 channels, each of 9 products with 2 channels
    assert STRIDED.operations == 2 * 25 * 16 * 9 * 2


def test_a_convolution_needs_batches_and_schemes_that_exist() -> None:
    with pytest.raises(ValueError, match="batches: got"):
        conv.run_conv([STRIDED], threads=1, batches=(0,))
    with pytest.raises(ValueError, match=r"schemes: \['int3'\] is no scheme"):
        conv.run_conv([STRIDED], threads=1, schemes=["int3"])


def test_results_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "run.jsonl"
    row = {"kind": "linear", "ms": 1 / 3, "samples_ms": [1.0, float("nan")], "failure": None}
    results.write(path, Results({"cpu": "x"}, [row]))
    assert results.read(path).rows == [{**row, "ms": 0.333333, "samples_ms": [1.0, None]}]
    assert [file.name for file in path.parent.iterdir()] == ["run.jsonl"]


def test_bad_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(ValueError, match="kind"):
        results.write(path, Results({}, [{"ms": 1}]))
    for text in ("", "{", "[]\n", '{"kind": "linear"}\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match="read: "):
            results.read(path)


def test_the_environment_holds_no_names_of_the_machine() -> None:
    record = environment.describe(2)
    texts = re.findall(r'"(.*?)"', json.dumps(record))
    assert record["threads"] == 2
    assert record["torch"] == torch.__version__
    assert any("gomp" in name for name in record["openmp"])
    assert socket.gethostname() not in texts
    assert [text for text in texts if "/" in text] == []


def test_the_revision_is_that_of_this_checkout() -> None:
    top = Path(environment.__file__).resolve().parents[3]
    if not (top / ".git").exists():
        pytest.skip("not run from a checkout")
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=top, capture_output=True, text=True)
    expected = git.stdout.strip() if git.returncode == 0 else "None"
    assert str(environment.revision()).removesuffix("-dirty") == expected
