"""Modules of packed weights: one class for each torch layer, whatever the format."""

from __future__ import annotations

from .embedding import Embedding, EmbeddingBag
from .linear import Linear
from .tied import tied_pair

__all__ = ["Embedding", "EmbeddingBag", "Linear", "tied_pair"]
