"""SmoothQuant: outliers of activations move into the weights, where rounding loses less.

    s_k = max |x_k|^α / max_n |W[n, k]|^(1 - α),    y = (W diag(s)) (diag(s)^-1 x)

Where x is rounded to int8 with one scale for a row, a channel that is much larger than the others
makes the steps of all of them coarse.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from .. import _check
from ..calibration.statistics import Statistics
from ..formats import FORMATS
from ..schemes import Scheme
from .awq import scaled_error
from .channels import centred, check_scaling, over_ties, rounded_rows, rounded_weight, some_rows

_ALPHAS = tuple(step / 10 for step in range(1, 10))
_TYPICAL_PEAK = 3.0  # of a row, in root mean squares of its largest channel
_STEPS = 127


@dataclass(frozen=True)
class SmoothQuant:
    """Scale the inputs of layers so that rounding them to int8 loses less.

    The factors are folded into what makes the inputs: a norm, or the linear layer before. Layers
    whose inputs come from elsewhere are left as they are. A method of :class:`gossamer.Quantize`,
    alone or before a rounding.

    Parameters
    ----------
    alpha : float, optional
        How much of the range moves from the inputs to the weights, in [0, 1]; 0.5 in the paper.
        None: for each input what loses least over the calibration, of 0.1, 0.2, ... 0.9 and of no
        scaling.
    exact_above : float, optional
        A layer whose outputs rounding x still changes by more than this share, as
        :func:`rows_error` measures it, gets ``activations="exact"``: slower, where the processor
        multiplies int8 faster than floats. None: none does.

    Raises
    ------
    ValueError
        For an alpha outside of [0, 1], or an `exact_above` that is no number from 0.

    References
    ----------
    Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models", 2023.

    Examples
    --------
    >>> from gossamer.quantization import SmoothQuant
    >>> gs.Quantize("int8", method=SmoothQuant(alpha=0.5)).method
    SmoothQuant(alpha=0.5, exact_above=None)
    """

    name: ClassVar[str] = "smoothquant"
    needs: ClassVar[str] = "squares"

    alpha: float | None = None
    exact_above: float | None = None

    def __post_init__(self) -> None:
        for argument, most, wanted in (
            ("alpha", 1, "in [0, 1]"),
            ("exact_above", math.inf, ">= 0"),
        ):
            value: object = getattr(self, argument)
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= float(getattr(self, argument)) <= most):
                raise ValueError(
                    f"SmoothQuant: {argument}: got {_check.describe(value)}, wanted None or a "
                    f"number {wanted}"
                )

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
            Of the input.
        scheme : Scheme
            That all of them are rounded to.
        tie : Tensor, optional
            int64, shape (K,): columns with the same number get the same factor.
        x : Tensor, optional
            Shape (R, K): some rows of the input, for which candidates are rounded and compared.
            Without them the error is estimated from the statistics.

        Returns
        -------
        Tensor
            Float32, shape (K,), positive; 1 where all inputs are zero, and everywhere where nothing
            is gained.

        Raises
        ------
        ValueError
            For weights, statistics and rows that do not fit, or hold NaN or infinity.
        """
        check_scaling("SmoothQuant", weights, statistics)
        if x is not None and (x.dim() != 2 or x.shape[1] != len(statistics.peak)):
            raise ValueError(
                f"SmoothQuant: x: got {_check.describe(x)}, wanted [R, {len(statistics.peak)}]"
            )
        if x is not None and not bool(x.isfinite().all()):
            raise ValueError("SmoothQuant: x: NaN or infinity in the inputs of the layers")
        W = torch.cat([weight.float() for weight in weights])
        inputs = over_ties(statistics.peak, tie)
        columns = over_ties(W.abs().amax(0), tie)
        lives = (inputs > 0) & (columns > 0)

        def factors(alpha: float) -> Tensor:
            return centred(inputs**alpha / columns ** (1 - alpha), lives)

        if self.alpha is not None:
            return factors(self.alpha)
        part, ones = some_rows(W), torch.ones_like(inputs)
        error = partial(_error, x=x, statistics=statistics, scheme=scheme)
        best = min([ones, *map(factors, _ALPHAS)], key=lambda s: error(part, s))
        return best if error(W, best) < error(W, ones) else ones

    def wants_exact(self, W: Tensor, x: Tensor, scheme: Scheme) -> bool:
        """Whether rounding x changes the outputs of a layer by more than `exact_above`.

        Parameters
        ----------
        W : Tensor
            Shape (N, K), with its columns scaled.
        x : Tensor
            Shape (R, K): rows of the input, scaled.
        scheme : Scheme
            Whose activations tell how x is rounded.

        Returns
        -------
        bool
            False where there is no limit.
        """
        return self.exact_above is not None and rows_error(W, x, scheme) > self.exact_above


def _error(W: Tensor, s: Tensor, x: Tensor | None, statistics: Statistics, scheme: Scheme) -> float:
    """Of the outputs, for these rows of the input or as the statistics tell it."""
    if x is None:
        return _expected_error(W, s, statistics, scheme)
    return _measured_error(W, s, x.float(), statistics, scheme)


def _measured_error(
    W: Tensor, s: Tensor, x: Tensor, statistics: Statistics, scheme: Scheme
) -> float:
    """Sum over these rows of the squared error of the output, relative to it."""
    found = _as_multiplied(x / s, scheme)
    rounded = rounded_weight(W * s, scheme, statistics.squares / s.square())
    y = x @ W.T
    return float(_relative_squares(y - found @ rounded.T, y).sum())


def rows_error(W: Tensor, x: Tensor, scheme: Scheme) -> float:
    """What rounding rows of x does to the outputs of a layer, with the weight as it is.

    Parameters
    ----------
    W : Tensor
        Shape (N, K).
    x : Tensor
        Shape (R, K).
    scheme : Scheme
        Whose activations tell how x is rounded.

    Returns
    -------
    float
        ``sqrt(mean_r |W (x_r - rounded x_r)|² / (|W x_r|² + median |W x|²))``
    """
    W, x = W.float(), x.float()
    lost = (x - _as_multiplied(x, scheme)) @ W.T
    return math.sqrt(float(_relative_squares(lost, x @ W.T).mean()))


def _as_multiplied(x: Tensor, scheme: Scheme) -> Tensor:
    """Rows as the kernels of a scheme see them."""
    kind = _activations(scheme)
    if kind == "exact":
        return x
    return rounded_rows(x, scheme.group_size if kind == "int8-group" else None)


def _relative_squares(lost: Tensor, y: Tensor) -> Tensor:
    """For each row. A few tokens can be a thousand times the others, and would decide alone."""
    norms = y.double().square().sum(1)
    return lost.double().square().sum(1) / (norms + norms.median()).clamp_(min=1e-30)


def _expected_error(W: Tensor, s: Tensor, statistics: Statistics, scheme: Scheme) -> float:
    """The same for a row as statistics tell it: what W loses, and x, by steps of one size."""
    lost = scaled_error(W, s, statistics, scheme)
    if _activations(scheme) == "exact":
        return lost
    step = _TYPICAL_PEAK * float((statistics.squares.sqrt() / s).max()) / _STEPS
    return lost + step**2 / 12 * float((W * s).double().square().sum())


def _activations(scheme: Scheme) -> str:
    return scheme.activations or FORMATS[scheme.format].activation_kinds[0]
