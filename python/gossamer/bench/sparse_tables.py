"""What ``gossamer bench sparse`` shows: a table for each layer and M, and the goals of a case."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gossamer.bench.results import Results, Row
from gossamer.bench.sparse_cases import Case, Goal


@dataclass(frozen=True)
class Table:
    """M and contenders down, sparsities across; below it, why contenders are missing."""

    title: str
    header: list[str]
    lines: list[list[str]]
    below: str


def tables(rows: Sequence[Row]) -> list[Table]:
    """One for each case and layer.

    Cells are ms (speed-up over the dense layer of the same value type, share of the reading roof).
    """
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["N"], row["K"]), []).append(row)
    return [_table(mine) for mine in groups.values()]


def _table(rows: Sequence[Row]) -> Table:
    first = rows[0]
    cold = f", going round {first['cold_gib']:g} GiB" if first["cold_gib"] else ""
    held = f", held to {first['isa']}" if first["isa"] else ""
    title = f"{first['case']}, N={first['N']} K={first['K']}{cold}{held}"
    columns = list(dict.fromkeys((row["mask"], row["sparsity"]) for row in rows))
    lines: list[list[str]] = []
    absent: dict[str, None] = {}
    for M, contender in dict.fromkeys((row["M"], row["contender"]) for row in rows):
        mine = [row for row in rows if (row["M"], row["contender"]) == (M, contender)]
        ran = [row for row in mine if row["failure"] is None]
        if not ran:
            absent[f"{contender}: {mine[0]['failure']}"] = None
            continue
        found = {(row["mask"], row["sparsity"]): row for row in ran}
        error = max(row["error"] for row in ran)
        cells = [_cell(found.get(column)) for column in columns]
        lines.append([f"M={M} {contender}", *cells, f"{error:.1e}"])
    header = ["", *(_column(mask, sparsity) for mask, sparsity in columns), "error"]
    return Table(title, header, lines, "\n".join(absent))


def _column(mask: str, sparsity: float) -> str:
    share = f"{100 * sparsity:.3g} %"
    return share if mask == "uniform" else f"{mask} {share}"


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    notes = [f"x{row['speedup']:.2f}"] if is_number(row["speedup"]) else []
    if is_number(row.get("roof_share")):
        notes.append(f"{row['roof_share']:.0%}")
    notes += ["noisy"] if row["noisy"] else []
    return f"{row['ms']:.3g} ({', '.join(notes)})"


def is_number(value: object) -> bool:
    """Whether a figure is there: NaN becomes None in a file."""
    return isinstance(value, int | float) and not math.isnan(value)


@dataclass(frozen=True)
class Verdict:
    """The lowest speed-up that a goal meets at one sparsity, and where."""

    goal: str
    sparsity: float
    wanted: float
    reached: float
    where: str
    met: bool


def judge(case: Case, measured: Results) -> list[Verdict]:
    """How far the goals of ``case`` are met; those that nothing was measured for are left out."""
    mine = [row for row in measured.rows if row["case"] == case.name]
    isas = measured.environment["isas_available"]
    goals = [goal for goal in case.goals if not goal.with_isa or goal.with_isa in isas]
    return [verdict for goal in goals for verdict in _judge(goal, mine)]


def _judge(goal: Goal, rows: Sequence[Row]) -> list[Verdict]:
    ran = {_place(row, row["mask"]): row for row in rows if row["failure"] is None}
    found: dict[float, list[tuple[float, Row]]] = {}
    for row in ran.values():
        if row["contender"] != goal.contender or (goal.M and row["M"] not in goal.M):
            continue
        mask = goal.over_mask or row["mask"]
        other = ran.get(_place({**row, "contender": goal.over or goal.contender}, mask))
        if other is not None and other is not row:
            found.setdefault(row["sparsity"], []).append((other["ms"] / row["ms"], row))
    verdicts = []
    for sparsity, pairs in found.items():
        wanted = _wanted(goal, sparsity)
        if wanted is not None:
            reached, row = min(pairs, key=lambda pair: pair[0])
            verdicts.append(_verdict(goal, wanted, reached, row))
    return verdicts


def _place(row: Mapping[str, object], mask: str) -> tuple[object, ...]:
    return (row["N"], row["K"], row["M"], mask, row["sparsity"], row["contender"])


def _wanted(goal: Goal, sparsity: float) -> float | None:
    if not isinstance(goal.at_least, Mapping):
        return float(goal.at_least)
    return next((v for s, v in goal.at_least.items() if math.isclose(float(s), sparsity)), None)


def _verdict(goal: Goal, wanted: float, reached: float, row: Row) -> Verdict:
    share = row["roof_share"] if is_number(row.get("roof_share")) else None
    near_roof = goal.roof is not None and share is not None and share >= goal.roof
    other = goal.over or f"itself, {goal.over_mask}"
    where = f"{row['N']}x{row['K']} M={row['M']} {row['mask']}"
    where += f", {share:.0%} of the roof" if share is not None else ""
    where += ", noisy" if row["noisy"] else ""
    return Verdict(
        f"{goal.contender} over {other}",
        row["sparsity"],
        wanted,
        reached,
        where,
        reached >= wanted or near_roof,
    )


def goal_line(verdict: Verdict) -> str:
    """One line that says whether a goal is met."""
    word = "met   " if verdict.met else "missed"
    share = f"{100 * verdict.sparsity:.3g} %"
    figures = f"{verdict.reached:.2f}x, wanted {verdict.wanted:.2f}x"
    return f"{word} {verdict.goal} at {share}: {figures} ({verdict.where})"


Curve = list[tuple[float, float]]


def break_even_curves(rows: Sequence[Row]) -> dict[str, dict[int, Curve]]:
    """Format -> M -> (sparsity, speed-up over its twin), of uniform masks and warm layers.

    Cases held to an instruction set are left out; of several shapes the largest is taken.
    """
    curves: dict[str, dict[int, dict[float, tuple[int, float]]]] = {}
    for row in rows:
        usual = row["mask"] == "uniform" and not row["cold_gib"] and not row["isa"]
        if not usual or row["failure"] is not None or row["contender"] == row["twin"]:
            continue
        if not row["contender"].startswith("sparse-") or not is_number(row["speedup"]):
            continue
        places = curves.setdefault(row["contender"], {}).setdefault(row["M"], {})
        size = row["N"] * row["K"]
        if size > places.get(row["sparsity"], (0, 0.0))[0]:
            places[row["sparsity"]] = (size, row["speedup"])
    return {
        name: {M: sorted((s, y) for s, (_, y) in at.items()) for M, at in sorted(lines.items())}
        for name, lines in curves.items()
    }


def break_even(curve: Curve) -> float | None:
    """The sparsity from which on the speed-up stays at 1 or more, between points by a line.

    None where the last point lies below 1.

    Examples
    --------
    >>> break_even([(0.5, 0.8), (0.7, 1.2), (0.9, 2.0)])
    0.6
    """
    if not curve or curve[-1][1] < 1:
        return None
    crossing = curve[0][0]
    for (before, low), (after, high) in itertools.pairwise(curve):
        if low < 1 <= high:
            crossing = before + (after - before) * (1 - low) / (high - low)
    return round(crossing, 4)
