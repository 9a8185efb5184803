"""What the 4-bit formats share: codes two to a byte, a codebook, scales for groups along K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .. import _check, _ops_packing
from .groups import (
    check_kinds,
    check_matrix,
    check_tensor,
    fitting_group_size,
    group_count,
    over_k,
    row_chunks,
)

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_Weight = TypeVar("_Weight", bound="FourBit")


@dataclass(frozen=True, eq=False)
class FourBit:
    """A weight of 4-bit codes: ``W[n, k] ≈ codebook[code[n, k]] * scales[n, k // G]``.

    The base of :class:`Int4`, :class:`NF4`, :class:`FP4` and :class:`MXFP4`, which say what the
    codes mean and how a dense weight is rounded.

    Parameters
    ----------
    codes : Tensor
        Shape (N, ceil(K / 2)), uint8: code k is in the low half of byte k // 2 where k is even, in
        the high half where it is odd. After an odd K the last high half is 0.
    scales : Tensor
        Shape (N, groups), finite, of any sign; ``groups = ceil(K / G)``, or 1 where ``group_size``
        is None.
    group_size : int, optional
        G consecutive k share a scale; the last group may be short. None: a scale for each row.
    in_features : int, optional
        K; None takes two for each byte of a row.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, or a scale is infinite or NaN.
    """

    name: ClassVar[str]
    codebook: ClassVar[tuple[float, ...]]
    state_names: ClassVar[tuple[str, ...]] = ("weight", "weight_scale")
    state_forms: ClassVar[tuple[tuple[str, ...], ...]] = (("weight", "weight_scale"),)
    activation_kinds: ClassVar[tuple[str, ...]] = ("int8", "exact", "int8-group")
    group_sizes: ClassVar[tuple[int | None, ...]] = (None, 16, 32, 64, 128, 256)
    scale_dtypes: ClassVar[tuple[torch.dtype, ...]] = SCALE_DTYPES

    codes: Tensor
    scales: Tensor
    group_size: int | None = None
    in_features: int | None = None

    def __post_init__(self) -> None:
        kind, codes = type(self).__name__, self.codes
        _check.group_size(kind, self.group_size, self.group_sizes)
        check_matrix(kind, "codes", codes, (torch.uint8,))
        K = 2 * codes.shape[1] if self.in_features is None else self.in_features
        object.__setattr__(self, "in_features", K)  # the dataclass is frozen
        if codes.shape[1] != -(-K // 2):
            raise ValueError(
                f"{kind}: codes: got shape {list(codes.shape)}, wanted [N, {-(-K // 2)}] for "
                f"in_features {K}"
            )
        if K % 2 and bool((codes[:, -1] >> 4).any()):
            raise ValueError(f"{kind}: codes: in_features is odd, but the last high half is not 0")
        groups = (codes.shape[0], group_count(K, self.group_size))
        check_tensor(kind, "scales", self.scales, self.scale_dtypes, groups)
        if not bool(self.float_scales().isfinite().all()):
            raise ValueError(f"{kind}: scales: some are infinite or NaN")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): out_features and in_features."""
        assert self.in_features is not None  # __post_init__ sets it
        return self.codes.shape[0], self.in_features

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight: codes, scales, padding and header."""
        return self._packed_bytes(None)

    def _packed_bytes(self, zero_points: Tensor | None) -> int:
        return _ops_packing.four_bit_packed_bytes(
            self.name, self.shape, self.scales, zero_points, self.group_size
        )

    @property
    def bits_per_weight(self) -> float:
        """Bits of the packed weight, everything included, for each of its N * K weights."""
        N, K = self.shape
        return 8 * self.nbytes / (N * K)

    @property
    def settings(self) -> dict[str, Any]:
        """What ``quantize`` must be told, beside the group size, for another weight like this."""
        return {} if self.scales.dtype is torch.float16 else {"scale_dtype": self.scales.dtype}

    def float_scales(self) -> Tensor:
        """The scales as numbers.

        Returns
        -------
        Tensor
            Shape (N, groups), float32.
        """
        return self.scales.to(torch.float32)

    def dequantize(self) -> Tensor:
        """The weight that the kernels multiply with.

        Returns
        -------
        Tensor
            Shape (N, K), float32, newly allocated.
        """
        N, K = self.shape
        scales, out = self.float_scales(), torch.empty(N, K, dtype=torch.float32)
        for rows in row_chunks(N, K):
            torch.mul(self._levels(rows), over_k(scales[rows], self.group_size, K), out=out[rows])
        return out

    def _levels(self, rows: slice) -> Tensor:
        """What the scales are multiplied to: float32 [n, K]."""
        book = torch.tensor(self.codebook)
        halves = torch.stack([book.repeat(16), book.repeat_interleave(16)], 1)  # of each byte
        codes = self.codes[rows]
        levels = halves.index_select(0, codes.flatten().to(torch.int32))
        return levels.view(codes.shape[0], -1)[:, : self.shape[1]]

    def pack(self, activations: str | None = None) -> Tensor:
        """Lay the weight out for the kernels.

        Parameters
        ----------
        activations : str, optional
            What the kernels do to x: "int8" rounds each row, "int8-group" each group of G in a row
            with a scale of its own, "exact" multiplies x as it is. None takes the first of
            ``activation_kinds``.

        Returns
        -------
        Tensor
            Shape (nbytes,), uint8: header, scales and panels. One layout serves every x86 ISA.
        """
        return self._pack(None, activations)

    def _pack(self, zero_points: Tensor | None, activations: str | None) -> Tensor:
        kind = _check.activations(f"{type(self).__name__}.pack", activations, self.activation_kinds)
        return _ops_packing.four_bit_pack(
            self.name, self.shape, self.codes, self.scales, zero_points, self.group_size, kind
        )

    @classmethod
    def unpack(cls: type[_Weight], packed: Tensor) -> _Weight:
        """Undo :meth:`pack`, exactly.

        Parameters
        ----------
        packed : Tensor
            Shape (nbytes,), uint8, from :meth:`pack`.

        Returns
        -------
        FourBit
            The canonical tensors, newly allocated.

        Raises
        ------
        TypeError, ValueError
            Where the bytes are not a packed weight of this format and layout.
        """
        found = _ops_packing.unpack(packed, cls.name)
        return cls(found.values, found.scales, found.group_size, found.in_features)

    def rows(self: _Weight, first: int, last: int) -> _Weight:
        """Some of the output channels.

        Parameters
        ----------
        first, last : int
            The rows [first, last), within [0, N].

        Returns
        -------
        FourBit
            Of shape (last - first, K), in tensors of its own.
        """
        rows = slice(first, last)
        return replace(self, codes=self.codes[rows].clone(), scales=self.scales[rows].clone())

    @classmethod
    def cat(cls: type[_Weight], weights: Sequence[_Weight]) -> _Weight:
        """Join weights along N.

        Parameters
        ----------
        weights : sequence
            Of this format, with the same K, group size and dtype of the scales.

        Returns
        -------
        FourBit
            The rows of the first, then those of the second, and so on, in tensors of its own.

        Raises
        ------
        ValueError
            Where they differ.
        """
        kinds = [(w.in_features, w.group_size, w.scales.dtype) for w in weights]
        check_kinds(f"{cls.__name__}.cat", kinds, "in_features, group sizes and scale dtypes")
        codes = torch.cat([weight.codes for weight in weights])
        scales = torch.cat([weight.scales for weight in weights])
        return replace(weights[0], codes=codes, scales=scales)

    def state(self) -> dict[str, Tensor]:
        """The tensors that a ``state_dict`` holds, by name.

        Returns
        -------
        dict of str to Tensor
            ``weight``, the codes, and ``weight_scale``.
        """
        return {"weight": self.codes, "weight_scale": self.scales}

    @classmethod
    def from_state(
        cls: type[_Weight],
        state: Mapping[str, Tensor],
        group_size: int | None = None,
        in_features: int | None = None,
    ) -> _Weight:
        """Undo :meth:`state`.

        Parameters
        ----------
        state : mapping of str to Tensor
            Tensors by the names of ``state_names``.
        group_size : int, optional
            The group size to take where the number of scales allows several.
        in_features : int, optional
            K; None takes two for each byte of a row.

        Returns
        -------
        FourBit
            The weight; its tensors are those of `state`.

        Raises
        ------
        TypeError, ValueError
            Where dtypes or shapes do not fit together.
        """
        codes, scales = state["weight"], state["weight_scale"]
        if codes.dim() == 2 and scales.dim() == 2:
            K = in_features or 2 * codes.shape[1]
            group_size = fitting_group_size(K, scales.shape[1], group_size, cls.group_sizes)
        return cls(codes, scales, group_size, in_features)


def join_halves(codes: Tensor, K: int) -> Tensor:
    """Codes of groups [n, groups, G], one to a byte, as the canonical [n, ceil(K / 2)]."""
    flat = codes.reshape(codes.shape[0], -1)[:, :K]
    if K % 2:
        flat = torch.nn.functional.pad(flat, (0, 1))
    return flat[:, 1::2].bitwise_left_shift(4).bitwise_or_(flat[:, 0::2])


def rounded_scales(function: str, scales: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Scales in the dtype asked for; None is float16 if all of them are normal there."""
    if dtype is None:
        size = scales.abs()
        half = torch.finfo(torch.float16)
        normal = (size == 0) | ((size >= half.smallest_normal) & (size <= half.max))
        dtype = torch.float16 if bool(normal.all()) else torch.float32
    if dtype not in SCALE_DTYPES:
        raise TypeError(
            f"{function}: scale_dtype: got {dtype!r}, wanted None, float16, bfloat16 or float32"
        )
    rounded = scales.to(dtype)
    if not bool(rounded.isfinite().all()):
        raise ValueError(f"{function}: scale_dtype: some scales are too large for {dtype}")
    return rounded
