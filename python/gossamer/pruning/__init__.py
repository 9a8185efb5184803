"""Which weights become zero. One method a file."""

from __future__ import annotations

from .magnitude import Prune, magnitude_mask

__all__ = ["Prune", "magnitude_mask"]
