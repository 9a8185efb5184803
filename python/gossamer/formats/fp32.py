"""Format fp32: the dense weight itself, as float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .dense_float import DenseFloat


@dataclass(frozen=True, eq=False)
class FP32(DenseFloat):
    """A weight stored as float32, not rounded: a factor of :class:`LowRank` mostly.

    Parameters
    ----------
    values : Tensor
        Shape (N, K), float32.

    Raises
    ------
    TypeError
        Where the tensor has another dtype or number of dimensions.

    Examples
    --------
    >>> FP32.quantize(torch.tensor([[1.0, 1.00390625]])).dequantize()
    tensor([[1.0000, 1.0039]])
    """

    name: ClassVar[str] = "fp32"
    value_dtype: ClassVar[torch.dtype] = torch.float32
