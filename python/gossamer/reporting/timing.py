"""What a call of a linear layer takes, packed and dense."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.linear import Linear
from ..nn.projections import Projection

_ROUNDS = 15
_SECONDS_PER_ROUND = 5e-4


def rows_of(layer: Linear) -> tuple[int, int]:
    """Where the layer begins in its packed weight, and the rows of that."""
    if isinstance(layer, Projection) and layer.shares:
        sizes = [sibling.out_features for sibling in layer.siblings]
        return sum(sizes[: layer.siblings.index(layer)]), sum(sizes)
    return 0, layer.out_features


def cached_time(
    layer: Linear, batch: int, timings: dict[tuple[Any, ...], tuple[float, float]]
) -> tuple[float, float]:
    """Milliseconds per call, packed and dense: by rows, where several are called together."""
    N = rows_of(layer)[1]
    key = (
        N,
        layer.in_features,
        layer.format,
        layer.group_size,
        layer.packed.numel(),
        layer.dtype,
        layer.activation,
        layer.bias is None,
    )
    if key not in timings:
        timings[key] = _time(layer, batch)
    packed, dense = timings[key]
    return packed * layer.out_features / N, dense * layer.out_features / N


def _time(layer: Linear, batch: int) -> tuple[float, float]:
    """Milliseconds per call, packed and dense: medians of interleaved rounds."""
    together = layer.siblings if isinstance(layer, Projection) and layer.shares else (layer,)
    x = torch.randn(batch, layer.in_features).to(layer.dtype)
    weight = torch.cat([each.dequantize(layer.dtype) for each in together])
    bias = None if layer.bias is None else x.new_zeros(len(weight))
    activation = _ACTIVATIONS[layer.activation]

    def dense() -> Tensor:
        return activation(nn.functional.linear(x, weight, bias))

    def packed() -> None:
        for each in together:
            each.forward(x)

    with torch.inference_mode():
        calls = {call: _calls_per_round(call) for call in (packed, dense)}
        samples: dict[Callable[[], object], list[float]] = {packed: [], dense: []}
        for _ in range(_ROUNDS):
            for call, count in calls.items():
                samples[call].append(_round(call, count))
    return 1e3 * statistics.median(samples[packed]), 1e3 * statistics.median(samples[dense])


def _calls_per_round(call: Callable[[], object]) -> int:
    _round(call, 2)
    return max(1, round(_SECONDS_PER_ROUND / _round(call, 2)))


def _round(call: Callable[[], object], count: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _gelu_tanh(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": nn.functional.silu,
}
