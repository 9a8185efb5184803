"""gs.load finds out what it is given: our own checkpoints, or those of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import gossamer as gs
from gossamer import interop
from gossamer.checkpoint import save
from gossamer.loading import load


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like GPTQ; reading it gives the path."""

    def read(path: Path, **settings: Any) -> tuple[Path, dict[str, Any]]:
        return path, settings

    monkeypatch.setattr(interop, "load", read)
    config = {"architectures": ["X"], "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_checkpoints_of_others_are_read_by_interop(foreign: Path) -> None:
    assert load(foreign, progress=False) == (foreign, {"progress": False})
    assert load(str(foreign)) == (str(foreign), {"progress": None})
    with pytest.raises(ValueError, match="load: model"):
        load(foreign, nn.Linear(2, 2))


def test_our_own_are_read_even_if_the_model_was_quantized_before(foreign: Path) -> None:
    layer = gs.nn.Linear.from_dense(nn.Linear(32, 8), "int8")
    save(layer, foreign / "out")
    (foreign / "config.json").rename(foreign / "out" / "config.json")
    assert repr(load(foreign / "out")) == repr(layer)
    assert load(foreign / "out", nn.Linear(32, 8)).weight_error == layer.weight_error


def test_what_is_nothing_is_refused(tmp_path: Path) -> None:
    wrong: Any = 3
    with pytest.raises(TypeError, match="load: folder: got int 3"):
        load(wrong)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"holds no gossamer\.json"):
            load(folder)
