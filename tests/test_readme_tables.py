"""Tables of the documents, made from benchmark results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gossamer.bench import results
from gossamer.bench.results import Results
from gossamer.reporting import readme

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "cpu": "A processor",
    "threads": 2,
    "isa": "avx2",
    "torch": "2.13.0",
    "date": "2026-11-22",
    "revision": "0123456789abcdef",
}


def linear_row(M: int, contender: str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "linear",
        "layer": "a layer",
        "N": 64,
        "K": 32,
        "M": M,
        "contender": contender,
        "ms": 0.5,
        "noisy": False,
        "speedup": 2.0,
        "error": 0.012,
        "roof_share": 0.61,
        "failure": None,
        **changes,
    }


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A README and a document that ask for tables, and one results file."""
    rows = [
        {"kind": "roof", "N": 64, "K": 32},
        linear_row(1, "fast"),
        linear_row(1, "absent", failure="not installed: pip install absent"),
        linear_row(16, "fast", noisy=True, error=0.02, ms=1.25),
        linear_row(16, "absent", failure="not installed: pip install absent"),
        linear_row(1, "fast", layer="another", N=8, K=8),
    ]
    results.write(tmp_path / "bench/results/linear.jsonl", Results(ENVIRONMENT, rows))
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(
        "before\n<!-- table:linear/64x32 -->\nold\n<!-- /table -->\nafter\n"
    )
    (tmp_path / "docs/speed.md").write_text("<!-- table:linear -->\n<!-- /table -->\n")
    return tmp_path


def test_tables_are_written_and_then_in_step(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(repository)]
    assert readme.main([*root, "--check"]) == 1
    assert capsys.readouterr().out.count("out of date") == 2
    assert "old" in (repository / "README.md").read_text()

    assert readme.main(root) == 0
    assert readme.main([*root, "--check"]) == 0
    text = (repository / "README.md").read_text()
    assert text.startswith("before\n<!-- table:linear/64x32 -->\n**a layer, N=64 K=32**")
    assert text.endswith("revision 0123456789*\n<!-- /table -->\nafter\n")
    assert "| fast | 0.5 (x2.0, 61%) | 1.25 (x2.0, 61%, noisy) | 2.0e-02 |" in text
    assert "| absent | not installed | not installed | - |" in text
    assert "another" not in text
    assert "**another, N=8 K=8**" in (repository / "docs/speed.md").read_text()


def test_a_changed_result_makes_the_table_stale(repository: Path) -> None:
    root = ["--root", str(repository)]
    readme.main(root)
    row = linear_row(1, "fast", ms=0.25)
    results.write(repository / "bench/results/linear.jsonl", Results(ENVIRONMENT, [row]))
    assert readme.main([*root, "--check"]) == 1


def test_model_rows_are_shown(repository: Path) -> None:
    row = {
        "kind": "model",
        "model": "minilm",
        "case": "1 x 16",
        "contender": "int8",
        "bytes": 3_200_000,
        "quality": {"Lee": 0.7},
        "ms": 2.5,
        "noisy": False,
        "speedup": 3.0,
        "error": 0.01,
        "failure": None,
    }
    text = readme.render(Results(ENVIRONMENT, [row]))
    assert "**minilm**" in text
    assert "| int8 | 3.2 | 0.700 | 2.50 (x3.00) | 1.0e-02 |" in text


def test_convolutions_are_shown() -> None:
    row = {
        "kind": "conv",
        "layer": "3x3",
        "contender": "torch-fp32",
        "batch": 1,
        "ms": 0.25,
        "speedup": 1.0,
        "noisy": False,
        "error": 1e-7,
        "failure": None,
    }
    slow = row | {"batch": 16, "ms": 4, "noisy": True}
    absent = [row | {"contender": "x", "batch": b, "failure": "boom: why"} for b in (1, 16)]
    text = readme.render(Results(ENVIRONMENT, [row, slow, *absent]))
    assert text.startswith("**3x3**: ms (speed-up)\n\n|  | batch 1 | batch 16 | error |\n")
    assert "| torch-fp32 | 0.25 (x1.0) | 4 (x1.0, noisy) | 1.0e-07 |" in text
    assert "| x | boom | boom | - |" in text


def test_accuracy_and_quality_are_one_table() -> None:
    error = {
        "kind": "accuracy",
        "scheme": "int4",
        "weights": "Gaussian",
        "bits_per_weight": 4.125,
        "output_error": 0.098,
        "layer_error": 0.1,
        "theory": 0.0997,
        "failure": None,
    }
    quality = {"kind": "quality", "scheme": "int4", "model": "smollm2", "failure": None}
    quality["quality"] = {"perplexity": 25.5}
    text = readme.render(Results(ENVIRONMENT, [error, quality]))
    assert "|  | bits | theory, Gaussian | Gaussian | perplexity |" in text
    assert "| int4 | 4.12 | 10.0 % | 9.8 % / 10.0 % | 25.500 |" in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- table:absent -->\n<!-- /table -->\n", "absent.jsonl"),
        ("<!-- table:linear/1x1 -->\n<!-- /table -->\n", "no layer 1x1"),
        ("<!-- table:linear -->\n", "has no end"),
        ("<!-- table: linear -->\n<!-- /table -->\n", "malformed"),
    ],
)
def test_bad_markers_are_refused(repository: Path, text: str, told: str) -> None:
    (repository / "README.md").write_text(text)
    with pytest.raises(ValueError, match=told):
        readme.main(["--root", str(repository), "--check"])


def test_results_of_an_unknown_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="'odd'"):
        readme.render(Results(ENVIRONMENT, [{"kind": "odd"}]))


def test_the_documents_of_this_repository_are_in_step() -> None:
    if not list((ROOT / "bench" / "results").glob("*.jsonl")):
        pytest.skip("no results yet")
    assert list(readme.stale_documents(ROOT)) == []


def test_the_results_of_this_repository_can_be_shown() -> None:
    files = sorted((ROOT / "bench" / "results").glob("*.jsonl"))
    if not files:
        pytest.skip("no results yet")
    for file in files:
        assert readme.render(results.read(file)).startswith("**")
