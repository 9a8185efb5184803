"""What the formats of dense floating-point weights share: one number for each weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import _check, _ops_packing
from .groups import check_kinds, check_matrix, dense_matrix, refuse_rows, row_chunks

_Weight = TypeVar("_Weight", bound="DenseFloat")


@dataclass(frozen=True, eq=False)
class DenseFloat:
    """A dense weight: the base of :class:`BF16` and :class:`FP32`, which say of which dtype.

    Parameters
    ----------
    values : Tensor
        Shape (N, K), of that dtype.

    Raises
    ------
    TypeError
        Where the tensor has another dtype or number of dimensions.
    """

    name: ClassVar[str]
    value_dtype: ClassVar[torch.dtype]
    state_names: ClassVar[tuple[str, ...]] = ("weight",)
    state_forms: ClassVar[tuple[tuple[str, ...], ...]] = (("weight",),)
    activation_kinds: ClassVar[tuple[str, ...]] = ("exact",)
    group_sizes: ClassVar[tuple[int | None, ...]] = (None,)

    values: Tensor

    def __post_init__(self) -> None:
        check_matrix(type(self).__name__, "values", self.values, (self.value_dtype,))

    @classmethod
    def quantize(
        cls: type[_Weight], W: Tensor | np.ndarray[Any, Any], group_size: int | None = None
    ) -> _Weight:
        """Round a dense weight to the dtype of the format.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64.
        group_size : None
            There are no groups.

        Returns
        -------
        DenseFloat
            Of this class, with a new tensor; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN, infinity or numbers that round to it (the rows are named), or is
            not a matrix.
        """
        function = f"{cls.__name__}.quantize"
        _check.group_size(function, group_size, cls.group_sizes)
        W = dense_matrix(function, W)
        values = torch.empty(W.shape, dtype=cls.value_dtype)
        finite = torch.empty(W.shape[0], dtype=torch.bool)
        for rows in row_chunks(*W.shape):
            values[rows] = W[rows].to(cls.value_dtype)
            finite[rows] = values[rows].isfinite().all(1)
        refuse_rows(function, finite)
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
        return _ops_packing.float_packed_bytes(self.shape, self.value_dtype)

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
        return self.values.to(torch.float32, copy=True)

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
        _check.activations(f"{type(self).__name__}.pack", activations, self.activation_kinds)
        return _ops_packing.float_pack(self.values)

    @classmethod
    def unpack(cls: type[_Weight], packed: Tensor) -> _Weight:
        """Undo :meth:`pack`, exactly.

        Parameters
        ----------
        packed : Tensor
            Shape (nbytes,), uint8, from :meth:`pack`.

        Returns
        -------
        DenseFloat
            The canonical tensor, newly allocated.

        Raises
        ------
        TypeError, ValueError
            Where the bytes are not a packed weight of this format and layout.
        """
        return cls(_ops_packing.unpack(packed, cls.name).values)

    def rows(self: _Weight, first: int, last: int) -> _Weight:
        """Some of the output channels.

        Parameters
        ----------
        first, last : int
            The rows [first, last), within [0, N].

        Returns
        -------
        DenseFloat
            Of shape (last - first, K), in a tensor of its own.
        """
        return type(self)(self.values[first:last].clone())

    @classmethod
    def cat(cls: type[_Weight], weights: Sequence[_Weight]) -> _Weight:
        """Join weights along N.

        Parameters
        ----------
        weights : sequence
            Of this format, with the same K.

        Returns
        -------
        DenseFloat
            The rows of the first, then those of the second, and so on, in a tensor of its own.

        Raises
        ------
        ValueError
            Where K differs.
        """
        check_kinds(f"{cls.__name__}.cat", [weight.shape[1] for weight in weights], "in_features")
        return cls(torch.cat([weight.values for weight in weights]))

    def state(self) -> dict[str, Tensor]:
        """The tensors that a ``state_dict`` holds, by name.

        Returns
        -------
        dict of str to Tensor
            ``weight``, (N, K).
        """
        return {"weight": self.values}

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
            ``weight``.
        group_size, in_features : int, optional
            Not needed: the tensor says it.

        Returns
        -------
        DenseFloat
            The weight; its tensor is that of `state`.

        Raises
        ------
        TypeError
            Where the tensor has another dtype or number of dimensions.
        """
        return cls(state["weight"])
