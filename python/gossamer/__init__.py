"""Light torch models that really run faster: quantized layers on CPU kernels of our own."""

from __future__ import annotations

import torch as _torch  # noqa: F401  # first: the extension then shares torch's OpenMP runtime

from . import cpu, formats, interop, kernels, nn, pruning, quantization, schemes
from .calibration import text_batches
from .checkpoint import save
from .compression import compress
from .distillation import tune_scales
from .factorization import LowRankCorrection, factorize
from .interop import write_compressed_tensors
from .loading import load
from .preview import preview
from .pruning import Prune
from .quantization import AWQ, GPTQ, HQQ, RTN, AutoRound, SmoothQuant, equalize
from .reporting import report
from .schemes import Quantize
from .svd import SVDInfo, truncated_svd

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "RTN",
    "AutoRound",
    "LowRankCorrection",
    "Prune",
    "Quantize",
    "SVDInfo",
    "SmoothQuant",
    "compress",
    "cpu",
    "equalize",
    "factorize",
    "formats",
    "interop",
    "kernels",
    "load",
    "nn",
    "preview",
    "pruning",
    "quantization",
    "report",
    "save",
    "schemes",
    "text_batches",
    "truncated_svd",
    "tune_scales",
    "write_compressed_tensors",
]
__version__ = "0.1.0"
