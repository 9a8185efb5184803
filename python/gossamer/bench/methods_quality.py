"""``gossamer bench quality``: what methods of compressing leave of real models, and their time.

Every method gets the same model, the same calibration text and the same text to be judged by. Only
linear layers are touched, so embeddings and the head tied to them are left out of the bytes, too.
Seconds are those of compressing; those of one pass of the dense model over the calibration text
stand in the row of the dense model, so that both can be told apart.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gossamer.bench import environment, lowrank_quality
from gossamer.bench.harness import Progress
from gossamer.bench.methods import DENSE, METHODS, OURS, Method, choose
from gossamer.bench.peers import compressors
from gossamer.bench.quality_subjects import QUALITY_SUBJECTS, QualitySubject
from gossamer.bench.results import Results, Row


@dataclass(frozen=True)
class QualitySettings:
    """How a run judges; rows of an earlier run with other settings are no substitute.

    ``windows`` and ``calibration`` are windows of 512 tokens: to judge by, and to calibrate with.
    """

    threads: int
    windows: int = 48
    calibration: int = 128
    subjects: tuple[str, ...] = ("smollm2",)
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := [name for name in self.subjects if name not in QUALITY_SUBJECTS]:
            known = ", ".join(QUALITY_SUBJECTS)
            raise ValueError(f"QualitySettings: subjects: {unknown} unknown; there are {known}")
        if min(self.windows, self.calibration) < 1:
            given = f"{self.windows}, {self.calibration}"
            raise ValueError(f"QualitySettings: windows, calibration: got {given}, wanted >= 1")


def run_quality(
    settings: QualitySettings,
    *,
    before: Results | None = None,
    on_row: Callable[[Results], None] | None = None,
    on_progress: Progress | None = None,
) -> Results:
    """Judge every method on every model, and return a row for each.

    Parameters
    ----------
    settings
        What to judge, and by how much text.
    before
        An earlier run: its rows of the same settings, if they did not fail, are taken over.
    on_row
        Called with all that there is after every row.
    on_progress
        Called with (rows done, rows in all, what comes next).

    Returns
    -------
    Results
        Rows of kind ``method-quality``: model, group, method, tool, windows, calibration, bytes (of
        all but the embeddings), seconds (to compress; of the dense model: one pass over the
        calibration), model_seconds (of these, in which the model ran, where that is known), quality
        (by metric), failure.
    """
    kept = {_key(row): row for row in before.rows if row["failure"] is None} if before else {}
    record = before.environment if before and kept else environment.describe(settings.threads)
    methods = choose(settings.only)
    wanted = [(subject, method) for subject in settings.subjects for method in methods]
    with environment.held_threads(settings.threads):
        for done, (subject, method) in enumerate(wanted):
            head = _head(subject, method, settings)
            if on_progress:
                on_progress(done, len(wanted), f"{subject}: {method.full_name}")
            if _key(head) in kept:
                continue
            kept[_key(head)] = head | _judged(subject, method, settings)
            if on_row:
                on_row(Results(record, _in_order(kept.values())))
    return Results(record, _in_order(kept.values()))


def _judged(subject: str, method: Method, settings: QualitySettings) -> Row:
    try:
        return _compress_and_judge(subject, method, settings)
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return {"failure": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def _compress_and_judge(name: str, method: Method, settings: QualitySettings) -> Row:
    subject = QUALITY_SUBJECTS[name]
    model, tokenizer = subject.load()
    batches = subject.calibration(tokenizer, settings.calibration)
    start = time.perf_counter()
    model = _compressed(model, tokenizer, subject, method, batches)
    seconds = time.perf_counter() - start
    judged = subject.judge(model, tokenizer, settings.windows)
    size = lowrank_quality.linear_bytes(model)
    record = getattr(model, "_gossamer_calibration", None)
    ran = record.model_seconds if record else None
    row = {"bytes": size, "seconds": seconds, "model_seconds": ran}
    return {**row, "quality": judged, "failure": None}


def _compressed(
    model: nn.Module,
    tokenizer: Any,
    subject: QualitySubject,
    method: Method,
    batches: Sequence[Any],
) -> nn.Module:
    import gossamer as gs

    if method.name == DENSE:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
        return model
    if method.tool != OURS:
        return compressors.compress(model, tokenizer, method, batches, subject.ignore)
    dense = copy.deepcopy(model) if method.tuned else None
    compressed = gs.compress(
        model,
        list(method.steps),
        ignore=list(subject.ignore) or None,
        calibration=batches if method.calibrated else None,
        progress=False,
    )
    if dense is not None:
        gs.tune_scales(compressed, dense, batches, progress=False)
    return compressed


def _head(subject: str, method: Method, settings: QualitySettings) -> Row:
    return {
        "kind": "method-quality",
        "model": subject,
        "group": method.group,
        "method": method.name,
        "tool": method.tool,
        "windows": settings.windows,
        "calibration": settings.calibration,
    }


def _key(row: Row) -> tuple[object, ...]:
    names = ("model", "group", "method", "tool", "windows", "calibration")
    return tuple(row[name] for name in names)


def _in_order(rows: Iterable[Row]) -> list[Row]:
    """Model by model, as METHODS lists them; what is not known comes last."""
    models = {name: place for place, name in enumerate(QUALITY_SUBJECTS)}
    places = {(each.group, each.name, each.tool): place for place, each in enumerate(METHODS)}

    def place(row: Row) -> tuple[int, int]:
        method = (row["group"], row["method"], row["tool"])
        return models.get(row["model"], len(models)), places.get(method, len(places))

    return sorted(rows, key=place)
