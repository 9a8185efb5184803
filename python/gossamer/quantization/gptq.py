"""GPTQ: weights are rounded column by column, and those that are left make up for the errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..calibration.known import factor_of
from ..calibration.obs import Factor, update
from ..formats import Format
from ..formats.grids import Grid, fit_grid
from ..schemes import Scheme
from .descent import Descent
from .rounding import checked, fraction, masked

if TYPE_CHECKING:
    from ..calibration import Statistics

_COARSE = 16  # levels; with more of them, sweeps are not worth their time


@dataclass(frozen=True)
class GPTQ:
    """Round column by column, and let the columns that are left make up for each error.

    With H = E[x xᵀ] of the inputs, ``tr((W - Ŵ) H (W - Ŵ)ᵀ)`` is the mean squared error of the
    outputs. A column is rounded to nearest; the error e that it makes is spread over the columns
    still to come as ``e H^-1``, such that the total grows least.

    Parameters
    ----------
    damping : float
        H gets this share of its mean diagonal on its diagonal, in (0, 1].
    act_order : bool
        Go from the largest E[x²] to the smallest, with scales that are fitted beforehand. Otherwise
        from first to last, and the scales of each group are fitted when its turn comes, to the
        weights as they are then.
    sweeps : int
        Of coordinate descent over codes and scales afterwards, for formats of up to 16 levels; with
        0 codes and scales are as GPTQ leaves them.

    Raises
    ------
    ValueError
        For a setting out of its range.

    Notes
    -----
    Rounding column k by an error e costs ``e² / L[k, k]²``, with ``H^-1 = L Lᵀ`` in the order of
    the update: scales are searched with this as the importance of each column. Inputs that were
    always zero change nothing: their weights are rounded to nearest.

    Sweeps look at columns again, when those after them are rounded too: each takes the nearest code
    to the number that would be best with all others as they are. Then the scale of one group after
    the other takes the value that is best for its codes. Neither ever makes the total larger.

    Where H has no Cholesky factor, its damping grows tenfold until it has.

    References
    ----------
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", 2022, section 3. Behdin et al., "QuantEase: Optimization-based Quantization for
    Language Models", 2023, section 3, for the sweeps over codes.

    Examples
    --------
    >>> from gossamer.quantization import GPTQ
    >>> GPTQ(act_order=False)
    GPTQ(damping=0.03, act_order=False, sweeps=2)
    """

    name: ClassVar[str] = "gptq"
    needs: ClassVar[str] = "moment"

    damping: float = 0.03
    act_order: bool = True
    sweeps: int = 2

    def __post_init__(self) -> None:
        fraction("GPTQ", "damping", self.damping, 0, 1)
        if not isinstance(self.sweeps, int) or self.sweeps < 0:
            raise ValueError(f"GPTQ: sweeps: got {self.sweeps!r}, wanted a number >= 0")

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
            Of the result: a format with a grid.
        statistics : Statistics
            Of the rows that the layer is given, with their moment.
        keep : Tensor, optional
            Bool (N, K): what is False is zero in the result, and made up for.

        Returns
        -------
        Format
            Of the class that the scheme names.

        Raises
        ------
        ValueError
            For NaN or infinity, shapes that do not fit, statistics without a moment, or a format
            that has no grid.
        """
        W = checked("GPTQ.round", W, keep)
        moment, factored = factor_of(
            "GPTQ.round", statistics, W.shape[1], damping=self.damping, order=self.act_order
        )
        importance, kept = _importance(factored), masked(W, keep)
        form, size, settings = scheme.format, scheme.group_size, scheme.settings
        grid = fit_grid(form, size, settings, kept, importance=importance)
        refits = None if self.act_order else _Refits(grid, kept, importance, factored.dead)
        updated = update(W, factored, grid=grid, refit=refits, keep=keep)
        codes = updated.codes
        assert codes is not None  # there was a grid
        grid = grid if refits is None else refits.grid()
        codes[:, factored.dead] = grid.round(kept)[:, factored.dead]
        if self.sweeps and len(grid.levels) <= _COARSE:
            codes, grid = self._improved(W, codes, grid, _damped(moment, factored), keep)
        weight: Format = grid.to_format(codes, sparse=form.startswith("sparse-"))
        return weight

    def _improved(
        self, W: Tensor, codes: Tensor, grid: Grid, H: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Grid]:
        descent = Descent(W, codes, grid, H, keep)
        descent.move_scales()
        for _ in range(self.sweeps):
            descent.move_codes()
            descent.move_scales()
        return descent.codes, descent.grid


class _Refits:
    """Fits each group's scales when its turn comes, and remembers them."""

    def __init__(self, grid: Grid, W: Tensor, importance: Tensor, dead: Tensor) -> None:
        self._grid, self._W, self._importance, self._dead = grid, W, importance, dead
        self._size = grid.group_size or W.shape[1]
        self._scales = grid.scales.clone()
        self._zeros = None if grid.zeros is None else grid.zeros.clone()

    def __call__(self, W: Tensor, columns: slice) -> tuple[Tensor, Tensor | None]:
        """Fit the weights [N, G] of a group: scales [N], zeros [N] or None."""
        form, size, settings = self._grid.format, self._grid.group_size, self._grid.settings
        W = torch.where(self._dead[columns], self._W[:, columns], W)  # the update has 0 there
        fitted = fit_grid(form, size, settings, W, importance=self._importance[columns])
        g = columns.start // self._size
        self._scales[:, g] = fitted.scales[:, 0]
        if self._zeros is None or fitted.zeros is None:
            return fitted.scales[:, 0], None
        self._zeros[:, g] = fitted.zeros[:, 0]
        return fitted.scales[:, 0], fitted.zeros[:, 0]

    def grid(self) -> Grid:
        """All groups together."""
        asymmetric = not self._grid.settings.get("symmetric", True)
        return self._grid.with_scales(self._scales, self._zeros if asymmetric else None)


def _importance(factored: Factor) -> Tensor:
    """What a squared error of each column costs, when the columns after it make up for it."""
    pivots = factored.lower.diagonal().square().reciprocal_()
    importance = torch.empty_like(pivots)
    importance[torch.arange(len(pivots)) if factored.order is None else factored.order] = pivots
    return importance.masked_fill_(factored.dead, 0.0)


def _damped(moment: Tensor, factored: Factor) -> Tensor:
    """What was factored: the moment with damping on its diagonal, but for dead inputs."""
    H, alive = moment.clone(), ~factored.dead
    if bool(alive.any()):
        H.diagonal()[alive] += factored.damping * H.diagonal()[alive].mean()
    return H
