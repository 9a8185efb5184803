"""Kernels of calibration: Gram matrices, column statistics, the OBS column update and descent.

Beside the other ``_ops`` files, the only one that turns tensors into pointers. The contracts are
csrc/include/gossamer/gram.h, column_stats.h and obs.h; results are bit-identical for every number
of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C, _check

LANES = ("f32", "bf16")
BLOCK = 128  # columns that one call updates, at most
_ROWS = 32  # of a chunk; columns are padded to a multiple


def gram(x: Tensor, lane: str | None = None, threads: int | None = None) -> Tensor:
    """Compute ``xᵀ x``: x [T, K] float32, bfloat16 or float16; the result [K, K] float32.

    Parameters
    ----------
    x : Tensor
        T, K >= 1. Sums over T are float32: more than a few thousand rows are for the caller to cut.
    lane : str, optional
        "bf16" rounds x to bfloat16, "f32" does not. By default "bf16" where the instruction set
        multiplies it.
    """
    _check.floating("gram", "x", x)
    if x.dim() != 2 or 0 in x.shape:
        raise ValueError(f"gram: x: got {_check.describe(x)}, wanted [T, K], both >= 1")
    if lane is None:
        lane = "bf16" if _C.svd_has_lane("bf16", "") else "f32"
    if lane not in LANES:
        raise ValueError(f"gram: lane: got {lane!r}, wanted 'f32' or 'bf16'")
    if not _C.svd_has_lane(lane, ""):
        raise RuntimeError(
            "gram: lane: 'bf16' needs the instruction set avx512bf16 or amx, not "
            f"{_C.isa_active()}; 'f32' works everywhere"
        )
    x = _unit_stride(x)
    T, K = x.shape
    G = torch.empty(K, K)
    threads = _check.threads("gram", threads)
    dtype = _check.DTYPES[x.dtype]
    _C.gram(x.data_ptr(), dtype, T, K, x.stride(0), G.data_ptr(), lane == "bf16", threads)
    return G


class ColumnStats:
    """Sums and extremes of the columns of all rows x [M, K] that are added.

    Attributes
    ----------
    sums : Tensor
        float64 [2, K]: Σ x and Σ x². NaN or infinity where x holds either; infinity, too, where a
        square is beyond float32.
    bounds : Tensor
        float32 [2, K]: min x and max x, NaN left out.
    """

    def __init__(self, K: int) -> None:
        self.sums = torch.zeros(2, K, dtype=torch.float64)
        self.bounds = torch.tensor([torch.inf, -torch.inf])[:, None].repeat(1, K)

    def add(self, x: Tensor, threads: int | None = None) -> None:
        """Add rows, float32, bfloat16 or float16."""
        K = self.sums.shape[1]
        _check.floating("ColumnStats.add", "x", x)
        if x.dim() != 2 or x.shape[1] != K:
            raise ValueError(f"ColumnStats.add: x: got {_check.describe(x)}, wanted [M, {K}]")
        x = _unit_stride(x)
        dtype, threads = _check.DTYPES[x.dtype], _check.threads("ColumnStats.add", threads)
        sums, bounds = self.sums.data_ptr(), self.bounds.data_ptr()
        _C.add_column_stats(x.data_ptr(), dtype, len(x), K, x.stride(0), sums, bounds, threads)


def _unit_stride(x: Tensor) -> Tensor:
    x = x.detach().resolve_neg()
    return x.contiguous() if x.stride(1) != 1 and x.shape[1] > 1 else x


class _Rounded:
    """A weight [N, K] with what it may be rounded to, transposed, N padded with zeros to rows."""

    codes: Tensor | None
    _state: _C.ObsRounding

    def __init__(self, N: int, K: int) -> None:
        self.N, self.K, self.rows = N, K, -(-N // _ROWS) * _ROWS

    def padded(self, transposed: Tensor, dtype: torch.dtype) -> Tensor:
        """A matrix [*, N] as [*, rows]."""
        padded = torch.zeros(transposed.shape[0], self.rows, dtype=dtype)
        padded[:, : self.N] = transposed
        return padded

    def use_grid(self, scales: Tensor, zeros: Tensor | None, groups: Tensor) -> Tensor:
        """Round with scales and zeros float32 [groups, rows]; groups int32 [K] of the columns.

        Returns `codes`, zeros at first.
        """
        self.codes = codes = torch.zeros(self.K, self.rows, dtype=torch.uint8)
        self.scales, self.zeros, self._groups = scales, zeros, groups
        zeros_address = 0 if zeros is None else zeros.data_ptr()
        self._state.set_grid(codes.data_ptr(), scales.data_ptr(), zeros_address, groups.data_ptr())
        return codes

    def use_uniform(self, lowest: float, highest: float) -> None:
        """Round to whole numbers in [lowest, highest]."""
        self._state.set_uniform(lowest, highest)

    def use_codebook(self, levels: Tensor, thresholds: Tensor) -> None:
        """Round to levels float32 [L]: code = how many of the L - 1 thresholds lie below."""
        self._levels = levels, thresholds  # kept alive
        self._state.set_codebook(levels.data_ptr(), thresholds.data_ptr(), len(levels))


class Columns(_Rounded):
    """The state of a column update, transposed: one row a column of the weight.

    Attributes
    ----------
    W : Tensor
        float32 [K, rows], rows being N padded with zeros: weights, and behind the updated columns
        the values that they became.
    E : Tensor
        float32 [K, rows]: errors of the columns that were updated.
    loss : Tensor
        float64 [rows].
    codes, keep : Tensor or None
        uint8 [K, rows]: with a grid, with a mask.
    """

    def __init__(self, W: Tensor, L: Tensor) -> None:
        """Take weights float32 [N, K] and the lower factor float32 [K, K]."""
        super().__init__(*W.shape)
        K, rows = self.K, self.rows
        self.W = self.padded(W.T, torch.float32)
        self.E = torch.empty(K, rows)
        self.L = L.contiguous()
        self.loss = torch.zeros(rows, dtype=torch.float64)
        self.codes: Tensor | None = None
        self.keep: Tensor | None = None
        self._state: _C.ObsColumns = _C.ObsColumns(
            self.W.data_ptr(), self.E.data_ptr(), self.loss.data_ptr(), rows, self.L.data_ptr(), K
        )

    def use_mask(self, keep: Tensor, n: int = 0, m: int = 0) -> None:
        """Prune by a mask bool [N, K]; with m, by one of n of each m that the update writes."""
        self.keep = self.padded(keep.T, torch.uint8)
        self._state.set_mask(self.keep.data_ptr(), n, m)

    def set_scales(self, column: int, scales: Tensor, zeros: Tensor | None) -> None:
        """Other scales and zeros [N] for the group of a column."""
        group = int(self._groups[column])
        self.scales[group, : self.N] = scales
        if self.zeros is not None and zeros is not None:
            self.zeros[group, : self.N] = zeros

    def update(self, first: int, last: int, threads: int | None = None) -> None:
        """Round and prune the columns of a block one after the other."""
        self._state.update(first, last, _check.threads("update", threads))


class Moves(_Rounded):
    """The state of a coordinate descent over codes, transposed as that of `Columns`.

    Attributes
    ----------
    E : Tensor
        float32 [K, rows]: W less what its codes stand for. Follows the codes.
    levels : Tensor
        float32 [K, rows]: of the codes, less the zeros. Follows the codes.
    codes : Tensor
        uint8 [K, rows], of the columns that have had their turn.
    """

    def __init__(self, E: Tensor, levels: Tensor, H: Tensor, keep: Tensor | None) -> None:
        """Take E and levels float32 [K, N], H float32 [K, K], and bool [N, K] of what may move."""
        K, N = E.shape
        super().__init__(N, K)
        self.E = self.padded(E, torch.float32)
        self.levels = self.padded(levels, torch.float32)
        self.H = H.contiguous()
        self._keep = None if keep is None else self.padded(keep.T, torch.uint8)
        mask = 0 if self._keep is None else self._keep.data_ptr()
        self._state: _C.ObsDescent = _C.ObsDescent(
            self.E.data_ptr(), self.levels.data_ptr(), mask, self.rows, self.H.data_ptr(), K
        )

    def descend(self, G: Tensor, first: int, last: int, threads: int | None = None) -> None:
        """Move the codes of a block of columns; G float32 [last - first, rows] is H E of it."""
        self._state.descend(G.data_ptr(), first, last, _check.threads("descend", threads))
