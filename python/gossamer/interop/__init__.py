"""Quantized checkpoints of other libraries: readers, and a writer.

See ``docs/interop.md``.
"""

from __future__ import annotations

from .compressed_tensors_writer import write_compressed_tensors
from .entries import Entry
from .models import load
from .sources import is_foreign, read

__all__ = ["Entry", "is_foreign", "load", "read", "write_compressed_tensors"]
