"""Plots as PNG files. Every axis of values starts at zero and every bar carries its value."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Panel", "loss_points", "metric_panels", "speedup_bars", "speedup_lines"]

# Okabe and Ito's colours, which colour-blind readers can tell apart; grey is for references.
COLOURS = ("#999999", "#56B4E9", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#F0E442")
DOTS_PER_INCH = 150
PANELS_IN_A_ROW = 3
LINE_PANELS_IN_A_ROW = 2
HEADROOM = 1.15  # over the longest bar, for its label


@dataclass(frozen=True)
class Panel:
    """One quantity of several models.

    Parameters
    ----------
    title : str
        What it is, with its unit, and which way is better.
    values : sequence of float or None
        One for each model; None is drawn as "not measured".
    digits : int
        Decimals of the labels.
    """

    title: str
    values: Sequence[float | None]
    digits: int = 1


def speedup_bars(
    path: Path,
    cases: Sequence[str],
    speedups: Mapping[str, Sequence[float | None]],
    baseline: str,
    meaning: str = "",
) -> None:
    """Draw grouped bars: how many times faster than the baseline, by case.

    Parameters
    ----------
    path : Path
        PNG file to write.
    cases : sequence of str
        The groups, left to right.
    speedups : mapping of str to sequence of float or None
        Name -> one value for each case.
    baseline : str
        What 1 stands for.
    meaning : str
        What the names of the cases mean, and in which unit.

    Raises
    ------
    ValueError
        A series has not one value for each case.
    RuntimeError
        matplotlib is not installed.
    """
    for name, values in speedups.items():
        _check_length("speedup_bars", name, values, len(cases))
    figure = _new_figure(width=3.2 + 0.75 * len(cases) * len(speedups), height=4.5)
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(speedups))
    for i, (name, values) in enumerate(speedups.items()):
        places = [group + (i - (len(speedups) - 1) / 2) * width for group in range(len(cases))]
        colour = _colour(i + 1)  # as in metric_panels, where the baseline comes first
        bars = axes.bar(places, [v or 0.0 for v in values], 0.9 * width, label=name, color=colour)
        labels = ["n/a" if v is None else f"{v:.2f}x" for v in values]
        axes.bar_label(bars, labels, padding=2, fontsize=9)
    highest = max([1.0, *(v for values in speedups.values() for v in values if v is not None)])
    axes.set_ylim(0, HEADROOM * highest)
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label=f"{baseline} = 1")
    axes.set_xticks(range(len(cases)), cases)
    axes.set_xlabel(meaning)
    axes.set_ylabel(f"speed-up over {baseline}\n(times, higher is better)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    _save(figure, path)


def metric_panels(path: Path, names: Sequence[str], panels: Sequence[Panel]) -> None:
    """Draw one panel of horizontal bars for each quantity, at most three in a row.

    Parameters
    ----------
    path : Path
        PNG file to write.
    names : sequence of str
        The models, top to bottom.
    panels : sequence of Panel
        The quantities, left to right, then down.

    Raises
    ------
    ValueError
        A panel has not one value for each model, or there is no panel.
    RuntimeError
        matplotlib is not installed.
    """
    if not panels:
        raise ValueError("metric_panels: panels: there are none, wanted at least one")
    for panel in panels:
        _check_length("metric_panels", panel.title, panel.values, len(names))
    rows = math.ceil(len(panels) / PANELS_IN_A_ROW)
    columns = math.ceil(len(panels) / rows)
    figure = _new_figure(1.8 + 2.9 * columns, (1.2 + 0.4 * len(names)) * rows)
    figure.get_layout_engine().set(h_pad=0.12)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        lengths = [value or 0.0 for value in panel.values]
        colours = [_colour(i) for i in range(len(names))]
        bars = axes.barh(range(len(names)), lengths, 0.7, color=colours)
        labels = ["n/a" if v is None else f"{v:.{panel.digits}f}" for v in panel.values]
        axes.bar_label(bars, labels, padding=3, fontsize=9)
        axes.set_xlim(0, 1.28 * max(lengths, default=1.0) or 1.0)
        axes.set_title(panel.title, fontsize=10)
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(len(names)), names if place % columns == 0 else [""] * len(names))
        axes.invert_yaxis()
    _save(figure, path)


def speedup_lines(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    across: str,
    baseline: str,
) -> None:
    """Draw one panel of lines for each quantity: speed-up against what ``across`` names.

    Parameters
    ----------
    path : Path
        PNG file to write.
    panels : mapping of str to mapping of str to sequence of (float, float)
        Title -> name of a line -> its points (place, speed-up), left to right.
    across : str
        What the places are, with their unit.
    baseline : str
        What 1 stands for.

    Raises
    ------
    ValueError
        There is no panel.
    RuntimeError
        matplotlib is not installed.
    """
    if not panels:
        raise ValueError("speedup_lines: panels: there are none, wanted at least one")
    rows = math.ceil(len(panels) / LINE_PANELS_IN_A_ROW)
    columns = math.ceil(len(panels) / rows)
    figure = _new_figure(1.0 + 4.2 * columns, 3.6 * rows)
    for place, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        for i, (name, points) in enumerate(lines.items()):
            places, speedups = [x for x, _ in points], [y for _, y in points]
            axes.plot(places, speedups, marker="o", label=name, color=_colour(i + 1))
        highest = max([1.0, *(y for points in lines.values() for _, y in points)])
        axes.set_ylim(0, HEADROOM * highest)
        axes.axhline(1, color="black", linewidth=1, linestyle="--")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(across)
        axes.set_ylabel(f"speed-up over {baseline}")
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def loss_points(
    path: Path,
    points: Mapping[str, tuple[float, float]],
    front: Sequence[str],
    title: str,
    loss: str,
) -> None:
    """Draw what is lost against size: a numbered point for each way, a line through the best.

    Parameters
    ----------
    path : Path
        PNG file to write.
    points : mapping of str to (float, float)
        Name -> megabytes, loss; both axes are logarithmic, losses from the smallest above 0 on.
    front : sequence of str
        The names of those that no other beats, from the smallest on.
    title, loss : str
        Of the picture, and what is lost.

    Raises
    ------
    RuntimeError
        matplotlib is not installed.
    """
    figure = _new_figure(11, 6.5)
    axes = figure.add_subplot()
    for number, (name, (size, lost)) in enumerate(points.items(), start=1):
        best = name in front
        colour = _colour(1) if best else _colour(0)
        label = f"{number}  {name}"
        axes.plot([size], [lost], "o" if best else ".", color=colour, label=label)
        axes.annotate(str(number), (size, lost), xytext=(4, 4), textcoords="offset points")
    line = [points[name] for name in front]
    axes.plot([x for x, _ in line], [y for _, y in line], color=_colour(1), linewidth=1, zorder=0)
    axes.set_xscale("log")
    losses = [lost for _, lost in points.values()]
    if min(losses) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=min([lost for lost in losses if lost > 0], default=1))
    axes.set_xlabel("MB of the layers")
    axes.set_ylabel(loss)
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    _save(figure, path)


def _check_length(function: str, name: str, values: Sequence[float | None], wanted: int) -> None:
    if len(values) != wanted:
        raise ValueError(f"{function}: {name!r} has {len(values)} values, wanted {wanted}")


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _new_figure(width: float, height: float) -> Any:
    try:
        module = importlib.import_module("matplotlib.figure")  # not pyplot: it keeps global state
    except ImportError as error:
        raise RuntimeError(
            f"plots: needs matplotlib: pip install 'gossamer[report]' ({error})"
        ) from error
    return module.Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
