"""Checkpoints: models as safetensors files and a JSON manifest."""

from .rebuilding import load
from .writing import save

__all__ = ["load", "save"]
