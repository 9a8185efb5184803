"""The research surface: every kernel on numpy arrays and torch tensors, ISA and threads forced.

Functions return the kind they were given. numpy arrays are read in place, except those that are
read-only or have a negative stride, which torch cannot wrap: these are copied.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import _C, _check, _ops, formats
from .formats import FORMATS, Format
from .formats.four_bit import FourBit

Array: TypeAlias = Tensor | np.ndarray[Any, Any]


def quantize_rows(
    x: Array, isa: str | None = None, group_size: int | None = None
) -> tuple[Any, Any]:
    """Quantize rows of activations as the int8 kernels do.

    Parameters
    ----------
    x : Tensor or ndarray
        Shape (M, K), float32, float16 or (torch) bfloat16.
    isa : str, optional
        One of ``gs.cpu.available()``; None takes ``gs.cpu.isa()``.
    group_size : int, optional
        16, 32, 64, 128 or 256: that many consecutive k share a scale, as with
        ``activations="int8-group"``. None: one scale for each row.

    Returns
    -------
    values : Tensor or ndarray
        Shape (M, K), int8, in [-127, 127].
    scales : Tensor or ndarray
        Shape (M,), or (M, ceil(K / group_size)), float32; NaN for a row or group that holds NaN or
        infinity.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Where `x` or `group_size` does not fit, or `isa` is unknown or not available.

    Notes
    -----
    ``scale = max |x| / 127``, ``q = round_half_even(x * (127 / max |x|))``, with the maximum
    over the row or the group. A row of zeros gives zeros.

    Examples
    --------
    >>> values, scales = gs.kernels.quantize_rows(np.array([[2.0, -1.0, 0.5]], dtype=np.float32))
    >>> values
    array([[127, -64,  32]], dtype=int8)
    >>> gs.kernels.quantize_rows(torch.ones(2, 100), group_size=32)[1].shape
    torch.Size([2, 4])
    """
    rows = _tensor("quantize_rows", "x", x)
    _check.floating("quantize_rows", "x", rows)
    if rows.dim() != 2 or rows.shape[1] < 1:
        raise ValueError(
            f"quantize_rows: x: got {_check.describe(rows)}, wanted [M, K] with K >= 1"
        )
    _check.group_size("quantize_rows", group_size, FourBit.group_sizes)
    values, scales = _ops.quantize_rows(rows, _isa("quantize_rows", isa), group_size)
    return _like(x, values), _like(x, scales)


def pack(weight: Format, activations: str | None = None) -> Tensor:
    """Lay a weight out for the kernels, to be given to :func:`matmul` many times.

    Parameters
    ----------
    weight : Format
        Such as ``gs.formats.Int8.quantize(W)``.
    activations : str, optional
        "int8": each row of x is rounded as by :func:`quantize_rows`; "int8-group": each group of
        each row, the groups being those of the weight; "exact": x is multiplied as it is. None
        takes the usual kind of the format.

    Returns
    -------
    Tensor
        Shape (bytes,), uint8.

    Raises
    ------
    TypeError, ValueError
        Where `weight` is not of a known format, or the format does not offer these activations.

    Examples
    --------
    >>> packed = gs.kernels.pack(gs.formats.Int8.quantize(torch.randn(16, 64)))
    >>> gs.kernels.unpack(packed).shape
    (16, 64)
    """
    if type(weight) not in FORMATS.values():
        raise TypeError(f"pack: weight: got {_check.describe(weight)}, wanted one of gs.formats")
    return weight.pack(activations)


def unpack(packed: Array) -> Format:
    """Undo :func:`pack`, exactly.

    Parameters
    ----------
    packed : Tensor or ndarray
        Shape (bytes,), uint8.

    Returns
    -------
    Format
        The canonical tensors, newly allocated.

    Raises
    ------
    TypeError, ValueError
        Where the bytes are not a packed weight.
    """
    return formats.unpack(_tensor("unpack", "packed", packed))


def dequantize(weight: Format | Array, first_row: int = 0, last_row: int | None = None) -> Tensor:
    """Expand rows of a weight to dense, from the packed bytes that the kernels read.

    Parameters
    ----------
    weight : Format or packed uint8
        (N, K).
    first_row, last_row : int
        The rows [first_row, last_row); None is N.

    Returns
    -------
    Tensor
        Shape (last_row - first_row, K), float32. The same as ``weight.dequantize()``, which reads
        the canonical tensors.

    Raises
    ------
    TypeError, ValueError
        Where an argument does not fit.

    Examples
    --------
    >>> weight = gs.formats.Int4.quantize(torch.randn(5, 64))
    >>> bool((gs.kernels.dequantize(weight, 1, 3) == weight.dequantize()[1:3]).all())
    True
    """
    handle, packed = _packed("dequantize", weight)
    last = handle.out_features if last_row is None else last_row
    if not 0 <= first_row <= last <= handle.out_features:
        raise ValueError(
            f"dequantize: first_row, last_row: got {first_row}, {last}, wanted rows of 0 to "
            f"{handle.out_features}"
        )
    return _ops.dequantize_rows(packed, first_row, last, handle.in_features)


def codebook(name: str) -> dict[str, Any]:
    """What the kernels take the 16 codes of a 4-bit format for.

    Parameters
    ----------
    name : str
        "int4", "nf4", "fp4" or "mxfp4".

    Returns
    -------
    dict
        ``value``: 16 floats; ``s8``: the integers that stand for them where x is rounded to int8,
        ``value / unit + offset``, rounded; ``offset``; ``unit``.

    Raises
    ------
    ValueError
        For another name.

    Examples
    --------
    >>> gs.kernels.codebook("fp4")["value"][:8]
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    form = FORMATS.get(name)
    if form is None or not issubclass(form, FourBit):
        names = ", ".join(n for n, f in FORMATS.items() if issubclass(f, FourBit))
        raise ValueError(f"codebook: name: got {name!r}, wanted one of {names}")
    return dict(_C.codebook(name))


def matmul(
    x: Array,
    weight: Format | Array,
    bias: Array | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | np.dtype[Any] | type | None = None,
    isa: str | None = None,
    threads: int | None = None,
) -> Any:
    """``activation(x · Ŵᵀ + bias)``: the kernel behind ``gs.nn.Linear``, without autograd.

    Parameters
    ----------
    x : Tensor or ndarray
        Shape (..., K), float32, float16 or (torch) bfloat16.
    weight : Format or packed uint8
        (N, K). A format is packed in every call, for its usual activations; :func:`pack` it once
        for many, or for others.
    bias : Tensor or ndarray, optional
        Shape (N,), of one of the dtypes of x.
    activation : str
        "none", "relu", "gelu", "gelu_tanh" or "silu".
    out_dtype : torch.dtype or numpy dtype, optional
        Dtype of the result; None takes that of x.
    isa : str, optional
        One of ``gs.cpu.available()``; None takes ``gs.cpu.isa()``.
    threads : int, optional
        None takes ``torch.get_num_threads()``.

    Returns
    -------
    Tensor or ndarray
        Shape (..., N), newly allocated.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Where an argument does not fit, or `isa` is unknown or not available.

    Notes
    -----
    The packed weight says what happens to x: see :func:`pack`. The result has the same bits for any
    number of threads.

    Examples
    --------
    >>> weight = gs.formats.Int8.quantize(np.eye(3, dtype=np.float32))
    >>> gs.kernels.matmul(np.ones((2, 3), dtype=np.float32), weight, isa="scalar")
    array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
    """
    rows = _tensor("matmul", "x", x)
    handle, _keep = _packed("matmul", weight)
    _check.rows("matmul", "x", rows, handle.in_features)
    bias_tensor = None if bias is None else _tensor("matmul", "bias", bias)
    _check.bias("matmul", bias_tensor, handle.out_features)
    _check.activation("matmul", activation)
    out = _ops.run(
        handle,
        rows,
        bias_tensor,
        activation,
        out_dtype=_out_dtype(out_dtype),
        threads=_check.threads("matmul", threads),
        isa=_isa("matmul", isa),
    )
    return _like(x, out)


def accumulate(
    a: Array, weight: Format | Array, isa: str | None = None, threads: int | None = None
) -> Any:
    """The integer sums ``a · valuesᵀ`` alone, without scales: exact, the same on every ISA.

    Parameters
    ----------
    a : Tensor or ndarray
        Shape (M, K), int8, any values.
    weight : Int8 or packed uint8
        (N, K).
    isa : str, optional
        One of ``gs.cpu.available()``; None takes ``gs.cpu.isa()``.
    threads : int, optional
        None takes ``torch.get_num_threads()``.

    Returns
    -------
    Tensor or ndarray
        Shape (M, N), int64.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Where an argument does not fit, or `isa` is unknown or not available.

    Examples
    --------
    >>> weight = gs.formats.Int8.quantize(np.eye(2, dtype=np.float32))
    >>> gs.kernels.accumulate(np.array([[1, -128]], dtype=np.int8), weight)
    array([[   127, -16256]])
    """
    rows = _tensor("accumulate", "a", a)
    handle, _keep = _packed("accumulate", weight)
    wanted = f"int8 [M, {handle.in_features}]"
    if rows.dtype is not torch.int8:
        raise TypeError(f"accumulate: a: got {_check.describe(rows)}, wanted {wanted}")
    if rows.dim() != 2 or rows.shape[1] != handle.in_features:
        raise ValueError(f"accumulate: a: got {_check.describe(rows)}, wanted {wanted}")
    _check.on_cpu("accumulate", "a", rows)
    out = _ops.accumulate(
        handle, rows, _check.threads("accumulate", threads), _isa("accumulate", isa)
    )
    return _like(a, out)


def _tensor(function: str, name: str, value: object) -> Tensor:
    if isinstance(value, np.ndarray):
        wrapped = value.flags.writeable and all(stride >= 0 for stride in value.strides)
        return torch.from_numpy(value if wrapped else value.copy())
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{function}: {name}: got {_check.describe(value)}, wanted a tensor or an array"
        )
    return value.detach().resolve_neg()


def _like(given: Array, result: Tensor) -> Any:
    return result.numpy() if isinstance(given, np.ndarray) else result


def _packed(function: str, weight: Format | Array) -> tuple[_ops.Handle, Tensor]:
    """The handle, and the tensor that must live as long."""
    if isinstance(weight, Tensor | np.ndarray):
        packed = _tensor(function, "weight", weight)
    else:
        packed = pack(weight)
    return _ops.Handle(packed), packed


def _isa(function: str, name: str | None) -> str:
    if name is None:
        return ""
    if not isinstance(name, str) or name not in _C.isa_names():
        names = ", ".join(_C.isa_names())
        raise ValueError(f"{function}: isa: got {name!r}, wanted one of {names}")
    return name


def _out_dtype(dtype: torch.dtype | np.dtype[Any] | type | None) -> torch.dtype | None:
    if dtype is not None and not isinstance(dtype, torch.dtype):
        dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    if dtype is not None and dtype not in _check.DTYPES:
        raise TypeError(f"matmul: out_dtype: got {dtype}, wanted float32, bfloat16 or float16")
    return dtype
