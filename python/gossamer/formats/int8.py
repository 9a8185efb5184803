"""Format int8: symmetric, with one float32 scale per output channel or per group along K."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import _check, _ops

_CHUNK_ELEMENTS = 1 << 20  # of a weight quantized at a time: the temporaries stay in cache
_TINY = (
    2.0**-100
)  # below it 127 / amax nears the end of float32, so the group is scaled up, exactly


@dataclass(frozen=True, eq=False)
class Int8:
    """A weight stored as int8: ``W[n, k] ≈ values[n, k] * scales[n, k // G]``.

    These are the canonical tensors, the same on every machine; :meth:`pack` lays them out for the
    kernels.

    Parameters
    ----------
    values : Tensor
        Shape (N, K), int8. :meth:`quantize` gives values in [-127, 127]; -128 is accepted.
    scales : Tensor
        Shape (N, groups), float32, finite and >= 0, with ``groups = ceil(K / G)``, or 1 where
        ``group_size`` is None.
    group_size : int, optional
        G: 32, 64 or 128 consecutive k share a scale; the last group may be short. None: one scale
        per output channel.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, or a scale is negative, infinite or NaN.

    Examples
    --------
    >>> W = torch.tensor([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0]])
    >>> weight = Int8.quantize(W)
    >>> weight.values.tolist()
    [[127, -64, 32], [0, 0, 0]]
    >>> weight.dequantize()[0].numpy().round(3)
    array([ 1.   , -0.504,  0.252], dtype=float32)
    """

    name: ClassVar[str] = "int8"
    state_names: ClassVar[tuple[str, ...]] = ("weight", "weight_scale")

    values: Tensor
    scales: Tensor
    group_size: int | None = None

    def __post_init__(self) -> None:
        group_size = _check.group_size("Int8", self.group_size)
        values, scales = self.values, self.scales
        if values.dtype is not torch.int8 or values.dim() != 2 or 0 in values.shape:
            raise TypeError(
                f"Int8: values: got {_check.describe(values)}, wanted int8 [N, K] with N, K >= 1"
            )
        wanted = (values.shape[0], _groups(values.shape[1], group_size))
        if scales.dtype is not torch.float32:
            raise TypeError(f"Int8: scales: got dtype {scales.dtype}, wanted float32")
        if tuple(scales.shape) != wanted:
            raise ValueError(
                f"Int8: scales: got shape {list(scales.shape)}, wanted {list(wanted)} for values "
                f"{list(values.shape)} and group_size {group_size}"
            )
        _check.on_cpu("Int8", "values", values)
        _check.on_cpu("Int8", "scales", scales)
        if not bool(((scales >= 0) & (scales < torch.inf)).all()):
            raise ValueError("Int8: scales: some are negative, infinite or NaN")

    @classmethod
    def quantize(cls, W: Tensor | np.ndarray[Any, Any], group_size: int | None = None) -> Int8:
        """Round a dense weight to int8, symmetrically.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64 (read as float32).
        group_size : int, optional
            None (one scale per output channel), 32, 64 or 128.

        Returns
        -------
        Int8
            New tensors; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN or infinity (the rows are named) or is not a matrix.

        Notes
        -----
        For each group, ``scale = amax / 127`` with ``amax = max |w|``, and
        ``q = round_half_even(w * (127 / amax))`` in [-127, 127], so that
        ``|w - q * scale| <= scale / 2`` up to float32 rounding. A group of zeros has scale 0. An
        amax below 127 * 2**-149 has no float32 scale: it becomes 0 too.

        References
        ----------
        Wu et al., "Integer Quantization for Deep Learning Inference", 2020, section 3.

        Examples
        --------
        >>> Int8.quantize(torch.ones(2, 100), group_size=32).scales.shape
        torch.Size([2, 4])
        """
        _check.group_size("Int8.quantize", group_size)
        W = _dense_matrix(W)
        N, K = W.shape
        values = torch.empty(N, K, dtype=torch.int8)
        scales = torch.empty(N, _groups(K, group_size), dtype=torch.float32)
        step = max(1, _CHUNK_ELEMENTS // K)
        bad_rows: list[int] = []
        for first in range(0, N, step):
            rows = slice(first, first + step)
            q, scales[rows] = _quantize_rows(W[rows].to(torch.float32), group_size)
            values[rows] = q
            bad_rows += (~scales[rows].isfinite().all(1)).nonzero().flatten().add(first).tolist()
        if bad_rows:
            shown = ", ".join(map(str, bad_rows[:8])) + (", ..." if len(bad_rows) > 8 else "")
            raise ValueError(f"Int8.quantize: W: NaN or infinity in row(s) {shown}")
        return cls(values, scales, group_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): out_features and in_features."""
        N, K = self.values.shape
        return N, K

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight: values, scales, padding and header."""
        return _ops.int8_packed_bytes(*self.shape, self.group_size)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the packed weight, everything included, for each of its N * K weights."""
        return 8 * self.nbytes / self.values.numel()

    def dequantize(self) -> Tensor:
        """The weight that the kernels multiply with.

        Returns
        -------
        Tensor
            Shape (N, K), float32, newly allocated: ``values * scales``.

        Examples
        --------
        >>> Int8(torch.tensor([[2, -3]], dtype=torch.int8), torch.tensor([[0.5]])).dequantize()
        tensor([[ 1.0000, -1.5000]])
        """
        dense = self.values.to(torch.float32)
        if self.group_size is None:
            return dense.mul_(self.scales)
        K = dense.shape[1]
        return dense.mul_(self.scales.repeat_interleave(self.group_size, 1)[:, :K])

    def pack(self) -> Tensor:
        """Lay the weight out for the kernels.

        Returns
        -------
        Tensor
            Shape (nbytes,), uint8: header, scales and panels. One layout serves every x86 ISA.

        Examples
        --------
        >>> weight = Int8.quantize(torch.randn(5, 7))
        >>> bool((Int8.unpack(weight.pack()).values == weight.values).all())
        True
        """
        return _ops.int8_pack(self.values.contiguous(), self.scales.contiguous(), self.group_size)

    @classmethod
    def unpack(cls, packed: Tensor) -> Int8:
        """Undo :meth:`pack`, exactly.

        Parameters
        ----------
        packed : Tensor
            Shape (nbytes,), uint8, from :meth:`pack`.

        Returns
        -------
        Int8
            The canonical tensors, newly allocated.

        Raises
        ------
        TypeError, ValueError
            Where the bytes are not a packed int8 weight of this layout.
        """
        return cls(*_ops.int8_unpack(packed))

    def state(self) -> dict[str, Tensor]:
        """The tensors that a ``state_dict`` holds, by name.

        Returns
        -------
        dict of str to Tensor
            ``weight``, int8 (N, K), and ``weight_scale``, float32 (N, groups).
        """
        return {"weight": self.values, "weight_scale": self.scales}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], group_size: int | None = None) -> Int8:
        """Undo :meth:`state`.

        Parameters
        ----------
        state : mapping of str to Tensor
            ``weight`` and ``weight_scale``.
        group_size : int, optional
            The group size to take where the number of scales allows several.

        Returns
        -------
        Int8
            The weight; its tensors are those of `state`.

        Raises
        ------
        TypeError, ValueError
            Where dtypes or shapes do not fit together.
        """
        values, scales = state["weight"], state["weight_scale"]
        if values.dim() == 2 and scales.dim() == 2:
            groups, K = scales.shape[1], values.shape[1]
            candidates = (group_size, None, *_check.GROUP_SIZES)
            group_size = next((G for G in candidates if _groups(K, G) == groups), None)
        return cls(values, scales, group_size)


def _groups(K: int, group_size: int | None) -> int:
    return 1 if group_size is None else -(-K // group_size)


def _dense_matrix(W: Tensor | np.ndarray[Any, Any]) -> Tensor:
    W = torch.from_numpy(np.ascontiguousarray(W)) if isinstance(W, np.ndarray) else W
    if not isinstance(W, Tensor) or not W.is_floating_point():
        raise TypeError(f"Int8.quantize: W: got {_check.describe(W)}, wanted floating point")
    if W.dim() != 2 or 0 in W.shape:
        raise ValueError(
            f"Int8.quantize: W: got {_check.describe(W)}, wanted [N, K] with N, K >= 1"
        )
    _check.on_cpu("Int8.quantize", "W", W)
    return W.detach()


def _quantize_rows(W: Tensor, group_size: int | None) -> tuple[Tensor, Tensor]:
    """Quantize rows: values [n, K], scales [n, groups]; NaN and infinity show in the scales."""
    n, K = W.shape
    groups, size = _groups(K, group_size), group_size or K
    if groups * size != K:
        W = torch.nn.functional.pad(W, (0, groups * size - K))
    grouped = W.reshape(n, groups, size)
    low, high = grouped.aminmax(dim=2)
    amax = torch.maximum(-low, high)
    scales = amax / 127
    if bool((amax < _TINY).any()):
        up = torch.where(amax < _TINY, 2.0**100, 1.0)
        grouped, amax = grouped * up[:, :, None], amax * up
    inverse = torch.where(amax > 0, 127 / amax, 0.0)
    q = (grouped * inverse[:, :, None]).round_().clamp_(-127, 127).nan_to_num_(0)
    return q.to(torch.int8).view(n, groups * size)[:, :K], scales
