"""One contender's process: ``Worker`` is the parent's hold on it, ``_serve`` what runs inside.

The process runs only while it is asked something and is stopped (SIGSTOP) otherwise.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from gossamer.bench.harness import Contender

ANSWER_LIMIT_SECONDS = 900.0
GOODBYE_LIMIT_SECONDS = 5.0

Run = Callable[[], Any]
Prepare = Callable[[Any], Run]
Array = npt.NDArray[np.float32]


class Worker:
    """A process that waits, stopped, to be asked; ``failure`` tells why it gave no answer."""

    def __init__(self, contender: Contender, environment: Mapping[str, str]) -> None:
        self.contender = contender
        self.failure: str | None = None
        self._broken = False
        context = multiprocessing.get_context("spawn")
        self._connection, child_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_end, os.getpid()), daemon=True)
        with _birth({**environment, **contender.environment}):
            self._process.start()
        child_end.close()

    def build(self, threads: int, seconds_per_round: float) -> None:
        """Build the contender; when that fails, the worker stays failed."""
        self._ask("build", self.contender, threads, seconds_per_round)
        if self.failure:
            self._give_up(self.failure)

    def prepare(self, case: Any) -> Array | None:
        """Prepare ``case``, run it once and calibrate the calls of a round; returns its output."""
        output: Array | None = self._ask("prepare", case)
        return output

    def time(self) -> float:
        """Seconds of one call, over one round."""
        seconds: float = self._ask("time")
        return seconds

    def end(self) -> None:
        """Let an idle process leave by itself, which frees its semaphores; kill a busy one."""
        self._connection.close()
        self._signal(signal.SIGCONT)
        self._process.join(0 if self._broken else GOODBYE_LIMIT_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.join()

    def _ask(self, *message: Any) -> Any:
        if self._broken:
            return None
        self.failure = None
        self._signal(signal.SIGCONT)
        try:
            self._connection.send(message)
            if not wait([self._connection, self._process.sentinel], ANSWER_LIMIT_SECONDS):
                self._give_up(f"no answer within {ANSWER_LIMIT_SECONDS:.0f} s")
                return None
            answer, self.failure = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            self._give_up(f"its process ended: {_exit_reason(self._process.exitcode)}")
            return None
        self._stop()
        return answer

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        self._broken = True
        self._signal(signal.SIGKILL)

    def _stop(self) -> None:
        self._signal(signal.SIGSTOP)
        # WNOWAIT looks at the state without collecting it: that is multiprocessing's to do.
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self._pid, number)

    @property
    def _pid(self) -> int:
        if self._process.pid is None:
            raise RuntimeError(f"{self.contender.name}: its process was never started")
        return self._process.pid


def _exit_reason(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


@contextmanager
def _birth(variables: Mapping[str, str]) -> Iterator[None]:
    """Give a child what it must be born with: environment variables, and Ctrl-C blocked.

    libgomp and MKL read their variables while being loaded, and a Ctrl-C at the terminal reaches
    the child too, also while it imports.
    """
    resource_tracker.ensure_running()  # its first start would unblock Ctrl-C again
    saved = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(connection: Connection, parent: int) -> None:
    """Be the child: do as told and answer (answer, None) or (None, reason)."""
    _die_with(parent)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    stage = _Stage()
    actions: Mapping[str, Callable[..., Any]] = {
        "build": stage.build,
        "prepare": stage.prepare,
        "time": stage.time,
    }
    while True:
        try:
            action, *arguments = connection.recv()
            answer = actions[action](*arguments)
        except EOFError:
            return
        except Exception as error:
            connection.send((None, _one_line(error)))
        else:
            connection.send((answer, None))


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent goes: a stopped child would outlive it."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class _Stage:
    """The child's state: the contender as built, then as prepared for the current case."""

    def build(self, contender: Contender, threads: int, seconds_per_round: float) -> None:
        torch.set_num_threads(threads)
        self._seconds_per_round = seconds_per_round
        self._prepare = contender.build(**contender.arguments)

    def prepare(self, case: Any) -> Array | None:
        self._run: Run | None = None  # frees the last case before the next one takes memory
        with torch.inference_mode():
            run = self._prepare(case)
            output = _as_float32(run())
            self._calls = _calls_per_round(run, self._seconds_per_round)
        self._run = run
        return output

    def time(self) -> float:
        if self._run is None:
            raise RuntimeError("time: nothing is prepared")
        with torch.inference_mode():
            # Others ran since: caches and thread pool come back before the clock starts.
            _seconds_of(self._run, max(1, self._calls // 10))
            return _seconds_of(self._run, self._calls) / self._calls


def _calls_per_round(run: Run, seconds_per_round: float) -> int:
    """Count the calls that fill a round, by a warm-up that grows until it can be timed."""
    calls = 1
    while (seconds := _seconds_of(run, calls)) < seconds_per_round / 4:
        calls *= 2
    return max(1, round(calls * seconds_per_round / seconds))


def _seconds_of(run: Run, calls: int) -> float:
    gc.disable()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    seconds = time.perf_counter() - start
    gc.enable()
    return seconds


def _as_float32(output: Any) -> Array | None:
    if output is None:
        return None
    if isinstance(output, torch.Tensor):
        output = output.dequantize() if output.is_quantized else output
        output = output.float().numpy(force=True)
    if not isinstance(output, np.ndarray):
        wanted = "a tensor, a numpy array or None is wanted"
        raise TypeError(f"run: returned {type(output).__name__}; {wanted}")
    return np.array(output, dtype=np.float32)
