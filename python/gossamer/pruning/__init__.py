"""Which weights become zero. One method a file."""

from __future__ import annotations

from .allocation import OWL, Weighed, layer_sparsity
from .magnitude import Magnitude
from .magnitude_mask import magnitude_mask
from .prune import ALLOCATIONS, METHODS, Prune
from .pruned import Pruned
from .sparsegpt import SparseGPT
from .wanda import Wanda

__all__ = [
    "ALLOCATIONS",
    "METHODS",
    "OWL",
    "Magnitude",
    "Prune",
    "Pruned",
    "SparseGPT",
    "Wanda",
    "Weighed",
    "layer_sparsity",
    "magnitude_mask",
]
