"""Who runs in ``gossamer bench lowrank``: our layers, dense, low-rank and sums, and torch's.

========================  ==========================================================================
``low-rank-F``            our layer of two factors in F: fp32, bf16 or int8 (x rounded, too)
``SCHEME``                our layer in that scheme, such as bf16 or int4-g128
``SCHEME+low-rank``       our sum of that and a branch of the rank of the case, which corrects it
``SCHEME+low-rank-F``     the same, with factors in F
``SCHEME + two torch-D``  our layer in that scheme, the same branch as two products of torch in D
``two torch-D``           the two factors as two products of torch in D: fp32 or bf16
``torch-D``               ``torch.nn.functional.linear``
========================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from gossamer.bench.lowrank_cases import LayerCase
from gossamer.bench.sparse_weights import PrunedWeight
from gossamer.schemes import SCHEMES, Quantize

BRANCH = "+low-rank"
BESIDE = " + two torch-"
TWO = "two torch-"
TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16}
FACTORS = ("fp32", "bf16", "int8")

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """The weight of a case: ``W`` (N, K), which is ``U V`` where that is low-rank."""

    W: Tensor
    U: Tensor | None = None
    V: Tensor | None = None

    @classmethod
    def draw(cls, case: LayerCase) -> Problem:
        """The same at every call."""
        if case.weight == "gaussian":
            return cls(torch.from_numpy(PrunedWeight(case.N, case.K, case.sparsity).draw()))
        generator = torch.Generator().manual_seed(0)
        U = torch.randn(case.N, case.rank, generator=generator) * 0.02
        V = torch.randn(case.rank, case.K, generator=generator) / case.rank**0.5
        return cls(U @ V, U, V)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(U, V).

        Raises
        ------
        ValueError
            Where the weight is not low-rank.
        """
        if self.U is None or self.V is None:
            raise ValueError('bench lowrank: factors are wanted: give the case weight = "low-rank"')
        return self.U, self.V


@dataclass(frozen=True)
class Entrant:
    """A contender that is built: its product, and the bytes of its weight."""

    product: Product
    nbytes: int


def build(name: str, case: LayerCase, problem: Problem) -> Entrant:
    """Make a contender of ``case``.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    check_name(name)
    if name.startswith(TWO):
        U, V = (factor.to(_dtype(name)) for factor in problem.factors())
        return Entrant(lambda x: linear(linear(x.to(V.dtype), V), U), U.nbytes + V.nbytes)
    if name.startswith("torch-"):
        W = problem.W.to(_dtype(name))
        return Entrant(lambda x: linear(x.to(W.dtype), W), W.nbytes)
    if name.startswith("low-rank-"):
        factors = name.removeprefix("low-rank-")
        activations = "int8" if factors == "int8" else "exact"
        return _layer(case, _low_rank(problem, factors), activations)
    if BESIDE in name:
        return _beside(name, case, problem)
    scheme, plus, factors = name.partition(BRANCH)
    if plus:
        return _layer(case, _sum(scheme, case, problem, factors.removeprefix("-")), _of(scheme))
    return _layer(case, Quantize(scheme).quantize(problem.W), _of(scheme))


def check_name(name: str) -> None:
    """ValueError for a name that is none of those above."""
    scheme, beside, dtype = name.partition(BESIDE)
    base, plus, factors = name.partition(BRANCH)
    good = (
        name.removeprefix(TWO) in TORCH
        or name.removeprefix("torch-") in TORCH
        or name.removeprefix("low-rank-") in FACTORS
        or (bool(beside) and scheme in SCHEMES and dtype in TORCH)
        or (bool(plus) and base in SCHEMES and factors.removeprefix("-") in ("", *FACTORS))
        or name in SCHEMES
    )
    if not good:
        raise ValueError(
            f"bench lowrank: {name!r} is no contender; wanted such as int4-g128, low-rank-bf16, "
            "int4-g128+low-rank, int4-g128 + two torch-bf16, two torch-bf16, torch-bf16"
        )


def _dtype(name: str) -> torch.dtype:
    return TORCH[name.rsplit("torch-", 1)[1]]


def _of(scheme: str) -> str | None:
    return Quantize(scheme).resolved().activations


def _layer(case: LayerCase, weight: Any, activations: str | None) -> Entrant:
    import gossamer as gs

    layer = gs.nn.Linear(
        case.K,
        case.N,
        weight=weight,
        dtype=getattr(torch, case.dtype),
        activations=activations,
    )
    return Entrant(layer, layer.packed.nbytes)


def _low_rank(problem: Problem, factors: str) -> Any:
    from gossamer import formats

    form: Any = formats.FORMATS[factors]
    low_rank: Any = formats.FORMATS["low-rank"]
    return low_rank(*(form.quantize(factor) for factor in problem.factors()))


def _sum(scheme: str, case: LayerCase, problem: Problem, factors: str) -> Any:
    from gossamer import formats

    resolved = Quantize(scheme).resolved()
    form: Any = formats.FORMATS[resolved.format + BRANCH]
    given = {"factors": factors} if factors else {}
    return form.quantize(
        problem.W, resolved.group_size, rank=case.rank, **given, **resolved.settings
    )


def _beside(name: str, case: LayerCase, problem: Problem) -> Entrant:
    """The naive branch: the base, and two products more."""
    scheme = name.partition(BESIDE)[0]
    whole = _sum(scheme, case, problem, "")
    U, V = (factor.dequantize().to(_dtype(name)) for factor in (whole.low_rank.U, whole.low_rank.V))
    base = _layer(case, whole.base, _of(scheme))

    def product(x: Tensor) -> Tensor:
        return base.product(x) + linear(linear(x, V), U)

    return Entrant(product, base.nbytes + U.nbytes + V.nbytes)
