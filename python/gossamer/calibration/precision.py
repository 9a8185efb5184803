"""In which precision a model runs while it is measured."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .. import cpu

_BF16_ISAS = ("avx512bf16", "amx")


def in_bf16(layers: Iterable[nn.Module]) -> bool:
    """Whether to multiply in bfloat16: where that is faster, and weights are not in it anyway.

    Parameters
    ----------
    layers : iterable of nn.Module
        Those that are measured, with a ``weight`` each.

    Returns
    -------
    bool
        True for float32 weights on a processor that multiplies bfloat16.
    """
    dtypes = {layer.get_parameter("weight").dtype for layer in layers}
    return dtypes == {torch.float32} and cpu.isa() in _BF16_ISAS
