"""Format bf16: the dense weight, rounded to bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .dense_float import DenseFloat


@dataclass(frozen=True, eq=False)
class BF16(DenseFloat):
    """A weight stored as bfloat16, one number for each weight: what compressed ones compare with.

    Parameters
    ----------
    values : Tensor
        Shape (N, K), bfloat16.

    Raises
    ------
    TypeError
        Where the tensor has another dtype or number of dimensions.

    Examples
    --------
    >>> BF16.quantize(torch.tensor([[1.0, 1.00390625]])).dequantize()
    tensor([[1., 1.]])
    """

    name: ClassVar[str] = "bf16"
    value_dtype: ClassVar[torch.dtype] = torch.bfloat16
