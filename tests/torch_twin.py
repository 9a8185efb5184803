"""What makes a packed layer and torch's comparable: the same weights, and x without rounding."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from gossamer import _ops

# Every format, kind of activations, and what changes its canonical tensors.
SCHEMES = (
    *("int8-g32", "int8-weight-only", "int4", "int4-g32-asym", "int4-weight-only", "nf4", "fp4"),
    *("mxfp4", "fp8", "fp8-block", "bf16"),
)


@contextmanager
def one_thread() -> Iterator[None]:
    """Products this small do not wait for threads, which takes long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def exact_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, activation: str, handle: _ops.Handle
) -> Tensor:
    W = _ops.dequantize_op(packed, handle.out_features, handle.in_features, x.dtype)
    return nn.functional.linear(x, W, bias)


@contextmanager
def exact_products() -> Iterator[mock.Mock]:
    """No rounding of activations: what is left is to be equal to torch. Yields the calls."""
    with mock.patch.object(_ops, "linear", side_effect=exact_linear) as calls:
        yield calls


def twin(dense: nn.Module, layer: nn.Module) -> Any:
    """The dense module with the weights that the packed one multiplies with."""
    dense = copy.deepcopy(dense)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values of packed weights are read
        for name, parameter in dense.named_parameters():
            parameter.copy_(functools.reduce(getattr, name.split("."), layer))  # type: ignore[arg-type]
    return dense
