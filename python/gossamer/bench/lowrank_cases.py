"""What ``gossamer bench lowrank`` times: layers and fits, cases of a TOML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.bench.svd_cases import named, read_table, toml_tables

DTYPES = ("float32", "bfloat16")
WEIGHTS = ("gaussian", "low-rank")


@dataclass(frozen=True)
class LowRankGoal:
    """How many times faster than ``over`` the ``contender`` is to be, at every M.

    With ``parameters``, than ``over`` would be if its time shrank as the parameters do:
    R (N + K) / (N K).
    """

    contender: str
    over: str
    at_least: float
    parameters: bool = False
    M: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerCase:
    """One layer, and who computes it.

    Parameters
    ----------
    name, source
        What it is, and where the shape comes from.
    N, K, M, rank
        out_features, in_features, numbers of rows, columns of the low-rank part.
    contenders
        Names as in ``lowrank_contenders``; speed-ups are over the first.
    dtype
        Of x and y: "float32" or "bfloat16".
    weight
        "gaussian", or "low-rank": the product of two Gaussian factors, so that a low-rank layer
        loses nothing but its rounding.
    sparsity
        Share of the weight that is zero.
    goals
        What is to be reached.
    """

    name: str
    N: int
    K: int
    M: tuple[int, ...]
    rank: int
    contenders: tuple[str, ...]
    dtype: str = "bfloat16"
    weight: str = "gaussian"
    sparsity: float = 0.0
    source: str = ""
    goals: tuple[LowRankGoal, ...] = ()

    def __post_init__(self) -> None:
        sizes = (self.N, self.K, self.rank, *self.M)
        if not self.M or not self.contenders or min(sizes) < 1 or self.rank > min(self.N, self.K):
            raise ValueError(f"LayerCase: N, K, rank, M, contenders: got {sizes}")
        if self.dtype not in DTYPES or self.weight not in WEIGHTS or not 0 <= self.sparsity < 1:
            given = f"{self.dtype!r}, {self.weight!r}, {self.sparsity}"
            raise ValueError(f"LayerCase: dtype, weight, sparsity: got {given}")

    @property
    def parameter_ratio(self) -> float:
        """Parameters of the factors over those of the dense weight."""
        return self.rank * (self.N + self.K) / (self.N * self.K)


@dataclass(frozen=True)
class FitCase:
    """Low-rank corrections of ``layers`` layers (N, K), quantized by ``scheme``.

    ``seconds`` is how long all of them may take together.
    """

    name: str
    N: int
    K: int
    layers: int
    rank: int
    scheme: str = "int4"
    seconds: float = 60.0
    source: str = ""


def read_lowrank_cases(path: str | Path, only: str = "*") -> list[LayerCase | FitCase]:
    """Cases of a TOML file, ``[[layer]]`` and ``[[fit]]``, whose names match the glob ``only``.

    Raises
    ------
    ValueError
        When there is none, two have one name, or one has an unknown key or lacks one.
    """
    cases: list[LayerCase | FitCase] = [
        read_table(path, _layer, table) for table in toml_tables(path, "layer")
    ]
    cases += [read_table(path, FitCase, table) for table in toml_tables(path, "fit")]
    return named(path, cases, only)


def _layer(**table: Any) -> LayerCase:
    goals = [
        LowRankGoal(**{**goal, "M": tuple(goal.get("M", ()))}) for goal in table.pop("goals", [])
    ]
    return LayerCase(**table, goals=tuple(goals))
