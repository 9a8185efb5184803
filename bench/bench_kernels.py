"""Every kernel x shape x instruction set that this processor has, through ``gossamer.kernels``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gossamer as gs
from gossamer.bench.linear import Layer

ROWS = (1, 4, 16, 256)
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=gs.cpu.available())
def isa(request: pytest.FixtureRequest) -> str:
    """Every available instruction set."""
    name: str = request.param
    return name


def random_weight(layer: Layer, group_size: int | None = None) -> gs.formats.Int8:
    generator = torch.Generator().manual_seed(0)
    return gs.formats.Int8.quantize(torch.randn(layer.N, layer.K, generator=generator), group_size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("M", ROWS)
def bench_matmul(benchmark: Any, layer: Layer, M: int, dtype: torch.dtype, isa: str) -> None:
    weight = gs.kernels.pack(random_weight(layer))
    x = torch.randn(M, layer.K).to(dtype)
    benchmark.extra_info["operations"] = 2 * M * layer.N * layer.K
    benchmark(gs.kernels.matmul, x, weight, isa=isa)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("M", ROWS)
def bench_matmul_grouped(benchmark: Any, layer: Layer, M: int, group_size: int, isa: str) -> None:
    weight = gs.kernels.pack(random_weight(layer, group_size))
    x = torch.randn(M, layer.K)
    benchmark.extra_info["operations"] = 2 * M * layer.N * layer.K
    benchmark(gs.kernels.matmul, x, weight, isa=isa)


@pytest.mark.parametrize("M", ROWS)
def bench_accumulate(benchmark: Any, layer: Layer, M: int, isa: str) -> None:
    weight = gs.kernels.pack(random_weight(layer))
    values = torch.randint(-127, 128, (M, layer.K), dtype=torch.int8)
    benchmark.extra_info["operations"] = 2 * M * layer.N * layer.K
    benchmark(gs.kernels.accumulate, values, weight, isa=isa)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("M", ROWS)
def bench_quantize_rows(benchmark: Any, layer: Layer, M: int, dtype: torch.dtype, isa: str) -> None:
    x = torch.randn(M, layer.K).to(dtype)
    benchmark.extra_info["bytes_read"] = x.nbytes
    benchmark(gs.kernels.quantize_rows, x, isa=isa)
