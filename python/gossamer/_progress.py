"""A progress bar for what may take longer than a second."""

from __future__ import annotations

import importlib
import sys
import time
from types import TracebackType
from typing import Any

_SECONDS_BEFORE_SHOWN = 1.0


class Progress:
    """A bar with the time left on stderr, drawn by rich; nothing where that is not installed.

    Parameters
    ----------
    description : str
        What is done.
    total : float
        Amount of work, in any unit.
    show : bool, optional
        True: always; False: never; None: where stderr is a terminal, after a second.
    """

    def __init__(self, description: str, total: float, show: bool | None) -> None:
        self.description = description
        self.total = total
        self.done = 0.0
        self._bar: Any = None
        self._wanted = sys.stderr.isatty() if show is None else show
        self._due = time.monotonic() + (_SECONDS_BEFORE_SHOWN if show is None else 0.0)

    def advance(self, amount: float) -> None:
        """Count work as done.

        Parameters
        ----------
        amount : float
            In the unit of the total.
        """
        self.done += amount
        if self._bar is None and self._wanted and time.monotonic() >= self._due:
            self._start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done)

    def _start(self) -> None:
        try:
            console = importlib.import_module("rich.console")
            progress = importlib.import_module("rich.progress")
        except ImportError:
            self._wanted = False
            return
        columns = (*progress.Progress.get_default_columns(), progress.TimeElapsedColumn())
        self._bar = progress.Progress(*columns, console=console.Console(stderr=True))
        self._bar.add_task(self.description, total=self.total)
        self._bar.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
