"""``gossamer bench sparse``: layers with zeros in their weight, against dense ones and peers.

Beside every time stand the error against float64, the speed-up over the dense layer of the same
value type and, for one row, the share of the roof of reading the stored bytes. Rows that lose stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from gossamer import cpu
from gossamer.bench import environment, harness
from gossamer.bench.harness import Progress, Timing
from gossamer.bench.peers import deepsparse
from gossamer.bench.peers.peer import Array
from gossamer.bench.results import Results, Row
from gossamer.bench.roof import SECONDS, SMALLEST_READ_BYTES
from gossamer.bench.rows import figures, offset, relative_error
from gossamer.bench.sparse_cases import Case, Point
from gossamer.bench.sparse_contenders import Entrant, choose
from gossamer.bench.sparse_weights import PrunedWeight, draw_input

EXPAND = "expand-int8"  # of peak_instructions(): sparse int8 expanded and multiplied with one row


@dataclass(frozen=True)
class Settings:
    """How a run measures: threads of every contender, and as in ``harness.measure``.

    ``deepsparse_python`` is an interpreter that has DeepSparse.
    """

    threads: int
    rounds: int = 9
    seconds_per_round: float = 0.03
    deepsparse_python: str | None = None


def run_sparse(
    cases: Sequence[Case],
    settings: Settings,
    *,
    before: Results | None = None,
    on_case: Callable[[Results], None] | None = None,
    on_progress: Progress | None = None,
) -> Results:
    """Time ``cases`` and return a row for each (point, contender).

    Parameters
    ----------
    cases
        What to time; each is one set of processes.
    settings
        How.
    before
        An earlier run that is gone on with: cases that it holds are not timed again.
    on_case
        Called with all that there is after every case.
    on_progress
        Called with (steps done, steps in all, what comes next).

    Returns
    -------
    Results
        Rows of kind ``sparse``: case, source, N, K, M, mask, sparsity, density, cold_gib, isa,
        contender, twin, and ms, spread, noisy, speedup (over the twin), error, bytes (of the stored
        weight), read_bytes (of them, for one row), gb_per_second, roof ("reading" or
        "expanding") and roof_share (none for M > 1), samples_ms; or ``failure``.

    Raises
    ------
    ValueError
        For an unknown contender or instruction set.
    """
    plans = [(case, choose(case, settings.deepsparse_python)) for case in cases]
    rows = list(before.rows) if before else []
    done = {row["case"] for row in rows}
    plans = [(case, entrants) for case, entrants in plans if case.name not in done]
    counts = [_steps(case, entrants, settings) for case, entrants in plans]
    record = before.environment if before else _environment(settings)
    for number, (case, entrants) in enumerate(plans):
        step = offset(on_progress, sum(counts[:number]), sum(counts))
        rows += _run_case(case, entrants, settings, step)
        if on_case:
            on_case(Results(record, rows))
    return Results(record, rows)


def _environment(settings: Settings) -> Row:
    record = environment.describe(settings.threads)
    python = settings.deepsparse_python
    found = deepsparse.version(python) if python else None
    return {
        **record,
        "versions": {**record["versions"], **({"deepsparse": found} if found else {})},
    }


def _steps(case: Case, entrants: Sequence[Entrant], settings: Settings) -> int:
    present = sum(not entrant.absent for entrant in entrants)
    return harness.steps(present, len(case.points()), settings.rounds)


def _run_case(
    case: Case, entrants: Sequence[Entrant], settings: Settings, on_progress: Progress | None
) -> list[Row]:
    present = [entrant for entrant in entrants if not entrant.absent]
    timed = harness.measure(
        [entrant.contender for entrant in present],
        case.points(),
        threads=settings.threads,
        rounds=settings.rounds,
        seconds_per_round=settings.seconds_per_round,
        on_progress=on_progress,
    )
    rows = []
    for point, timings in zip(case.points(), timed, strict=True):
        found = {
            entrant.name: _of_one_product(timing, entrant.calls(point))
            for entrant, timing in zip(present, timings, strict=True)
        }
        rows += [_row(case, point, entrant, found) for entrant in entrants]
    with environment.held_threads(settings.threads), _held_to(case.isa):
        _add_errors(rows, case.points(), timed, present)
        _add_bytes(rows, case.weights(), present)
        _add_shares(rows, case, settings.threads)
    return rows


def _held_to(isa: str) -> AbstractContextManager[object]:
    """Pack as the contenders did: what a sparse layer holds depends on the instruction set."""
    return cpu.force(isa) if isa in cpu.available() else nullcontext()


def _of_one_product(timing: Timing, calls: int) -> Timing:
    timing.samples_ms = [ms / calls for ms in timing.samples_ms]
    return timing


def _row(case: Case, point: Point, entrant: Entrant, found: dict[str, Timing]) -> Row:
    weight = point.weight
    timing = found.get(entrant.name)
    row: Row = {
        "kind": "sparse",
        "case": case.name,
        "source": case.source,
        "N": weight.N,
        "K": weight.K,
        "M": point.M,
        "mask": weight.mask,
        "sparsity": weight.sparsity,
        "cold_gib": case.cold_gib,
        "isa": case.isa,
        "contender": entrant.name,
        "twin": entrant.twin,
        "failure": timing.failure if timing else entrant.absent,
    }
    if timing is None or timing.failure is not None:
        return row
    twin = found.get(entrant.twin)
    compared = twin if twin and twin.failure is None else Timing(entrant.twin, 0)
    return row | figures(timing, compared)


def _add_errors(
    rows: Sequence[Row],
    points: Sequence[Point],
    timed: Sequence[Sequence[Timing]],
    entrants: Sequence[Entrant],
) -> None:
    """Set density, and error against the float64 product of the pruned weight."""
    outputs = {
        (point, entrant.name): timing.output
        for point, timings in zip(points, timed, strict=True)
        for entrant, timing in zip(entrants, timings, strict=True)
        if timing.failure is None
    }
    for weight in dict.fromkeys(point.weight for point in points):
        drawn = weight.draw()
        for point in points:
            if point.weight != weight:
                continue
            exact = _multiply_exactly(draw_input(point.M, weight.K), drawn)
            for row in _rows_of(rows, weight, point.M):
                row["density"] = float(np.count_nonzero(drawn) / drawn.size)
                output = outputs.get((point, row["contender"]))
                if output is not None:
                    row["error"] = relative_error(output, exact)


def _multiply_exactly(x: Array, weight: Array) -> torch.Tensor:
    return torch.from_numpy(x).double() @ torch.from_numpy(weight).double().T


def _add_bytes(
    rows: Sequence[Row], weights: Sequence[PrunedWeight], entrants: Sequence[Entrant]
) -> None:
    """Set the bytes stored, and those read for one row, of contenders that ran and know them."""
    for weight in weights:
        drawn = weight.draw()
        for entrant in entrants:
            mine = [row for row in _rows_of(rows, weight) if row["contender"] == entrant.name]
            ran = any(row["failure"] is None for row in mine)
            stored = entrant.stored_bytes(drawn) if entrant.stored_bytes and ran else None
            read = entrant.read_bytes(drawn) if entrant.read_bytes and ran else None
            for row in mine:
                row["bytes"], row["read_bytes"] = stored, read


def _add_shares(rows: Sequence[Row], case: Case, threads: int) -> None:
    """Set what was read in a second, and its share of the lower of two roofs, where M is 1.

    One roof is what this machine can read of a buffer as large as what is read again and again: the
    weight, or all the copies that a cold case goes round. The other, for sparse int8, is how fast
    it expands weights that are in L1 and multiplies them with one row.
    """
    from gossamer import _C

    cold = case.points()[0].cold_bytes
    expands = EXPAND in _C.peak_instructions()
    expanding = _C.peak_ops(EXPAND, threads, SECONDS) if expands else math.inf
    single = [row for row in rows if row["M"] == 1 and row["failure"] is None and row["read_bytes"]]
    sizes = {cold or row["read_bytes"] for row in single}
    roof = {
        size: _C.read_bandwidth(max(size, SMALLEST_READ_BYTES), threads, SECONDS)
        for size in sorted(sizes)
    }
    for row in single:
        seconds = row["ms"] / 1e3
        row["gb_per_second"] = row["read_bytes"] / seconds / 1e9
        reading = row["read_bytes"] / roof[cold or row["read_bytes"]]
        sparse_int8 = row["contender"].startswith("sparse-int8")
        expanded = 2 * row["N"] * row["K"] / expanding if sparse_int8 else 0.0
        row["roof"] = "reading" if reading >= expanded else "expanding"
        row["roof_share"] = max(reading, expanded) / seconds


def _rows_of(rows: Sequence[Row], weight: PrunedWeight, M: int | None = None) -> list[Row]:
    wanted = (weight.N, weight.K, weight.mask, weight.sparsity)
    return [
        row
        for row in rows
        if (row["N"], row["K"], row["mask"], row["sparsity"]) == wanted and M in (None, row["M"])
    ]
