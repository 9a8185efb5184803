"""What the methods that round weights share: their protocol, and checks of what they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from .. import _check
from ..formats import Format
from ..formats.groups import finite_matrix
from ..schemes import Scheme

if TYPE_CHECKING:
    from ..calibration import Statistics


class Rounding(Protocol):
    """A way to choose scales and codes of a weight.

    Attributes
    ----------
    name : str
        What users call it.
    needs : str
        Of the inputs of a layer: "nothing", "squares" (E[x²]) or "moment" (E[x xᵀ]).
    """

    name: ClassVar[str]
    needs: ClassVar[str]

    def round(
        self,
        W: Tensor,
        scheme: Scheme,
        statistics: Statistics | None = None,
        keep: Tensor | None = None,
    ) -> Format:
        """Round the weight of one layer.

        Parameters
        ----------
        W : Tensor
            Shape (N, K), float32, bfloat16, float16 or float64.
        scheme : Scheme
            Of the result. Formats "sparse-..." leave out its zeros.
        statistics : Statistics, optional
            Of the rows that the layer is given, where the method needs any.
        keep : Tensor, optional
            Bool (N, K): what is False is zero in the result.

        Returns
        -------
        Format
            Of the class that the scheme names.

        Raises
        ------
        ValueError
            For NaN or infinity, shapes that do not fit, or missing statistics.
        """
        ...


def checked(function: str, W: Tensor, keep: Tensor | None) -> Tensor:
    """The weight in float32, finite; the mask must fit it."""
    W = finite_matrix(function, W).float()
    if keep is not None and (keep.dtype is not torch.bool or keep.shape != W.shape):
        wanted = f"bool {list(W.shape)}"
        raise ValueError(f"{function}: keep: got {_check.describe(keep)}, wanted {wanted}")
    return W


def masked(W: Tensor, keep: Tensor | None) -> Tensor:
    """The weight with zeros where it is pruned."""
    return W if keep is None else W * keep


def fraction(function: str, argument: str, value: float, low: float, high: float) -> None:
    """The setting must be a number in (low, high]."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and low < value <= high):
        raise ValueError(
            f"{function}: {argument}: got {value!r}, wanted above {low:g}, at most {high:g}"
        )
