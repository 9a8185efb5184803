"""The grid of numbers that a format can round a weight to, for methods that choose the codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .clipping import best_scales, block_means
from .codebooks import GRID_FORMATS, Codebook, codebook, nearest_codes, storable
from .four_bit import join_halves, rounded_scales
from .groups import check_tensor, divided, finite_matrix, in_groups, map_groups, over_k, row_chunks
from .sparse_integer import SparseInt4, SparseInt8

SPARSE: dict[str, Any] = {"int8": SparseInt8, "int4": SparseInt4}
_MIDDLE = 8.0  # the zero of symmetric int4
_BLOCK = 128  # rows and columns of a block of fp8
_E8M0_BIAS, _E8M0_LARGEST = 127, 254
_TINY = 2.0**-100  # below it 127 / amax nears the end of float32


@dataclass(frozen=True, eq=False)
class Grid:
    """The numbers that each entry of a weight [N, K] may be rounded to.

    ``Ŵ[n, k] = (levels[c[n, k]] - zeros[n, g]) * scales[n, g]`` with ``g = k // G``, for codes c
    that a method of rounding chooses.

    Attributes
    ----------
    format : str
        Name of a dense format: "int8", "int4", "nf4", "fp4", "mxfp4" or "fp8".
    scales : Tensor
        Float32 (N, groups): exactly the numbers that the format will store. Of the blocks of fp8,
        the 128 rows of a block have the same.
    zeros : Tensor or None
        Float32 (N, groups), whole numbers from 0 to 15: for int4, 8 where it is symmetric. None: 0.
    group_size : int or None
        G; None: one group.
    settings : mapping
        Of the format's ``quantize``.
    inverses : Tensor or None
        Float64 (N, groups): what `round` multiplies with where the format's ``quantize`` does not
        divide by the scales. None: it divides.

    Examples
    --------
    >>> from gossamer.formats.grids import fit_grid
    >>> W = torch.randn(4, 64)
    >>> grid = fit_grid("int4", 32, {}, W)
    >>> codes = grid.round(W)
    >>> codes.shape, grid.levels.tolist() == list(range(16))
    (torch.Size([4, 64]), True)
    >>> bool((grid.to_format(codes).dequantize() == grid.dequantize(codes)).all())
    True
    """

    format: str
    scales: Tensor
    zeros: Tensor | None
    group_size: int | None
    settings: Mapping[str, Any]
    inverses: Tensor | None = None

    @classmethod
    def of(cls, weight: Any) -> Grid:
        """The grid that a weight lies on.

        Parameters
        ----------
        weight : Format
            Int8, Int4, NF4, FP4, MXFP4 or FP8.

        Returns
        -------
        Grid
            With its scales and zero points.
        """
        _grid_format("Grid.of", weight.name)
        N, G, zeros = weight.shape[0], weight.group_size, None
        if weight.name == "int4":
            points = weight.zero_points
            zeros = torch.full(weight.scales.shape, _MIDDLE) if points is None else points.float()
        scales = weight.float_scales() if hasattr(weight, "float_scales") else weight.scales.clone()
        if weight.name == "fp8" and G is not None:
            scales = scales.repeat_interleave(_BLOCK, 0)[:N].contiguous()
        return cls(weight.name, scales, zeros, G, weight.settings)

    @cached_property
    def _codebook(self) -> Codebook:
        return codebook(self.format, self.settings)

    @property
    def levels(self) -> Tensor:
        """Float32 (L,), ascending, L <= 256. Floats have -0.0 and then 0.0."""
        return self._codebook.levels

    @property
    def thresholds(self) -> Tensor | None:
        """Float32 (L - 1,): the code is how many of them lie below w / s.

        None where levels are consecutive whole numbers: then ``code + levels[0]`` is ``w / s``
        rounded to the nearest, halves to even, plus the zero, clamped to the levels.
        """
        return self._codebook.thresholds

    @property
    def row_block(self) -> int:
        """How many consecutive rows have the same scales: 128 for the blocks of fp8, else 1."""
        return _BLOCK if self.format == "fp8" and self.group_size is not None else 1

    def round(self, W: Tensor) -> Tensor:
        """The nearest level for each weight.

        Parameters
        ----------
        W : Tensor
            Shape (N, K), finite.

        Returns
        -------
        Tensor
            uint8 (N, K): indices into `levels`. Where the scale is 0, that of zero.
        """
        codes = torch.empty(W.shape, dtype=torch.uint8)
        for rows in row_chunks(*W.shape):
            flat = self._round(in_groups(W[rows], self.group_size), rows).flatten(1)
            codes[rows] = flat[:, : W.shape[1]].to(torch.uint8)
        return codes

    def _round(self, groups: Tensor, rows: slice) -> Tensor:
        if self.inverses is None:
            values = divided(groups, self.scales[rows, :, None])
        else:
            values = (groups * self.inverses[rows, :, None]).float()
        zeros = None if self.zeros is None else self.zeros[rows, :, None]
        codes = nearest_codes(values, self._codebook, zeros)
        signed_zeros = self.thresholds is not None and self.format != "nf4"
        if signed_zeros:
            codes -= ((values == 0) & values.signbit()).int()
        return codes

    def dequantize(self, codes: Tensor) -> Tensor:
        """The weight that codes stand for.

        Parameters
        ----------
        codes : Tensor
            uint8 (N, K), indices into `levels`.

        Returns
        -------
        Tensor
            Float32 (N, K).
        """
        K, out = codes.shape[1], torch.empty(codes.shape)
        for rows in row_chunks(*codes.shape):
            values = self.levels[codes[rows].int()]
            if self.zeros is not None:
                values -= over_k(self.zeros[rows], self.group_size, K)
            torch.mul(values, over_k(self.scales[rows], self.group_size, K), out=out[rows])
        return out

    def with_scales(self, scales: Tensor, zeros: Tensor | None = None) -> Grid:
        """Other scales, rounded to what the format can store.

        Parameters
        ----------
        scales : Tensor
            Float32 (N, groups). Of int8, negative ones become 0; of mxfp4, all become powers of
            two; of the blocks of fp8, the mean of a block is taken.
        zeros : Tensor, optional
            Float32 (N, groups), rounded to whole numbers from 0 to 15. None: those of this grid.

        Returns
        -------
        Grid
            A new one.
        """
        if zeros is not None:
            if self.zeros is None or self.settings.get("symmetric", True):
                raise ValueError(
                    f"Grid.with_scales: zeros: {self.format} is symmetric, wanted None"
                )
            zeros = zeros.round().clamp(0, 15)
        stored = storable(self.format, self.settings, self.group_size, scales)
        if self.row_block > 1:
            stored = block_means(stored, self.row_block)
        zeros = self.zeros if zeros is None else zeros
        return replace(self, scales=stored, zeros=zeros, inverses=None)

    def to_format(self, codes: Tensor, *, sparse: bool = False) -> Any:
        """The weight that codes stand for, in its format.

        Parameters
        ----------
        codes : Tensor
            uint8 (N, K), indices into `levels`.
        sparse : bool
            Leave out the zeros: SparseInt8 or SparseInt4.

        Returns
        -------
        Format
            With the scales of this grid.

        Raises
        ------
        ValueError
            For `sparse` where the format has no sparse twin, or int4 is not symmetric.
        """
        check_tensor("Grid.to_format", "codes", codes, (torch.uint8,), tuple(codes.shape))
        N, K = codes.shape
        form = GRID_FORMATS[self.format]
        stored = torch.empty_like(codes)
        for rows in row_chunks(N, K):
            stored[rows] = self._codebook.stored[codes[rows].int()]
        if self.format == "int8":
            weight = form(stored.view(torch.int8), self.scales, self.group_size)
        elif self.format == "fp8":
            values = stored.view(self.settings.get("dtype", torch.float8_e4m3fn))
            weight = form(values, self.scales[:: self.row_block].contiguous(), self.group_size)
        else:
            halves = join_halves(stored, K)
            weight = form(halves, self._stored_scales(), self.group_size, K, **self._zero_points())
        if not sparse:
            return weight
        if self.format not in SPARSE:
            raise ValueError(f"Grid.to_format: sparse: {self.format} has no sparse twin")
        return SPARSE[self.format].from_dense(weight)

    def _stored_scales(self) -> Tensor:
        if self.format == "mxfp4":
            exponents = torch.frexp(self.scales).exponent - 1
            return exponents.add_(_E8M0_BIAS).clamp_(0, _E8M0_LARGEST).to(torch.uint8)
        return rounded_scales("Grid.to_format", self.scales, self.settings.get("scale_dtype"))

    def _zero_points(self) -> dict[str, Tensor]:
        if self.zeros is None or self.settings.get("symmetric", True):
            return {}
        return {"zero_points": self.zeros.to(torch.uint8)}


def fit_grid(
    form: str,
    group_size: int | None,
    settings: Mapping[str, Any],
    W: Tensor | np.ndarray[Any, Any],
    *,
    importance: Tensor | None = None,
) -> Grid:
    """Scales and zeros for a weight.

    Parameters
    ----------
    form : str
        Name of a format; "sparse-int8" and "sparse-int4" have the grids of int8 and int4.
    group_size : int, optional
        Of the format.
    settings : mapping
        Further arguments of the format's ``quantize``.
    W : Tensor or ndarray
        Shape (N, K), floating point.
    importance : Tensor, optional
        Float32 (K,), >= 0, such as E[x²] of the inputs: scales are searched that minimize
        ``Σ_k importance[k] (W[n, k] - Ŵ[n, k])²`` in each group. None: those of ``quantize``.

    Returns
    -------
    Grid
        Without `importance`, ``grid.to_format(grid.round(W))`` has the bits of
        ``quantize(W, group_size, **settings)``.

    Raises
    ------
    ValueError
        For a format that has no grid, such as bf16; where `W` or `importance` holds NaN or
        infinity, or `importance` a negative number, or has another shape.

    Notes
    -----
    The search begins at the scales of ``quantize``. It tries ranges of 1 to 0.6 of the whole (for
    symmetric int4 and nf4 with both signs, for asymmetric int4 with both ends apart), and improves
    the best by least squares for its codes, ``s = Σ h w d / Σ h d²`` with d the levels, twice. All
    are rounded to what the format can store before they are judged; the best is taken.

    Examples
    --------
    >>> from gossamer.formats.grids import fit_grid
    >>> W, squares = torch.randn(8, 64), torch.rand(64)
    >>> grid = fit_grid("nf4", 64, {}, W, importance=squares)
    >>> grid.scales.shape
    torch.Size([8, 1])
    """
    name = form.removeprefix("sparse-")
    _grid_format("fit_grid", form)
    W = finite_matrix("fit_grid", W)
    weight = GRID_FORMATS[name].quantize(W, group_size, **settings)
    grid = replace(Grid.of(weight), settings=dict(settings))
    if importance is not None:
        _check_importance(importance, W.shape[1])
        scales, zeros = best_scales(grid, W, importance.float())
        symmetric = settings.get("symmetric", True)
        return grid.with_scales(scales, None if symmetric else zeros)
    return replace(grid, inverses=_inverses(W, group_size)) if name == "int8" else grid


def has_grid(form: str) -> bool:
    """Whether fit_grid knows a format, sparse ones included."""
    return form.removeprefix("sparse-") in (SPARSE if form.startswith("sparse-") else GRID_FORMATS)


def _grid_format(function: str, form: object) -> None:
    """The argument must name a format that has a grid."""
    if not isinstance(form, str) or not has_grid(form):
        names = ", ".join([*GRID_FORMATS, *(f"sparse-{name}" for name in SPARSE)])
        raise ValueError(f"{function}: form: {form!r} has no grid of levels, wanted one of {names}")


def _check_importance(importance: Tensor, K: int) -> None:
    check_tensor("fit_grid", "importance", importance, (torch.float32,), (K,))
    if not bool(((importance >= 0) & importance.isfinite()).all()):
        raise ValueError("fit_grid: importance: some are negative, infinite or NaN")


def _inverses(W: Tensor, group_size: int | None) -> Tensor:
    """What ``Int8.quantize`` multiplies with: 127 / amax in float32, scaled up where it is tiny."""
    amax = map_groups(W, group_size, lambda groups: groups.abs().amax(2))
    up = torch.where(amax < _TINY, 2.0**100, 1.0)
    return torch.where(amax > 0, 127 / (amax * up), 0.0).double() * up.double()
