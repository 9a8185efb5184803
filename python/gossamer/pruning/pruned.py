"""What pruning makes of the weight of one layer."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..formats.grids import Grid


class Pruned(NamedTuple):
    """The weight of one layer with zeros.

    Attributes
    ----------
    values : Tensor
        float32, shape (N, K).
    keep : Tensor
        bool, shape (N, K): what stays.
    codes : Tensor or None
        uint8, shape (N, K): where the values are on `grid`; None where they are not on one.
    grid : Grid or None
        What was rounded to.
    """

    values: Tensor
    keep: Tensor
    codes: Tensor | None = None
    grid: Grid | None = None

    def to_format(self, *, sparse: bool = False) -> Any:
        """What was rounded, in the format of its grid.

        Parameters
        ----------
        sparse : bool
            Leave out the zeros: SparseInt8 or SparseInt4.

        Returns
        -------
        Format
            Its dense values are `values`.

        Raises
        ------
        ValueError
            Where the values are not on a grid, or the format has no sparse twin.
        """
        if self.codes is None or self.grid is None:
            raise ValueError("Pruned.to_format: the values are not on a grid")
        return self.grid.to_format(self.codes, sparse=sparse)
