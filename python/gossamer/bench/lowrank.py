"""``gossamer bench lowrank``: low-rank layers and corrected layers, and the fits of corrections.

All contenders of a layer run in one process and one team of threads, rounds interleaved. Beside
every time stands the error against the float64 product with the dense weight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gossamer.bench import environment
from gossamer.bench.harness import Progress, Timing
from gossamer.bench.interleaved import Settings, Step, counted_steps, time_interleaved
from gossamer.bench.lowrank_cases import FitCase, LayerCase
from gossamer.bench.lowrank_contenders import Entrant, Problem, build, check_name
from gossamer.bench.results import Results, Row
from gossamer.bench.rows import offset, relative_error
from gossamer.bench.sparse_weights import draw_input
from gossamer.schemes import Quantize

COMPRESSED = "compress"
CORRECTED = "compress with correction"
CORRECTION = "correction alone"


def run_lowrank(
    cases: Sequence[LayerCase | FitCase],
    settings: Settings,
    *,
    before: Results | None = None,
    on_case: Callable[[Results], None] | None = None,
    on_progress: Progress | None = None,
) -> Results:
    """Time ``cases`` and return a row for each (layer, M, contender) and (fit, contender).

    Parameters
    ----------
    cases
        Layers to time, corrections to fit.
    settings
        Threads and rounds.
    before
        An earlier run that is gone on with: cases that it holds are not timed again.
    on_case
        Called with all that there is after every case.
    on_progress
        Called with (steps done, steps in all, what comes next).

    Returns
    -------
    Results
        Rows of kind ``lowrank``: case, source, N, K, M, rank, dtype, sparsity, parameter_ratio,
        contender, and ms, spread, noisy, speedup (over the first contender), samples_ms, error,
        bytes; or ``failure``. Rows of kind ``lowrank-fit``: case, source, N, K, layers, rank,
        scheme, contender, seconds (of all layers), layers_timed, error (of the weight), failure.

    Raises
    ------
    ValueError
        For an unknown contender.
    """
    for case in cases:
        for name in case.contenders if isinstance(case, LayerCase) else ():
            check_name(name)
    rows = list(before.rows) if before else []
    done = {row["case"] for row in rows}
    left = [case for case in cases if case.name not in done]
    counts = [_steps(case, settings) for case in left]
    record = before.environment if before else environment.describe(settings.threads)
    for number, case in enumerate(left):
        progress = offset(on_progress, sum(counts[:number]), sum(counts))
        step = counted_steps(counts[number], progress)
        with environment.held_threads(settings.threads):
            rows += (
                _run_layer(case, settings, step)
                if isinstance(case, LayerCase)
                else _run_fit(case, step)
            )
        if on_case:
            on_case(Results(record, rows))
    return Results(record, rows)


def _steps(case: LayerCase | FitCase, settings: Settings) -> int:
    if isinstance(case, FitCase):
        return case.layers + len(_peer_fits(case.rank))
    return len(case.contenders) * (1 + len(case.M) * (1 + settings.rounds))


def _run_layer(case: LayerCase, settings: Settings, step: Step) -> list[Row]:
    problem = Problem.draw(case)
    built: dict[str, Entrant] = {}
    failures: dict[str, str] = {}
    for name in case.contenders:
        step(f"{name}: build")
        try:
            built[name] = build(name, case, problem)
        except Exception as error:  # a row that says so, the others go on
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    rows: list[Row] = []
    with torch.inference_mode():
        for M in case.M:
            rows += _run_rows(case, M, problem, built, failures, settings, step)
    return rows


def _run_rows(
    case: LayerCase,
    M: int,
    problem: Problem,
    built: dict[str, Entrant],
    failures: dict[str, str],
    settings: Settings,
    step: Step,
) -> list[Row]:
    x = torch.from_numpy(draw_input(M, case.K)).to(getattr(torch, case.dtype))
    exact = x.double() @ problem.W.double().T
    errors: dict[str, float] = {}

    def look(name: str, y: Tensor) -> None:
        errors[name] = relative_error(y.float().numpy(), exact)

    timings = time_interleaved(
        {name: partial(entrant.product, x) for name, entrant in built.items()},
        rounds=settings.rounds,
        look=look,
        on_step=step,
    )
    first = timings.get(case.contenders[0], Timing("none", 0))
    rows = []
    for name in case.contenders:
        row = _head(case, M, name)
        timing = timings.get(name)
        row["failure"] = timing.failure if timing else failures[name]
        if timing and timing.failure is None:
            row |= {
                "ms": timing.median_ms,
                "spread": timing.spread,
                "noisy": timing.noisy,
                "speedup": first.median_ms / timing.median_ms,
                "samples_ms": timing.samples_ms,
                "error": errors[name],
                "bytes": built[name].nbytes,
            }
        rows.append(row)
    return rows


def _head(case: LayerCase, M: int, contender: str) -> Row:
    return {
        "kind": "lowrank",
        "case": case.name,
        "source": case.source,
        "N": case.N,
        "K": case.K,
        "M": M,
        "rank": case.rank,
        "dtype": case.dtype,
        "sparsity": case.sparsity,
        "parameter_ratio": case.parameter_ratio,
        "contender": contender,
    }


def _run_fit(case: FitCase, step: Step) -> list[Row]:
    """Our corrections of every layer; peers on the error of one layer, times the layers."""
    seconds = {COMPRESSED: 0.0, CORRECTED: 0.0}
    squares = {COMPRESSED: 0.0, CORRECTED: 0.0}
    for number in range(case.layers):
        step(f"{case.name}: layer {number + 1} of {case.layers}")
        for name in seconds:
            taken, error = _compress(case, number, name == CORRECTED)
            seconds[name] += taken
            squares[name] += error**2 / case.layers
    rows = [
        _fit_row(case, name, seconds[name], case.layers, squares[name] ** 0.5) for name in seconds
    ]
    alone = seconds[CORRECTED] - seconds[COMPRESSED]
    rows.append(_fit_row(case, CORRECTION, alone, case.layers, None))
    W = _fit_weight(case, 0)
    E = W - Quantize(case.scheme).quantize(W).dequantize()
    for name, run in _peer_fits(case.rank).items():
        step(f"{name}: one layer")
        start = time.perf_counter()
        U, S, V = run(E)
        taken = time.perf_counter() - start
        error = float((E - (U * S) @ V).norm() / W.norm())
        rows.append(
            _fit_row(case, f"{name}, one layer x {case.layers}", taken * case.layers, 1, error)
        )
    return rows


def _fit_weight(case: FitCase, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(case.N, case.K, generator=generator) * 0.02


def _compress(case: FitCase, number: int, corrected: bool) -> tuple[float, float]:
    """Seconds of compress() on a model of one layer, and the error that is left of the weight."""
    import gossamer as gs
    from gossamer.factorization.correction import LowRankCorrection

    W = _fit_weight(case, number)
    dense = torch.nn.Linear(case.K, case.N, bias=False)
    with torch.no_grad():
        dense.weight.copy_(W)
    recipe: Any = [case.scheme, LowRankCorrection(rank=case.rank)] if corrected else case.scheme
    model = torch.nn.Sequential(dense)
    start = time.perf_counter()
    gs.compress(model, recipe, progress=False)
    taken = time.perf_counter() - start
    layer: Any = model.get_submodule("0")
    return taken, float((layer.dequantize() - W).norm() / W.norm())


def _peer_fits(rank: int) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
    def full(E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, S, V = torch.linalg.svd(E, full_matrices=False)
        return U[:, :rank], S[:rank], V[:rank]

    def sketched(E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, S, V = torch.svd_lowrank(E, q=min(rank + 10, min(E.shape)), niter=4)
        return U[:, :rank], S[:rank], V[:, :rank].T

    return {"torch.linalg.svd": full, "torch.svd_lowrank niter=4": sketched}


def _fit_row(
    case: FitCase, contender: str, seconds: float, layers_timed: int, error: float | None
) -> Row:
    return {
        "kind": "lowrank-fit",
        "case": case.name,
        "source": case.source,
        "N": case.N,
        "K": case.K,
        "layers": case.layers,
        "rank": case.rank,
        "scheme": case.scheme,
        "contender": contender,
        "seconds": seconds,
        "layers_timed": layers_timed,
        "error": error,
        "failure": None,
    }
