"""Contenders for ``test_bench_harness.py``: the harness looks them up by name in its processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def scaled(factor: float) -> Any:
    return lambda case: lambda: torch.full((2,), factor * case, dtype=torch.bfloat16)


def silent() -> Any:
    return lambda case: lambda: None


def broken() -> Any:
    raise ValueError("cannot be built")


def picky() -> Any:
    def prepare(case: int) -> Any:
        if case == 0:
            raise ValueError("zero is not for me")
        return lambda: np.ones(1)

    return prepare


def dying() -> Any:
    def prepare(case: int) -> Any:
        if case == 1:
            os.kill(os.getpid(), signal.SIGILL)
        return lambda: None

    return prepare


def tiring() -> Any:
    def prepare(case: int) -> Any:
        calls = iter(range(5))

        def run() -> None:
            time.sleep(0.01)
            next(calls)

        return run

    return prepare


def settings() -> Any:
    found = [torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"])]
    found += [int(os.environ.get(name, -1)) for name in ("ALL", "OWN", "LEFT")]
    return lambda case: lambda: np.array(found, np.float32)


def sleeper(folder: Path) -> Any:
    (folder / "pid").write_text(str(os.getpid()))
    return lambda case: lambda: None


def watcher(folder: Path) -> Any:
    status = Path("/proc", (folder / "pid").read_text(), "status")

    def stopped() -> Any:
        return np.array([float("\nState:\tT" in status.read_text())])

    return lambda case: stopped


def text() -> Any:
    return lambda case: lambda: "text"


def rounded() -> Any:
    values = torch.quantize_per_tensor(torch.tensor([0.5, 1.1]), 0.5, 0, torch.quint8)
    return lambda case: lambda: values
