"""The ways of compressing that ``gossamer bench quality`` compares: ours, and those of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from gossamer.factorization import LowRankCorrection
from gossamer.pruning import Prune
from gossamer.quantization import SmoothQuant
from gossamer.recipe import Step
from gossamer.schemes import Quantize, method_name

DENSE = "dense fp32"
OURS = "gossamer"
# Weights are rounded and x is not, as in what others report: what is compared is the methods.
EXACT = "exact"


@dataclass(frozen=True)
class Method:
    """One way to compress the linear layers of a model.

    Parameters
    ----------
    group
        Methods of a group store the same bytes, and share a table.
    name
        Within the group.
    steps
        Of :func:`gossamer.compress`; none for another tool.
    tool
        Who does it.
    calibrated
        Whether text is looked at.
    tuned
        Whether scales are learned at last, by :func:`gossamer.tune_scales`.
    """

    group: str
    name: str
    steps: tuple[Step, ...] = ()
    tool: str = OURS
    calibrated: bool = False
    tuned: bool = False

    @property
    def full_name(self) -> str:
        """Such as "int4-g64: gptq" or "int4-g64: gptq (llm-compressor)"."""
        tool = "" if self.tool == OURS else f" ({self.tool})"
        return f"{self.group}: {self.name}{tool}"


def choose(patterns: Sequence[str] = ()) -> list[Method]:
    """The methods whose full names match one of some patterns, in their order; all without any."""
    found = [
        method
        for method in METHODS
        if not patterns or any(fnmatchcase(method.full_name, pattern) for pattern in patterns)
    ]
    if not found:
        names = ", ".join(method.full_name for method in METHODS)
        raise ValueError(f"bench quality: --only: {list(patterns)} matches none of {names}")
    return found


def _rounding(scheme: str, methods: Sequence[Any], activations: str = EXACT) -> list[Method]:
    """The round-to-nearest baseline of a scheme, and other methods."""
    found = []
    for method in methods:
        names = [method_name(each) for each in (method if isinstance(method, tuple) else [method])]
        step = Quantize(scheme, activations=activations, method=method)
        needs_text = names not in (["rtn"], ["hqq"])
        found.append(Method(scheme, " + ".join(names), (step,), calibrated=needs_text))
    return found


def _pruning(group: str, sparsity: float | None, pattern: str | None = None) -> list[Method]:
    """Three ways to choose what becomes zero, the rest staying float32."""
    # Magnitudes of a row are compared, as Wanda compares them: all layers keep as much.
    magnitude = Prune(sparsity, "row", pattern)
    wanda, sparsegpt = (Prune(sparsity, None, pattern, name) for name in ("wanda", "sparsegpt"))
    return [
        Method(group, "magnitude", (magnitude,)),
        Method(group, "wanda", (wanda,), calibrated=True),
        Method(group, "sparsegpt", (sparsegpt,), calibrated=True),
    ]


_WEIGHTS = ["rtn", "hqq", "awq", "gptq", ("awq", "gptq"), "autoround", ("awq", "autoround")]
_SPARSEGPT = Prune(0.5, method="sparsegpt")
_GPTQ = Quantize("int4-g64", activations=EXACT, method="gptq")
_RTN = Quantize("int4-g64", activations=EXACT)
_LEARNED = tuple(
    Quantize(scheme, activations=EXACT, method="autoround")
    for scheme in ("int4-g64", "int4-per-channel")
)
_OWL = Prune(0.5, method="wanda", allocation="owl")
# Layers that lose more than 1 % by rounding x multiply it as it is.
_SOME_EXACT = Quantize("int8", method=(SmoothQuant(exact_above=0.01), "gptq"))

METHODS: tuple[Method, ...] = (
    Method("dense", DENSE),
    *_rounding("int8", ["rtn", "smoothquant"], "int8"),
    Method("int8", "smoothquant + gptq, some x exact", (_SOME_EXACT,), calibrated=True),
    # A scale for each group of x, too.
    *_rounding("int8-g64", ["rtn"], "int8-group"),
    *_rounding("int8-g32", ["rtn"], "int8-group"),
    *_rounding("int4-g64", _WEIGHTS),
    *_rounding("int4-per-channel", _WEIGHTS),
    Method("int4-g64", "gptq, scales tuned", (_GPTQ,), calibrated=True, tuned=True),
    *(
        Method(step.scheme, "autoround, scales tuned", (step,), calibrated=True, tuned=True)
        for step in _LEARNED
    ),
    *_rounding("int4-g64-asym", ["rtn", "hqq", "gptq"]),
    *_rounding("nf4", ["rtn", "gptq"]),
    *_pruning("50 % zeros", 0.5),
    Method("50 % zeros", "wanda + owl", (_OWL,), calibrated=True),
    *_pruning("60 % zeros", 0.6),
    *_pruning("2:4", None, "2:4"),
    Method("50 % zeros, int4-g64", "joint", (_SPARSEGPT, _GPTQ), calibrated=True),
    Method("50 % zeros, int4-g64", "sparsegpt, then rtn", (_SPARSEGPT, _RTN), calibrated=True),
    Method("int4-g64 + rank 32", "gptq", (_GPTQ, LowRankCorrection(32)), calibrated=True),
    # Scales by the largest magnitude: what most others call round-to-nearest.
    Method("int4-g64", "rtn", tool="llm-compressor"),
    Method("int4-per-channel", "rtn", tool="llm-compressor"),
    Method("int4-g64", "gptq", tool="llm-compressor", calibrated=True),
    Method("int4-per-channel", "gptq", tool="llm-compressor", calibrated=True),
    Method("int4-g64", "awq", tool="llm-compressor", calibrated=True),
    Method("int4-g64", "autoround, 50 iterations", tool="auto-round", calibrated=True),
    Method("int4-g64-asym", "hqq", tool="hqq"),
    Method("50 % zeros", "wanda", tool="llm-compressor", calibrated=True),
    Method("50 % zeros", "sparsegpt", tool="llm-compressor", calibrated=True),
    Method("60 % zeros", "wanda", tool="llm-compressor", calibrated=True),
    Method("60 % zeros", "sparsegpt", tool="llm-compressor", calibrated=True),
)
