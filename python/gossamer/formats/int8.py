"""Format int8: symmetric, with one float32 scale per output channel or per group along K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import _check, _ops_packing
from .groups import (
    check_kinds,
    check_matrix,
    check_tensor,
    dense_matrix,
    fitting_group_size,
    group_count,
    in_groups,
    over_k,
    refuse_rows,
    row_chunks,
)

_TINY = (
    2.0**-100
)  # below it 127 / amax nears the end of float32, so the group is scaled up, exactly


@dataclass(frozen=True, eq=False)
class Int8:
    """A weight stored as int8: ``W[n, k] ≈ values[n, k] * scales[n, k // G]``.

    These are the canonical tensors, the same on every machine; :meth:`pack` lays them out for the
    kernels.

    Parameters
    ----------
    values : Tensor
        Shape (N, K), int8. :meth:`quantize` gives values in [-127, 127]; -128 is accepted.
    scales : Tensor
        Shape (N, groups), float32, finite and >= 0, with ``groups = ceil(K / G)``, or 1 where
        ``group_size`` is None.
    group_size : int, optional
        G: 32, 64 or 128 consecutive k share a scale; the last group may be short. None: one scale
        per output channel.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, or a scale is negative, infinite or NaN.

    Examples
    --------
    >>> W = torch.tensor([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0]])
    >>> weight = Int8.quantize(W)
    >>> weight.values.tolist()
    [[127, -64, 32], [0, 0, 0]]
    >>> weight.dequantize()[0].numpy().round(3)
    array([ 1.   , -0.504,  0.252], dtype=float32)
    """

    name: ClassVar[str] = "int8"
    state_names: ClassVar[tuple[str, ...]] = ("weight", "weight_scale")
    state_forms: ClassVar[tuple[tuple[str, ...], ...]] = (("weight", "weight_scale"),)
    activation_kinds: ClassVar[tuple[str, ...]] = ("int8", "exact", "int8-group")
    group_sizes: ClassVar[tuple[int | None, ...]] = (None, 32, 64, 128)

    values: Tensor
    scales: Tensor
    group_size: int | None = None

    def __post_init__(self) -> None:
        _check.group_size("Int8", self.group_size, self.group_sizes)
        check_matrix("Int8", "values", self.values, (torch.int8,))
        N, K = self.values.shape
        scales = self.scales
        wanted = (N, group_count(K, self.group_size))
        check_tensor("Int8", "scales", scales, (torch.float32,), wanted)
        if not bool(((scales >= 0) & (scales < torch.inf)).all()):
            raise ValueError("Int8: scales: some are negative, infinite or NaN")

    @classmethod
    def quantize(cls, W: Tensor | np.ndarray[Any, Any], group_size: int | None = None) -> Int8:
        """Round a dense weight to int8, symmetrically.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64 (read as float32).
        group_size : int, optional
            None (one scale per output channel), 32, 64 or 128.

        Returns
        -------
        Int8
            New tensors; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN or infinity (the rows are named) or is not a matrix.

        Notes
        -----
        For each group, ``scale = amax / 127`` with ``amax = max |w|``, and
        ``q = round_half_even(w * (127 / amax))`` in [-127, 127], so that
        ``|w - q * scale| <= scale / 2`` up to float32 rounding. A group of zeros has scale 0. An
        amax below 127 * 2**-149 has no float32 scale: it becomes 0 too.

        References
        ----------
        Wu et al., "Integer Quantization for Deep Learning Inference", 2020, section 3.

        Examples
        --------
        >>> Int8.quantize(torch.ones(2, 100), group_size=32).scales.shape
        torch.Size([2, 4])
        """
        _check.group_size("Int8.quantize", group_size, cls.group_sizes)
        W = dense_matrix("Int8.quantize", W)
        N, K = W.shape
        values = torch.empty(N, K, dtype=torch.int8)
        scales = torch.empty(N, group_count(K, group_size), dtype=torch.float32)
        for rows in row_chunks(N, K):
            values[rows], scales[rows] = _quantize_rows(W[rows], group_size)
        refuse_rows("Int8.quantize", scales.isfinite().all(1))
        return cls(values, scales, group_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): out_features and in_features."""
        N, K = self.values.shape
        return N, K

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight: values, scales, padding and header."""
        return _ops_packing.int8_packed_bytes(self.shape, self.group_size)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the packed weight, everything included, for each of its N * K weights."""
        return 8 * self.nbytes / self.values.numel()

    def dequantize(self) -> Tensor:
        """The weight that the kernels multiply with.

        Returns
        -------
        Tensor
            Shape (N, K), float32, newly allocated: ``values * scales``.

        Examples
        --------
        >>> Int8(torch.tensor([[2, -3]], dtype=torch.int8), torch.tensor([[0.5]])).dequantize()
        tensor([[ 1.0000, -1.5000]])
        """
        dense = self.values.to(torch.float32)
        for rows in row_chunks(*self.shape):
            dense[rows] *= over_k(self.scales[rows], self.group_size, self.shape[1])
        return dense

    @property
    def settings(self) -> dict[str, Any]:
        """What ``quantize`` must be told, beside the group size, for another weight: nothing."""
        return {}

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
            Shape (nbytes,), uint8: header, scales and panels. One layout serves every x86 ISA.

        Examples
        --------
        >>> weight = Int8.quantize(torch.randn(5, 7))
        >>> bool((Int8.unpack(weight.pack()).values == weight.values).all())
        True
        """
        kind = _check.activations("Int8.pack", activations, self.activation_kinds)
        return _ops_packing.int8_pack(self.values, self.scales, self.group_size, kind)

    @classmethod
    def unpack(cls, packed: Tensor) -> Int8:
        """Undo :meth:`pack`, exactly.

        Parameters
        ----------
        packed : Tensor
            Shape (nbytes,), uint8, from :meth:`pack`.

        Returns
        -------
        Int8
            The canonical tensors, newly allocated.

        Raises
        ------
        TypeError, ValueError
            Where the bytes are not a packed int8 weight of this layout.
        """
        found = _ops_packing.unpack(packed, cls.name)
        return cls(found.values, found.scales, found.group_size)

    def rows(self, first: int, last: int) -> Int8:
        """Some of the output channels.

        Parameters
        ----------
        first, last : int
            The rows [first, last), within [0, N].

        Returns
        -------
        Int8
            Of shape (last - first, K), in tensors of its own.

        Examples
        --------
        >>> weight = Int8.quantize(torch.randn(5, 7))
        >>> bool((weight.rows(1, 3).values == weight.values[1:3]).all())
        True
        """
        rows = slice(first, last)
        return Int8(self.values[rows].clone(), self.scales[rows].clone(), self.group_size)

    @classmethod
    def cat(cls, weights: Sequence[Int8]) -> Int8:
        """Join weights along N.

        Parameters
        ----------
        weights : sequence of Int8
            With the same K and group size.

        Returns
        -------
        Int8
            The rows of the first, then those of the second, and so on, in tensors of its own.

        Raises
        ------
        ValueError
            Where K or the group sizes differ.

        Examples
        --------
        >>> weight = Int8.quantize(torch.randn(5, 7))
        >>> Int8.cat([weight, weight]).shape
        (10, 7)
        """
        kinds = [(weight.shape[1], weight.group_size) for weight in weights]
        check_kinds("Int8.cat", kinds, "K and group sizes")
        values = torch.cat([weight.values for weight in weights])
        return cls(values, torch.cat([weight.scales for weight in weights]), kinds[0][1])

    def state(self) -> dict[str, Tensor]:
        """The tensors that a ``state_dict`` holds, by name.

        Returns
        -------
        dict of str to Tensor
            ``weight``, int8 (N, K), and ``weight_scale``, float32 (N, groups).
        """
        return {"weight": self.values, "weight_scale": self.scales}

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        group_size: int | None = None,
        in_features: int | None = None,
    ) -> Int8:
        """Undo :meth:`state`.

        Parameters
        ----------
        state : mapping of str to Tensor
            ``weight`` and ``weight_scale``.
        group_size : int, optional
            The group size to take where the number of scales allows several.
        in_features : int, optional
            Not needed: the tensors say it.

        Returns
        -------
        Int8
            The weight; its tensors are those of `state`.

        Raises
        ------
        TypeError, ValueError
            Where dtypes or shapes do not fit together.
        """
        values, scales = state["weight"], state["weight_scale"]
        if values.dim() == 2 and scales.dim() == 2:
            K, groups = values.shape[1], scales.shape[1]
            group_size = fitting_group_size(K, groups, group_size, cls.group_sizes)
        return cls(values, scales, group_size)


def _quantize_rows(W: Tensor, group_size: int | None) -> tuple[Tensor, Tensor]:
    """Quantize rows: values [n, K], scales [n, groups]; NaN and infinity show in the scales."""
    n, K = W.shape
    grouped = in_groups(W, group_size)
    low, high = grouped.aminmax(dim=2)
    amax = torch.maximum(-low, high)
    scales = amax / 127
    if bool((amax < _TINY).any()):
        up = torch.where(amax < _TINY, 2.0**100, 1.0)
        grouped, amax = grouped * up[:, :, None], amax * up
    inverse = torch.where(amax > 0, 127 / amax, 0.0)
    q = (grouped * inverse[:, :, None]).round_().clamp_(-127, 127).nan_to_num_(0)
    return q.to(torch.int8).view(n, -1)[:, :K], scales
