"""Format int4: codes 0 to 15 around a zero point, in groups along K."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import _check, _ops_packing
from .four_bit import FourBit, rounded_scales
from .groups import (
    check_kinds,
    check_tensor,
    dense_matrix,
    divided,
    map_groups,
    over_k,
    refuse_rows,
    row_chunks,
)

_MIDDLE = 8  # the zero point of symmetric weights


@dataclass(frozen=True, eq=False)
class Int4(FourBit):
    """A weight as int4: ``W[n, k] ≈ (code[n, k] - zero_points[n, k // G]) * scales[n, k // G]``.

    These are the canonical tensors, the same on every machine; :meth:`pack` lays them out for the
    kernels.

    Parameters
    ----------
    codes : Tensor
        Shape (N, ceil(K / 2)), uint8: code k is in the low half of byte k // 2 where k is even, in
        the high half where it is odd. After an odd K the last high half is 0.
    scales : Tensor
        Shape (N, groups), float16, bfloat16 or float32, finite, of any sign; ``groups =
        ceil(K / G)``, or 1 where ``group_size`` is None.
    group_size : int, optional
        G: 16, 32, 64, 128 or 256 consecutive k share a scale; the last group may be short. None:
        one scale per output channel.
    in_features : int, optional
        K; None takes two for each byte of a row.
    zero_points : Tensor, optional
        Shape (N, groups), uint8, 0 to 15. None: 8 everywhere, the symmetric form.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, a scale is infinite or NaN, or a zero point is
        above 15.

    Examples
    --------
    >>> weight = Int4(torch.tensor([[0x9F, 0x08]], dtype=torch.uint8), torch.tensor([[0.5]]))
    >>> weight.dequantize()
    tensor([[ 3.5000,  0.5000,  0.0000, -4.0000]])
    """

    name: ClassVar[str] = "int4"
    codebook: ClassVar[tuple[float, ...]] = tuple(range(16))
    state_names: ClassVar[tuple[str, ...]] = ("weight", "weight_scale", "weight_zero_point")
    state_forms: ClassVar[tuple[tuple[str, ...], ...]] = (state_names[:2], state_names)

    zero_points: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_points is not None:
            shape = tuple(self.scales.shape)
            check_tensor("Int4", "zero_points", self.zero_points, (torch.uint8,), shape)
            if bool((self.zero_points > 15).any()):
                raise ValueError("Int4: zero_points: some are above 15")

    @classmethod
    def quantize(
        cls,
        W: Tensor | np.ndarray[Any, Any],
        group_size: int | None = 128,
        *,
        symmetric: bool = True,
        scale_dtype: torch.dtype | None = None,
    ) -> Int4:
        """Round a dense weight to int4.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64 (read as float32).
        group_size : int, optional
            16, 32, 64, 128 or 256, or None for one scale per output channel.
        symmetric : bool
            Whether the zero point is 8 everywhere; otherwise each group has its own.
        scale_dtype : torch.dtype, optional
            float16, bfloat16 or float32. None: float16 where every scale that is not 0 is a normal
            number in it, else float32.

        Returns
        -------
        Int4
            New tensors; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN or infinity (the rows are named) or is not a matrix, or a scale is
            too large for `scale_dtype`.

        Notes
        -----
        Symmetric: let e be the weight of largest magnitude in a group. Of the scales ``r * e / -8``
        with r = 1, 0.9, 0.8, 0.7 and 0.6, the one with the smallest sum of cubed errors is taken
        (the first of equals); r < 1 clips a few large weights and makes all steps finer. Squares
        would clip more, and models lose by that. Scales are negative where e is positive, so that
        e itself has a code. Against ``amax / 7`` this lowers the error of normally distributed
        weights by 11 to 17 %, for groups of 16 to 256.

        Asymmetric: ``scale = (max(w, 0) - min(w, 0)) / 15`` and ``zero point =
        round(-min(w, 0) / scale)``, so that 0 is exact.

        Scales are rounded to their dtype first, then ``code = clamp(round_half_even(w / scale) +
        zero point, 0, 15)``. A group of zeros has scale 0.

        Examples
        --------
        >>> weight = Int4.quantize(torch.randn(4, 300), 64)
        >>> weight.codes.shape, weight.scales.shape, weight.scales.dtype
        (torch.Size([4, 150]), torch.Size([4, 5]), torch.float16)
        """
        _check.group_size("Int4.quantize", group_size, cls.group_sizes)
        W = dense_matrix("Int4.quantize", W)
        if symmetric:
            best = partial(_ops_packing.int4_best_scales, group_size=group_size)
            scales = torch.cat([best(part) for part in _float_rows(W)])
        else:
            scales = map_groups(W, group_size, _range_scales)
        refuse_rows("Int4.quantize", scales.isfinite().all(1))
        scales = rounded_scales("Int4.quantize", scales, scale_dtype)
        zero_points = None if symmetric else map_groups(W, group_size, _zero_points, scales)
        K = W.shape[1]
        codes, first = torch.empty(W.shape[0], -(-K // 2), dtype=torch.uint8), 0
        for part in _float_rows(W):
            rows = slice(first, first + len(part))
            points = None if zero_points is None else zero_points[rows]
            codes[rows] = _ops_packing.int4_codes(part, group_size, scales[rows], points)
            first = rows.stop
        return cls(codes, scales, group_size, K, zero_points)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight: codes, scales, zero points, padding and header."""
        return self._packed_bytes(self.zero_points)

    @property
    def settings(self) -> dict[str, Any]:
        """What ``quantize`` must be told, beside the group size, for another weight like this."""
        own = {} if self.zero_points is None else {"symmetric": False}
        return own | super().settings

    def _levels(self, rows: slice) -> Tensor:
        levels = super()._levels(rows)
        if self.zero_points is None:
            return levels.sub_(_MIDDLE)
        return levels.sub_(over_k(self.zero_points[rows], self.group_size, self.shape[1]))

    def pack(self, activations: str | None = None) -> Tensor:
        """Lay the weight out for the kernels.

        Parameters
        ----------
        activations : str, optional
            What the kernels do to x: "int8" (the default) rounds each row, "int8-group" each group
            of G in a row with a scale of its own, "exact" multiplies x as it is.

        Returns
        -------
        Tensor
            Shape (nbytes,), uint8: header, scales, zero points and panels. One layout serves every
            x86 ISA.

        Examples
        --------
        >>> weight = Int4.quantize(torch.randn(5, 7), None)
        >>> bool((Int4.unpack(weight.pack()).codes == weight.codes).all())
        True
        """
        return self._pack(self.zero_points, activations)

    @classmethod
    def unpack(cls, packed: Tensor) -> Int4:
        """Undo :meth:`pack`, exactly.

        Parameters
        ----------
        packed : Tensor
            Shape (nbytes,), uint8, from :meth:`pack`.

        Returns
        -------
        Int4
            The canonical tensors, newly allocated.

        Raises
        ------
        TypeError, ValueError
            Where the bytes are not a packed int4 weight of this layout.
        """
        found = _ops_packing.unpack(packed, cls.name)
        return cls(
            found.values, found.scales, found.group_size, found.in_features, found.zero_points
        )

    def rows(self, first: int, last: int) -> Int4:
        """Some of the output channels.

        Parameters
        ----------
        first, last : int
            The rows [first, last), within [0, N].

        Returns
        -------
        Int4
            Of shape (last - first, K), in tensors of its own.

        Examples
        --------
        >>> weight = Int4.quantize(torch.randn(5, 7), 16, symmetric=False)
        >>> bool((weight.rows(1, 3).codes == weight.codes[1:3]).all())
        True
        """
        part = replace(self, zero_points=None)
        part = super(Int4, part).rows(first, last)
        points = self.zero_points
        return part if points is None else replace(part, zero_points=points[first:last].clone())

    @classmethod
    def cat(cls, weights: Sequence[Int4]) -> Int4:
        """Join weights along N.

        Parameters
        ----------
        weights : sequence of Int4
            With the same K, group size and dtype of the scales, all symmetric or none.

        Returns
        -------
        Int4
            The rows of the first, then those of the second, and so on, in tensors of its own.

        Raises
        ------
        ValueError
            Where they differ.

        Examples
        --------
        >>> weight = Int4.quantize(torch.randn(5, 7), 16)
        >>> Int4.cat([weight, weight]).shape
        (10, 7)
        """
        symmetric = [weight.zero_points is None for weight in weights]
        check_kinds("Int4.cat", symmetric, "symmetric")
        zero_points = [w.zero_points for w in weights if w.zero_points is not None]
        parts = [replace(weight, zero_points=None) for weight in weights]
        joined = super().cat(parts)
        return replace(joined, zero_points=torch.cat(zero_points) if zero_points else None)

    def state(self) -> dict[str, Tensor]:
        """The tensors that a ``state_dict`` holds, by name.

        Returns
        -------
        dict of str to Tensor
            ``weight``, the codes; ``weight_scale``; and, if there are any, ``weight_zero_point``.
        """
        own = {} if self.zero_points is None else {"weight_zero_point": self.zero_points}
        return super().state() | own

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        group_size: int | None = None,
        in_features: int | None = None,
    ) -> Int4:
        """Undo :meth:`state`.

        Parameters
        ----------
        state : mapping of str to Tensor
            ``weight``, ``weight_scale`` and, for an asymmetric weight, ``weight_zero_point``.
        group_size : int, optional
            The group size to take where the number of scales allows several.
        in_features : int, optional
            K; None takes two for each byte of a row.

        Returns
        -------
        Int4
            The weight; its tensors are those of `state`.

        Raises
        ------
        TypeError, ValueError
            Where dtypes or shapes do not fit together.
        """
        weight = super().from_state(state, group_size, in_features)
        return replace(weight, zero_points=state.get("weight_zero_point"))


def _float_rows(W: Tensor) -> Iterator[Tensor]:
    """Rows of W in float32 with unit stride: all of them where they are so, else some at a time."""
    if W.dtype is torch.float32 and (W.stride(1) == 1 or W.shape[1] == 1):
        yield W
        return
    for rows in row_chunks(*W.shape):
        yield W[rows].to(torch.float32).contiguous()


def _range_scales(groups: Tensor) -> Tensor:
    low, high = groups.aminmax(dim=2)
    return high.clamp(min=0) / 15 - low.clamp(max=0) / 15


def _zero_points(groups: Tensor, scales: Tensor) -> Tensor:
    low = groups.amin(2).clamp(max=0)
    return divided(-low, scales.to(torch.float32)).round_().clamp_(0, 15).to(torch.uint8)
