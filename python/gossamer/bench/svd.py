"""``gossamer bench svd``: truncated SVD of matrices whose optimal error is known, against peers.

All run in one process and one team of threads, rounds interleaved. Beside every time stands the
excess of the error, in float64, over the smallest that the rank allows. Rows that lose stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gossamer.bench import environment
from gossamer.bench.harness import Progress, Timing
from gossamer.bench.interleaved import Settings, counted_steps, time_interleaved
from gossamer.bench.results import Results, Row
from gossamer.bench.rows import offset
from gossamer.bench.svd_cases import SvdCase
from gossamer.bench.svd_methods import (
    Answer,
    Method,
    methods_of_error,
    methods_of_rank,
    rank_for,
    why_not,
)

ROWS = 1024  # of W in float64 at a time
# The optimal error counts as at least this share of the matrix: float32 holds no more.
SMALLEST_ERROR = 1e-6


def run_svd(
    cases: Sequence[SvdCase],
    settings: Settings,
    *,
    before: Results | None = None,
    on_case: Callable[[Results], None] | None = None,
    on_progress: Progress | None = None,
) -> Results:
    """Time ``cases`` and return a row for each (case, method).

    Parameters
    ----------
    cases
        What to factorize.
    settings
        How to measure.
    before
        An earlier run that is gone on with: cases that it holds are not timed again.
    on_case
        Called with all that there is after every case.
    on_progress
        Called with (steps done, steps in all, what comes next).

    Returns
    -------
    Results
        Rows of kind ``svd``: case, source, m, n, spectrum, outlier_columns, rank (asked for, 0 for
        none), rel_error (asked for, 0 for none), smallest_rank (that reaches it), target_excess,
        contender, and ms, spread, noisy, samples_ms, found_rank, error (relative, Frobenius),
        excess (of the error over the optimal one of found_rank, as a share of that), and of ours
        certificate, spectral_bound, passes, method; or ``failure``.
    """
    rows = list(before.rows) if before else []
    done = {row["case"] for row in rows}
    left = [case for case in cases if case.name not in done]
    counts = [_steps(len(_methods(case)), settings) for case in left]
    record = before.environment if before else _environment(settings)
    for number, case in enumerate(left):
        step = offset(on_progress, sum(counts[:number]), sum(counts))
        with environment.held_threads(settings.threads), torch.no_grad():
            rows += _run_case(case, settings, step)
        if on_case:
            on_case(Results(record, rows))
    return Results(record, rows)


def relative_residual(W: Tensor, answer: Answer) -> float:
    """|W - left right| / |W|, Frobenius, in float64."""
    right = answer.right.double()
    squares = torch.zeros(2, dtype=torch.float64)
    for first in range(0, len(W), ROWS):
        part = W[first : first + ROWS].double()
        rest = part - answer.left[first : first + ROWS].double() @ right
        squares += torch.stack([rest.square().sum(), part.square().sum()])
    return float((squares[0] / squares[1]).sqrt())


def excess(error: float, values: Tensor, rank: int) -> float:
    """By what share ``error`` (relative) exceeds the optimal one of ``rank``.

    Where the optimal error is below 1e-6 of the matrix, which float32 does not resolve, the excess
    is a share of that instead.
    """
    optimal = float(values[rank:].norm() / values.norm())
    return (error - optimal) / max(optimal, SMALLEST_ERROR)


def _environment(settings: Settings) -> Row:
    from importlib import metadata

    record = environment.describe(settings.threads)
    try:
        found = {"scikit-learn": metadata.version("scikit-learn")}
    except metadata.PackageNotFoundError:
        found = {}
    return {**record, "versions": {**record["versions"], **found}}


def _methods(case: SvdCase) -> list[Method]:
    if case.rank:
        return methods_of_rank((case.matrix.m, case.matrix.n), case.rank, case.target_excess)
    smallest = rank_for(case.matrix.singular_values(), case.rel_error)
    return methods_of_error(case.rel_error, smallest)


def _steps(methods: int, settings: Settings) -> int:
    return 1 + methods * (2 + settings.rounds)


def _run_case(case: SvdCase, settings: Settings, on_progress: Progress | None) -> list[Row]:
    methods = _methods(case)
    step = counted_steps(_steps(len(methods), settings), on_progress)
    step(f"{case.name}: draw the matrix")
    W, values = case.matrix.draw(), case.matrix.singular_values()
    absent: dict[str, str | None] = {}
    for method in methods:
        step(f"{method.name}: predict")
        absent[method.name] = why_not(method, case.matrix, W)
    present = {method.name: method for method in methods if not absent[method.name]}
    judged: dict[str, Row] = {}

    def look(name: str, raw: Any) -> None:
        judged[name] = _judge(W, values, present[name].answer(raw))

    timings = time_interleaved(
        {name: partial(method.run, W) for name, method in present.items()},
        rounds=settings.rounds,
        look=look,
        on_step=step,
    )
    return [
        _row(case, values, method.name, absent[method.name], timings.get(method.name), judged)
        for method in methods
    ]


def _judge(W: Tensor, values: Tensor, answer: Answer) -> Row:
    error, rank = relative_residual(W, answer), answer.right.shape[0]
    row: Row = {"found_rank": rank, "error": error, "excess": excess(error, values, rank)}
    if answer.info is not None:
        row |= {
            "certificate": float(answer.info.rel_error),
            "spectral_bound": _number(answer.info, "spectral_bound"),
            "passes": _number(answer.info, "passes"),
            "method": str(getattr(answer.info, "method", "")),
        }
    return row


def _number(info: Any, name: str) -> float | None:
    value = getattr(info, name, None)
    return None if value is None else float(value)


def _row(
    case: SvdCase,
    values: Tensor,
    name: str,
    absent: str | None,
    timing: Timing | None,
    judged: dict[str, Row],
) -> Row:
    row: Row = {
        "kind": "svd",
        "case": case.name,
        "source": case.source,
        "m": case.matrix.m,
        "n": case.matrix.n,
        "spectrum": case.spectrum,
        "outlier_columns": case.outlier_columns,
        "rank": case.rank,
        "rel_error": case.rel_error,
        "smallest_rank": rank_for(values, case.rel_error) if case.rel_error else case.rank,
        "target_excess": case.target_excess,
        "contender": name,
        "failure": timing.failure if timing else absent,
    }
    if timing is None or timing.failure is not None:
        return row
    return row | {
        "ms": timing.median_ms,
        "spread": timing.spread,
        "noisy": timing.noisy,
        "samples_ms": timing.samples_ms,
        **judged[name],
    }
