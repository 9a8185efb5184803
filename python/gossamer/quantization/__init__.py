"""How weights are rounded, and what is scaled before. One method a file."""

from __future__ import annotations

from typing import Any

from .autoround import AutoRound
from .awq import AWQ
from .bias import corrected_bias
from .equalization import equalize
from .gptq import GPTQ
from .hqq import HQQ
from .rounding import Rounding
from .rtn import RTN
from .smoothquant import SmoothQuant
from .static_scales import static_scale

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "METHODS",
    "RTN",
    "AutoRound",
    "Rounding",
    "SmoothQuant",
    "corrected_bias",
    "equalize",
    "static_scale",
]

# By the names that users write: scalings, which come first, and roundings.
METHODS: dict[str, Any] = {
    method.name: method for method in (AWQ, SmoothQuant, RTN, GPTQ, HQQ, AutoRound)
}
