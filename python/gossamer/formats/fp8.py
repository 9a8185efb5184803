"""Format fp8: float8_e4m3fn or float8_e5m2, with a scale for each row or 128 x 128 block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import _check, _ops_packing
from .groups import (
    check_kinds,
    check_matrix,
    check_tensor,
    dense_matrix,
    divided,
    refuse_rows,
    row_chunks,
)

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
_BLOCK = 128


@dataclass(frozen=True, eq=False)
class FP8:
    """A weight stored as fp8: ``W[n, k] ≈ values[n, k] * scale``.

    The scale is ``scales[n, 0]``, or ``scales[n // 128, k // 128]`` where ``group_size`` is 128.

    Parameters
    ----------
    values : Tensor
        Shape (N, K), float8_e4m3fn or float8_e5m2. NaN and infinity are kept and give outputs of
        NaN or infinity.
    scales : Tensor
        Shape (N, 1), or (ceil(N / 128), ceil(K / 128)), float32, finite.
    group_size : int, optional
        128: a scale for each block of 128 x 128, as DeepSeek-V3 stores it. None: one per row.

    Raises
    ------
    TypeError, ValueError
        Where a tensor has another dtype or shape, or a scale is infinite or NaN.

    References
    ----------
    Micikevicius et al., "FP8 Formats for Deep Learning", 2022. DeepSeek-AI, "DeepSeek-V3 Technical
    Report", 2024, section 3.3.

    Examples
    --------
    >>> values = torch.tensor([[448.0, -0.5]]).to(torch.float8_e4m3fn)
    >>> FP8(values, torch.tensor([[0.25]])).dequantize()
    tensor([[112.0000,  -0.1250]])
    """

    name: ClassVar[str] = "fp8"
    state_names: ClassVar[tuple[str, ...]] = ("weight", "weight_scale", "weight_scale_inv")
    state_forms: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("weight", "weight_scale"),
        ("weight", "weight_scale_inv"),
    )
    activation_kinds: ClassVar[tuple[str, ...]] = ("exact",)
    group_sizes: ClassVar[tuple[int | None, ...]] = (None, _BLOCK)

    values: Tensor
    scales: Tensor
    group_size: int | None = None

    def __post_init__(self) -> None:
        _check.group_size("FP8", self.group_size, self.group_sizes)
        check_matrix("FP8", "values", self.values, DTYPES)
        N, K = self.values.shape
        wanted = (N, 1) if self.group_size is None else (-(-N // _BLOCK), -(-K // _BLOCK))
        check_tensor("FP8", "scales", self.scales, (torch.float32,), wanted)
        if not bool(self.scales.isfinite().all()):
            raise ValueError("FP8: scales: some are infinite or NaN")

    @classmethod
    def quantize(
        cls,
        W: Tensor | np.ndarray[Any, Any],
        group_size: int | None = None,
        *,
        dtype: torch.dtype = torch.float8_e4m3fn,
    ) -> FP8:
        """Round a dense weight to fp8.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K), float32, bfloat16, float16 or float64 (read as float32). One of torch's
            float8 dtypes is kept as it is, with scales of 1.
        group_size : int, optional
            None: one scale per output channel. 128: one for each block of 128 x 128.
        dtype : torch.dtype
            float8_e4m3fn or float8_e5m2.

        Returns
        -------
        FP8
            New tensors; ``W`` is left as it is.

        Raises
        ------
        ValueError
            Where ``W`` holds NaN or infinity (the rows are named) or is not a matrix.

        Notes
        -----
        ``scale = max |w| / largest``, with the largest number of the dtype, 448 or 57344, and
        ``value = round_half_even(w / scale)``. Rows and blocks of zeros have scale 0.

        Examples
        --------
        >>> weight = FP8.quantize(torch.tensor([[1.0, -0.3]]))
        >>> weight.dequantize().numpy().round(4)
        array([[ 1.    , -0.2857]], dtype=float32)
        """
        _check.group_size("FP8.quantize", group_size, cls.group_sizes)
        if dtype not in DTYPES:
            raise TypeError(
                f"FP8.quantize: dtype: got {dtype!r}, wanted float8_e4m3fn or float8_e5m2"
            )
        W = dense_matrix("FP8.quantize", W)
        if W.dtype in DTYPES:
            return cls(W.clone(), torch.ones(W.shape[0], 1))
        N, K = W.shape
        values = torch.empty(N, K, dtype=dtype)
        finite = torch.empty(N, dtype=torch.bool)
        scales = []
        for rows in row_chunks(N, K, multiple=group_size or 1):
            chunk = W[rows].to(torch.float32)
            scales.append(_scales(chunk, group_size, torch.finfo(dtype).max))
            values[rows] = _rounded(chunk, scales[-1], group_size, dtype)
            finite[rows] = chunk.isfinite().all(1)
        refuse_rows("FP8.quantize", finite)
        return cls(values, torch.cat(scales), group_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): out_features and in_features."""
        N, K = self.values.shape
        return N, K

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight: values, scales, padding and header."""
        return _ops_packing.fp8_packed_bytes(self.shape, self.group_size)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the packed weight, everything included, for each of its N * K weights."""
        return 8 * self.nbytes / self.values.numel()

    @property
    def settings(self) -> dict[str, Any]:
        """What ``quantize`` must be told, beside the group size, for another weight like this."""
        return {} if self.values.dtype is DTYPES[0] else {"dtype": self.values.dtype}

    def dequantize(self) -> Tensor:
        """The weight that the kernels multiply with.

        Returns
        -------
        Tensor
            Shape (N, K), float32, newly allocated.
        """
        dense = self.values.to(torch.float32)
        for rows in row_chunks(*self.shape, multiple=self.group_size or 1):
            scales = self.scales[rows] if self.group_size is None else self.scales[_blocks(rows)]
            dense[rows] *= _over_elements(scales, self.group_size, dense[rows])
        return dense

    def pack(self, activations: str | None = None) -> Tensor:
        """Lay the weight out for the kernels.

        Parameters
        ----------
        activations : str, optional
            "exact", the only and the default: x is not quantized.

        Returns
        -------
        Tensor
            Shape (nbytes,), uint8: header, scales and panels. One layout serves every x86 ISA.
        """
        _check.activations("FP8.pack", activations, self.activation_kinds)
        return _ops_packing.fp8_pack(self.values, self.scales, self.group_size)

    @classmethod
    def unpack(cls, packed: Tensor) -> FP8:
        """Undo :meth:`pack`, exactly.

        Parameters
        ----------
        packed : Tensor
            Shape (nbytes,), uint8, from :meth:`pack`.

        Returns
        -------
        FP8
            The canonical tensors, newly allocated.

        Raises
        ------
        TypeError, ValueError
            Where the bytes are not a packed fp8 weight of this layout.
        """
        found = _ops_packing.unpack(packed, cls.name)
        return cls(found.values, found.scales, found.group_size)

    def rows(self, first: int, last: int) -> FP8:
        """Some of the output channels.

        Parameters
        ----------
        first, last : int
            The rows [first, last), within [0, N].

        Returns
        -------
        FP8
            Of shape (last - first, K), in tensors of its own.

        Raises
        ------
        ValueError
            Where that would divide blocks of 128 x 128.
        """
        values = self.values[first:last].clone()
        if self.group_size is None:
            return FP8(values, self.scales[first:last].clone())
        if first % _BLOCK or (last % _BLOCK and last != self.shape[0]):
            raise ValueError(
                f"FP8.rows: first, last: got {first}, {last}, wanted multiples of {_BLOCK}, or the "
                "end: blocks cannot be divided"
            )
        return FP8(values, self.scales[_blocks(slice(first, last))].clone(), self.group_size)

    @classmethod
    def cat(cls, weights: Sequence[FP8]) -> FP8:
        """Join weights along N.

        Parameters
        ----------
        weights : sequence of FP8
            With the same K, group size and dtype. With blocks, all but the last have a multiple of
            128 rows.

        Returns
        -------
        FP8
            The rows of the first, then those of the second, and so on, in tensors of its own.

        Raises
        ------
        ValueError
            Where they do not fit together.
        """
        kinds = [(w.shape[1], w.group_size, w.values.dtype) for w in weights]
        check_kinds("FP8.cat", kinds, "in_features, group sizes and dtypes")
        group_size, counts = weights[0].group_size, [weight.shape[0] for weight in weights]
        if group_size is not None and any(N % _BLOCK for N in counts[:-1]):
            raise ValueError(
                f"FP8.cat: weights: got {counts} rows, wanted multiples of {_BLOCK}: blocks cannot "
                "be divided"
            )
        values = torch.cat([weight.values.view(torch.uint8) for weight in weights])
        scales = torch.cat([weight.scales for weight in weights])
        return cls(values.view(weights[0].values.dtype), scales, group_size)

    def state(self) -> dict[str, Tensor]:
        """The tensors that a ``state_dict`` holds, by name.

        Returns
        -------
        dict of str to Tensor
            ``weight``, float8, and ``weight_scale``, or for blocks ``weight_scale_inv``, as
            checkpoints of DeepSeek-V3 call them (they are multiplied, whatever the name says).
        """
        name = "weight_scale" if self.group_size is None else "weight_scale_inv"
        return {"weight": self.values, name: self.scales}

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        group_size: int | None = None,
        in_features: int | None = None,
    ) -> FP8:
        """Undo :meth:`state`.

        Parameters
        ----------
        state : mapping of str to Tensor
            ``weight``, and ``weight_scale`` or ``weight_scale_inv``.
        group_size, in_features : int, optional
            Not needed: names and tensors say it.

        Returns
        -------
        FP8
            The weight; its tensors are those of `state`.

        Raises
        ------
        TypeError, ValueError
            Where dtypes or shapes do not fit together.
        """
        if "weight_scale_inv" in state:
            return cls(state["weight"], state["weight_scale_inv"], _BLOCK)
        return cls(state["weight"], state["weight_scale"])


def _blocks(rows: slice) -> slice:
    """The rows of blocks that hold these rows."""
    return slice(rows.start // _BLOCK, -(-rows.stop // _BLOCK))


def _scales(W: Tensor, group_size: int | None, largest: float) -> Tensor:
    """Scales of rows [n, 1], or of blocks [ceil(n / 128), ceil(K / 128)]."""
    if group_size is None:
        return W.abs().amax(1, keepdim=True) / largest
    n, K = W.shape
    padded = torch.nn.functional.pad(W.abs(), (0, -K % _BLOCK, 0, -n % _BLOCK))
    return padded.view(-(-n // _BLOCK), _BLOCK, -1, _BLOCK).amax((1, 3)) / largest


def _over_elements(scales: Tensor, group_size: int | None, W: Tensor) -> Tensor:
    """Scales that can be multiplied with W."""
    if group_size is None:
        return scales
    n, K = W.shape
    return scales.repeat_interleave(_BLOCK, 0)[:n].repeat_interleave(_BLOCK, 1)[:, :K]


def _rounded(W: Tensor, scales: Tensor, group_size: int | None, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    scaled = divided(W, _over_elements(scales, group_size, W))
    return scaled.clamp_(-largest, largest).to(dtype)
