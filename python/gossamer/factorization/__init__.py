"""Layers as products of smaller ones."""

from .correction import LayerCorrection, LowRankCorrection
from .factorize import FactorizedLayer, factorize

__all__ = ["FactorizedLayer", "LayerCorrection", "LowRankCorrection", "factorize"]
