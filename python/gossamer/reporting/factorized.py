"""What the report shows of factorized layers, and of those that stayed dense."""

from __future__ import annotations

from collections.abc import Sequence

from ..factorization import FactorizedLayer

HEADER = ["layer", "shape", "form", "rank", "break-even", "parameters", "share", "error", "reason"]


def title(layers: Sequence[FactorizedLayer]) -> str:
    """How many layers, and how much is left of their parameters."""
    before = sum(layer.parameters_before for layer in layers)
    after = sum(layer.parameters_after for layer in layers)
    count = sum(layer.form != "dense" for layer in layers)
    return f"factorized: {count} of {len(layers)} layers, {before:,} -> {after:,} parameters"


def lines(layers: Sequence[FactorizedLayer]) -> list[list[str]]:
    """A line of the table for each layer."""
    return [
        [
            layer.name,
            _times(layer.shape),
            layer.form,
            _times(layer.rank) or "-",
            _times(layer.break_even) or "-",
            f"{layer.parameters_after:,}",
            f"{layer.parameters_after / layer.parameters_before:.0%}",
            f"{layer.error:.2%}" if layer.rank else "-",
            layer.reason,
        ]
        for layer in layers
    ]


def _times(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))
