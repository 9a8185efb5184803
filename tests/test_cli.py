"""The ``gossamer`` command, as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gossamer as gs
from gossamer.bench import environment, results
from gossamer.bench.results import Results
from gossamer.loading import load

pytest.importorskip("typer", reason="the extra 'cli' is not installed")

from rich.console import Console
from typer.testing import CliRunner, Result

from gossamer import cli
from gossamer.bench import terminal

VOCABULARY = 50


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that are not cut."""
    monkeypatch.setattr(terminal, "console", Console(width=200))


def gossamer(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def end_of_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """Exit status of the console script."""
    monkeypatch.setattr(sys, "argv", ["gossamer", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A tiny BERT with random weights, saved as transformers does."""
    transformers = pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    folder = tmp_path / "dense"
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


def test_info_shows_the_processor() -> None:
    shown = gossamer("info")
    assert shown.exit_code == 0
    assert shown.stdout.strip() == gs.cpu.show().strip()


def test_info_measures_the_roofline_when_asked() -> None:
    shown = gossamer("info", "--roofline")
    assert shown.exit_code == 0
    assert "GB/s" in shown.stdout


def test_bench_linear_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    shown = gossamer(
        *("bench", "linear", "--shapes", "48x32", "--m", "1,3", "--threads", 1, "--rounds", 2),
        *("--peers", "gossamer-int8", "--isa", "scalar", "--json", path),
    )
    assert shown.exit_code == 0, shown.output
    assert "N=48 K=32 M=3" in shown.stdout
    for name in ("torch-fp32", "gossamer-int8", "gossamer-int8@scalar"):
        assert name in shown.stdout
    rows = [row for row in results.read(path).rows if row["kind"] == "linear"]
    assert [row["M"] for row in rows] == [1, 1, 1, 3, 3, 3]
    assert all(row["failure"] is None for row in rows)


def test_bench_linear_reads_cases(tmp_path: Path) -> None:
    cases = tmp_path / "cases.toml"
    cases.write_text('[[layer]]\nname = "mine"\nN = 8\nK = 8\nM = [2]\npeers = ["torch-bf16"]\n')
    shown = gossamer("bench", "linear", "--cases", cases, "--threads", 1, "--rounds", 1)
    assert shown.exit_code == 0, shown.output
    assert "mine N=8 K=8 M=2" in shown.stdout
    assert "torch-bf16" in shown.stdout


def test_bench_linear_takes_schemes_and_globs() -> None:
    shown = gossamer(
        *("bench", "linear", "--shapes", "32x64", "--m", "2", "--threads", 1, "--rounds", 1),
        *("--schemes", "int8-g32", "--peers", "torch-b*"),
    )
    assert shown.exit_code == 0, shown.output
    for name in ("torch-fp32", "torch-bf16", "gossamer-int8-g32", "gossamer-int8-g32-bf16"):
        assert name in shown.stdout
    assert "torch-dynamic" not in shown.stdout


def test_bench_conv_prints_a_table_for_every_layer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gossamer.bench import conv

    measured: dict[str, Any] = {}

    def run_conv(**settings: Any) -> Results:
        measured.update(settings)
        row = {"kind": "conv", "layer": "a layer", "batch": 2, "contender": "torch-fp32"}
        fine = {"ms": 1.0, "spread": 0.0, "noisy": False, "speedup": 1.0, "error": 1e-7}
        fine |= {"gops": 5.0, "roof_share": None, "failure": None}
        absent = row | {"contender": "gossamer-int4", "failure": "no such thing"}
        return Results(environment.describe(1), [row | fine, absent])

    monkeypatch.setattr(conv, "run_conv", run_conv)
    path = tmp_path / "conv.jsonl"
    shown = gossamer("bench", "conv", "--batch", "2", "--schemes", "int8,int4", "--json", path)
    assert shown.exit_code == 0, shown.output
    assert measured["batches"] == [2]
    assert measured["schemes"] == ["int8", "int4"]
    assert "a layer, batch 2" in shown.stdout
    assert "gossamer-int4: no such thing" in shown.stdout
    assert len(results.read(path).rows) == 2


def test_bench_conv_wants_numbers(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert end_of_main(monkeypatch, "bench", "conv", "--batch", "few") == 1
    assert "--batch: got 'few'" in capsys.readouterr().err


def test_bench_accuracy_prints_errors_beside_theory(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.jsonl"
    shown = gossamer("bench", "accuracy", "--schemes", "int8", "--models", "none", "--json", path)
    assert shown.exit_code == 0, shown.output
    assert "theory" in shown.stdout
    assert "heavy-tailed" in shown.stdout
    assert [row["kind"] for row in results.read(path).rows] == ["accuracy"] * 2


def test_bench_model_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.bench import model

    seen: dict[str, Any] = {}

    def run_model_benchmark(*places: Any, **settings: Any) -> list[dict[str, Any]]:
        seen.update(settings, model=places[0], threads=places[1])
        row = {"contender": "dense fp32", "case": "1 x 16", "bytes": 1, "quality": {}}
        return [{**row, "failure": None, "ms": 1.0, "speedup": 1.0, "noisy": False, "error": 0.0}]

    monkeypatch.setattr(model, "run_model_benchmark", run_model_benchmark)
    shown = gossamer(
        *("bench", "model", "smollm2", "--schemes", "int8-g64", "--unfused", "--threads", 1),
        *("--rounds", 2, "--windows", 3),
    )
    assert shown.exit_code == 0, shown.output
    assert "dense fp32" in shown.stdout
    assert (seen["model"], seen["threads"], seen["rounds"], seen["windows"]) == ("smollm2", 1, 2, 3)
    assert "gossamer int8-g64, bf16, unfused" in seen["variants"]
    assert "dense bf16, compiled" not in seen["variants"]


def test_the_self_check_reports_a_ratio() -> None:
    shown = gossamer("bench", "linear", "--self-check", "--threads", 1, "--rounds", 3)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("A/A ratio ")


def test_mistakes_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of_main(monkeypatch, "bench", "linear", "--peers", "magic") == 1
    told = capsys.readouterr().err
    assert "error: run_linear: ['magic'] is no peer" in told.replace("\n", " ")
    assert "Traceback" not in told


def test_the_help_names_every_peer() -> None:
    from gossamer.bench.peers import PEERS

    shown = gossamer("bench", "linear", "--help")
    assert shown.exit_code == 0
    told = " ".join(re.sub(r"[^\w.,-]", " ", shown.stdout).split())
    general = [re.sub(r"-g\d+$", "-gG", name) for name in PEERS if not name.startswith("gossamer")]
    assert [name for name in general if name not in told] == []


def test_a_compressed_model_loads_again_as_documented(model_dir: Path, tmp_path: Path) -> None:
    import transformers

    out = tmp_path / "new" / "out"
    (model_dir / "vocab.txt").write_text("[PAD]")
    shown = gossamer("compress", model_dir, out, "--group-size", 32)
    assert shown.exit_code == 0, shown.output
    assert "bert.encoder.layer.1.output.dense" in shown.stdout
    assert 'gs.load("OUT_DIR")' in gossamer("compress", "--help").stdout

    ids = torch.arange(10)[None] % VOCABULARY
    expected = transformers.BertForMaskedLM.from_pretrained(model_dir).eval()
    gs.compress(expected, gs.Quantize("int8", group_size=32))
    model = load(out)
    assert isinstance(model.get_submodule("bert.encoder.layer.1.output.dense"), gs.nn.Linear)
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, expected(ids).logits)
    dense = (model_dir / "model.safetensors").stat().st_size
    assert (out / "model.safetensors").stat().st_size < 0.7 * dense
    assert (out / "vocab.txt").read_text() == "[PAD]"
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    again = gossamer("report", out)
    assert again.exit_code == 0, again.output
    assert again.stdout.strip() == str(gs.report(expected)).strip()


def test_report_tells_of_a_folder_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of_main(monkeypatch, "report", tmp_path) == 1
    assert "holds no gossamer.json" in " ".join(capsys.readouterr().err.split())


def test_compress_takes_targets_and_ignore(model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = gossamer(
        *("compress", model_dir, out),
        *("--targets", "*.intermediate.dense", "--ignore", "*.layer.0.*"),
    )
    assert shown.exit_code == 0, shown.output
    modules = json.loads((out / "gossamer.json").read_text())["modules"]
    assert list(modules) == ["bert.encoder.layer.1.intermediate.dense"]


def test_compress_writes_no_folder_that_holds_something(model_dir: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in model_dir.iterdir()}
    shown = gossamer("compress", model_dir, model_dir)
    assert shown.exit_code == 1
    assert "not empty" in " ".join(shown.output.split())
    assert {path: path.read_bytes() for path in model_dir.iterdir()} == before


def test_compress_needs_a_model_folder(tmp_path: Path) -> None:
    shown = gossamer("compress", tmp_path, tmp_path / "out")
    assert shown.exit_code == 1
    assert "config.json" in shown.output


def test_an_unknown_scheme_is_named(
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert end_of_main(monkeypatch, "compress", model_dir, out, "--scheme", "int7") == 1
    assert "int7" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_named(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import gossamer.cli"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "pip install 'gossamer[cli]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_compress_names_the_extra_it_needs(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RuntimeError, match=r"pip install 'gossamer\[hf\]'"):
        cli._load_model(model_dir)
