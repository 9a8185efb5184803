"""Light torch models that really run faster: quantized layers on CPU kernels of our own."""

from __future__ import annotations

import torch as _torch  # noqa: F401  # first: the extension then shares torch's OpenMP runtime

from . import cpu, formats, kernels, nn, pruning, schemes
from .compression import compress
from .factorization import LowRankCorrection, factorize
from .pruning import Prune
from .reporting import report
from .schemes import Quantize
from .svd import SVDInfo, truncated_svd

__all__ = [
    "LowRankCorrection",
    "Prune",
    "Quantize",
    "SVDInfo",
    "compress",
    "cpu",
    "factorize",
    "formats",
    "kernels",
    "nn",
    "pruning",
    "report",
    "schemes",
    "truncated_svd",
]
__version__ = "0.1.0"
