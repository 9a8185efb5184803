"""What a long compress() has finished, in a folder, so that it can go on after an interruption."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import checkpoint
from .calibration import Block
from .factorization import LayerCorrection
from .fits import LayerFit
from .fitting_layers import Fitting
from .selection import KeptDense

_FILE = "resume.json"


@dataclasses.dataclass
class Finished:
    """Blocks that are done, each a checkpoint in a folder; without a folder, nothing is kept.

    Attributes
    ----------
    folder : Path or None
        Of the checkpoints.
    work : str
        A fingerprint of the model, the recipe and the calibration. A folder of other work is
        refused.
    """

    folder: Path | None
    work: str = ""

    def begin(self) -> None:
        """Make the folder, or see that it is of the same work."""
        if self.folder is None:
            return
        file = self.folder / _FILE
        if not file.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ValueError(
                    f"compress: resume: {self.folder} is not empty, and not of a compress()"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(file, {"work": self.work})
            return
        if _read(file).get("work") != self.work:
            raise ValueError(
                f"compress: resume: {self.folder} was begun with another model, scheme or "
                "calibration"
            )

    def load(self, block: Block, fitting: Fitting) -> bool:
        """Put a block in the state that it was saved in, if it was."""
        if self.folder is None or not block.name or not (self.folder / block.name / _FILE).exists():
            return False
        checkpoint.load(self.folder / block.name, block.module)
        notes = _read(self.folder / block.name / _FILE)
        for kind, items in _lists(fitting):
            items += [kind(**item) for item in notes[kind.__name__]]
        return True

    def save(self, block: Block, fitting: Fitting) -> None:
        """Keep a block that is done, with what there is to say of its layers."""
        if self.folder is None or not block.name:
            return
        notes = {
            kind.__name__: [dataclasses.asdict(it) for it in items if it.name in block.layers]
            for kind, items in _lists(fitting)
        }
        checkpoint.save(block.module, self.folder / block.name)
        _write(self.folder / block.name / _FILE, notes)


def _lists(fitting: Fitting) -> list[tuple[Any, list[Any]]]:
    """What is told of layers, and what it is told to."""
    replacing = fitting.replacing
    return [
        (KeptDense, replacing.kept_dense),
        (LayerCorrection, replacing.corrections),
        (LayerFit, fitting.results),
    ]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"compress: resume: {file} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"compress: resume: {file} is damaged: no JSON object")
    return found


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """The file appears when it is complete."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(file)
