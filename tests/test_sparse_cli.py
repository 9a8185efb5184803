"""``gossamer compress`` with zeros: pruned on the way, saved, and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gossamer as gs

pytest.importorskip("typer", reason="the extra 'cli' is not installed")

from rich.console import Console
from typer.testing import CliRunner, Result

from gossamer import cli
from gossamer.bench import terminal
from gossamer.factorization import LowRankCorrection
from gossamer.loading import load


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "console", Console(width=200))


def gossamer(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=16,
    )
    folder = tmp_path / "dense"
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "recipe"),
    [
        (("--prune", 0.9), [gs.Prune(0.9), "int8"]),
        (
            ("--scheme", "sparse-fp32", "--prune", 0.9, "--scope", "row", "--pattern", "1x4"),
            [gs.Prune(0.9, "row", "1x4"), "sparse-fp32"],
        ),
        (("--scheme", "int4-g32", "--pattern", "1:8"), [gs.Prune(pattern="1:8"), "int4-g32"]),
        (("--prune", 0.9, "--low-rank", 4), [gs.Prune(0.9), "int8", LowRankCorrection(4)]),
    ],
)
def test_a_pruned_model_loads_again_as_documented(
    model_dir: Path, tmp_path: Path, arguments: tuple[object, ...], recipe: list[Any]
) -> None:
    import transformers

    out = tmp_path / "out"
    shown = gossamer("compress", model_dir, out, *arguments)
    assert shown.exit_code == 0, shown.output
    assert "parts" in shown.stdout.splitlines()[0]
    expected = transformers.BertForMaskedLM.from_pretrained(model_dir).eval()
    gs.compress(expected, recipe)

    model: Any = load(out)
    assert model.bert.encoder.layer[0].output.dense.format.startswith("sparse-")
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_a_wrong_share_is_told_before_anything_is_read(tmp_path: Path) -> None:
    shown = gossamer("compress", tmp_path, tmp_path / "out", "--prune", "80")
    assert shown.exit_code == 1
    assert "Prune: sparsity: got 80" in str(shown.exception)
