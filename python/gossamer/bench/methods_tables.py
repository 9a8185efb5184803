"""What ``gossamer bench quality`` shows: a table for each group of methods; the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gossamer.bench.methods import DENSE, OURS
from gossamer.bench.quality_subjects import QUALITY_SUBJECTS
from gossamer.bench.results import Row

LOWER_IS_BETTER = ("perplexity",)
BASELINES = ("rtn", "magnitude")


@dataclass(frozen=True)
class Table:
    """The methods of one group on one model."""

    title: str
    header: list[str]
    lines: list[list[str]]


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each model and group, in the order of the rows."""
    found = []
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        for group in dict.fromkeys(row["group"] for row in mine):
            lines = [row for row in mine if row["group"] == group]
            found.append(_table(name, group, lines, _dense(mine)))
    return found


def flat_table(
    rows: Sequence[Row], model: str, shown: Sequence[Row] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Header and cells of methods on one model, with their groups: those shown, or all."""
    mine = [row for row in rows if row["model"] == model]
    if not mine:
        raise ValueError(f"flat_table: rows: none of {model}")
    dense, metric = _dense(mine), _metric(mine)
    header = ["group", "method", metric, "of the loss removed", "MB", "s", "s without the model"]
    lines = []
    for row in sorted(mine, key=lambda row: _groups(mine).index(row["group"])):
        if shown is not None and row not in shown:
            continue
        same = [other for other in mine if other["group"] == row["group"]]
        lines.append([row["group"], *_cells(row, same, dense, metric)])
    return header, lines


def front(rows: Sequence[Row], model: str) -> list[Row]:
    """Our rows that no other beats in bytes and quality, from the smallest on."""
    mine = _ours(rows, model)
    metric = _metric(mine)
    sign = 1 if metric in LOWER_IS_BETTER else -1
    best: list[Row] = []
    for row in sorted(mine, key=lambda row: (row["bytes"], sign * row["quality"][metric])):
        if not best or sign * row["quality"][metric] < sign * best[-1]["quality"][metric]:
            best.append(row)
    return best


def plot_front(path: Path, rows: Sequence[Row], model: str) -> None:
    """Draw what is lost against bytes, every method a point, with the Pareto front.

    Raises
    ------
    ValueError
        Where there is no row of the model dense, or none compressed.
    RuntimeError
        matplotlib is not installed.
    """
    from gossamer.reporting.plots import loss_points

    mine = _ours(rows, model)
    dense = _dense(mine)
    if dense is None or mine == [dense]:
        raise ValueError(f"plot_front: rows: none of {model}, or not both dense and compressed")
    metric = _metric(mine)
    sign, what = (1, "increase over") if metric in LOWER_IS_BETTER else (-1, "less than")
    points = {
        f"{row['group']}: {row['method']}": (
            row["bytes"] / 1e6,
            sign * (row["quality"][metric] - dense["quality"][metric]),
        )
        for row in mine
        if row is not dense
    }
    best = [f"{row['group']}: {row['method']}" for row in front(mine, model) if row is not dense]
    loss_points(path, points, best, QUALITY_SUBJECTS[model].title, f"{metric}: {what} dense")


def _table(name: str, group: str, rows: Sequence[Row], dense: Row | None) -> Table:
    metric = _metric(rows)
    header = ["method", metric, "of the loss removed", "MB", "s", "s without the model"]
    title = f"{QUALITY_SUBJECTS[name].title}, {group}"
    return Table(title, header, [_cells(row, rows, dense, metric) for row in rows])


def _cells(row: Row, group: Sequence[Row], dense: Row | None, metric: str) -> list[str]:
    name = row["method"] if row["tool"] == OURS else f"{row['method']} ({row['tool']})"
    if row["failure"]:
        return [name, row["failure"], "", "", "", ""]
    value, seconds = row["quality"][metric], row["seconds"]
    # Others hold rounded weights in full size: what they would store is what ours does.
    ours = [other["bytes"] for other in group if other["tool"] == OURS and not other["failure"]]
    size = row["bytes"] if row["tool"] == OURS else (ours[0] if ours else None)
    # Others make one pass to see what layers are given, and one to see what the new block makes of
    # it; all of it in float32.
    passes = row.get("model_seconds") or 0.0
    data_free = row["method"] in (*BASELINES, "hqq", DENSE)
    unknown = row["tool"] == OURS and row.get("model_seconds") is None and not data_free
    if row["tool"] != OURS and dense and not data_free:
        passes = 2 * dense["seconds"]
    return [
        name,
        f"{value:.2f}" if value >= 10 else f"{value:.4f}",
        _removed(value, group, dense, metric),
        "-" if size is None else f"{size / 1e6:.1f}",
        f"{seconds:.0f}",
        "-" if unknown else f"{max(0.0, seconds - passes):.0f}",
    ]


def _removed(value: float, group: Sequence[Row], dense: Row | None, metric: str) -> str:
    """How much of what our baseline of a group loses is not lost."""
    ours = [row for row in group if row["tool"] == OURS and not row["failure"]]
    base = next((row for row in ours if row["method"] in BASELINES), None)
    if dense is None or base is None:
        return "-"
    best, worst = dense["quality"][metric], base["quality"][metric]
    return "-" if worst == best else f"{(worst - value) / (worst - best) + 0.0:.0%}"


def _ours(rows: Sequence[Row], model: str) -> list[Row]:
    found = [row for row in rows if row["model"] == model and row["failure"] is None]
    return [row for row in found if row["tool"] == OURS]


def _dense(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row["method"] == DENSE and not row["failure"]), None)


def _groups(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["group"] for row in rows))


def _metric(rows: Sequence[Row]) -> str:
    """The first figure that a row has."""
    return next((next(iter(row["quality"])) for row in rows if not row["failure"]), "quality")
