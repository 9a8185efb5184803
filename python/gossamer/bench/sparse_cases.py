"""What ``gossamer bench sparse`` times: cases of a TOML file, and the points of each."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.bench.sparse_weights import PrunedWeight, fixed_sparsity

GIB = 2**30


@dataclass(frozen=True)
class Point:
    """One figure of every contender: M rows through ``weight``.

    ``cold_bytes``, where it is not 0: calls go round that many bytes of copies of the layer.
    """

    weight: PrunedWeight
    M: int
    cold_bytes: int = 0


@dataclass(frozen=True)
class Goal:
    """What ``contender`` is to reach: a speed-up over another, or over itself on another mask.

    Parameters
    ----------
    contender
        Whose speed it is.
    over
        The contender it is compared with, at the same point; itself where ``over_mask`` is given.
    at_least
        The speed-up wanted everywhere, or one for each sparsity.
    M
        The numbers of rows it holds for; empty for all of the case.
    roof
        A share of the reading roof that is as good as ``at_least``.
    over_mask
        Compare with the point that has this mask.
    with_isa
        It is a goal only where this instruction set is available.
    """

    contender: str
    at_least: float | Mapping[str, float]
    over: str = ""
    M: tuple[int, ...] = ()
    roof: float | None = None
    over_mask: str = ""
    with_isa: str = ""


@dataclass(frozen=True)
class Case:
    """Contenders that run side by side on every shape × mask × sparsity × M.

    Parameters
    ----------
    name, source
        What it is, and where the shapes come from.
    shapes
        (N, K) of each layer.
    M, sparsity, masks
        The grid; masks as in ``PrunedWeight``, where "n:m" brings its own sparsity.
    contenders
        Names from ``sparse_contenders``; what each sparse format is compared with joins by itself.
    isa
        Hold gossamer to this instruction set; with "avx2", torch too.
    cold_gib
        Go round that many GiB of layers, so that each call reads its weight from memory.
    goals
        What is to be reached.
    """

    name: str
    shapes: tuple[tuple[int, int], ...]
    M: tuple[int, ...]
    sparsity: tuple[float, ...]
    contenders: tuple[str, ...]
    source: str = ""
    masks: tuple[str, ...] = ("uniform",)
    isa: str = ""
    cold_gib: float = 0.0
    goals: tuple[Goal, ...] = ()

    def __post_init__(self) -> None:
        sizes = [*self.M, *(size for shape in self.shapes for size in shape)]
        if (
            not self.M
            or not self.shapes
            or any(type(size) is not int or size < 1 for size in sizes)
        ):
            raise ValueError(f"Case: shapes, M: positive integers are wanted, got {sizes}")
        if not self.contenders or not self.sparsity or self.cold_gib < 0:
            raise ValueError("Case: contenders, sparsity: are empty, or cold_gib is negative")

    def weights(self) -> list[PrunedWeight]:
        """Every weight of the grid, once."""
        pairs = [
            (mask, share)
            for mask in self.masks
            for share in ([fixed_sparsity(mask)] if fixed_sparsity(mask) else self.sparsity)
        ]
        drawn = [
            PrunedWeight(N, K, float(share or 0), mask)
            for N, K in self.shapes
            for mask, share in pairs
        ]
        return list(dict.fromkeys(drawn))

    def points(self) -> list[Point]:
        """Every figure of the grid; those of one weight follow each other."""
        cold = round(self.cold_gib * GIB)
        return [Point(weight, M, cold) for weight in self.weights() for M in self.M]


def parse_shapes(texts: list[str]) -> tuple[tuple[int, int], ...]:
    """(N, K) of texts such as "4096x4096".

    Raises
    ------
    ValueError
        For a text of another form.

    Examples
    --------
    >>> parse_shapes(["1536x576"])
    ((1536, 576),)
    """
    shapes = []
    for text in texts:
        parts = text.split("x")
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            raise ValueError(f"parse_shapes: got {text!r}, wanted NxK such as 4096x4096")
        shapes.append((int(parts[0]), int(parts[1])))
    return tuple(shapes)


def read_cases(path: str | Path, only: str = "*") -> list[Case]:
    """Cases of a TOML file: a ``[[case]]`` each, its keys the fields of ``Case``.

    ``only`` is a glob for their names. ``shapes`` are texts such as "4096x4096", goals are
    ``[[case.goals]]``.

    Raises
    ------
    ValueError
        When there is none, two have one name, or one has an unknown key or lacks one.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    cases = []
    for table in tomllib.loads(Path(path).read_text()).get("case", []):
        try:
            cases.append(_case(table))
        except (TypeError, ValueError) as error:
            raise ValueError(f"read_cases: {path}: {table.get('name')!r}: {error}") from error
    names = [case.name for case in cases]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"read_cases: {path}: [[case]]s of different names are wanted, got {names}"
        )
    chosen = [case for case in cases if fnmatch.fnmatch(case.name, only)]
    if not chosen:
        raise ValueError(f"read_cases: {path}: none matches {only!r}; there are {names}")
    return chosen


def _case(table: Mapping[str, Any]) -> Case:
    goals = tuple(Goal(**_tuples(goal)) for goal in table.get("goals", []))
    case = Case(
        **{**_tuples(table), "shapes": parse_shapes(table.get("shapes", [])), "goals": goals}
    )
    case.weights()  # refuses masks and sparsities that do not exist
    return case


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
