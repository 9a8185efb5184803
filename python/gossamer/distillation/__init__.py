"""What a compressed model learns from the dense one."""

from .tuning import Tuned, tune_scales

__all__ = ["Tuned", "tune_scales"]
