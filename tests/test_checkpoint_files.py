"""gs.save and gs.load: the files that are written, and what cannot be saved or loaded."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.checkpoint import load, save

from .checkpoints import cnn, mlp, same_outputs, through_files

# --- files ---


def test_shards_have_the_size_that_was_asked_for(tmp_path: Path) -> None:
    model = gs.compress(cnn(), "int8")
    for limit in (1, 300, 2000):
        folder = tmp_path / str(limit)
        loaded = through_files(model, cnn(), folder, max_shard_bytes=limit)
        assert same_outputs(loaded.eval(), model.eval(), torch.randn(2, 4, 8, 8))
        files = json.loads((folder / "gossamer.json").read_text())["files"]
        assert {path.name for path in folder.glob("*.safetensors")} == set(files)
        names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
        assert sorted(files) == (names if len(files) > 1 else ["model.safetensors"])


def test_safetensors_reads_the_files(tmp_path: Path) -> None:
    import safetensors.torch

    model = gs.compress(mlp(), "int4-g32")
    save(model, tmp_path / "out")
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    state = model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_bytes_on_disk_are_those_of_the_tensors(tmp_path: Path) -> None:
    model = gs.compress(nn.Sequential(*(nn.Linear(512, 512) for _ in range(4))), "int4-g64")
    save(model, tmp_path / "out")
    tensors = model.state_dict().values()
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert written <= 1.01 * sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for wanted in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ValueError, match="not empty"):
            save(mlp(), wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_interrupted_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gossamer.checkpoint.writing.write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(mlp(), tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


# --- mistakes ---


def test_arguments_are_checked(tmp_path: Path) -> None:
    wrong: Any
    for wrong in (3, "model", None):
        with pytest.raises(TypeError, match="save: model"):
            save(wrong, tmp_path / "out")
    with pytest.raises(ValueError, match="max_shard_bytes"):
        save(mlp(), tmp_path / "out", max_shard_bytes=0)
    with pytest.raises(ValueError, match="save: source"):
        save(mlp(), tmp_path / "out", source=tmp_path / "nowhere")
    with pytest.raises(TypeError, match="load: folder"):
        load(wrong)
    save(mlp(), tmp_path / "out")
    with pytest.raises(TypeError, match="load: model"):
        load(tmp_path / "out", "model")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not of transformers"):
        load(tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds no gossamer\.json"):
        load(tmp_path)


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"any": "thing"}


def with_parameter(value: Any) -> nn.Module:
    model = mlp()
    model.odd = nn.Parameter(value, requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("model", "error", "named"),
    [
        (lambda: nn.Sequential(Extra(3, 3)), TypeError, "'0'"),
        (lambda: mlp().to("meta"), ValueError, "'0.weight'"),
        (lambda: with_parameter(torch.zeros(3, dtype=torch.complex64)), TypeError, "'odd'"),
        (lambda: with_parameter(torch.eye(3).to_sparse()), TypeError, "'odd'"),
    ],
)
def test_what_cannot_be_saved_is_named(
    model: Callable[[], nn.Module], error: type[Exception], named: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=f"save: model: {named}"):
        save(model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (lambda: nn.Sequential(nn.Linear(40, 48)), r"module '2': is not in the model"),
        (lambda: nn.Sequential(*mlp(), nn.Linear(24, 2)), "no '4.weight', '4.bias'"),
        (lambda: nn.Sequential(*mlp()[:3], nn.Identity()), "has '3.bias', '3.weight'"),
        (lambda: nn.Sequential(*mlp()[:3], nn.LayerNorm(25)), r"'3.weight': has shape \[24\]"),
        (lambda: nn.Sequential(nn.Linear(40, 49), *mlp()[1:]), "module '0'.*out_features is 49"),
        (lambda: nn.Sequential(nn.Conv1d(40, 48, 1), *mlp()[1:]), "module '0': is a Conv1d"),
        (lambda: nn.Sequential(*mlp()[:3], gs.nn.Linear.from_dense(nn.Linear(24, 24))), "'3.w"),
    ],
)
def test_a_model_that_does_not_fit_is_named(
    target: Callable[[], nn.Module], named: str, tmp_path: Path
) -> None:
    save(gs.compress(mlp(), "int8"), tmp_path / "out")
    with pytest.raises(ValueError, match=named) as caught:
        load(tmp_path / "out", target())
    assert str(tmp_path / "out") in str(caught.value)


def test_a_wrong_name_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    save(gs.compress(mlp(), "int8"), tmp_path / "out")
    model = nn.Sequential(*mlp(), nn.Linear(24, 2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=re.escape("'4.weight'")):
        load(tmp_path / "out", model)
    assert type(model[0]) is nn.Linear
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
