"""DeepSparse 1.8, which needs an environment of its own: numpy < 2 and Python < 3.12.

An interpreter of that environment runs ``deepsparse_engine.py``, and both are spoken to here.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gossamer.bench.peers.peer import Array

Kind = Literal["fp32", "int8"]

ENGINE = Path(__file__).with_name("deepsparse_engine.py")
# A call of the contender crosses a pipe, so it is as many calls of the engine as do this much,
# within reason: what a call costs by itself binds those of small layers.
PRODUCTS_A_CALL = 1 << 30
MOST_CALLS = 1000


def calls_of_engine(M: int, N: int, K: int) -> int:
    """How many calls of the engine one call of the contender is.

    Examples
    --------
    >>> calls_of_engine(1, 4096, 4096), calls_of_engine(256, 4096, 4096)
    (64, 1)
    """
    return min(MOST_CALLS, max(1, PRODUCTS_A_CALL // (M * N * K)))


@functools.lru_cache
def version(python: str) -> str | None:
    """Version of DeepSparse in the environment of the interpreter ``python``; None without it."""
    code = "from importlib.metadata import version; print(version('deepsparse'))"
    try:
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


class Engine:
    """A process that multiplies x (M, K) by one weight (N, K), stopped while it is not asked."""

    def __init__(self, python: str, kind: Kind, weight: Array, x: Array) -> None:
        self._calls = calls_of_engine(len(x), *weight.shape)
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder, "given.npz"), Path(folder, "out.npy")
            np.savez(given, weight=weight, x=x)
            cores = str(torch.get_num_threads())
            self._process = subprocess.Popen(
                [python, "-I", ENGINE, kind, given, out, cores, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "NM_DISABLE_ANALYTICS": "1"},  # no message to the vendor
            )
            self._await()
            self._output: Array = np.load(out)

    def run(self) -> Array:
        """Multiply ``calls_of_engine`` times; returns the product (M, N)."""
        self._process.send_signal(signal.SIGCONT)
        if self._process.stdin is not None:
            self._process.stdin.write(b"%d\n" % self._calls)
            self._process.stdin.flush()
        self._await()
        return self._output

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()

    def _await(self) -> None:
        stream = self._process.stdout
        if stream is None or stream.readline() != b"done\n":
            raise RuntimeError(f"the engine ended: exit code {self._process.wait()}")
        self._process.send_signal(signal.SIGSTOP)
