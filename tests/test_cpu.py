"""gs.cpu: what is available, forcing, the environment variable, the roofline."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import gossamer as gs
from gossamer import _C


def run_with(isa: str) -> subprocess.CompletedProcess[str]:
    code = "import gossamer as gs; print(gs.cpu.isa())"
    environment = {**os.environ, "GOSSAMER_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )


def missing_isas() -> list[str]:
    return [name for name in _C.isa_names() if name not in gs.cpu.available()]


def test_available_starts_with_scalar_and_holds_the_active_one() -> None:
    assert gs.cpu.available()[0] == "scalar"
    assert gs.cpu.isa() in gs.cpu.available()
    assert set(gs.cpu.available()) <= set(_C.isa_names())


def test_force_changes_and_restores(isa: str) -> None:
    with gs.cpu.force("scalar") as name:
        assert name == gs.cpu.isa() == "scalar"
    assert gs.cpu.isa() == isa


def test_force_as_a_call_lasts() -> None:
    before = gs.cpu.isa()
    try:
        gs.cpu.force("scalar")
        assert gs.cpu.isa() == "scalar"
    finally:
        gs.cpu.force(before)
    assert gs.cpu.isa() == before


def test_force_nests_and_restores_after_errors() -> None:
    before = gs.cpu.isa()

    def fail() -> None:
        with gs.cpu.force("scalar"):
            with gs.cpu.force(before):
                assert gs.cpu.isa() == before
            assert gs.cpu.isa() == "scalar"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gs.cpu.isa() == before


@pytest.mark.parametrize("name", ["sse9", "", "AVX2", None])
def test_force_of_an_unknown_name(name: str) -> None:
    before = gs.cpu.isa()
    with pytest.raises(ValueError, match=r"force: name: got .*, wanted one of scalar, avx2"):
        gs.cpu.force(name)
    assert gs.cpu.isa() == before


def test_force_of_a_missing_isa() -> None:
    if not missing_isas():
        pytest.skip("this machine has every ISA")
    before = gs.cpu.isa()
    for name in missing_isas():
        with pytest.raises(RuntimeError, match=name):
            gs.cpu.force(name)
    assert gs.cpu.isa() == before


@pytest.mark.parametrize("name", gs.cpu.available())
def test_environment_variable(name: str) -> None:
    result = run_with(name)
    assert result.stdout.strip() == name, result.stderr


def test_empty_environment_variable_is_none() -> None:
    assert run_with("").stdout.strip() == gs.cpu.available()[-1]


def test_environment_variable_with_an_unknown_name() -> None:
    result = run_with("sse9")
    assert result.returncode != 0
    assert "ValueError" in result.stderr
    assert "sse9" in result.stderr


def test_environment_variable_with_a_missing_isa() -> None:
    if not missing_isas():
        pytest.skip("this machine has every ISA")
    result = run_with(missing_isas()[0])
    assert result.returncode != 0
    assert "RuntimeError" in result.stderr
    assert missing_isas()[0] in result.stderr


def test_show_says_what_a_bug_report_needs() -> None:
    text = gs.cpu.show()
    for fact in ("processor", "amx", "isa in use", "isas available", "threads", "openmp runtimes"):
        assert fact in text
    assert torch.__version__ in text
    assert ", ".join(gs.cpu.available()) in text


def test_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gs.cpu, "_SECONDS", 0.01)
    monkeypatch.setattr(gs.cpu, "_MIB_PER_THREAD", (1, 2))
    found = gs.cpu.roofline(threads=1)
    assert found.threads == 1
    assert list(found.peaks) == _C.peak_instructions()
    for instruction, isa in {
        "fma-f32": "avx2",
        "expand-int8": "avx512vbmi2",
        "avx512-bf16": "avx512bf16",
        "amx-int8": "amx",
        "amx-bf16": "amx",
    }.items():
        assert (instruction in found.peaks) == (isa in gs.cpu.available())
    assert list(found.bandwidth) == [1, 2]
    assert all(value > 1e8 for value in (*found.peaks.values(), *found.bandwidth.values()))
    lines = str(found).splitlines()
    assert lines[0] == "threads 1, sizes per thread"
    assert lines[-1].startswith("read 2 MiB")
    assert len(lines) == 1 + len(found.peaks) + 2


def test_roofline_of_no_threads() -> None:
    with pytest.raises(ValueError, match="roofline: threads: got 0"):
        gs.cpu.roofline(threads=0)
