"""A low-rank correction of what pruning and quantization lose.

The layer keeps Ŵ = B + U V: a base B, rounded or sparse or both, and factors U [N, R] and V [R, K].
With E = W - B, of the weight W as it was before all steps, the best factors are

    data-free          U V = the R largest singular triplets of E: least |E - U V|_F
    activation-aware   U V = U_R U_Rᵀ E, U_R the R leading eigenvectors of E C Eᵀ, C = E[x xᵀ]:
                       least mean of |(E - U V) x|², over the inputs x of the layer

Only U_R is found by an eigensolve; C is never inverted, and may be singular.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _check
from ..calibration.output_error import inner, root, squared_norm, weighted_square
from ..formats import FORMATS, Format, LowRank
from ..svd import truncated_svd

FACTORS = ("int8", "bf16", "fp32")
SUFFIX = "+low-rank"


@dataclass(frozen=True)
class LowRankCorrection:
    """Add to each linear layer a low-rank product that corrects what the steps before it lost.

    A step of :func:`gossamer.compress`, the last one. It sees the weight as it was before pruning
    and quantization. With ``calibration=`` it is fitted to the inputs of each layer, else to the
    weight alone.

    Parameters
    ----------
    rank : int
        R, from 1: columns of U and rows of V. A layer whose factors would hold as many numbers as
        its weight, ``R (N + K) >= N K``, is not corrected.
    iterations : int
        From 1. More than one: quantize what the factors leave, ``B = Q(W - U V)``, fit the factors
        again, and so on, until the error no longer falls; the best is kept. Pruned weights stay
        zero in B.
    factors : str, optional
        How U and V are stored: "int8", "bf16" or "fp32". None: "int8" where the base rounds x to
        int8, which multiplies V too in integers; else "bf16".
    seed : int
        Of the random start of the eigensolver. The same seed gives the same factors, with any
        number of threads.

    Raises
    ------
    ValueError
        For a number or a name that does not exist.

    Notes
    -----
    Data-free, U V is of LQER and LoftQ, the iterations of the latter; activation-aware it is the
    exact solution of QERA, without its matrix square root.

    References
    ----------
    Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", 2023.
    Zhang et al., "LQER: Low-Rank Quantization Error Reconstruction for LLMs", 2024.
    Zhang et al., "QERA: an Analytical Framework for Quantization Error Reconstruction", 2025.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(256, 128))
    >>> steps = ["int4", gs.LowRankCorrection(rank=16)]
    >>> gs.report(gs.compress(model, steps)).layers[0].format
    'int4+low-rank:128'
    """

    rank: int = 32
    iterations: int = 1
    factors: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("iterations", 1), ("seed", 0)):
            value = getattr(self, name)
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if not whole or value < least:
                raise ValueError(
                    f"LowRankCorrection: {name}: got {_check.describe(value)}, wanted a whole "
                    f"number >= {least}"
                )
        if self.factors not in (None, *FACTORS):
            wanted = ", ".join(FACTORS)
            raise ValueError(
                f"LowRankCorrection: factors: got {self.factors!r}, wanted None or one of {wanted}"
            )

    def why_too_large(self, N: int, K: int) -> str:
        """Why the factors do not pay beside a weight; "" where they do.

        Parameters
        ----------
        N, K : int
            The shape of the weight.

        Returns
        -------
        str
            That they hold more numbers than the weight.

        Examples
        --------
        >>> gs.LowRankCorrection(rank=32).why_too_large(40, 100)
        'factors of rank 32 would hold 4480 numbers, the weight holds 4000'
        """
        if self.rank * (N + K) < N * K:
            return ""
        return (
            f"factors of rank {self.rank} would hold {self.rank * (N + K)} numbers, the weight "
            f"holds {N * K}"
        )

    def fit(
        self,
        W: Tensor,
        quantize: Callable[[Tensor], Format],
        *,
        pruned: Tensor | None = None,
        moment: Tensor | None = None,
        activations: str = "exact",
    ) -> Corrected:
        """Quantize a weight, and fit the factors to what that loses.

        Parameters
        ----------
        W : Tensor
            Shape (N, K), float32, bfloat16 or float16: what is to be approximated.
        quantize : callable
            Makes the base of a float32 weight (N, K).
        pruned : Tensor, optional
            `W` with zeros, which the base keeps.
        moment : Tensor, optional
            C = E[x xᵀ], float32, shape (K, K). None: data-free.
        activations : str
            What the base does to x: "int8", "int8-group" or "exact".

        Returns
        -------
        Corrected
            With factors of zeros, where the base loses nothing.
        """
        factors = self.factors or ("bf16" if activations == "exact" else "int8")
        if moment is not None and not moment.any():
            moment = None  # no input but zeros: nothing to weight by
        sums = self._sums(W, quantize, pruned, moment, factors)
        best, before, after = next(sums)
        for weight, _, found in sums:
            if not found.loss < after.loss:
                break
            best, after = weight, found
        norm = squared_norm(W)
        left = root(after.loss, before.weighted) if before.weighted else None
        return Corrected(best, root(before.plain, norm), root(after.plain, norm), left)

    def _sums(
        self,
        W: Tensor,
        quantize: Callable[[Tensor], Format],
        pruned: Tensor | None,
        moment: Tensor | None,
        factors: str,
    ) -> Iterator[tuple[Format, _Errors, _Errors]]:
        """Each iteration's base and correction, with the errors of the base and of the sum."""
        target = W if pruned is None else pruned
        for iteration in range(1, self.iterations + 1):
            base = quantize(target)
            del target
            E = base.dequantize().neg_().add_(W)
            low_rank = self._low_rank(E, moment, factors)
            errors = _errors(E, low_rank, moment)
            del E
            make: Callable[[Format, LowRank], Format] = FORMATS[base.name + SUFFIX]
            yield make(base, low_rank), *errors
            if iteration < self.iterations:
                target = low_rank.dequantize().neg_().add_(W)
                if pruned is not None:
                    target.masked_fill_(pruned == 0, 0)

    def _low_rank(self, E: Tensor, moment: Tensor | None, factors: str) -> LowRank:
        """The best factors of E, rounded.

        Any diagonal D may stand between them: U D and D⁻¹ V. Rounding to int8 takes one scale for a
        row of U, for a row of V and for a row of T = x Vᵀ. The rows of V do not mind D. With D =
        S^p the error of U is proportional to S_1^2p Σ S^(2-2p), that of T to S_1^(2-2p) Σ S^2p;
        their sum is least at p = 1/2. To floats D makes no difference.
        """
        U, S, V, _ = truncated_svd(E, self.rank, weight=moment, seed=self.seed, progress=False)
        D = (S / S[0]).sqrt()
        D = torch.where(D > 0, D, 1.0)  # 1 where S is 0, even the first
        return LowRank.from_factors(U * D, (V * (S / D)).T.contiguous(), factors)


@dataclass(frozen=True)
class Corrected:
    """A weight with its correction.

    Attributes
    ----------
    weight : Format
        Such as ``Int4LowRank``.
    uncorrected_error, error : float
        ``|W - Q(W)| / |W|`` and ``|W - B - U V| / |W|`` (Frobenius), as stored.
    output_error_left : float or None
        Root mean square of ``(W - B - U V) x`` against that of ``(W - Q(W)) x``, over the
        calibration; None without one, or where there is no error.
    """

    weight: Format
    uncorrected_error: float
    error: float
    output_error_left: float | None = None


@dataclass(frozen=True)
class LayerCorrection:
    """What a correction did to one layer of a model.

    Attributes
    ----------
    name : str
        Of the layer.
    uncorrected_error, output_error_left : float or None
        As of :class:`Corrected`.
    reason : str
        Why it was not corrected; "" where it was.
    """

    name: str
    uncorrected_error: float | None = None
    output_error_left: float | None = None
    reason: str = ""


def sum_of(base: str) -> str | None:
    """The name of the format that is a base with a low-rank correction; None: there is none."""
    return base + SUFFIX if base + SUFFIX in FORMATS else None


class _Errors(NamedTuple):
    """Squares of an error E: |E|², and tr(E C Eᵀ) where there is a moment."""

    plain: float
    weighted: float | None = None

    @property
    def loss(self) -> float:
        """What is to be least."""
        return self.plain if self.weighted is None else self.weighted


def _errors(E: Tensor, low_rank: LowRank, moment: Tensor | None) -> tuple[_Errors, _Errors]:
    """Without the correction and with it. E = W - base is overwritten."""
    before = squared_norm(E)
    U, V = low_rank.U.dequantize(), low_rank.V.dequantize()
    R = E.addmm_(U, V, alpha=-1)
    after = squared_norm(R)
    if moment is None:
        return _Errors(before), _Errors(after)
    weighted = weighted_square(R, moment)
    # tr(E C Eᵀ) = tr(R C Rᵀ) + 2 <R C, U V> + <U V C, U V>: thin products, and no cancellation.
    MV = moment @ V.T
    gain = 2 * inner(U, R @ MV) + inner(U.T @ U, V @ MV)
    return _Errors(before, weighted + gain), _Errors(after, weighted)
