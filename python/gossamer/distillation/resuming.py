"""What tune_scales() has learned so far, in a file, so that it can go on after an interruption."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

_SECONDS = 60.0  # between two writes
_MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam


@dataclass
class Kept:
    """A file that holds the factors, Adam's moments of them, and how many steps these took.

    Attributes
    ----------
    path : Path or None
        None: nothing is kept.
    work : str
        A fingerprint of everything that decides the result. A file of other work is refused.
    """

    path: Path | None
    work: str = ""
    _written: float = field(default_factory=time.monotonic)

    def load(self, factors: Sequence[Tensor], optimizer: torch.optim.Adam) -> int:
        """Put factors and optimizer in the state of the file, if there is one: steps done."""
        if self.path is None or not self.path.exists():
            return 0
        from safetensors import SafetensorError, safe_open  # here: import gossamer stays light

        try:
            with safe_open(self.path, "pt") as file:
                notes = file.metadata() or {}
                if notes.get("work") != self.work:
                    raise ValueError(
                        f"tune_scales: resume: {self.path} was begun with other models, settings "
                        "or calibration"
                    )
                steps = int(notes["steps"])
                for index, own in enumerate(factors):
                    own.copy_(file.get_tensor(f"factors.{index}"))
                    moments = {name: file.get_tensor(f"{name}.{index}") for name in _MOMENTS}
                    optimizer.state[own] = {"step": torch.tensor(float(steps)), **moments}
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise ValueError(f"tune_scales: resume: {self.path} is damaged: {error}") from error
        return steps

    def save(
        self, steps: int, factors: Sequence[Tensor], optimizer: torch.optim.Adam, *, now: bool
    ) -> None:
        """Write the file, if it is time to; it appears when it is complete."""
        if self.path is None or not (now or time.monotonic() - self._written > _SECONDS):
            return
        from safetensors.torch import save_file

        tensors = {f"factors.{index}": own for index, own in enumerate(factors)}
        for index, own in enumerate(factors):
            tensors |= {f"{name}.{index}": optimizer.state[own][name] for name in _MOMENTS}
        partial = self.path.with_name(self.path.name + ".partial")
        save_file(tensors, partial, {"work": self.work, "steps": str(steps)})
        partial.replace(self.path)
        self._written = time.monotonic()
