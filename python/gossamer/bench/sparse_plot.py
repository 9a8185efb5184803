"""The break-even curves of sparse formats: from which sparsity on they beat the dense layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gossamer.bench.results import Row
from gossamer.bench.sparse_tables import break_even, break_even_curves


def plot_break_even(path: Path, rows: Sequence[Row]) -> None:
    """Draw the speed-up over the dense twin against sparsity: a panel a format, a line for each M.

    Raises
    ------
    ValueError
        When no row of a sparse format has a figure.
    RuntimeError
        matplotlib is not installed.
    """
    from gossamer.reporting.plots import speedup_lines

    curves = break_even_curves(rows)
    if not curves:
        raise ValueError("plot_break_even: rows: none of a sparse format has a figure")
    panels = {}
    for name, lines in curves.items():
        panels[name] = {
            _line_name(M, break_even(curve)): [(100 * sparsity, y) for sparsity, y in curve]
            for M, curve in lines.items()
        }
    speedup_lines(path, panels, "zeros, %", "the dense layer")


def _line_name(M: int, crossing: float | None) -> str:
    return f"M={M}: " + ("never even" if crossing is None else f"even at {crossing:.0%}")
