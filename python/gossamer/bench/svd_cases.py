"""What ``gossamer bench svd`` times: cases of a TOML file."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gossamer.bench.svd_matrices import KnownMatrix


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """Its name."""
        ...


AnyCase = TypeVar("AnyCase", bound=Named)


@dataclass(frozen=True)
class SvdCase:
    """One matrix, and the rank or the error that is asked for.

    Parameters
    ----------
    name, source
        What it is, and where the shape comes from.
    shape
        "m x n" as text, such as "4096x4096".
    spectrum, outlier_columns
        As of ``KnownMatrix``.
    rank, rel_error
        One of them: the columns wanted, or the relative Frobenius error.
    target_excess
        With ``rank``: the error may exceed the optimal one by that share. Peers that exceed it by
        no more, or by no more than ours does, count as of equal error.
    over_peers, over_full
        With ``rank``: how many times faster than the fastest peer of equal error, and than
        torch.linalg.svd, ours is to be; 0: no goal.
    rank_within, time_within
        With ``rel_error``: the share by which the rank found may exceed the smallest, and how many
        times the time for the known rank it may take.
    """

    name: str
    shape: str
    spectrum: str
    rank: int = 0
    rel_error: float = 0.0
    target_excess: float = 1e-3
    outlier_columns: int = 0
    source: str = ""
    over_peers: float = 0.0
    over_full: float = 0.0
    rank_within: float = 0.02
    time_within: float = 1.5

    def __post_init__(self) -> None:
        if (self.rank > 0) == (self.rel_error > 0):
            given = f"rank={self.rank}, rel_error={self.rel_error}"
            raise ValueError(f"SvdCase: rank, rel_error: one is wanted, got {given}")
        if self.rank > min(self.matrix.m, self.matrix.n):
            raise ValueError(f"SvdCase: rank: {self.rank} is more than {self.shape} has")

    @property
    def matrix(self) -> KnownMatrix:
        """The matrix, not yet drawn."""
        sizes = self.shape.split("x")
        if len(sizes) != 2 or not all(size.isdigit() for size in sizes):
            raise ValueError(f"SvdCase: shape: got {self.shape!r}, wanted mxn such as 4096x4096")
        return KnownMatrix(int(sizes[0]), int(sizes[1]), self.spectrum, self.outlier_columns)


def read_svd_cases(path: str | Path, only: str = "*") -> list[SvdCase]:
    """Cases of a TOML file, each a ``[[case]]``, whose names match the glob ``only``.

    Raises
    ------
    ValueError
        When there is none, two have one name, or one has an unknown key or lacks one.
    """
    cases = [read_table(path, SvdCase, table) for table in toml_tables(path, "case")]
    return named(path, cases, only)


def toml_tables(path: str | Path, key: str) -> list[dict[str, Any]]:
    """The ``[[key]]`` tables of a file, lists as tuples; none where there are none."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    tables = tomllib.loads(Path(path).read_text()).get(key, [])
    return [
        {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
        for table in tables
    ]


def read_table(path: str | Path, kind: Callable[..., AnyCase], table: dict[str, Any]) -> AnyCase:
    """What ``kind`` makes of a table; a ValueError that names the file and the case."""
    try:
        return kind(**table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"read_cases: {path}: {table.get('name')!r}: {error}") from error


def named(path: str | Path, cases: Sequence[AnyCase], only: str) -> list[AnyCase]:
    """Those whose names match the glob ``only``.

    Raises
    ------
    ValueError
        When there is none, or two of ``cases`` have one name.
    """
    names = [case.name for case in cases]
    if not names or len(set(names)) < len(names):
        wanted = "[[case]]s of different names are wanted"
        raise ValueError(f"read_cases: {path}: {wanted}, got {names}")
    chosen = [case for case in cases if fnmatch.fnmatch(case.name, only)]
    if not chosen:
        raise ValueError(f"read_cases: {path}: no case is named {only!r}; there are {names}")
    return chosen
