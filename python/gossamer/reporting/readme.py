"""The tables of README.md and docs/*.md, made from ``bench/results/*.jsonl``.

A document asks for a table with a pair of markers, and what stands between them is replaced::

    <!-- table:linear -->
    <!-- /table -->

The name is that of a results file. ``table:linear/4096x4096`` takes the layers N x K of it only,
``table:svd/outlier_columns`` the case "outlier columns".

``python -m gossamer.reporting.readme`` rewrites the documents, with ``--check`` it only tells
whether they are in step, by its exit status.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from gossamer.bench import results
from gossamer.bench.results import Results, Row

MARKERS = re.compile(
    r"(?P<open><!-- table:(?P<name>[\w.-]+)(?:/(?P<part>\w+))? -->\n)"
    r"(?P<body>.*?)"
    r"(?P<close><!-- /table -->)",
    re.DOTALL,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gossamer.reporting.readme")
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if stale")
    parser.add_argument("--root", type=Path, default=Path(), help="top of the repository")
    options = parser.parse_args(arguments)
    stale = stale_documents(options.root)
    for path, text in stale.items():
        if options.check:
            print(f"{path}: tables are out of date; run python -m gossamer.reporting.readme")
        else:
            results.replace_text(path, text)
            print(f"{path}: tables rewritten")
    return 1 if options.check and stale else 0


def stale_documents(root: Path) -> dict[Path, str]:
    """Documents of the repository at ``root`` whose tables are out of date, and their new text.

    Raises
    ------
    ValueError
        When a marker names results that do not exist, or an opening marker has no end.
    """
    stale = {}
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        text = path.read_text() if path.exists() else ""
        new = fill(text, root / "bench" / "results", str(path))
        if new != text:
            stale[path] = new
    return stale


def fill(text: str, folder: Path, document: str) -> str:
    """``text`` with every table made anew from the results in ``folder``."""
    if text.count("<!-- table:") != len(MARKERS.findall(text)):
        raise ValueError(f"fill: {document}: a table marker is malformed or has no end")

    def replacement(match: re.Match[str]) -> str:
        path = folder / f"{match['name']}.jsonl"
        if not path.exists():
            raise ValueError(f"fill: {document}: table {match['name']}: there is no {path.name}")
        return match["open"] + render(results.read(path), match["part"]) + match["close"]

    return MARKERS.sub(replacement, text)


def render(measured: Results, part: str | None = None) -> str:
    """Markdown of one results file: its tables, then what they were measured on.

    Raises
    ------
    ValueError
        When there is nothing to show, or ``part`` names no layer.
    """
    kinds = {row["kind"] for row in measured.rows} - {"roof"}
    if kinds == {"model"}:
        tables = _model_tables(measured.rows)
    elif kinds == {"linear"}:
        tables = _linear_tables(measured.rows, part)
    elif kinds == {"conv"}:
        tables = _conv_tables(measured.rows)
    elif kinds == {"sparse"}:
        tables = _sparse_tables(measured.rows, part)
    elif kinds == {"svd"}:
        tables = _svd_tables(measured.rows, part)
    elif kinds <= {"lowrank", "lowrank-fit"} and kinds:
        tables = _lowrank_tables(measured.rows, part)
    elif kinds == {"lowrank-quality"}:
        tables = [_lowrank_quality_table(measured.rows)]
    elif kinds == {"method-quality"}:
        tables = _method_tables(measured.rows, part)
    elif kinds <= {"accuracy", "quality"} and kinds:
        tables = [_accuracy_table(measured.rows)]
    else:
        raise ValueError(f"render: measured: rows of kind {sorted(kinds)} cannot be shown")
    if not tables:
        raise ValueError(f"render: part: no layer {part}")
    return "\n".join([*tables, _provenance(measured.environment)])


def _linear_tables(rows: Sequence[Row], part: str | None) -> list[str]:
    """For each layer: contenders down, numbers of rows across."""
    layers: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        if row["kind"] == "linear" and part in (None, f"{row['N']}x{row['K']}"):
            layers.setdefault((row["layer"], row["N"], row["K"]), []).append(row)
    return [_linear_table(*layer, mine) for layer, mine in layers.items()]


def _linear_table(name: str, N: int, K: int, rows: Sequence[Row]) -> str:
    title = f"**{name + ', ' if name else ''}N={N} K={K}**: ms (speed-up, share of the roof)\n\n"
    return title + _layer_table(rows, "M", "M={}", _linear_cell)


def _layer_table(rows: Sequence[Row], across: str, heading: str, cell: Callable[[Row], str]) -> str:
    """Contenders down, the values of the key ``across`` across, the largest error at the end."""
    columns = list(dict.fromkeys(row[across] for row in rows))
    lines = []
    for contender in dict.fromkeys(row["contender"] for row in rows):
        mine = {row[across]: row for row in rows if row["contender"] == contender}
        errors = [row["error"] for row in mine.values() if row["failure"] is None]
        error = f"{max(errors):.1e}" if errors else "-"
        lines.append([contender, *(cell(mine[value]) for value in columns), error])
    return _table(["", *(heading.format(value) for value in columns), "error"], lines)


def _linear_cell(row: Row) -> str:
    if row["failure"] is not None:
        return str(row["failure"]).split(":")[0]
    noisy = ", noisy" if row["noisy"] else ""
    return f"{row['ms']:.3g} (x{row['speedup']:.1f}, {row['roof_share']:.0%}{noisy})"


def _conv_tables(rows: Sequence[Row]) -> list[str]:
    """For each layer: contenders down, numbers of images across."""
    layers: dict[str, list[Row]] = {}
    for row in rows:
        layers.setdefault(row["layer"], []).append(row)
    return [
        f"**{name}**: ms (speed-up)\n\n" + _layer_table(mine, "batch", "batch {}", _conv_cell)
        for name, mine in layers.items()
    ]


def _conv_cell(row: Row) -> str:
    if row["failure"] is not None:
        return str(row["failure"]).split(":")[0]
    return f"{row['ms']:.3g} (x{row['speedup']:.1f}{', noisy' if row['noisy'] else ''})"


def _sparse_tables(rows: Sequence[Row], part: str | None) -> list[str]:
    from gossamer.bench import sparse_tables

    return [
        f"**{table.title}**: ms (speed-up over the dense layer, share of the roof)\n\n"
        + _table(table.header, table.lines)
        for table in sparse_tables.tables(_cases(rows, part))
    ]


def _svd_tables(rows: Sequence[Row], part: str | None) -> list[str]:
    """The summary; with the part "cases" a table for each case, with its name one of them."""
    from gossamer.bench import svd_tables

    if part is None:
        chosen = [svd_tables.summary(rows)]
    else:
        chosen = svd_tables.tables(rows if part == "cases" else _cases(rows, part))
    return [f"**{it.title}**\n\n" + _table(it.header, it.lines) for it in chosen]


def _lowrank_tables(rows: Sequence[Row], part: str | None) -> list[str]:
    from gossamer.bench import lowrank_tables

    return [
        f"**{it.title}**\n\n" + _table(it.header, it.lines)
        for it in lowrank_tables.tables(_cases(rows, part))
    ]


def _lowrank_quality_table(rows: Sequence[Row]) -> str:
    from gossamer.bench import lowrank_quality_tables

    title = "**Quality; two figures are data-free / activation-aware**\n\n"
    below = lowrank_quality_tables.below([row for row in rows if row["failure"] is None])
    return title + _table(*lowrank_quality_tables.table(rows)) + f"\n{below}\n"


def _method_tables(rows: Sequence[Row], part: str | None) -> list[str]:
    """For each model: all methods, or those that no other beats in bytes and quality."""
    from gossamer.bench import methods_tables, quality_subjects

    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        windows, calibration = next(
            (row["windows"], row["calibration"]) for row in rows if row["model"] == model
        )
        title = quality_subjects.QUALITY_SUBJECTS[model].title
        what = f"judged by {windows} windows, calibrated with {calibration}"
        shown = methods_tables.front(rows, model) if part == "front" else rows
        table = _table(*methods_tables.flat_table(rows, model, shown))
        found.append(f"**{title}**: {what}\n\n{table}")
    return found


def _cases(rows: Sequence[Row], part: str | None) -> list[Row]:
    """Rows of the case whose name is `part`, but for characters that are no letters; None: all."""
    return [row for row in rows if part in (None, re.sub(r"\W+", "_", row["case"]))]


def _accuracy_table(rows: Sequence[Row]) -> str:
    from gossamer.bench import accuracy

    title = "**Relative errors, of the stored weight / of the layer as it computes; quality**\n\n"
    return title + _table(*accuracy.table(rows))


def _model_tables(rows: Sequence[Row]) -> list[str]:
    from gossamer.bench import model

    names = dict.fromkeys(row["model"] for row in rows)
    tables = []
    for name in names:
        header, lines = model.table([row for row in rows if row["model"] == name])
        tables.append(f"**{name}**\n\n" + _table(header, lines))
    return tables


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *lines))


def _provenance(environment: Row) -> str:
    facts = [
        environment["cpu"],
        f"{environment['threads']} threads",
        environment["isa"],
        f"torch {environment['torch']}",
        environment["date"],
    ]
    if environment["revision"]:
        facts.append(f"revision {environment['revision'][:10]}")
    return f"*{', '.join(facts)}*\n"


if __name__ == "__main__":
    raise SystemExit(main())
