"""Which weights of one matrix stay: pruning by magnitude for recipes of one's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ..formats.groups import dense_matrix, refuse_rows
from .prune import Prune


def magnitude_mask(
    W: Tensor | np.ndarray[Any, Any],
    sparsity: float | None = None,
    scope: str = "layer",
    pattern: str | None = None,
) -> Tensor:
    """Which weights of one matrix stay when the smallest become zero.

    Parameters
    ----------
    W : Tensor or ndarray
        Shape (N, K), float32, bfloat16, float16 or float64 (compared as float32).
    sparsity, scope, pattern : float, str, str
        As of :class:`Prune`; "global" is the same as "layer".

    Returns
    -------
    Tensor
        bool, shape (N, K): True where the weight stays.

    Raises
    ------
    ValueError
        For settings that do not exist, a `W` with NaN, or one that is not a matrix.

    Examples
    --------
    >>> W = torch.tensor([[1.0, -4.0, 2.0, 3.0], [8.0, 7.0, -6.0, 5.0]])
    >>> gs.pruning.magnitude_mask(W, 0.5).int()
    tensor([[0, 0, 0, 0],
            [1, 1, 1, 1]], dtype=torch.int32)
    >>> gs.pruning.magnitude_mask(W, pattern="2:4").int()
    tensor([[0, 1, 0, 1],
            [1, 1, 0, 0]], dtype=torch.int32)
    """
    prune = replace(Prune(sparsity, scope, pattern), scope="row" if scope == "row" else "layer")
    W = dense_matrix("magnitude_mask", W)
    refuse_rows("magnitude_mask", ~W.isnan().any(1))
    return prune.mask(W, prune.cuts([lambda: W])[0])
