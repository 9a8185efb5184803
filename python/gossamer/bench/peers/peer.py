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

WEIGHT_BYTES: Mapping[Arithmetic, int] = {"fp32": 4, "bf16": 2, "int8": 1}


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
        What its products are computed in, and its weight stored in: decides its roof.
    requires
        Modules that must be importable, by the name that ``pip install`` wants.
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
    requires: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    on_request: bool = False

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        absent = [name for name in self.requires if importlib.util.find_spec(name) is None]
        return f"not installed: pip install {' '.join(absent)}" if absent else None
