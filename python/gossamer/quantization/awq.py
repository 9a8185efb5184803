"""AWQ: input channels are scaled so that the weights which matter most are rounded least.

    s_k = E[x_k²]^(α/2) / w_k^β,    w_k² = mean_n W[n, k]²,    then max s · min s = 1

A weight is rounded after its column is multiplied by s, and what makes x is divided by s:

    y = Q(W diag(s)) diag(s)^-1 x

α and β are those of least error of the outputs over the calibration,

    E |(W - Ŵ) x|² = tr((W - Ŵ) E[x xᵀ] (W - Ŵ)ᵀ),    Ŵ = Q(W diag(s)) diag(s)^-1

which the second moment of the inputs tells without running the model.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from .. import _check
from ..calibration.statistics import Statistics
from ..schemes import Scheme
from .channels import centred, check_scaling, over_ties, rounded_weight, some_rows

Error: TypeAlias = Callable[[float, float], float]


@dataclass(frozen=True)
class AWQ:
    """Scale the inputs of layers so that the weights that see large inputs are rounded less.

    The factors are folded into what makes the inputs: a norm, or the linear layer before. Layers
    whose inputs come from elsewhere are left as they are. A method of :class:`gossamer.Quantize`,
    alone or before a rounding: ``method=("awq", "gptq")``.

    Parameters
    ----------
    grid : int
        Steps of the exponents α and β from 0 to 1.

    Raises
    ------
    ValueError
        For a grid that is no number from 1.

    Notes
    -----
    α is searched with β = 0, which is the search of the paper, then β with this α, then α again.
    Candidates are rounded as "rtn" does with the squares of the inputs, its search for clipped
    scales included. Trials are made on 128 output channels, spread over all layers that get the
    same input; if the best is no better than no scaling for all channels, there is none.

    References
    ----------
    Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and
    Acceleration", 2024.

    Examples
    --------
    >>> from gossamer.quantization import AWQ
    >>> gs.Quantize("int4", method=(AWQ(grid=20), "gptq")).method
    (AWQ(grid=20), 'gptq')
    """

    name: ClassVar[str] = "awq"
    needs: ClassVar[str] = "moment"

    grid: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.grid, bool) or not isinstance(self.grid, numbers.Integral):
            raise ValueError(f"AWQ: grid: got {_check.describe(self.grid)}, wanted an int")
        if self.grid < 1:
            raise ValueError(f"AWQ: grid: got {self.grid}, wanted a number >= 1")

    def scales(
        self,
        weights: Sequence[Tensor],
        statistics: Statistics,
        scheme: Scheme,
        *,
        tie: Tensor | None = None,
        x: Tensor | None = None,
    ) -> Tensor:
        """The factors of the columns of layers that get the same input.

        Parameters
        ----------
        weights : sequence of Tensor
            Float32, each of shape (N_i, K).
        statistics : Statistics
            Of the input. Without a moment its diagonal, the squares, is all that counts.
        scheme : Scheme
            That all of them are rounded to.
        tie : Tensor, optional
            int64, shape (K,): columns with the same number get the same factor.
        x : Tensor, optional
            Not used.

        Returns
        -------
        Tensor
            Float32, shape (K,), positive; 1 where all inputs are zero, and everywhere where nothing
            is gained.

        Raises
        ------
        ValueError
            For weights and statistics that do not fit, or hold NaN or infinity.
        """
        check_scaling("AWQ", weights, statistics)
        W = torch.cat([weight.float() for weight in weights])
        inputs = over_ties(statistics.squares, tie).sqrt()
        columns = over_ties(W.square().mean(0), tie).sqrt()
        lives = (inputs > 0) & (columns > 0)

        def factors(alpha: float, beta: float) -> Tensor:
            return centred(inputs**alpha / columns**beta, lives)

        part = some_rows(W)
        alpha, beta = self._search(
            lambda a, b: scaled_error(part, factors(a, b), statistics, scheme)
        )
        s, ones = factors(alpha, beta), torch.ones_like(inputs)
        better = scaled_error(W, s, statistics, scheme) < scaled_error(W, ones, statistics, scheme)
        return s if better else ones

    def _search(self, error: Error) -> tuple[float, float]:
        """The best exponents along one axis, the other, and the first again."""
        steps = [step / self.grid for step in range(self.grid + 1)]
        alpha = min(steps, key=lambda a: error(a, 0.0))
        beta = min(steps, key=lambda b: error(alpha, b))
        return (min(steps, key=lambda a: error(a, beta)), beta) if beta else (alpha, beta)


def scaled_error(W: Tensor, s: Tensor, statistics: Statistics, scheme: Scheme) -> float:
    """Mean of |(W - Ŵ) x|² over the inputs, Ŵ being rounded with its columns times s.

    Parameters
    ----------
    W : Tensor
        Float32, shape (N, K).
    s : Tensor
        Shape (K,).
    statistics : Statistics
        Of x.
    scheme : Scheme
        That W is rounded to.

    Returns
    -------
    float
        tr((W - Ŵ) E[x xᵀ] (W - Ŵ)ᵀ); Σ (W - Ŵ)² E[x²] without a moment.
    """
    lost = W - rounded_weight(W * s, scheme, statistics.squares / s.square()) / s
    moment = statistics.moment
    seen = lost * statistics.squares if moment is None else lost @ moment
    return float(torch.linalg.vecdot(seen, lost).double().sum())
