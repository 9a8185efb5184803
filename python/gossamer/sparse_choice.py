"""Which parts a packed sparse weight holds, and whether it should be sparse at all.

The figures are measured: from which share of zeros something is faster. They are data, by format
and class of processor, in :data:`THRESHOLDS`; everything else follows from them.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from . import _C, _check

Batch: TypeAlias = int | str | tuple[int | str, ...]

USUAL_BATCH: tuple[int | str, ...] = (1, "large")
PARTS = ("bitmask", "spmm")
PATTERNS = ("any", "1x4", "1x16", "4x1", "16x1")
PATHS = ("auto", "gemv", "expand", "spmm")
MANY_ROWS = 16  # rows of x from which products are bound by computing, not by reading the weight


class Regime(NamedTuple):
    """Shares of zeros from which something pays; infinity: never."""

    sparse: float  # than the dense format
    spmm: float  # to skip zeros than to expand them


class Thresholds(NamedTuple):
    """For less than MANY_ROWS rows of x, and for more."""

    few: Regime
    many: Regime


_NEVER = math.inf
# avx512vbmi2 and fp32 on avx512 were measured (gossamer bench sparse, Zen 4), with weights that
# come from memory for few rows; avx2 and avx512 for integers in parts; amx by reasoning. int8 skips
# faster than it expands from 0.75 on, but below 0.85 both parts take more than the dense weight.
# The scalar kernels are no faster for more zeros unless they skip them.
THRESHOLDS: dict[tuple[str, str], Thresholds] = {
    ("sparse-fp32", "amx"): Thresholds(Regime(0.3, 0.75), Regime(0.3, 0.3)),
    ("sparse-fp32", "avx512vbmi2"): Thresholds(Regime(0.3, 0.75), Regime(0.3, 0.3)),
    ("sparse-fp32", "avx512"): Thresholds(Regime(0.3, 0.75), Regime(0.3, 0.3)),
    ("sparse-fp32", "avx2"): Thresholds(Regime(0.4, 0.9), Regime(0.6, 0.6)),
    ("sparse-fp32", "scalar"): Thresholds(Regime(0.7, 0.7), Regime(0.8, 0.7)),
    ("sparse-bf16", "amx"): Thresholds(Regime(0.3, _NEVER), Regime(0.3, _NEVER)),
    ("sparse-bf16", "avx512vbmi2"): Thresholds(Regime(0.3, _NEVER), Regime(0.3, _NEVER)),
    ("sparse-bf16", "avx512"): Thresholds(Regime(0.4, _NEVER), Regime(0.4, _NEVER)),
    ("sparse-bf16", "avx2"): Thresholds(Regime(0.5, _NEVER), Regime(0.5, _NEVER)),
    ("sparse-bf16", "scalar"): Thresholds(Regime(0.7, _NEVER), Regime(0.7, _NEVER)),
    ("sparse-int8", "amx"): Thresholds(Regime(0.3, _NEVER), Regime(0.3, _NEVER)),
    ("sparse-int8", "avx512vbmi2"): Thresholds(Regime(0.5, _NEVER), Regime(0.5, 0.85)),
    ("sparse-int8", "avx512"): Thresholds(Regime(0.5, _NEVER), Regime(0.5, 0.85)),
    ("sparse-int8", "avx2"): Thresholds(Regime(0.6, _NEVER), Regime(0.6, 0.85)),
    ("sparse-int8", "scalar"): Thresholds(Regime(0.7, _NEVER), Regime(0.7, 0.8)),
    ("sparse-int4", "amx"): Thresholds(Regime(0.4, _NEVER), Regime(0.4, _NEVER)),
    ("sparse-int4", "avx512vbmi2"): Thresholds(Regime(0.5, _NEVER), Regime(0.5, _NEVER)),
    ("sparse-int4", "avx512"): Thresholds(Regime(0.6, _NEVER), Regime(0.6, _NEVER)),
    ("sparse-int4", "avx2"): Thresholds(Regime(0.7, _NEVER), Regime(0.7, _NEVER)),
    ("sparse-int4", "scalar"): Thresholds(Regime(0.8, _NEVER), Regime(0.8, _NEVER)),
}
_CLASSES = {
    "scalar": "scalar",
    "avx2": "avx2",
    "avxvnni": "avx2",
    "avx512": "avx512",
    "avx512vnni": "avx512",
    "avx512vbmi2": "avx512vbmi2",
    "avx512bf16": "avx512vbmi2",
    "amx": "amx",
}


@dataclass(frozen=True)
class SparseKind:
    """What the choice depends on, beside the batch and the processor.

    Attributes
    ----------
    format : str
        Such as "sparse-int8".
    sparsity : float
        Share of the weights that are zero.
    group_size : int or None
        Of the format.
    activations : str
        "int8", "int8-group" or "exact".
    pattern : str
        One of ``PATTERNS``.
    """

    format: str
    sparsity: float
    group_size: int | None
    activations: str
    pattern: str

    @property
    def has_spmm(self) -> bool:
        """Whether there are kernels that skip its zeros."""
        integers = self.activations == "int8" and self.group_size is None
        return self.format == "sparse-fp32" or (self.format == "sparse-int8" and integers)


@dataclass(frozen=True)
class SparseChoice:
    """What :func:`choose` found.

    Attributes
    ----------
    parts : tuple of str
        Of the packed weight: "bitmask", "spmm" or both.
    few, many : str
        How a product is computed with less than 16 rows of x, and with more: "gemv", "expand" or
        "spmm".
    keep_dense : bool
        Whether the dense format is faster, for one of the batches at least.
    isa : str
        The processor that this is for.
    reason : str
        A sentence, for reports.
    """

    parts: tuple[str, ...]
    few: str
    many: str
    keep_dense: bool
    isa: str
    reason: str


def choose(kind: SparseKind, batch: Batch = USUAL_BATCH, isa: str | None = None) -> SparseChoice:
    """Say how a sparse weight is best stored for products with so many rows.

    Parameters
    ----------
    kind : SparseKind
        What is known of the weight.
    batch : int, "large" or a tuple of these
        Rows of x in the products that it is for.
    isa : str, optional
        None: the active one.

    Returns
    -------
    SparseChoice
        With as many parts as the batches need, which is two at most.
    """
    sizes = check_batch("sparse_choice", batch)
    isa = isa or _C.isa_active()
    thresholds = THRESHOLDS[kind.format, _CLASSES[isa]]
    few = "spmm" if _skips(kind, thresholds.few) else "gemv"
    many = "spmm" if _skips(kind, thresholds.many) else "expand"
    paths = {size: many if _is_many(size) else few for size in sizes}
    wanted = {"spmm" if path == "spmm" else "bitmask" for path in paths.values()}
    if len(wanted) == 2 and _both_outgrow_dense(kind):
        few, wanted = "spmm", {"spmm"}
        paths = dict.fromkeys(paths, "spmm")
    parts = tuple(part for part in PARTS if part in wanted)
    slower = _slower_than_dense(kind, thresholds, sizes, isa)
    return SparseChoice(parts, few, many, bool(slower), isa, slower or _reason(kind, paths, isa))


def check_batch(function: str, batch: object) -> tuple[int | str, ...]:
    """The argument as a tuple of sizes: numbers from 1, or "large"."""
    sizes = batch if isinstance(batch, tuple | list) else (batch,)
    for size in sizes:
        number = isinstance(size, numbers.Integral) and not isinstance(size, bool) and int(size) > 0
        if size != "large" and not number:
            raise ValueError(
                f"{function}: batch: got {_check.describe(size)}, wanted numbers >= 1 or 'large'"
            )
    if not sizes:
        raise ValueError(f"{function}: batch: is empty, wanted numbers >= 1 or 'large'")
    return tuple(sizes)


def check_name(
    function: str, argument: str, value: str | None, names: tuple[str, ...]
) -> str | None:
    """The argument must be None or one of these."""
    if value is not None and value not in names:
        wanted = ", ".join(map(repr, names))
        raise ValueError(f"{function}: {argument}: got {value!r}, wanted None or one of {wanted}")
    return value


def check_parts(function: str, parts: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The argument must be None, or one or two parts."""
    if parts is None:
        return None
    names = (parts,) if isinstance(parts, str) else tuple(parts)
    if not names or not set(names) <= set(PARTS):
        raise ValueError(f"{function}: parts: got {parts!r}, wanted some of {PARTS}")
    return names


def _is_many(size: int | str) -> bool:
    return isinstance(size, str) or size >= MANY_ROWS


def _skips(kind: SparseKind, regime: Regime) -> bool:
    """Whether skipping zeros pays. int8 skips 4 along K, which unstructured zeros rarely fill."""
    share = regime.spmm
    if kind.format == "sparse-int8" and kind.pattern in ("1x4", "1x16"):
        share = share**4  # as many groups of 4 are skipped then as at this share without blocks
    return kind.has_spmm and kind.sparsity >= share


def _both_outgrow_dense(kind: SparseKind) -> bool:
    """Whether two parts of float32 would take more than the dense weight: then skipping is all.

    A value takes 4 bytes beside the mask, and about 5.2 where it is skipped to.
    """
    stored = 1 - kind.sparsity
    return kind.format == "sparse-fp32" and 1 / 8 + (4 + 5.2) * stored >= 4


def _slower_than_dense(
    kind: SparseKind, thresholds: Thresholds, sizes: tuple[int | str, ...], isa: str
) -> str:
    """Why the dense format is to be kept; empty where the sparse one is."""
    for size in sizes:
        share = (thresholds.many if _is_many(size) else thresholds.few).sparse
        if kind.sparsity < share:
            dense = "dense" if kind.format == "sparse-fp32" else kind.format.removeprefix("sparse-")
            return (
                f"{kind.sparsity:.0%} of the weights are zero; {kind.format} is faster than "
                f"{dense} from {share:.0%} ({_rows(size)}, {isa})"
            )
    return ""


def _reason(kind: SparseKind, paths: dict[int | str, str], isa: str) -> str:
    ways = ", ".join(f"{path} for {_rows(size)}" for size, path in paths.items())
    return f"{kind.sparsity:.0%} of the weights are zero: {ways} ({isa})"


def _rows(size: int | str) -> str:
    return "many rows" if isinstance(size, str) else "1 row" if size == 1 else f"{size} rows"
