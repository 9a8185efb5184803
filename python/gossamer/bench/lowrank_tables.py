"""What ``gossamer bench lowrank`` shows: a table for each layer, one for fits, and the goals."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.bench.lowrank import CORRECTION
from gossamer.bench.lowrank_cases import FitCase, LayerCase, LowRankGoal
from gossamer.bench.results import Row
from gossamer.bench.sparse_tables import Table
from gossamer.bench.svd_tables import by_case


def tables(rows: Sequence[Row]) -> list[Table]:
    """One for each case: ms (speed-up over the first line), or seconds of all layers."""
    return [
        _fit_table(name, mine) if mine[0]["kind"] == "lowrank-fit" else _layer_table(name, mine)
        for name, mine in by_case(rows).items()
    ]


def goal_lines(case: LayerCase | FitCase, rows: Sequence[Row]) -> list[str]:
    """Lines that say which goals of a case are met, at the M where it is closest to missing."""
    mine = [row for row in rows if row["case"] == case.name and row["failure"] is None]
    if isinstance(case, LayerCase):
        lines = [_goal_line(case, goal, mine) for goal in case.goals]
        return [line for line in lines if line]
    return [
        f"{'met   ' if row['seconds'] <= case.seconds else 'missed'} {case.name}: "
        f"{row['seconds']:.1f} s, wanted at most {case.seconds:g} s"
        for row in mine
        if row["contender"] == CORRECTION
    ]


def _goal_line(case: LayerCase, goal: LowRankGoal, rows: Sequence[Row]) -> str:
    times = {(row["contender"], row["M"]): row["ms"] for row in rows}
    share = case.parameter_ratio if goal.parameters else 1.0
    reached = {
        M: times[goal.over, M] * share / times[goal.contender, M]
        for M in goal.M or case.M
        if (goal.contender, M) in times and (goal.over, M) in times
    }
    if not reached:
        return ""
    worst = min(reached, key=lambda M: reached[M])
    word = "met   " if reached[worst] >= goal.at_least else "missed"
    times_share = f" x {share:.3g} (the parameters)" if goal.parameters else ""
    return (
        f"{word} {case.name}: {goal.contender} over {goal.over}{times_share}: "
        f"{reached[worst]:.2f}x at M={worst}, wanted {goal.at_least:.2f}x"
    )


def _layer_table(name: str, rows: Sequence[Row]) -> Table:
    first = rows[0]
    zeros = f", {first['sparsity']:.0%} zeros" if first["sparsity"] else ""
    shape = f"N={first['N']} K={first['K']} rank {first['rank']}"
    title = f"{name}: {shape}, {first['dtype']} in and out{zeros}"
    columns = list(dict.fromkeys(row["M"] for row in rows))
    lines: list[list[str]] = []
    absent: dict[str, None] = {}
    for contender in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == contender]
        ran = {row["M"]: row for row in mine if row["failure"] is None}
        if not ran:
            absent[f"{contender}: {mine[0]['failure']}"] = None
            continue
        one = next(iter(ran.values()))
        cells = [_cell(ran.get(M)) for M in columns]
        error = f"{max(row['error'] for row in ran.values()):.2e}"
        lines.append([contender, *cells, f"{one['bytes'] / 1e6:.2f}", error])
    header = ["", *(f"M={M}" for M in columns), "MB", "error"]
    return Table(title, header, lines, "\n".join(absent))


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    noisy = ", noisy" if row["noisy"] else ""
    return f"{row['ms']:.3g} (x{row['speedup']:.2f}{noisy})"


def _fit_table(name: str, rows: Sequence[Row]) -> Table:
    first = rows[0]
    title = f"{name}: N={first['N']} K={first['K']}, {first['layers']} layers"
    lines = [
        [
            row["contender"],
            f"{row['seconds']:.2f}",
            "-" if row["error"] is None else f"{row['error']:.4f}",
        ]
        for row in rows
    ]
    return Table(title, ["", "seconds", "error of the weight"], lines, "")
