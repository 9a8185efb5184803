"""From a dense weight to the packed one, and back."""

from __future__ import annotations

from typing import Any

import torch

import gossamer as gs
from gossamer.bench.linear import Layer


def bench_quantize_weight(benchmark: Any, layer: Layer) -> None:
    weight = torch.randn(layer.N, layer.K)
    benchmark(gs.formats.Int8.quantize, weight)


def bench_pack(benchmark: Any, layer: Layer) -> None:
    weight = gs.formats.Int8.quantize(torch.randn(layer.N, layer.K))
    benchmark(weight.pack)


def bench_unpack(benchmark: Any, layer: Layer) -> None:
    packed = gs.formats.Int8.quantize(torch.randn(layer.N, layer.K)).pack()
    benchmark(gs.formats.Int8.unpack, packed)
