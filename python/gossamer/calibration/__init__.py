"""What is measured by running a model over a few batches; shared by the techniques."""

from .batches import Batches, call, evaluating, sized
from .blocks import Chain, find_chains
from .calls import Call, cached_bytes
from .rows import has_rows
from .second_moments import second_moments
from .statistics import Statistics
from .stream import Block, block_names, stream, whole_model
from .text import text_batches

__all__ = [
    "Batches",
    "Block",
    "Call",
    "Chain",
    "Statistics",
    "block_names",
    "cached_bytes",
    "call",
    "evaluating",
    "find_chains",
    "has_rows",
    "second_moments",
    "sized",
    "stream",
    "text_batches",
    "whole_model",
]
