"""What the commands print with: consoles, a progress bar, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import rich.console
import rich.progress
import rich.table

console = rich.console.Console()
error_console = rich.console.Console(stderr=True)


@contextmanager
def progress() -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar with the time that remains, told by calls (steps done, steps in all, what)."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=error_console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def on_progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield on_progress


def print_table(
    title: str, header: Sequence[str], lines: Sequence[Sequence[str]], below: str = ""
) -> None:
    """Print names on the left, figures to the right of them, and a remark below."""
    table = rich.table.Table(
        title=title, title_justify="left", caption=below or None, caption_justify="left"
    )
    for number, heading in enumerate(header):
        table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    for line in lines:
        table.add_row(*line)
    console.print(table)
