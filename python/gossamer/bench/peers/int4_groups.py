"""The 4-bit weights that all int4 peers are given: symmetric, rounded to nearest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gossamer.bench.peers.peer import Array

SCALE_BITS = 32  # float32, where the peer lets us choose


def quantize(weight: Array, group_size: int) -> tuple[npt.NDArray[np.int8], Array]:
    """Round groups along K to -7 ... 7 times a scale of their own.

    Parameters
    ----------
    weight
        (N, K) float32, K a multiple of ``group_size``.
    group_size
        Weights that share a scale.

    Returns
    -------
    values, scales
        int8 (N, K), and float32 (N, K / group_size): ``weight ≈ values * scales``.

    Raises
    ------
    ValueError
        When K is no multiple of ``group_size``: most of the peers cannot do that.
    """
    N, K = weight.shape
    if K % group_size:
        raise ValueError(f"quantize: weight: K = {K} is no multiple of the group size {group_size}")
    grouped = weight.reshape(N, K // group_size, group_size)
    scales = np.abs(grouped).max(axis=2) / np.float32(7)
    steps = np.where(scales > 0, scales, np.float32(1))
    values = np.rint(grouped / steps[:, :, None]).astype(np.int8)
    return values.reshape(N, K), scales


def pack(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two neighbours along K in a byte, the first in the low half, in two's complement."""
    nibbles: npt.NDArray[np.uint8] = values.view(np.uint8) & np.uint8(0xF)
    packed: npt.NDArray[np.uint8] = nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)
    return packed


def weight_bits(group_size: int, scale_bits: int = SCALE_BITS) -> float:
    """Bits of a weight, its share of the scale included."""
    return 4 + scale_bits / group_size
