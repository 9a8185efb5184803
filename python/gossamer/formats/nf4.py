"""Format nf4: sixteen quantiles of the normal distribution, in groups along K."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import _check
from .four_bit import FourBit, join_halves, rounded_scales
from .groups import dense_matrix, divided, map_groups, refuse_rows


@dataclass(frozen=True, eq=False)
class NF4(FourBit):
    """A weight stored as NormalFloat4: ``W[n, k] ≈ codebook[code[n, k]] * scales[n, k // G]``.

    The levels lie in [-1, 1], closest to each other where normally distributed weights are densest.

    Parameters
    ----------
    codes : Tensor
        Shape (N, ceil(K / 2)), uint8: code k is in the low half of byte k // 2 where k is even, in
        the high half where it is odd. After an odd K the last high half is 0.
    scales : Tensor
        Shape (N, groups), float16, bfloat16 or float32, finite; ``groups = ceil(K / G)``, or 1
        where ``group_size`` is None.
    group_size : int, optional
        G: 16, 32, 64, 128 or 256 consecutive k share a scale; the last group may be short. None:
        one scale per output channel.
    in_features : int, optional
        K; None takes two for each byte of a row.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, or a scale is infinite or NaN.

    References
    ----------
    Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, appendix E.

    Examples
    --------
    >>> weight = NF4(torch.tensor([[0x0F, 0x07]], dtype=torch.uint8), torch.tensor([[2.0]]))
    >>> weight.dequantize()
    tensor([[ 2., -2.,  0., -2.]])
    """

    name: ClassVar[str] = "nf4"
    codebook: ClassVar[tuple[float, ...]] = (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    )

    @classmethod
    def quantize(
        cls,
        W: Tensor | np.ndarray[Any, Any],
        group_size: int | None = 64,
        *,
        scale_dtype: torch.dtype | None = None,
    ) -> NF4:
        """Round a dense weight to nf4.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64 (read as float32).
        group_size : int, optional
            16, 32, 64, 128 or 256, or None for one scale per output channel.
        scale_dtype : torch.dtype, optional
            float16, bfloat16 or float32. None: float16 where every scale that is not 0 is a normal
            number in it, else float32.

        Returns
        -------
        NF4
            New tensors; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN or infinity (the rows are named) or is not a matrix, or a scale is
            too large for `scale_dtype`.

        Notes
        -----
        ``scale = max |w|`` of the group, rounded to its dtype; the code is that of the level
        nearest to ``w / scale``, the lower one of two that are as near.

        Examples
        --------
        >>> NF4.quantize(torch.tensor([[0.5, -1.0, 0.0, 0.25]])).dequantize().numpy().round(3)
        array([[ 0.441, -1.   ,  0.   ,  0.246]], dtype=float32)
        """
        _check.group_size("NF4.quantize", group_size, cls.group_sizes)
        W = dense_matrix("NF4.quantize", W)
        scales = map_groups(W, group_size, lambda groups: groups.abs().amax(2))
        refuse_rows("NF4.quantize", scales.isfinite().all(1))
        scales = rounded_scales("NF4.quantize", scales, scale_dtype)
        codes = map_groups(W, group_size, partial(_codes, W.shape[1]), scales)
        return cls(codes, scales, group_size, W.shape[1])


def _codes(K: int, groups: Tensor, scales: Tensor) -> Tensor:
    levels = torch.tensor(NF4.codebook)
    values = divided(groups, scales.to(torch.float32)[:, :, None])
    codes = torch.bucketize(values.contiguous(), (levels[1:] + levels[:-1]) / 2, out_int32=True)
    return join_halves(codes.to(torch.uint8), K)
