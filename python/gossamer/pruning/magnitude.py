"""Pruning by magnitude: the smallest weights go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..calibration.statistics import Statistics


@dataclass(frozen=True)
class Magnitude:
    """Zero the weights of the smallest magnitude; nothing has to be known of the inputs.

    Attributes
    ----------
    name, needs, scopes : str, str, tuple of str
        What it is called, what it has to know of inputs, and the scopes it has, its own one first.

    References
    ----------
    Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015.

    Examples
    --------
    >>> gs.Prune(0.5, method=gs.pruning.Magnitude()).needs
    'nothing'
    """

    name: ClassVar[str] = "magnitude"
    needs: ClassVar[str] = "nothing"
    scopes: ClassVar[tuple[str, ...]] = ("global", "layer", "row")

    def scores(self, W: Tensor, statistics: Statistics | None = None) -> Tensor:
        """The weight itself, whose magnitudes count.

        Parameters
        ----------
        W : Tensor
            Shape (N, K).
        statistics : Statistics, optional
            Is not used.

        Returns
        -------
        Tensor
            `W`.
        """
        return W
