"""Timing of several contenders side by side, so that none disturbs another.

Every contender owns one process, which is stopped while another runs: an idle thread pool that
spins for its next parallel region would otherwise be part of its neighbour's figure. Rounds are
interleaved, so that a slow minute of a shared machine falls on everyone; the figure is the median
over rounds. Outputs come back beside the times, for the error that belongs to every speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from gossamer.bench.worker import Array, Prepare, Run, Worker

NOISY_SPREAD = 0.10

# Called with (steps done, steps in all, what comes next).
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Parameters
    ----------
    name
        What the tables call it.
    build
        A top-level (picklable) function. It is called in the contender's own process with
        ``**arguments`` and returns ``prepare``; ``prepare(case)`` returns ``run``, and ``run()``
        is what is timed. Whatever ``build`` needs is imported inside it. ``prepare`` and ``run``
        are called under ``torch.inference_mode()``, ``build`` is not.
    arguments
        Keyword arguments of ``build``, picklable.
    environment
        Environment variables of this contender's process, set before anything is imported there.
    """

    name: str
    build: Callable[..., Prepare]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Timing:
    """What one contender did on one case. Times are milliseconds for one call of ``run``.

    ``samples_ms`` holds one mean per round. ``output`` is what ``run`` returned, as float32, or
    None when it returned None. ``failure`` says why there is no figure, and is None otherwise.
    """

    name: str
    case: int
    samples_ms: list[float] = field(default_factory=list)
    output: Array | None = None
    failure: str | None = None

    @property
    def median_ms(self) -> float:
        """Median over rounds; NaN without samples."""
        return float(np.median(self.samples_ms)) if self.samples_ms else float("nan")

    @property
    def spread(self) -> float:
        """Interquartile range over the median; NaN without samples."""
        if not self.samples_ms:
            return float("nan")
        low, high = np.percentile(self.samples_ms, (25, 75))
        return float(high - low) / self.median_ms

    @property
    def noisy(self) -> bool:
        """Whether the spread is over 10 %."""
        return self.spread > NOISY_SPREAD


@dataclass(frozen=True)
class SelfCheck:
    """Ratio of the times of two copies of one contender, and its 95 % bootstrap interval."""

    ratio: float
    low: float
    high: float


def measure(
    contenders: Sequence[Contender],
    cases: Sequence[Any],
    *,
    threads: int,
    rounds: int = 9,
    seconds_per_round: float = 0.03,
    environment: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> list[list[Timing]]:
    """Time every contender on every case.

    Parameters
    ----------
    contenders
        What to time; names must differ.
    cases
        Picklable inputs, handed to each contender's ``prepare`` in turn.
    threads
        Threads of each contender: ``OMP_NUM_THREADS`` and ``torch.set_num_threads``.
    rounds
        Interleaved rounds, each giving one sample.
    seconds_per_round
        How long one sample should take; the number of calls follows from it.
    environment
        Environment variables for all contenders; a contender's own come on top.
    on_progress
        Called with (steps done, steps in all, what comes next).

    Returns
    -------
    list of list of Timing
        ``[case][contender]``. A contender that cannot be imported, built, prepared or run has a
        ``failure`` there and the others go on.

    Raises
    ------
    ValueError
        For threads, rounds or seconds_per_round that are not positive, or two contenders of one
        name.

    Notes
    -----
    Ctrl-C, or any other end of this process, kills all children.
    """
    _check(contenders, threads, rounds, seconds_per_round)
    step = _counter(steps(len(contenders), len(cases), rounds), on_progress)
    shared = {**(environment or {}), "OMP_NUM_THREADS": str(threads)}
    workers: list[Worker] = []
    try:
        for contender in contenders:  # they import side by side, and are then built one by one
            workers.append(Worker(contender, shared))
        for worker in workers:
            step(f"{worker.contender.name}: build")
            worker.build(threads, seconds_per_round)
        return [_measure_case(workers, i, case, rounds, step) for i, case in enumerate(cases)]
    finally:
        for worker in workers:
            worker.end()


def steps(contenders: int, cases: int, rounds: int) -> int:
    """How many steps ``measure`` reports to ``on_progress``."""
    return contenders * (1 + cases * (1 + rounds))


def check_harness(
    *,
    threads: int = 1,
    rounds: int = 9,
    seconds_per_round: float = 0.03,
    on_progress: Progress | None = None,
) -> SelfCheck:
    """Time one contender against itself (an A/A check).

    The ratio should be near 1; the width of its interval is what the harness can resolve on this
    machine at this moment.

    Raises
    ------
    RuntimeError
        When a copy could not be timed.
    """
    first = Contender("copy 1", _build_self_check)
    copies = measure(
        [first, replace(first, name="copy 2")],
        [256],
        threads=threads,
        rounds=rounds,
        seconds_per_round=seconds_per_round,
        on_progress=on_progress,
    )[0]
    for timing in copies:
        if timing.failure:
            raise RuntimeError(f"check_harness: {timing.name}: {timing.failure}")
    a, b = (np.array(timing.samples_ms) for timing in copies)
    # The two samples of a round were taken side by side, so they are drawn together.
    picks = np.random.default_rng(0).integers(0, rounds, (2000, rounds))
    ratios = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return SelfCheck(float(np.median(a) / np.median(b)), float(low), float(high))


def _build_self_check() -> Prepare:
    def prepare(size: int) -> Run:
        matrix = torch.ones(size, size)
        return lambda: matrix @ matrix

    return prepare


def _check(
    contenders: Sequence[Contender], threads: int, rounds: int, seconds_per_round: float
) -> None:
    for name, value in (
        ("threads", threads),
        ("rounds", rounds),
        ("seconds_per_round", seconds_per_round),
    ):
        if value <= 0:
            raise ValueError(f"measure: {name}: {value} given; a positive number is wanted")
    names = [contender.name for contender in contenders]
    if len(set(names)) != len(names):
        raise ValueError(f"measure: contenders: {names} given; names must differ")


def _counter(total: int, on_progress: Progress | None) -> Callable[[str], None]:
    done = 0

    def step(text: str) -> None:
        nonlocal done
        if on_progress:
            on_progress(done, total, text)
        done += 1

    return step


def _measure_case(
    workers: Sequence[Worker], index: int, case: Any, rounds: int, step: Callable[[str], None]
) -> list[Timing]:
    timings = [Timing(worker.contender.name, index) for worker in workers]
    for worker, timing in zip(workers, timings, strict=True):
        step(f"{timing.name}: prepare")
        timing.output = worker.prepare(case)
        timing.failure = worker.failure
    for number in range(rounds):
        # Every other round runs backwards, so that nobody always follows the same neighbour.
        pairs = list(zip(workers, timings, strict=True))[:: 1 if number % 2 == 0 else -1]
        for worker, timing in pairs:
            step(f"{timing.name}: round {number + 1} of {rounds}")
            if timing.failure is None:
                _time_round(worker, timing)
    return timings


def _time_round(worker: Worker, timing: Timing) -> None:
    seconds = worker.time()
    timing.failure = worker.failure
    if timing.failure is None:
        timing.samples_ms.append(1e3 * seconds)
    else:
        timing.samples_ms.clear()
