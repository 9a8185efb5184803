"""``gossamer bench accuracy``: how far each scheme moves a layer, and what is left of a model.

Errors are relative (Frobenius), of layers with Gaussian, heavy-tailed and real weights, beside what
theory expects for Gaussian ones. Quality is that of whole models: perplexity, human judgements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gossamer.bench import environment, models, theory
from gossamer.bench.results import Results, Row
from gossamer.bench.subjects import SUBJECTS
from gossamer.formats import FP8, Format, Int4
from gossamer.schemes import SCHEMES, Quantize

Progress = Callable[[int, int, str], None]

USUAL = (
    *("bf16", "fp8", "fp8-e5m2", "int8", "int8-weight-only", "int4", "int4-weight-only"),
    *("int4-g32", "int4-asym", "nf4", "fp4", "mxfp4"),
)
DENSE = "dense fp32"
GAUSSIAN = "Gaussian"
HEAVY = "heavy-tailed"
SIZE = 1024  # N and K of the drawn weights
ROWS = 256  # of x
OUTLIER = 10.0  # how many times larger one input channel of the heavy-tailed weight is
DEGREES_OF_FREEDOM = 3.0  # of its Student's t: kurtosis is infinite
PERPLEXITY_WINDOWS = 48

# The layer of each model that is looked at, and which of its benchmark inputs feeds it.
REAL_LAYERS = {
    "minilm": ("encoder.layer.2.intermediate.dense", 1),
    "smollm2": ("model.layers.5.mlp.gate_proj", 0),
}
# A weight that a scheme moves less than this share of what it moves Gaussian ones was stored on
# the scheme's own grid: SmolLM2 comes in 4 bits, and to round it so again costs nothing.
OWN_GRID = 0.1
OWN_GRID_REASON = "not reported: the weights as published lie on this grid"


@dataclass(frozen=True)
class Sample:
    """A weight [N, K] and inputs [M, K] for it, float32."""

    weights: str
    W: torch.Tensor
    x: torch.Tensor


def run_accuracy(
    schemes: Sequence[str] = (),
    *,
    threads: int,
    subjects: Sequence[str] = ("minilm", "smollm2"),
    windows: int = PERPLEXITY_WINDOWS,
    on_progress: Progress | None = None,
) -> Results:
    """Measure the errors of ``schemes`` on single layers, and the quality of models in them.

    Parameters
    ----------
    schemes
        Names from ``gossamer.schemes.SCHEMES``; empty for ``USUAL``.
    threads
        For torch and gossamer.
    subjects
        "minilm", "smollm2": models to take a layer of and to judge; empty for drawn weights only.
    windows
        Windows of 512 tokens for perplexity.
    on_progress
        Called with (steps done, steps in all, what comes next).

    Returns
    -------
    Results
        Rows of kind ``accuracy`` for each (weights, scheme): ``bits_per_weight``; ``weight_error``,
        ``|Ŵ - W| / |W|``; ``output_error``, ``|x (Ŵ - W)ᵀ| / |x Wᵀ|`` in float64; ``layer_error``,
        that of what the layer returns, which may round x too; ``theory``, expected of the first two
        for Gaussian weights. Then rows of kind ``quality`` for each (model, scheme) and the dense
        model. All with ``failure``.

    Raises
    ------
    ValueError
        For an unknown scheme or model.
    """
    chosen = list(schemes or USUAL)
    for what, given, known in (("schemes", chosen, SCHEMES), ("subjects", subjects, SUBJECTS)):
        if unknown := [name for name in given if name not in known]:
            known_names = ", ".join(known)
            raise ValueError(f"run_accuracy: {what}: {unknown} unknown; there are {known_names}")
    total = len(chosen) * (2 + len(subjects))
    for subject in subjects:
        total += (1 + len(chosen)) * SUBJECTS[subject].steps(windows)
    counter = _Counter(total, on_progress)
    rows: list[Row] = []
    with environment.held_threads(threads):
        for sample in _samples(subjects):
            rows += _errors(sample, chosen, rows, counter)
        for subject in subjects:
            rows += _qualities(subject, chosen, windows, rows, counter)
    counter.step("done", 0)
    return Results(environment.describe(threads), rows)


def measure_error(sample: Sample, scheme: str) -> Row:
    """Errors of one scheme on one layer, as a row; see :func:`run_accuracy`."""
    import gossamer as gs

    N, K = sample.W.shape
    stored = Quantize(scheme).quantize(sample.W)
    dense = nn.Linear(K, N, bias=False)
    with torch.inference_mode():
        dense.weight.copy_(sample.W)
        x, W = sample.x.double(), sample.W.double()
        moved, exact = stored.dequantize().double() - W, x @ W.T
        layer = gs.nn.Linear.from_dense(dense, scheme)
        returned: torch.Tensor = layer(sample.x).double()
    return {
        "bits_per_weight": stored.bits_per_weight,
        "weight_error": float(moved.norm() / W.norm()),
        "output_error": float((x @ moved.T).norm() / exact.norm()),
        "layer_error": float((returned - exact).norm() / exact.norm()),
        "theory": _expected(stored, K) if sample.weights == GAUSSIAN else None,
    }


def _expected(stored: Format, K: int) -> float | None:
    """What theory says of a format with its settings."""
    name, group_size = stored.name, stored.group_size or K
    if isinstance(stored, Int4) and stored.zero_points is not None:
        name = "int4-asym"
    if isinstance(stored, FP8):
        name = "fp8-e5m2" if stored.values.dtype is torch.float8_e5m2 else name
        group_size = group_size**2 if stored.group_size else K  # blocks are square
    return theory.expected_error(name, group_size)


def draw(weights: str) -> Sample:
    """Gaussian weights, or Student's t with one large input channel; x is Gaussian."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(SIZE, SIZE, generator=generator)
    if weights == HEAVY:
        # t = normal / sqrt(chi² / n), and chi² with n degrees of freedom sums n squared normals.
        squares = torch.randn(int(DEGREES_OF_FREEDOM), SIZE, SIZE, generator=generator).square()
        W = W / (squares.sum(0) / DEGREES_OF_FREEDOM).sqrt()
        W[:, SIZE // 2] *= OUTLIER
    return Sample(weights, W, torch.randn(ROWS, SIZE, generator=generator))


def capture(subject: str) -> Sample:
    """One layer of a real model, and what reached it while the model read real text."""
    name, case = REAL_LAYERS[subject]
    model, _ = SUBJECTS[subject].load()
    layer = model.get_submodule(name)
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        model(torch.from_numpy(SUBJECTS[subject].cases()[case].ids))
    handle.remove()
    weight = layer.get_parameter("weight").detach().clone()
    return Sample(subject, weight, seen[0].flatten(0, -2)[:ROWS].clone())


class _Counter:
    """Steps done so far, told on."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self.done, self._total = 0, total
        self._report = on_progress or (lambda done, total, text: None)

    def step(self, text: str, count: int = 1) -> None:
        self._report(self.done, self._total, text)
        self.done += count

    def counting(self, text: str) -> Callable[[int, int], None]:
        """One step at each call."""
        return lambda done, all_: self.step(text)


def _samples(subjects: Sequence[str]) -> Iterator[Sample]:
    yield from (draw(weights) for weights in (GAUSSIAN, HEAVY))
    yield from (capture(subject) for subject in subjects)


def _errors(
    sample: Sample, schemes: Sequence[str], known: Sequence[Row], counter: _Counter
) -> list[Row]:
    rows = []
    for scheme in schemes:
        counter.step(f"{scheme}: {sample.weights} weights")
        N, K = sample.W.shape
        row: Row = {"kind": "accuracy", "scheme": scheme, "weights": sample.weights, "N": N, "K": K}
        try:
            measured = measure_error(sample, scheme)
        except (RuntimeError, TypeError, ValueError) as error:
            rows.append(row | {"failure": f"{type(error).__name__}: {error}"})
            continue
        gaussian = _find(known, scheme, GAUSSIAN).get("weight_error", 0.0)
        if measured["weight_error"] < OWN_GRID * gaussian:
            rows.append(row | {"failure": OWN_GRID_REASON})
        else:
            rows.append(row | {"failure": None} | measured)
    return rows


def _qualities(
    subject: str, schemes: Sequence[str], windows: int, known: Sequence[Row], counter: _Counter
) -> list[Row]:
    import gossamer as gs

    rows = []
    for scheme in (DENSE, *schemes):
        row: Row = {"kind": "quality", "scheme": scheme, "model": subject}
        failure = None if scheme == DENSE else _find(known, scheme, subject)["failure"]
        steps = SUBJECTS[subject].steps(windows)
        if failure is not None:
            counter.step(f"{scheme}: {subject}", steps)
            rows.append(row | {"failure": failure})
            continue
        model, tokenizer = SUBJECTS[subject].load()
        text = f"{scheme}: quality of {subject}"
        counter.step(text, 0)
        if scheme != DENSE:
            gs.compress(model, scheme)
        before = counter.done
        judged = SUBJECTS[subject].judge(model, tokenizer, windows, counter.counting(text))
        counter.step(text, before + steps - counter.done)
        size = models.model_bytes(model)
        rows.append(row | {"failure": None, "bytes": size, "quality": judged})
    return rows


def _find(rows: Sequence[Row], scheme: str, weights: str) -> Row:
    found = (
        row
        for row in rows
        if row["kind"] == "accuracy" and row["scheme"] == scheme and row["weights"] == weights
    )
    return next(found, {})


def error_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: a line for each scheme.

    A cell holds two errors: with the stored weight in exact arithmetic, and as the layer computes.
    """
    weights = list(dict.fromkeys(row["weights"] for row in rows if row["kind"] == "accuracy"))
    lines = []
    for scheme in _schemes(rows, "accuracy"):
        errors = [_find(rows, scheme, name) for name in weights]
        first = next((row for row in errors if "theory" in row), {})
        bits, expected = first.get("bits_per_weight"), first.get("theory")
        lines.append(
            [
                scheme,
                "-" if bits is None else f"{bits:.2f}",
                "-" if expected is None else _percent(expected),
                *map(_error_cell, errors),
            ]
        )
    return ["", "bits", "theory, Gaussian", *weights], lines


def quality_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: the dense model, then a line for each scheme."""
    judged = [row for row in rows if row["kind"] == "quality"]
    metrics = list(dict.fromkeys(name for row in judged for name in row.get("quality", {})))
    lines = []
    for scheme in _schemes(rows, "quality"):
        found: dict[str, float] = {}
        for row in judged:
            found |= row.get("quality", {}) if row["scheme"] == scheme else {}
        lines.append([scheme, *(f"{found[m]:.3f}" if m in found else "-" for m in metrics)])
    return ["", *metrics], lines


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Both tables side by side.

    Raises
    ------
    ValueError
        When there are no rows.
    """
    if not rows:
        raise ValueError("table: rows: there are none")
    (left, errors), (right, qualities) = error_table(rows), quality_table(rows)
    names = dict.fromkeys([*_schemes(rows, "quality"), *_schemes(rows, "accuracy")])
    on_the_left = {line[0]: line for line in errors}
    on_the_right = {line[0]: line[1:] for line in qualities}
    lines = [
        on_the_left.get(name, [name, *"-" * (len(left) - 1)])
        + on_the_right.get(name, [*"-" * (len(right) - 1)])
        for name in names
    ]
    return [*left, *right[1:]], lines


def _schemes(rows: Sequence[Row], kind: str) -> list[str]:
    return list(dict.fromkeys(row["scheme"] for row in rows if row["kind"] == kind))


def _error_cell(row: Row) -> str:
    if "output_error" not in row:
        return "-"
    return f"{_percent(row['output_error'])} / {_percent(row['layer_error'])}"


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 0.01 else f"{100 * value:.1f} %"
