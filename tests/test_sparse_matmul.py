"""Products with every sparse format, on every ISA and path, against float64 references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gossamer as gs
from gossamer.formats import SparseFP32, SparseInt4, SparseInt8

EPS = torch.finfo(torch.float32).eps
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
KINDS = [
    ("sparse-fp32", None),
    ("sparse-bf16", None),
    ("sparse-int8", None),
    ("sparse-int8", "exact"),
    ("sparse-int8-g32", "int8"),
    ("sparse-int8-g64", "int8-group"),
    ("sparse-int4", None),
    ("sparse-int4-g16", "int8-group"),
    ("sparse-int4-per-channel", "int8"),
    ("sparse-int4-g32", "exact"),
]
kinds = pytest.mark.parametrize(("scheme", "activations"), KINDS)


def pruned(N: int, K: int, sparsity: float = 0.6) -> Tensor:
    W = torch.randn(N, K)
    W[torch.rand(N, K) < sparsity] = 0
    W[N // 3] = 0
    return W


def rounded(x: Tensor, activations: str, group_size: int | None) -> Tensor:
    """The rows that the kernels multiply with, as float64."""
    if activations == "exact":
        return x.double()
    G = group_size if activations == "int8-group" else None
    values, scales = gs.kernels.quantize_rows(x, group_size=G)
    if G is None:
        return values.double() * scales.double()[:, None]
    return values.double() * scales.double().repeat_interleave(G, 1)[:, : x.shape[1]]


def assert_close(y: Tensor, x: Tensor, weight: Any, activations: str) -> None:
    """y is the product with the stored weight, up to what the lanes round.

    fp32 sums; integers are summed exactly. bfloat16 rows: the expanded weight is rounded to
    bfloat16, unless its values are fp32 or bfloat16 already. Groups of 4-bit values may be brought
    to one int8 scale for the column.
    """
    W = weight.dequantize().double()
    a = rounded(x, activations, weight.group_size)
    rounding = torch.zeros_like(W)
    if activations == "exact" and x.dtype is torch.bfloat16 and weight.scales is not None:
        rounding += W.abs() * 2.0**-8 + 2.0**-126
    if activations == "int8" and type(weight) is SparseInt4 and weight.group_size is not None:
        rounding += 0.52 / 127 * 8 * weight.scales.double().abs().amax(1, keepdim=True)
    want, size = a @ W.T, a.abs() @ W.abs().T
    out = torch.finfo(y.dtype)
    bound = (x.shape[1] + 16) * EPS * size + a.abs() @ rounding.T * (1 + 2.0**-10)
    bound += out.eps * want.abs() + out.smallest_normal * out.eps + 2.0**-126
    error = (y.double() - want).abs()
    assert bool((error <= bound).all()), f"largest excess {(error / bound).max()}"


def packings(weight: Any, activations: str) -> list[tuple[Tensor, list[str]]]:
    """Packed bytes, and the paths that they can take with any number of rows."""
    skips = type(weight) is SparseFP32 or (
        type(weight) is SparseInt8 and weight.group_size is None and activations == "int8"
    )
    found = [(weight.pack(activations, parts=("bitmask",)), ["auto", "expand"])]
    if skips:
        found.append((weight.pack(activations, parts=("spmm",)), ["auto", "spmm"]))
        both = weight.pack(activations, parts=("bitmask", "spmm"))
        found.append((both, ["auto", "expand", "spmm"]))
    return found


@kinds
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_path(isa: str, scheme: str, activations: str | None, dtype: torch.dtype) -> None:
    recipe = gs.Quantize(scheme, activations=activations)
    kind = recipe.resolved().activations
    assert kind is not None
    for N, K in ((1, 1), (35, 70), (67, 300)):
        weight: Any = recipe.quantize(pruned(N, K))
        for packed, paths in packings(weight, kind):
            for M in (1, 7, 17):
                x = torch.randn(M, K).to(dtype)
                for path in paths:
                    y = gs.kernels.matmul(x, packed, path=path)
                    assert_close(y, x, weight, kind)


@kinds
@pytest.mark.parametrize("pattern", ["1x4", "1x16", "4x1", "16x1"])
def test_every_pattern(isa: str, scheme: str, activations: str | None, pattern: str) -> None:
    recipe = gs.Quantize(scheme, activations=activations)
    kind = recipe.resolved().activations
    assert kind is not None
    weight: Any = recipe.quantize(pruned(50, 333, 0.8))
    packed = weight.pack(kind, pattern=pattern, parts=("bitmask",))
    for M in (1, 2, 33):
        x = torch.randn(M, 333)
        assert_close(gs.kernels.matmul(x, packed), x, weight, kind)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("scheme", ["sparse-fp32", "sparse-bf16", "sparse-int8", "sparse-int4"])
def test_all_zero_and_all_dense(isa: str, scheme: str, density: float) -> None:
    recipe = gs.Quantize(scheme)
    kind = recipe.resolved().activations
    assert kind is not None
    weight: Any = recipe.quantize(torch.randn(33, 290) * density)
    for packed, _paths in packings(weight, kind):
        for M in (1, 20):
            x = torch.randn(M, 290)
            assert_close(gs.kernels.matmul(x, packed), x, weight, kind)


@kinds
def test_any_number_of_threads_gives_the_same_bits(
    isa: str, scheme: str, activations: str | None
) -> None:
    recipe = gs.Quantize(scheme, activations=activations)
    kind = recipe.resolved().activations
    assert kind is not None
    W = pruned(300, 520)
    W[:40] = torch.randn(40, 520)  # rows of unequal density
    weight: Any = recipe.quantize(W)
    for packed, paths in packings(weight, kind):
        for M in (1, 33):
            x = torch.randn(M, 520)
            for path in paths:
                want = gs.kernels.matmul(x, packed, threads=1, path=path)
                for threads in (2, 3):
                    got = gs.kernels.matmul(x, packed, threads=threads, path=path)
                    assert torch.equal(got, want)


@pytest.mark.parametrize("M", [4, 40])
@pytest.mark.parametrize("scheme", ["sparse-fp32", "sparse-bf16", "sparse-int8", "sparse-int4"])
def test_rows_of_nan_and_infinity_are_not_skipped(isa: str, scheme: str, M: int) -> None:
    recipe = gs.Quantize(scheme)
    kind = recipe.resolved().activations
    assert kind is not None
    W = pruned(35, 70, 0.9)
    x = torch.randn(M, 70)
    x[1, 3], x[2, 69], x[3] = float("nan"), float("inf"), 0
    weight: Any = recipe.quantize(W)
    for packed, paths in packings(weight, kind):
        for path in paths:
            y = gs.kernels.matmul(x, packed, path=path)
            assert bool(y[1].isnan().all())
            assert not bool(y[2].isfinite().any())
            assert not bool(y[3].any())
            assert bool(y[0].isfinite().all())


def test_bias_activation_and_out_dtype() -> None:
    x, bias = torch.randn(5, 70), torch.randn(20)
    for scheme, activations in KINDS:
        recipe = gs.Quantize(scheme, activations=activations)
        weight: Any = recipe.quantize(pruned(20, 70))
        kind = recipe.resolved().activations
        assert kind is not None
        for packed, paths in packings(weight, kind):
            for path in paths:
                plain = gs.kernels.matmul(x, packed, path=path)
                got = gs.kernels.matmul(x, packed, bias, "silu", path=path)
                want = torch.nn.functional.silu(plain + bias)
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
                half = gs.kernels.matmul(x, packed, out_dtype=torch.bfloat16, path=path)
                assert torch.equal(half, plain.bfloat16())


def test_paths_are_inspected_and_refused() -> None:
    weight = SparseFP32.quantize(pruned(40, 70))
    x = torch.randn(40, 70)
    bitmask, spmm = weight.pack(parts=("bitmask",)), weight.pack(parts=("spmm",))
    assert gs.kernels.path(bitmask, 1000) == "expand"
    assert gs.kernels.path(spmm, 1) == "spmm"
    assert gs.kernels.path(spmm, 1000, torch.bfloat16, "scalar") == "spmm"
    for packed, path, message in (
        (bitmask, "spmm", "path: got spmm, but the weight was packed without the part spmm"),
        (spmm, "expand", "path: got expand, but the weight was packed without the part bitmask"),
        (bitmask, "gemv", "path: got gemv, but it takes at most [0-9]+ rows of this weight"),
        (bitmask, "csr", "matmul: path: got 'csr', wanted None or one of 'auto', 'gemv'"),
    ):
        with pytest.raises(ValueError, match=message):
            gs.kernels.matmul(x, packed, path=path)
    dense = gs.formats.Int8.quantize(torch.randn(4, 70))
    with pytest.raises(ValueError, match="path: weight: is dense"):
        gs.kernels.path(dense, 1)
    with pytest.raises(ValueError, match="path: weight: is dense"):
        gs.kernels.matmul(x, dense, path="expand")
    with pytest.raises(ValueError, match="path: M: got -1"):
        gs.kernels.path(bitmask, -1)
    with pytest.raises(TypeError, match=r"path: dtype: got torch.float64"):
        gs.kernels.path(bitmask, 1, torch.float64)
