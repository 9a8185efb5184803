"""What the sums share: a weight of another format, its base, and a low-rank one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import _check, _ops_packing
from ..sparse_choice import USUAL_BATCH, Batch
from .groups import finite_matrix, row_chunks
from .low_rank import LowRank

_Weight = TypeVar("_Weight", bound="LowRankSum")


@dataclass(frozen=True, eq=False)
class LowRankSum:
    """A sum of two weights, ``W ≈ base + U V``, multiplied in one go.

    The base of the classes of :mod:`gossamer.formats.sums`, each of which says what ``base`` is:
    ``class Int4LowRank(LowRankSum, of=Int4)``.

    Parameters
    ----------
    base : Format
        Shape (N, K).
    low_rank : LowRank
        Of the same shape.

    Raises
    ------
    TypeError, ValueError
        Where a part is of another format, or their shapes differ.
    """

    base_format: ClassVar[type[Any]]
    name: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]]
    state_forms: ClassVar[tuple[tuple[str, ...], ...]]
    activation_kinds: ClassVar[tuple[str, ...]]
    group_sizes: ClassVar[tuple[int | None, ...]]

    base: Any
    low_rank: LowRank

    def __init_subclass__(cls, of: type[Any] | None = None) -> None:
        if of is None:  # it is a base of classes itself
            return
        cls.base_format = of
        cls.name = f"{of.name}+{LowRank.name}"
        cls.state_names = of.state_names + LowRank.state_names
        cls.state_forms = tuple(a + b for a in of.state_forms for b in LowRank.state_forms)
        cls.activation_kinds = of.activation_kinds
        cls.group_sizes = of.group_sizes

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for name, part, form in (
            ("base", self.base, self.base_format),
            ("low_rank", self.low_rank, LowRank),
        ):
            if type(part) is not form:
                raise TypeError(
                    f"{kind}: {name}: got {type(part).__name__}, wanted {form.__name__}"
                )
        if self.base.shape != self.low_rank.shape:
            raise ValueError(
                f"{kind}: base, low_rank: got shapes {self.base.shape} and {self.low_rank.shape}, "
                "wanted the same"
            )

    @classmethod
    def quantize(
        cls: type[_Weight],
        W: Tensor | np.ndarray[Any, Any],
        group_size: int | EllipsisType | None = ...,
        *,
        rank: int = 32,
        factors: str | None = None,
        **settings: Any,
    ) -> _Weight:
        """Round a dense weight to the base, and take the nearest low-rank matrix of its error.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64 (read as float32).
        group_size : int, optional
            Of the base, as its ``quantize`` has it; left out, its usual one.
        rank : int
            R; min(N, K) where that is less.
        factors : str, optional
            "fp32", "bf16" or "int8". None: "int8" where the base usually rounds x, else "bf16".
        **settings
            Further arguments of the ``quantize`` of the base.

        Returns
        -------
        LowRankSum
            Of this class, with new tensors; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN or infinity (the rows are named) or is not a matrix, or another
            argument does not fit.

        Notes
        -----
        ``base = quantize(W)``, then ``U V`` is the best approximation of ``W - base``
        (:meth:`LowRank.quantize`). Of the squared error of the base the share of its R largest
        singular values goes.
        """
        function = f"{cls.__name__}.quantize"
        sizes = () if isinstance(group_size, EllipsisType) else (group_size,)
        for size in sizes:
            _check.group_size(function, size, cls.group_sizes)
        W = finite_matrix(function, W)
        base = cls.base_format.quantize(W, *sizes, **settings)
        if factors is None:
            factors = "bf16" if cls.activation_kinds[0] == "exact" else "int8"
        error = base.dequantize()
        for rows in row_chunks(*error.shape):
            torch.sub(W[rows].to(torch.float32), error[rows], out=error[rows])
        return cls(base, LowRank.quantize(error, rank=rank, factors=factors))

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): out_features and in_features."""
        return self.low_rank.shape

    @property
    def rank(self) -> int:
        """R of the low-rank part."""
        return self.low_rank.rank

    @property
    def group_size(self) -> int | None:
        """Weights along K of the base that share a scale; None where a whole row does."""
        size: int | None = self.base.group_size
        return size

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight: both parts and headers."""
        return _ops_packing.two_parts_bytes(self.base.nbytes, self.low_rank.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the packed weight, everything included, for each of its N * K weights."""
        N, K = self.shape
        return 8 * self.nbytes / (N * K)

    @property
    def settings(self) -> dict[str, Any]:
        """What ``quantize`` must be told, beside the group size, for another weight like this."""
        return {**self.low_rank.settings, **self.base.settings}

    def dequantize(self) -> Tensor:
        """The weight that the kernels multiply with, up to the rounding of float32 sums.

        Returns
        -------
        Tensor
            Shape (N, K), float32, newly allocated: base + U · V.
        """
        dense: Tensor = self.base.dequantize()
        return dense.addmm_(self.low_rank.U.dequantize(), self.low_rank.V.dequantize())

    def pack(self, activations: str | None = None) -> Tensor:
        """Lay the weight out for the kernels.

        Parameters
        ----------
        activations : str, optional
            What the kernels do to x, as the base offers it; None: its usual kind. The low-rank part
            rounds x where the base does and the factors are int8, and else multiplies it as it is.

        Returns
        -------
        Tensor
            Shape (nbytes,), uint8: header, base and low-rank part. One layout serves every x86 ISA.

        Raises
        ------
        ValueError
            For a kind that the base does not offer.
        """
        kind = _check.activations(f"{type(self).__name__}.pack", activations, self.activation_kinds)
        return self._join(self.base.pack(kind), kind)

    def _join(self, base: Tensor, activations: str) -> Tensor:
        """The packed base and the low-rank part, which is packed to go with it."""
        rounds = self.low_rank.factors == "int8" and activations != "exact"
        low_rank = self.low_rank.pack("int8" if rounds else "exact")
        return _ops_packing.sum_pack(base, low_rank)

    @classmethod
    def unpack(cls: type[_Weight], packed: Tensor) -> _Weight:
        """Undo :meth:`pack`, exactly.

        Parameters
        ----------
        packed : Tensor
            Shape (nbytes,), uint8, from :meth:`pack`.

        Returns
        -------
        LowRankSum
            Of this class, the canonical tensors newly allocated.

        Raises
        ------
        TypeError, ValueError
            Where the bytes are not a packed weight of this format and layout.
        """
        base, low_rank = _ops_packing.two_parts(packed, cls.name)
        return cls(cls.base_format.unpack(base), LowRank.unpack(low_rank))

    def rows(self: _Weight, first: int, last: int) -> _Weight:
        """Some of the output channels.

        Parameters
        ----------
        first, last : int
            The rows [first, last), within [0, N].

        Returns
        -------
        LowRankSum
            Of shape (last - first, K), in tensors of its own.

        Raises
        ------
        ValueError
            Where the base cannot be divided there.
        """
        return type(self)(self.base.rows(first, last), self.low_rank.rows(first, last))

    @classmethod
    def cat(cls: type[_Weight], weights: Sequence[_Weight]) -> _Weight:
        """Join weights along N whose low-rank parts have the same V, as those of :meth:`rows`.

        Parameters
        ----------
        weights : sequence
            Of this format, with equal V.

        Returns
        -------
        LowRankSum
            The rows of the first, then those of the second, and so on, in tensors of its own.

        Raises
        ------
        ValueError
            Where V or the kinds of the bases differ.
        """
        low_rank = LowRank.cat([weight.low_rank for weight in weights])
        return cls(cls.base_format.cat([weight.base for weight in weights]), low_rank)

    def state(self) -> dict[str, Tensor]:
        """The tensors that a ``state_dict`` holds, by name.

        Returns
        -------
        dict of str to Tensor
            Those of the base, then those of :meth:`LowRank.state`.
        """
        return {**self.base.state(), **self.low_rank.state()}

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
        group_size, in_features : int, optional
            As the base takes them.

        Returns
        -------
        LowRankSum
            The weight; its tensors are those of `state`.

        Raises
        ------
        TypeError, ValueError
            Where dtypes or shapes do not fit together.
        """
        base = cls.base_format.from_state(state, group_size, in_features)
        return cls(base, LowRank.from_state(state))


@dataclass(frozen=True, eq=False)
class SparseLowRankSum(LowRankSum):
    """A sum whose base is sparse."""

    def pack(
        self,
        activations: str | None = None,
        *,
        batch: Batch = USUAL_BATCH,
        pattern: str | None = None,
        parts: tuple[str, ...] | None = None,
    ) -> Tensor:
        """Lay the weight out for the kernels.

        Parameters
        ----------
        activations : str, optional
            As of :meth:`LowRankSum.pack`.
        batch, pattern, parts : optional
            As of the base: for how many rows of x, which blocks share a bit of the mask, and what
            is packed of it.

        Returns
        -------
        Tensor
            Shape (bytes,), uint8.

        Raises
        ------
        ValueError
            Where an argument does not fit.
        """
        kind = _check.activations(f"{type(self).__name__}.pack", activations, self.activation_kinds)
        return self._join(self.base.pack(kind, batch=batch, pattern=pattern, parts=parts), kind)

    @property
    def nnz(self) -> int:
        """Values that the base stores."""
        count: int = self.base.nnz
        return count
