"""Format low-rank: the product of two thin matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .. import _check, _ops_packing
from .bf16 import BF16
from .fp32 import FP32
from .groups import check_kinds, finite_matrix
from .int8 import Int8

Factor: TypeAlias = FP32 | BF16 | Int8
FACTORS: dict[str, type[FP32] | type[BF16] | type[Int8]] = {
    FP32.name: FP32,
    BF16.name: BF16,
    Int8.name: Int8,
}


@dataclass(frozen=True, eq=False)
class LowRank:
    """A weight stored as two factors: ``W ≈ U V``.

    Parameters
    ----------
    U : FP32, BF16 or Int8
        Shape (N, R); Int8 with one scale per row.
    V : FP32, BF16 or Int8
        Shape (R, K), of the format of U.

    Raises
    ------
    TypeError, ValueError
        Where a factor is of another format, the two are not of one, or the columns of U are not as
        many as the rows of V.

    Examples
    --------
    >>> weight = LowRank.from_factors(torch.ones(4, 1), torch.tensor([[2.0, -1.0, 0.5]]))
    >>> weight.shape, weight.rank, weight.factors
    ((4, 3), 1, 'bf16')
    >>> weight.dequantize()[0]
    tensor([ 2.0000, -1.0000,  0.5000])
    """

    name: ClassVar[str] = "low-rank"
    state_names: ClassVar[tuple[str, ...]] = (
        "low_rank_U",
        "low_rank_V",
        "low_rank_U_scale",
        "low_rank_V_scale",
    )
    state_forms: ClassVar[tuple[tuple[str, ...], ...]] = (state_names[:2], state_names)
    activation_kinds: ClassVar[tuple[str, ...]] = ("exact", "int8")
    group_sizes: ClassVar[tuple[int | None, ...]] = (None,)

    U: Factor
    V: Factor

    def __post_init__(self) -> None:
        for name, factor in (("U", self.U), ("V", self.V)):
            if type(factor) not in FACTORS.values():
                raise TypeError(
                    f"LowRank: {name}: got {type(factor).__name__}, wanted FP32, BF16 or Int8"
                )
            if factor.group_size is not None:
                raise ValueError(
                    f"LowRank: {name}: got group_size {factor.group_size}, wanted one scale per row"
                )
        if type(self.U) is not type(self.V):
            raise ValueError(
                f"LowRank: U, V: got {self.U.name} and {self.V.name}, wanted one format for both"
            )
        if self.U.shape[1] != self.V.shape[0]:
            raise ValueError(
                f"LowRank: U, V: got shapes {self.U.shape} and {self.V.shape}, wanted (N, R) and "
                "(R, K)"
            )

    @classmethod
    def from_factors(
        cls,
        U: Tensor | np.ndarray[Any, Any],
        V: Tensor | np.ndarray[Any, Any],
        factors: str = "bf16",
    ) -> LowRank:
        """Round two dense factors.

        Parameters
        ----------
        U : Tensor or ndarray
            Shape (N, R), of any floating-point dtype.
        V : Tensor or ndarray
            Shape (R, K).
        factors : str
            "fp32", "bf16" or "int8": the format of both.

        Returns
        -------
        LowRank
            New tensors.

        Raises
        ------
        TypeError, ValueError
            Where an argument does not fit, or a factor holds NaN or infinity.

        Notes
        -----
        Each row of U has one scale in int8. Its columns should be of like size, then: the size of
        the r-th belongs to the r-th row of V, which has a scale of its own.

        Examples
        --------
        >>> LowRank.from_factors(torch.randn(64, 8), torch.randn(8, 96), "int8").pack("int8").dtype
        torch.uint8
        """
        form = _factor_format("LowRank.from_factors", factors)
        left = finite_matrix("LowRank.from_factors", U, "U")
        right = finite_matrix("LowRank.from_factors", V, "V")
        return cls(form.quantize(left), form.quantize(right))

    @classmethod
    def quantize(
        cls,
        W: Tensor | np.ndarray[Any, Any],
        group_size: int | None = None,
        *,
        rank: int = 32,
        factors: str = "bf16",
    ) -> LowRank:
        """Take the nearest matrix of this rank (Frobenius), and round its factors.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64 (read as float32).
        group_size : None
            There are no groups.
        rank : int
            R; min(N, K) where that is less.
        factors : str
            "fp32", "bf16" or "int8".

        Returns
        -------
        LowRank
            New tensors; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN or infinity (the rows are named) or is not a matrix, or `rank` is
            below 1.

        Notes
        -----
        :func:`gossamer.truncated_svd` gives ``W ≈ P S Qᵀ``; the factors are ``U = P √S`` and
        ``V = √S Qᵀ``. So divided, the rounding of int8 factors and that of ``V x`` between them
        together cost the least: s₁ Σ s each, where all of S on one side costs Σ s² there and
        R s₁² on the other.

        References
        ----------
        Eckart and Young, "The approximation of one matrix by another of lower rank", 1936.

        Examples
        --------
        >>> W = torch.outer(torch.arange(1.0, 5.0), torch.ones(6))
        >>> bool(torch.allclose(LowRank.quantize(W, rank=1, factors="fp32").dequantize(), W))
        True
        """
        from ..svd import truncated_svd

        function = "LowRank.quantize"
        _check.group_size(function, group_size, cls.group_sizes)
        _factor_format(function, factors)
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"{function}: rank: got {rank!r}, wanted a number >= 1")
        W = finite_matrix(function, W).to(torch.float32)
        P, S, Q, _info = truncated_svd(W, min(rank, *W.shape))
        roots = S.sqrt()
        return cls.from_factors(P * roots, roots[:, None] * Q.T, factors)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): out_features and in_features."""
        return self.U.shape[0], self.V.shape[1]

    @property
    def rank(self) -> int:
        """R: columns of U, rows of V."""
        return self.V.shape[0]

    @property
    def factors(self) -> str:
        """Name of the format of both factors."""
        return self.U.name

    @property
    def group_size(self) -> int | None:
        """None: there are no groups."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight: both factors, scales, padding and headers."""
        return _ops_packing.two_parts_bytes(self.V.nbytes, self.U.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the packed weight, everything included, for each of its N * K weights."""
        N, K = self.shape
        return 8 * self.nbytes / (N * K)

    @property
    def settings(self) -> dict[str, Any]:
        """What ``quantize`` must be told for another weight like this."""
        return {"rank": self.rank, "factors": self.factors}

    def dequantize(self) -> Tensor:
        """The weight that the kernels multiply with, up to the rounding of float32 sums.

        Returns
        -------
        Tensor
            Shape (N, K), float32, newly allocated: U · V.
        """
        return self.U.dequantize() @ self.V.dequantize()

    def pack(self, activations: str | None = None) -> Tensor:
        """Lay the weight out for the kernels.

        Parameters
        ----------
        activations : str, optional
            What the kernels do to x, and to V · x on its way to U: "exact" (the default) multiplies
            it as it is, "int8", which needs factors of int8, rounds each row.

        Returns
        -------
        Tensor
            Shape (nbytes,), uint8: header, V and U. One layout serves every x86 ISA.

        Raises
        ------
        ValueError
            For another kind, or "int8" where the factors are not.
        """
        kind = _check.activations("LowRank.pack", activations, self.activation_kinds)
        if kind not in self.U.activation_kinds:
            raise ValueError(
                f"LowRank.pack: activations: got {kind!r}, but the factors are {self.factors}, "
                "wanted 'exact'"
            )
        return _ops_packing.low_rank_pack(self.V.pack(kind), self.U.pack(kind))

    @classmethod
    def unpack(cls, packed: Tensor) -> LowRank:
        """Undo :meth:`pack`, exactly.

        Parameters
        ----------
        packed : Tensor
            Shape (nbytes,), uint8, from :meth:`pack`.

        Returns
        -------
        LowRank
            The canonical tensors, newly allocated.

        Raises
        ------
        TypeError, ValueError
            Where the bytes are not a packed low-rank weight of this layout.
        """
        V, U = _ops_packing.two_parts(packed, cls.name)
        return cls(_unpack_factor(U), _unpack_factor(V))

    def rows(self, first: int, last: int) -> LowRank:
        """Some of the output channels.

        Parameters
        ----------
        first, last : int
            The rows [first, last), within [0, N].

        Returns
        -------
        LowRank
            Of shape (last - first, K) and of the same rank, in tensors of its own.
        """
        return LowRank(self.U.rows(first, last), self.V.rows(0, self.rank))

    @classmethod
    def cat(cls, weights: Sequence[LowRank]) -> LowRank:
        """Join weights along N that have the same V, as those that :meth:`rows` gives.

        Parameters
        ----------
        weights : sequence of LowRank
            With equal V.

        Returns
        -------
        LowRank
            The rows of the first, then those of the second, and so on, in tensors of its own.

        Raises
        ------
        ValueError
            Where formats or V differ: joined, their ranks would add up, and with them the work.
        """
        kinds = [(w.shape[1], w.rank, w.factors) for w in weights]
        check_kinds("LowRank.cat", kinds, "in_features, ranks and factors")
        V = weights[0].V
        if not all(_equal(V, weight.V) for weight in weights[1:]):
            raise ValueError(
                "LowRank.cat: weights: got several V, wanted the same for all: the ranks of "
                "weights that are joined would add up"
            )
        join: Any = type(weights[0].U).cat
        return cls(join([weight.U for weight in weights]), V.rows(0, V.shape[0]))

    def state(self) -> dict[str, Tensor]:
        """The tensors that a ``state_dict`` holds, by name.

        Returns
        -------
        dict of str to Tensor
            ``low_rank_U`` (N, R) and ``low_rank_V`` (R, K); where they are int8 also
            ``low_rank_U_scale`` (N, 1) and ``low_rank_V_scale`` (R, 1).
        """
        U, V = self.U.state(), self.V.state()
        state = {"low_rank_U": U["weight"], "low_rank_V": V["weight"]}
        if "weight_scale" in U:
            state["low_rank_U_scale"] = U["weight_scale"]
            state["low_rank_V_scale"] = V["weight_scale"]
        return state

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        group_size: int | None = None,
        in_features: int | None = None,
    ) -> LowRank:
        """Undo :meth:`state`.

        Parameters
        ----------
        state : mapping of str to Tensor
            ``low_rank_U`` and ``low_rank_V``, and their scales where they are int8.
        group_size, in_features : int, optional
            Not needed: the tensors say it.

        Returns
        -------
        LowRank
            The weight; its tensors are those of `state`.

        Raises
        ------
        TypeError, ValueError
            Where dtypes or shapes do not fit together.
        """
        return cls(_factor_of(state, "low_rank_U"), _factor_of(state, "low_rank_V"))


def _factor_format(function: str, factors: str) -> type[FP32] | type[BF16] | type[Int8]:
    form = FACTORS.get(factors) if isinstance(factors, str) else None
    if form is None:
        names = ", ".join(FACTORS)
        raise ValueError(f"{function}: factors: got {factors!r}, wanted one of {names}")
    return form


def _unpack_factor(packed: Tensor) -> Factor:
    return FACTORS[_ops_packing.packed_info(packed).format].unpack(packed)


def _equal(a: Factor, b: Factor) -> bool:
    return all(map(torch.equal, a.state().values(), b.state().values()))


def _factor_of(state: Mapping[str, Tensor], name: str) -> Factor:
    values, scales = state[name], state.get(name + "_scale")
    if scales is not None:
        return Int8(values, scales)
    return FP32(values) if values.dtype is torch.float32 else BF16(values)
