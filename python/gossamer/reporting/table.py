"""Plain tables: aligned columns of text, and numbers as text."""

from __future__ import annotations


def table(
    header: list[str], rows: list[list[str]], left_columns: int, right_columns: int = 99
) -> str:
    """Aligned columns: the first to the left, then some to the right, the rest to the left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if 0 <= column - left_columns < right_columns else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float | None, form: str, unit: str = "") -> str:
    """A number with its unit; "-" for none."""
    return "-" if value is None else f"{value:{form}}{unit}"


def shape_text(sizes: tuple[int, ...]) -> str:
    """Such as "64 x 96"."""
    return " x ".join(map(str, sizes))


def size_text(count: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, one in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= one:
            return f"{count / one:.2f} {unit}"
    return f"{count} B"
