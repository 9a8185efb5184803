"""Benchmark results as JSON lines: first one line for the environment, then one line a row.

Every line is an object with a ``kind``: ``environment``, or the benchmark the row belongs to
(``linear``, ``model``). What ``bench/results/`` keeps, and the README tables are made from.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """One run: the environment it ran in, and its rows in order."""

    environment: Row
    rows: list[Row]


def write(path: str | os.PathLike[str], results: Results) -> None:
    """Write ``results`` to ``path``, all or nothing.

    Floats keep six digits, which is more than any timing has; NaN becomes null.

    Raises
    ------
    ValueError
        For a row without a ``kind``.
    """
    for row in results.rows:
        if "kind" not in row:
            raise ValueError(f"write: results: a row has no 'kind': {row}")
    lines = [{"kind": "environment", **results.environment}, *results.rows]
    text = "".join(json.dumps(_plain(line)) + "\n" for line in lines)
    replace_text(Path(path), text)


def read(path: str | os.PathLike[str]) -> Results:
    """Read what ``write`` wrote.

    Raises
    ------
    ValueError
        When a line is no JSON object, or the first is not the environment.
    """
    lines = []
    for number, text in enumerate(Path(path).read_text().splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"read: {path}: line {number} is no JSON: {error}") from error
        if not isinstance(line, dict) or "kind" not in line:
            raise ValueError(f"read: {path}: line {number}: an object with a 'kind' is wanted")
        lines.append(line)
    if not lines or lines[0]["kind"] != "environment":
        raise ValueError(f"read: {path}: the first line must be of kind 'environment'")
    return Results(lines[0], lines[1:])


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` to a temporary name beside ``path``, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
