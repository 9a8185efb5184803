"""One self-contained HTML page: tables, pictures (inside the file) and plain text. No scripts."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

__all__ = ["Block", "Picture", "PlainText", "Table", "write_page"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; }
th { border-bottom: 2px solid #888; } th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
pre { overflow-x: auto; background: #f6f6f6; padding: 1rem; font-size: .8rem; line-height: 1.35; }
.note { color: #555; }
"""


@dataclass(frozen=True)
class Table:
    """A table; the first column is text, the others are figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG file, copied into the page; ``description`` is read out to those who cannot see it."""

    title: str
    png: Path
    description: str
    note: str = ""


@dataclass(frozen=True)
class PlainText:
    """Text shown as it is, in a fixed-width font."""

    title: str
    text: str
    note: str = ""


Block = Table | Picture | PlainText


def write_page(path: Path, title: str, introduction: str, blocks: Sequence[Block]) -> None:
    """Write the page, all or nothing.

    Parameters
    ----------
    path : Path
        HTML file to write.
    title : str
        Heading of the page.
    introduction : str
        First paragraph.
    blocks : sequence of Table, Picture or PlainText
        The rest, top to bottom.

    Raises
    ------
    ValueError
        A table row has not one cell for each column.
    """
    body = "\n".join(_section(block) for block in blocks)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(introduction)}</p>\n{body}\n</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _section(block: Block) -> str:
    if isinstance(block, Table):
        content = _table(block)
    elif isinstance(block, Picture):
        content = _picture(block)
    else:
        content = f"<pre>{escape(block.text)}</pre>"
    note = f'\n<p class="note">{escape(block.note)}</p>' if block.note else ""
    return f"<h2>{escape(block.title)}</h2>\n{content}{note}"


def _table(block: Table) -> str:
    for row in block.rows:
        if len(row) != len(block.header):
            raise ValueError(
                f"write_page: {block.title!r}: a row has {len(row)} cells, "
                f"wanted {len(block.header)}: {list(row)}"
            )
    head = "".join(f"<th>{escape(cell)}</th>" for cell in block.header)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in block.rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>"
    )


def _picture(block: Picture) -> str:
    data = base64.b64encode(block.png.read_bytes()).decode("ascii")
    return f'<img alt="{escape(block.description)}" src="data:image/png;base64,{data}">'
