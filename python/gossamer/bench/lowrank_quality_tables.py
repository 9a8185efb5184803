"""What ``gossamer bench quality-lowrank`` shows: one table, and how often calibration won."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.bench.lowrank_quality import AWARE, DATA_FREE
from gossamer.bench.results import Row

TITLES = {"smollm2": "SmolLM2", "minilm": "MiniLM"}
METRICS = {"smollm2": ("perplexity",), "minilm": ("similarity", "SimLex999", "Lee")}
LOWER_IS_BETTER = ("perplexity",)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: a line for each form, for each model its bytes and metrics.

    A cell of a form that is fitted holds two figures: data-free / activation-aware.

    Raises
    ------
    ValueError
        When there are no rows.
    """
    if not rows:
        raise ValueError("table: rows: there are none")
    subjects = [name for name in TITLES if any(row["model"] == name for row in rows)]
    header = [""]
    for name in subjects:
        header += [f"{TITLES[name]}, MB", *METRICS[name]]
    lines = []
    for form in dict.fromkeys(row["form"] for row in rows):
        line = [form]
        for name in subjects:
            mine = [row for row in rows if (row["form"], row["model"]) == (form, name)]
            line += [_megabytes(mine), *(_metric(mine, metric) for metric in METRICS[name])]
        lines.append(line)
    return header, lines


def below(rows: Sequence[Row]) -> str:
    """What was judged by, what failed, and how often calibration helped."""
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        lines += _settings_line(name, mine)
        lines += [_wins_line(name, metric, mine) for metric in METRICS[name]]
    lines += [
        f"{row['model']}: {row['form']} {row['method']}: {row['failure']}"
        for row in rows
        if row["failure"]
    ]
    return "\n".join(line for line in lines if line)


def _settings_line(name: str, rows: Sequence[Row]) -> list[str]:
    windows = sorted({row["windows"] for row in rows})
    calibration = sorted({row["calibration"] for row in rows if row["calibration"]})
    judged = f"perplexity on {windows} x 512 tokens, " if name == "smollm2" else ""
    return [f"{TITLES[name]}: {judged}calibrated with {calibration} x 512 tokens"]


def _wins_line(name: str, metric: str, rows: Sequence[Row]) -> str:
    pairs = []
    for form in dict.fromkeys(row["form"] for row in rows):
        found = _values([row for row in rows if row["form"] == form], metric)
        if DATA_FREE in found and AWARE in found:
            pairs.append((found[DATA_FREE], found[AWARE]))
    if not pairs:
        return ""
    better = sum(
        aware < free if metric in LOWER_IS_BETTER else aware > free for free, aware in pairs
    )
    return f"{TITLES[name]}, {metric}: activation-aware is better in {better} of {len(pairs)}"


def _values(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """By method."""
    ran = [row for row in rows if row["failure"] is None and metric in row["quality"]]
    return {row["method"]: row["quality"][metric] for row in ran}


def _metric(rows: Sequence[Row], metric: str) -> str:
    """Such as "31.31", or "28.10 / 26.90" where there are two ways."""
    found = _values(rows, metric)
    if not rows or rows[0]["method"] == "":
        return _figure(found.get(""), metric)
    return " / ".join(_figure(found.get(method), metric) for method in (DATA_FREE, AWARE))


def _figure(value: float | None, metric: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if metric in LOWER_IS_BETTER else f"{value:.4f}"


def _megabytes(rows: Sequence[Row]) -> str:
    sizes = dict.fromkeys(f"{row['bytes'] / 1e6:.1f}" for row in rows if row["failure"] is None)
    return " / ".join(sizes) or "-"
