"""Modules of packed weights: one class for each torch layer, whatever the format."""

from __future__ import annotations

from .linear import Linear

__all__ = ["Linear"]
