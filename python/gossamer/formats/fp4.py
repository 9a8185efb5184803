"""Formats fp4 and mxfp4: e2m1, a float of 4 bits, in groups along K."""

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

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1 = (*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES))
_LARGEST = 6.0
_LARGEST_EXPONENT = 2  # of e2m1: 6 = 1.5 * 2**2
_E8M0_BIAS = 127
_E8M0_NAN = 255


@dataclass(frozen=True, eq=False)
class FP4(FourBit):
    """A weight stored as e2m1: ``W[n, k] ≈ e2m1(code[n, k]) * scales[n, k // G]``.

    A code is a sign bit and the index of one of 0, 0.5, 1, 1.5, 2, 3, 4 and 6.

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
    OCP Microscaling Formats (MX) Specification 1.0, 2023, section 5.3.3.

    Examples
    --------
    >>> weight = FP4(torch.tensor([[0x7F, 0x01]], dtype=torch.uint8), torch.tensor([[0.5]]))
    >>> weight.dequantize()
    tensor([[-3.0000,  3.0000,  0.2500,  0.0000]])
    """

    name: ClassVar[str] = "fp4"
    codebook: ClassVar[tuple[float, ...]] = _E2M1

    @classmethod
    def quantize(
        cls,
        W: Tensor | np.ndarray[Any, Any],
        group_size: int | None = 32,
        *,
        scale_dtype: torch.dtype | None = None,
    ) -> FP4:
        """Round a dense weight to fp4.

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
        FP4
            New tensors; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN or infinity (the rows are named) or is not a matrix, or a scale is
            too large for `scale_dtype`.

        Notes
        -----
        ``scale = max |w| / 6`` of the group, rounded to its dtype; ``w / scale`` is rounded to the
        nearest level, halves to the one with an even mantissa.

        Examples
        --------
        >>> FP4.quantize(torch.tensor([[6.0, -2.4, 2.5, 0.1]])).dequantize()
        tensor([[ 6., -2.,  2.,  0.]])
        """
        _check.group_size("FP4.quantize", group_size, cls.group_sizes)
        W = dense_matrix("FP4.quantize", W)
        scales = map_groups(W, group_size, lambda groups: groups.abs().amax(2) / _LARGEST)
        refuse_rows("FP4.quantize", scales.isfinite().all(1))
        scales = rounded_scales("FP4.quantize", scales, scale_dtype)
        codes = map_groups(W, group_size, partial(_codes, W.shape[1]), scales.float())
        return cls(codes, scales, group_size, W.shape[1])


@dataclass(frozen=True, eq=False)
class MXFP4(FourBit):
    """OCP MXFP4: ``W[n, k] ≈ e2m1(code[n, k]) * 2 ** (scales[n, k // 32] - 127)``.

    A code is a sign bit and the index of one of 0, 0.5, 1, 1.5, 2, 3, 4 and 6.

    Parameters
    ----------
    codes : Tensor
        Shape (N, ceil(K / 2)), uint8: code k is in the low half of byte k // 2 where k is even, in
        the high half where it is odd. After an odd K the last high half is 0.
    scales : Tensor
        Shape (N, ceil(K / 32)), uint8 e8m0: an exponent with bias 127. 255, which is NaN, is
        refused.
    group_size : int
        32; the last group may be short.
    in_features : int, optional
        K; None takes two for each byte of a row.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, or a scale is NaN.

    References
    ----------
    OCP Microscaling Formats (MX) Specification 1.0, 2023, sections 5.3.3, 5.4.1 and 6.3.

    Examples
    --------
    >>> codes = torch.tensor([[0x7F, 0x01]], dtype=torch.uint8)
    >>> MXFP4(codes, torch.tensor([[126]], dtype=torch.uint8)).dequantize()
    tensor([[-3.0000,  3.0000,  0.2500,  0.0000]])
    """

    name: ClassVar[str] = "mxfp4"
    codebook: ClassVar[tuple[float, ...]] = _E2M1
    group_sizes: ClassVar[tuple[int | None, ...]] = (32,)
    scale_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.uint8,)

    group_size: int | None = 32

    @classmethod
    def quantize(cls, W: Tensor | np.ndarray[Any, Any], group_size: int | None = 32) -> MXFP4:
        """Round a dense weight to mxfp4.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64 (read as float32).
        group_size : int
            32.

        Returns
        -------
        MXFP4
            New tensors; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN or infinity (the rows are named) or is not a matrix.

        Notes
        -----
        ``scale = 2 ** (floor(log2(max |w|)) - 2)`` of the group, at least 2**-127; ``w / scale`` is
        rounded to the nearest level, halves to the one with an even mantissa, and above 6 to 6. So
        a maximum between 6 and 8 scales is clipped, by up to a quarter.

        Examples
        --------
        >>> weight = MXFP4.quantize(torch.tensor([[7.5, -2.4, 2.5, 0.1]]))
        >>> weight.dequantize(), weight.scales
        (tensor([[ 6., -2.,  2.,  0.]]), tensor([[127]], dtype=torch.uint8))
        """
        _check.group_size("MXFP4.quantize", group_size, cls.group_sizes)
        W = dense_matrix("MXFP4.quantize", W)
        amax = map_groups(W, group_size, lambda groups: groups.abs().amax(2))
        refuse_rows("MXFP4.quantize", amax.isfinite().all(1))
        exponents = torch.frexp(amax).exponent - 1 - _LARGEST_EXPONENT
        exponents = torch.where(amax > 0, exponents, -_E8M0_BIAS)
        scales = exponents.add(_E8M0_BIAS).clamp_(min=0).to(torch.uint8)
        codes = map_groups(W, group_size, partial(_codes, W.shape[1]), _powers(scales))
        return cls(codes, scales, group_size, W.shape[1])

    @property
    def settings(self) -> dict[str, Any]:
        """What ``quantize`` must be told, beside the group size: nothing."""
        return {}

    def float_scales(self) -> Tensor:
        """The scales as numbers.

        Returns
        -------
        Tensor
            Shape (N, groups), float32; exact, as they are powers of two from 2**-127 to 2**127.
        """
        return _powers(self.scales)


def _powers(scales: Tensor) -> Tensor:
    """The numbers that e8m0 scales stand for."""
    exponents = range(-_E8M0_BIAS, _E8M0_NAN - _E8M0_BIAS)
    table = torch.tensor([*(2.0**exponent for exponent in exponents), float("nan")])
    return table[scales.to(torch.int32)]


def _codes(K: int, groups: Tensor, scales: Tensor) -> Tensor:
    """Rounds to the nearest e2m1: steps of 0.5 below 2, of 1 below 4, of 2 above."""
    values = divided(groups, scales[:, :, None])
    size = values.abs().clamp_(max=_LARGEST)
    index = torch.where(size < 4, size.round() + 2, (size / 2).round() + 4)
    index = torch.where(size < 2, (size * 2).round(), index)
    return join_halves(index.to(torch.uint8).add_(values.signbit(), alpha=8), K)
