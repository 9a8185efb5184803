"""Results in files, and the environment that they were measured in."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from gossamer.bench import environment, results
from gossamer.bench.results import Results


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
