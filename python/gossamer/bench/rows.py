"""What every benchmark of a layer notes of a contender: time, spread, speed-up, error."""

from __future__ import annotations

import numpy as np
import torch

from gossamer.bench.harness import Progress, Timing
from gossamer.bench.peers.peer import Array
from gossamer.bench.results import Row


def figures(timing: Timing, baseline: Timing) -> Row:
    """ms, spread, noisy, speedup over ``baseline`` and samples_ms of a contender that ran."""
    return {
        "ms": timing.median_ms,
        "spread": timing.spread,
        "noisy": timing.noisy,
        "speedup": baseline.median_ms / timing.median_ms,
        "samples_ms": timing.samples_ms,
    }


def relative_error(output: Array, exact: torch.Tensor) -> float:
    """Frobenius norm of the error over that of the exact product.

    Raises
    ------
    ValueError
        When the shapes differ.
    """
    if output.shape != tuple(exact.shape):
        wanted = tuple(exact.shape)
        raise ValueError(f"relative_error: output: shape {output.shape}, wanted {wanted}")
    return float((torch.from_numpy(np.asarray(output)).double() - exact).norm() / exact.norm())


def offset(on_progress: Progress | None, before: int, total: int) -> Progress | None:
    """``on_progress`` for one part of a benchmark, ``before`` steps of ``total`` having gone."""
    if on_progress is None:
        return None
    return lambda done, _, text: on_progress(before + done, total, text)
