"""Wanda: weights are judged by what they add to the outputs, not by their magnitude alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..calibration.known import squares_of
from ..calibration.statistics import Statistics


@dataclass(frozen=True)
class Wanda:
    """Zero the weights whose products with their inputs are the smallest.

    A weight w[n, k] scores ``|w[n, k]| * sqrt(E[x_k²])``: the root mean square of what it adds to
    the output n. The weights that stay keep their values.

    Attributes
    ----------
    name, needs, scopes : str, str, tuple of str
        What it is called, what it has to know of inputs, and the scopes it has, its own one first.

    Raises
    ------
    ValueError
        When used: without statistics of the inputs, or with NaN in them.

    Notes
    -----
    Features that are zero in all of the calibration score zero, whatever their weights.

    References
    ----------
    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2023.

    Examples
    --------
    >>> gs.Prune(0.5, method=gs.pruning.Wanda()).scope
    'row'
    """

    name: ClassVar[str] = "wanda"
    needs: ClassVar[str] = "squares"
    scopes: ClassVar[tuple[str, ...]] = ("row", "layer", "global")

    def scores(self, W: Tensor, statistics: Statistics | None) -> Tensor:
        """How much each weight matters.

        Parameters
        ----------
        W : Tensor
            Shape (N, K), float32, bfloat16 or float16.
        statistics : Statistics
            Of the inputs of the layer.

        Returns
        -------
        Tensor
            float32, shape (N, K), not negative.
        """
        squares = squares_of("Wanda", statistics, W.shape[1])
        return W.float().abs().mul_(squares.sqrt())
