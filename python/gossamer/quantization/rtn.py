"""Round to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..calibration.known import squares_of
from ..formats import FORMATS, Format
from ..formats.grids import fit_grid, has_grid
from ..schemes import Scheme
from .rounding import checked, masked

if TYPE_CHECKING:
    from ..calibration import Statistics


@dataclass(frozen=True)
class RTN:
    """Give each weight the nearest level, after a search for the scales.

    With the squares of a layer's inputs, the scales of each group minimize
    ``Σ_k E[x_k²] (W[n, k] - Ŵ[n, k])²``: the error of the output, were the inputs uncorrelated.
    Without them they are those of the format's ``quantize``.

    Parameters
    ----------
    clip : bool
        Search for scales where there are statistics; otherwise those of ``quantize`` always.

    References
    ----------
    Nagel et al., "A White Paper on Neural Network Quantization", 2021, section 3.1.

    Examples
    --------
    >>> from gossamer.quantization import RTN
    >>> RTN().round(torch.randn(8, 64), gs.Quantize("int4-g32").resolved()).shape
    (8, 64)
    """

    name: ClassVar[str] = "rtn"
    needs: ClassVar[str] = "nothing"

    clip: bool = True

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
            Of the result.
        statistics : Statistics, optional
            Of the rows that the layer is given; its ``squares`` are looked at.
        keep : Tensor, optional
            Bool (N, K): what is False is zero in the result.

        Returns
        -------
        Format
            Of the class that the scheme names.

        Raises
        ------
        ValueError
            For NaN or infinity, or shapes that do not fit.
        """
        W = masked(checked("RTN.round", W, keep), keep)
        if statistics is None or not self.clip or not has_grid(scheme.format):
            return FORMATS[scheme.format].quantize(W, scheme.group_size, **scheme.settings)
        importance = squares_of("RTN.round", statistics, W.shape[1])
        grid = fit_grid(scheme.format, scheme.group_size, scheme.settings, W, importance=importance)
        sparse = scheme.format.startswith("sparse-")
        weight: Format = grid.to_format(grid.round(W), sparse=sparse)
        return weight
