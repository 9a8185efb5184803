"""Checks of arguments, shared by the real, the fake and the direct form of every op.

Every error names the function, the argument, what came and what was wanted.
"""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

# The codes of _C.pyi.
DTYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ACTIVATIONS: dict[str, int] = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}


def describe(value: object) -> str:
    """What a tensor or any other argument is, in few words, for error messages."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    return f"{type(value).__name__} {value!r}"


def floating(function: str, name: str, value: Tensor) -> None:
    """The argument must have a dtype the kernels read, and lie on the CPU."""
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{function}: {name}: got dtype {value.dtype}, wanted float32, bfloat16 or float16"
        )
    on_cpu(function, name, value)


def on_cpu(function: str, name: str, value: Tensor) -> None:
    """The argument must lie on the CPU."""
    if value.device.type != "cpu":
        raise RuntimeError(f"{function}: {name}: is on {value.device}, wanted the CPU")


def rows(function: str, name: str, value: Tensor, columns: int) -> None:
    """The argument must be [..., columns] in a dtype the kernels read."""
    floating(function, name, value)
    if value.dim() < 1 or value.shape[-1] != columns:
        raise rows_error(function, name, value, columns)


def rows_error(function: str, name: str, value: Tensor, columns: int) -> Exception:
    """The error for an argument that is not [..., columns] in a dtype the kernels read."""
    message = f"{function}: {name}: got {describe(value)}, wanted [..., {columns}]"
    if value.dtype in DTYPES:
        return ValueError(message)
    return TypeError(message + " in float32, bfloat16 or float16")


def packed(function: str, value: Tensor) -> None:
    """The argument must be one dimension of bytes; the header is checked in C++."""
    if value.dtype is not torch.uint8 or value.dim() != 1:
        raise TypeError(
            f"{function}: packed: got {describe(value)}, wanted a uint8 tensor of one dimension"
        )


def packed_bytes(function: str, value: Tensor) -> None:
    """The argument must be packed bytes that the extension can read."""
    packed(function, value)
    on_cpu(function, "packed", value)
    if not value.is_contiguous():
        raise ValueError(f"{function}: packed: is not contiguous")


def bias(function: str, value: Tensor | None, out_features: int) -> None:
    """The argument must be None or [out_features] in a dtype the kernels read."""
    if value is None:
        return
    floating(function, "bias", value)
    if tuple(value.shape) != (out_features,):
        raise ValueError(f"{function}: bias: got {describe(value)}, wanted [{out_features}]")


def addend(function: str, value: Tensor | None, x: Tensor, out_features: int) -> None:
    """The argument must be None or float32 [..., out_features] with the leading dimensions of x."""
    if value is None:
        return
    if value.dtype is not torch.float32:
        raise TypeError(f"{function}: addend: got dtype {value.dtype}, wanted float32")
    on_cpu(function, "addend", value)
    wanted = (*x.shape[:-1], out_features)
    if tuple(value.shape) != wanted:
        raise ValueError(f"{function}: addend: got {describe(value)}, wanted {list(wanted)}")


def linear(
    x: Tensor,
    packed_weight: Tensor,
    bias_vector: Tensor | None,
    out_features: int,
    activation_name: str,
    addend_block: Tensor | None,
) -> None:
    """Everything that can be known about the arguments of the linear op without reading memory."""
    floating("linear", "x", x)
    if x.dim() < 1:
        raise ValueError("linear: x: got a tensor of no dimensions, wanted [..., in_features]")
    packed("linear", packed_weight)
    bias("linear", bias_vector, out_features)
    activation("linear", activation_name)
    addend("linear", addend_block, x, out_features)


def activation(function: str, value: str) -> int:
    """The code of an activation's name."""
    code = ACTIVATIONS.get(value) if isinstance(value, str) else None
    if code is None:
        names = ", ".join(ACTIVATIONS)
        raise ValueError(f"{function}: activation: got {value!r}, wanted one of {names}")
    return code


def group_size(function: str, value: int | None, allowed: tuple[int | None, ...]) -> None:
    """The argument must be one of these group sizes; None is one scale per output channel."""
    if value not in allowed:
        names = [str(size) for size in allowed]
        wanted = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]
        raise ValueError(f"{function}: group_size: got {value!r}, wanted {wanted}")


def activations(function: str, value: str | None, allowed: tuple[str, ...]) -> str:
    """What happens to x: the argument, which must be one of these names; None is the first."""
    if value is not None and value not in allowed:
        wanted = " or ".join(repr(kind) for kind in allowed)
        raise ValueError(f"{function}: activations: got {value!r}, wanted {wanted}")
    return value or allowed[0]


def input_scale(function: str, value: float | None) -> float | None:
    """The one scale of all rows of x: the argument, which must be None or > 0 in float32."""
    if value is None:
        return None
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and 2.0**-149 <= value <= torch.finfo(torch.float32).max):
        wanted = "None or a number > 0 that float32 can hold"
        raise ValueError(f"{function}: input_scale: got {value!r}, wanted {wanted}")
    return float(value)


def whole_number(function: str, name: str, value: object, least: int) -> None:
    """The argument must be an int from `least` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{function}: {name}: got {value!r}, wanted a whole number >= {least}")


def threads(function: str, value: int | None) -> int:
    """The number of threads to use: the argument, or torch's number where it is None."""
    if value is None:
        return torch.get_num_threads()
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{function}: threads: got {value!r}, wanted None or a number >= 1")
    return int(value)
