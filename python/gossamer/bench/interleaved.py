"""Timing of several calls in one process and one team of threads, their rounds interleaved.

For calls that share what they work on, or differ by a few percent: the other harness gives each
contender a process of its own, with its own placement in memory.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gossamer.bench.harness import Progress, Timing

SLOW_SECONDS = 1.0
SLOW_ROUNDS = 3
ONCE_SECONDS = 5.0  # the first call of what takes longer is its only sample

Run = Callable[[], Any]
Step = Callable[[str], None]  # told what comes next


@dataclass(frozen=True)
class Settings:
    """How a run measures: threads of everyone, and rounds as in ``time_interleaved``."""

    threads: int
    rounds: int = 9


@dataclass
class _Plan:
    """A call, how often it is made in a round, and in how many rounds."""

    run: Run
    timing: Timing
    calls: int = 1
    rounds: int = 0


def time_interleaved(
    runs: Mapping[str, Run],
    *,
    rounds: int,
    seconds_per_round: float = 0.03,
    look: Callable[[str, Any], None] | None = None,
    on_step: Step | None = None,
) -> dict[str, Timing]:
    """Time ``runs`` side by side.

    Parameters
    ----------
    runs
        Name -> the call to time.
    rounds
        Samples of each; a call over a second gets three, one over five seconds gets one.
    seconds_per_round
        How long a sample should take; the number of calls in it follows.
    look
        Called once with each name and what the call returned, outside the clock.
    on_step
        Called ``len(runs) * (1 + rounds)`` times, with what comes next.

    Returns
    -------
    dict of str to Timing
        In the order of ``runs``; a call that raised has a ``failure``.

    Raises
    ------
    ValueError
        For ``rounds`` or ``seconds_per_round`` that are not positive.
    """
    if rounds < 1 or seconds_per_round <= 0:
        given = f"rounds={rounds}, seconds_per_round={seconds_per_round}"
        raise ValueError(f"time_interleaved: {given}: positive numbers are wanted")
    step = on_step or (lambda text: None)
    plans = []
    for name, run in runs.items():
        step(f"{name}: first call")
        plans.append(_first_call(name, run, rounds, seconds_per_round, look))
    for number in range(rounds):
        # Every other round runs backwards, so that nobody always follows the same neighbour.
        for plan in plans[:: 1 if number % 2 == 0 else -1]:
            step(f"{plan.timing.name}: round {number + 1} of {rounds}")
            if number < plan.rounds:
                _seconds_of(plan.run, plan.calls // 10)  # brings its data back into the caches
                plan.timing.samples_ms.append(1e3 * _seconds_of(plan.run, plan.calls) / plan.calls)
    return {plan.timing.name: plan.timing for plan in plans}


def counted_steps(total: int, on_progress: Progress | None) -> Step:
    """Tell ``on_progress`` of every step, as one more of ``total``."""
    done = 0

    def step(text: str) -> None:
        nonlocal done
        if on_progress:
            on_progress(done, total, text)
        done += 1

    return step


def _first_call(
    name: str,
    run: Run,
    rounds: int,
    seconds_per_round: float,
    look: Callable[[str, Any], None] | None,
) -> _Plan:
    plan = _Plan(run, Timing(name, 0))
    try:
        start = time.perf_counter()
        output = run()
        seconds = time.perf_counter() - start
        if look:
            look(name, output)
    except Exception as error:  # a row that says so, whatever a peer raises
        plan.timing.failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return plan
    if seconds > ONCE_SECONDS:
        plan.timing.samples_ms.append(1e3 * seconds)
    elif seconds > SLOW_SECONDS:
        plan.rounds = min(rounds, SLOW_ROUNDS)
    else:
        plan.rounds, plan.calls = rounds, _calls_of_a_round(run, seconds_per_round)
    return plan


def _calls_of_a_round(run: Run, seconds_per_round: float) -> int:
    calls = 1
    while (seconds := _seconds_of(run, calls)) < seconds_per_round / 4:
        calls *= 2
    return max(1, round(calls * seconds_per_round / seconds))


def _seconds_of(run: Run, calls: int) -> float:
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - start
    finally:
        gc.enable()
