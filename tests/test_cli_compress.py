"""``gossamer compress`` with recipes, methods and calibration text, on a tiny Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gossamer as gs

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
typer_testing = pytest.importorskip("typer.testing")

WORDS = [f"word{number}" for number in range(14)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *WORDS])}
    words = tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(" ".join(WORDS * 60))
    return path


def run(*arguments: object) -> str:
    from gossamer import cli

    result = typer_testing.CliRunner().invoke(cli.app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_a_method_and_a_text(model_dir: Path, text: Path, tmp_path: Path) -> None:
    options = ["--scheme", "int4-g32", "--method", "awq,gptq", "--text", text]
    run("compress", model_dir, tmp_path / "out", *options, "--windows", 6, "--tokens", 24)
    model = gs.load(tmp_path / "out")
    methods = {item.method for item in gs.report(model).layers}
    assert methods == {"awq, gptq"}
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_recipe_file_with_its_text(model_dir: Path, text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "steps:\n"
        "  - prune: {sparsity: 0.5, method: wanda}\n"
        "  - quantize: {scheme: int8}\n"
        "overrides:\n"
        '  "*.down_proj": int4-g32\n'
        "ignore: [model.embed_tokens, lm_head]\n"
        "calibration: {text: corpus.txt, windows: 4, tokens: 16}\n"
    )
    run("compress", model_dir, tmp_path / "out", "--recipe", recipe)
    formats = {item.name: item.format for item in gs.report(gs.load(tmp_path / "out")).layers}
    assert formats["model.layers.0.mlp.down_proj"] == "int4:32"
    assert set(formats.values()) <= {"int8", "sparse-int8", "int4:32"}
    assert "lm_head" not in formats


def test_dry_run(model_dir: Path, tmp_path: Path) -> None:
    said = run("compress", model_dir, "--recipe", "balanced", "--dry-run")
    assert "model.layers.1.self_attn.o_proj" in said
    assert "awq, gptq" in said
    assert "awq needs a calibration" in said
    assert list(tmp_path.iterdir()) == []


def test_mistakes(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibration: awq needs one"):
        run("compress", model_dir, tmp_path / "out", "--recipe", "balanced")
    assert "OUT_DIR is missing" in run("compress", model_dir)
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("steps:\n  - quantise: int8\n")
    with pytest.raises(ValueError, match=r"bad\.yaml:2: .*quantise.*quantize"):
        run("compress", model_dir, tmp_path / "out", "--recipe", recipe)
    assert not (tmp_path / "out").exists()


def test_preview_changes_nothing() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LSTM(64, 32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = gs.preview(
        model, [gs.Prune(0.5), gs.Quantize("int4-g32", method="hqq"), gs.LowRankCorrection(4)]
    )
    (layer,) = found.layers
    assert (layer.format, layer.method, layer.sparsity, layer.rank) == (
        "int4:32",
        "magnitude, hqq",
        0.5,
        4,
    )
    assert layer.bytes_after < layer.bytes_before
    assert [item.name for item in found.left_alone] == ["1"]
    assert found.wants_calibration == ""
    assert found.to_dict()["layers"][0]["name"] == "0"
    assert type(model[0]) is torch.nn.Linear
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
