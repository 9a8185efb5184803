"""What a competitor in ``gossamer bench linear`` has to say about itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Run = Callable[[], Any]
PrepareInput = Callable[[Array], Run]
Arithmetic = Literal["fp32", "bf16", "int8"]

ARITHMETIC_BITS: Mapping[Arithmetic, float] = {"fp32": 32, "bf16": 16, "int8": 8}


@dataclass(frozen=True)
class Peer:
    """One way to compute y = x Wᵀ.

    Parameters
    ----------
    name
        What the tables and ``--peers`` call it.
    build
        Called with ``weight`` (N, K) float32 and ``arguments`` in a process of its own; returns
        ``prepare(x)`` for x (M, K) float32, which brings x into the dtype the peer wants and
        returns ``run``, the call that is timed, with output (M, N).
    arithmetic
        What its products are computed in: decides the roof of its speed.
    weight_bits
        Bits of a stored weight, scales and zero points included: decides the roof of its reading.
        None: as many as its arithmetic has.
    requires
        Modules that must be importable, and the name that ``pip install`` wants for each.
    arguments
        Further keyword arguments of ``build``.
    environment
        Environment variables of its process.
    on_request
        Left out unless it is named.
    """

    name: str
    build: Callable[..., PrepareInput]
    arithmetic: Arithmetic
    weight_bits: float | None = None
    requires: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    on_request: bool = False

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        absent = [
            package
            for module, package in self.requires.items()
            if importlib.util.find_spec(module) is None
        ]
        return f"not installed: pip install {' '.join(absent)}" if absent else None

    def weight_bytes(self, N: int, K: int) -> int:
        """Bytes that a weight (N, K) takes."""
        bits = ARITHMETIC_BITS[self.arithmetic] if self.weight_bits is None else self.weight_bits
        return round(N * K * bits / 8)
