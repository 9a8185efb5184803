"""What the functions of the research surface share: arguments of either kind, and the product."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import _C, _check, _ops
from .formats import FORMATS, Format
from .sparse_choice import PATHS, check_name

Array: TypeAlias = Tensor | np.ndarray[Any, Any]


def as_tensor(function: str, name: str, value: object) -> Tensor:
    """A tensor or an array as a tensor, without a copy where torch can wrap it."""
    if isinstance(value, np.ndarray):
        wrapped = value.flags.writeable and all(stride >= 0 for stride in value.strides)
        return torch.from_numpy(value if wrapped else value.copy())
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{function}: {name}: got {_check.describe(value)}, wanted a tensor or an array"
        )
    return value.detach().resolve_neg()


def like(given: Array, result: Tensor) -> Any:
    """The result as the kind that was given."""
    return result.numpy() if isinstance(given, np.ndarray) else result


def check_format(function: str, weight: object) -> None:
    """The argument must be of a known format."""
    if type(weight) not in FORMATS.values():
        raise TypeError(
            f"{function}: weight: got {_check.describe(weight)}, wanted one of gs.formats"
        )


def packed_weight(function: str, weight: Format | Array) -> tuple[_ops.Handle, Tensor]:
    """The handle, and the tensor that must live as long."""
    if isinstance(weight, Tensor | np.ndarray):
        packed = as_tensor(function, "weight", weight)
    else:
        check_format("pack", weight)
        packed = weight.pack()
    return _ops.Handle(packed), packed


def isa_name(function: str, name: str | None) -> str:
    """The name of an ISA as the extension takes it: None is "", the active one."""
    if name is None:
        return ""
    if not isinstance(name, str) or name not in _C.isa_names():
        names = ", ".join(_C.isa_names())
        raise ValueError(f"{function}: isa: got {name!r}, wanted one of {names}")
    return name


def product(
    function: str,
    x: Array,
    weight: Format | Array,
    bias: Array | None = None,
    activation: str = "none",
    **how: Any,
) -> Any:
    """``activation(x · Ŵᵀ + bias)``; how: out_dtype, isa, threads, path."""
    rows = as_tensor(function, "x", x)
    handle, _keep = packed_weight(function, weight)
    path = check_name(function, "path", how.get("path"), PATHS)
    if path is not None:
        handle.kernel.path = path  # of this call only, as the handle is
    _check.rows(function, "x", rows, handle.in_features)
    bias_tensor = None if bias is None else as_tensor(function, "bias", bias)
    _check.bias(function, bias_tensor, handle.out_features)
    _check.activation(function, activation)
    out = _ops.run(
        handle,
        rows,
        bias_tensor,
        activation,
        out_dtype=_out_dtype(function, how.get("out_dtype")),
        threads=_check.threads(function, how.get("threads")),
        isa=isa_name(function, how.get("isa")),
    )
    return like(x, out)


def _out_dtype(
    function: str, dtype: torch.dtype | np.dtype[Any] | type | None
) -> torch.dtype | None:
    if dtype is not None and not isinstance(dtype, torch.dtype):
        dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    if dtype is not None and dtype not in _check.DTYPES:
        raise TypeError(f"{function}: out_dtype: got {dtype}, wanted float32, bfloat16 or float16")
    return dtype
