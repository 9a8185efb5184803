"""Format bf16: the dense weight, rounded to bfloat16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import _check, _ops_packing
from .groups import check_kinds, check_matrix, dense_matrix, refuse_rows, row_chunks


@dataclass(frozen=True, eq=False)
class BF16:
    """A weight stored as bfloat16, one number for each weight: what compressed ones compare with.

    Parameters
    ----------
    values : Tensor
        Shape (N, K), bfloat16.

    Raises
    ------
    TypeError
        Where the tensor has another dtype or number of dimensions.

    Examples
    --------
    >>> BF16.quantize(torch.tensor([[1.0, 1.00390625]])).dequantize()
    tensor([[1., 1.]])
    """

    name: ClassVar[str] = "bf16"
    state_names: ClassVar[tuple[str, ...]] = ("weight",)
    state_forms: ClassVar[tuple[tuple[str, ...], ...]] = (("weight",),)
    activation_kinds: ClassVar[tuple[str, ...]] = ("exact",)
    group_sizes: ClassVar[tuple[int | None, ...]] = (None,)

    values: Tensor

    def __post_init__(self) -> None:
        check_matrix("BF16", "values", self.values, (torch.bfloat16,))

    @classmethod
    def quantize(cls, W: Tensor | np.ndarray[Any, Any], group_size: int | None = None) -> BF16:
        """Round a dense weight to bfloat16.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64.
        group_size : None
            There are no groups.

        Returns
        -------
        BF16
            A new tensor; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN, infinity or numbers that round to it (the rows are named), or is
            not a matrix.

        Examples
        --------
        >>> BF16.quantize(torch.ones(2, 100)).shape
        (2, 100)
        """
        _check.group_size("BF16.quantize", group_size, cls.group_sizes)
        W = dense_matrix("BF16.quantize", W)
        values = torch.empty(W.shape, dtype=torch.bfloat16)
        finite = torch.empty(W.shape[0], dtype=torch.bool)
        for rows in row_chunks(*W.shape):
            values[rows] = W[rows].to(torch.bfloat16)
            finite[rows] = values[rows].isfinite().all(1)
        refuse_rows("BF16.quantize", finite)
        return cls(values)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): out_features and in_features."""
        N, K = self.values.shape
        return N, K

    @property
    def group_size(self) -> int | None:
        """None: there are no scales."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight: values, padding and header."""
        return _ops_packing.bf16_packed_bytes(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the packed weight, everything included, for each of its N * K weights."""
        return 8 * self.nbytes / self.values.numel()

    @property
    def settings(self) -> dict[str, Any]:
        """What ``quantize`` must be told for another weight like this: nothing."""
        return {}

    def dequantize(self) -> Tensor:
        """The weight that the kernels multiply with.

        Returns
        -------
        Tensor
            Shape (N, K), float32, newly allocated.
        """
        return self.values.to(torch.float32)

    def pack(self, activations: str | None = None) -> Tensor:
        """Lay the weight out for the kernels.

        Parameters
        ----------
        activations : str, optional
            "exact", the only and the default: x is not quantized.

        Returns
        -------
        Tensor
            Shape (nbytes,), uint8: header and panels. One layout serves every x86 ISA.
        """
        _check.activations("BF16.pack", activations, self.activation_kinds)
        return _ops_packing.bf16_pack(self.values)

    @classmethod
    def unpack(cls, packed: Tensor) -> BF16:
        """Undo :meth:`pack`, exactly.

        Parameters
        ----------
        packed : Tensor
            Shape (nbytes,), uint8, from :meth:`pack`.

        Returns
        -------
        BF16
            The canonical tensor, newly allocated.

        Raises
        ------
        TypeError, ValueError
            Where the bytes are not a packed bf16 weight of this layout.
        """
        return cls(_ops_packing.unpack(packed, cls.name).values)

    def rows(self, first: int, last: int) -> BF16:
        """Some of the output channels.

        Parameters
        ----------
        first, last : int
            The rows [first, last), within [0, N].

        Returns
        -------
        BF16
            Of shape (last - first, K), in a tensor of its own.
        """
        return BF16(self.values[first:last].clone())

    @classmethod
    def cat(cls, weights: Sequence[BF16]) -> BF16:
        """Join weights along N.

        Parameters
        ----------
        weights : sequence of BF16
            With the same K.

        Returns
        -------
        BF16
            The rows of the first, then those of the second, and so on, in a tensor of its own.

        Raises
        ------
        ValueError
            Where K differs.
        """
        check_kinds("BF16.cat", [weight.shape[1] for weight in weights], "in_features")
        return cls(torch.cat([weight.values for weight in weights]))

    def state(self) -> dict[str, Tensor]:
        """The tensors that a ``state_dict`` holds, by name.

        Returns
        -------
        dict of str to Tensor
            ``weight``, bfloat16 (N, K).
        """
        return {"weight": self.values}

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        group_size: int | None = None,
        in_features: int | None = None,
    ) -> BF16:
        """Undo :meth:`state`.

        Parameters
        ----------
        state : mapping of str to Tensor
            ``weight``.
        group_size, in_features : int, optional
            Not needed: the tensor says it.

        Returns
        -------
        BF16
            The weight; its tensor is that of `state`.

        Raises
        ------
        TypeError
            Where the tensor has another dtype or number of dimensions.
        """
        return cls(state["weight"])
