"""int8 activations with a scale for each group: against float64, and against one scale a row."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

import gossamer as gs
from gossamer import kernels

SCHEMES = ["int8-g32", "int8-g128", "int4-g16", "int4", "int4-g32-asym", "int4-g256", "nf4"]
SCHEMES += ["fp4", "mxfp4"]


def rounded(x: Tensor, group_size: int) -> Tensor:
    """x as the kernels see it, in float64: each group of a row rounded on its own."""
    M, K = x.shape
    groups = -(-K // group_size)
    padded = torch.nn.functional.pad(x.to(torch.float32), (0, groups * group_size - K))
    parts = padded.view(M, groups, group_size)
    amax = parts.abs().amax(-1, keepdim=True)
    q = torch.where(amax > 0, (parts * (127 / amax)).round(), 0)
    return (q.double() * (amax / 127).double()).reshape(M, -1)[:, :K]


def uneven(M: int, K: int, group_size: int) -> Tensor:
    """Rows whose groups differ by up to 2^11, so that the scale of another group shows."""
    size = torch.arange(K) // group_size * 7 % 12 - 6
    return torch.randn(M, K) * size.exp2()


def multiplied(weight: gs.formats.Format) -> Tensor:
    """The weight that the s8 lane multiplies: nf4 rounded to steps of 1/127."""
    if weight.name != "nf4":
        return weight.dequantize().double()
    book = kernels.codebook("nf4")
    steps = (torch.tensor(book["s8"]).double() - book["offset"]) * book["unit"]
    halves = torch.stack([weight.codes & 15, weight.codes >> 4], -1).flatten(1)  # type: ignore[attr-defined]
    scales = weight.float_scales().double()  # type: ignore[attr-defined]
    K = weight.shape[1]
    over_k = scales.repeat_interleave(weight.group_size or K, 1)[:, :K]
    return steps[halves[:, :K].long()] * over_k


@pytest.mark.parametrize("scheme", SCHEMES)
def test_layers(scheme: str, isa: str) -> None:
    N, K = 50, 330
    recipe = gs.Quantize(scheme, activations="int8-group")
    group_size = recipe.resolved().group_size
    assert group_size is not None
    layer = gs.nn.Linear.from_dense(torch.nn.Linear(K, N), recipe)
    assert layer.activations == "int8-group"
    assert "activations=int8-group" in repr(layer)
    W = multiplied(layer.quantized())
    for M in (1, 4, 5, 16, 17, 40):
        x = uneven(M, K, group_size)
        with torch.no_grad():
            y = layer(x)
        q = rounded(x, group_size)
        wanted = q @ W.T + layer.bias.double()
        # Three roundings of fp32 per group, and those of the epilogue.
        roundings = 3 * -(-K // group_size) + 8
        bound = roundings * 2.0**-24 * (q.abs() @ W.abs().T + layer.bias.abs())
        assert bool(((y - wanted).abs() <= bound).all())


@pytest.mark.parametrize("scheme", ["int8-g64", "int4-g64", "nf4"])
def test_outliers_cost_only_their_group(scheme: str) -> None:
    weight = gs.Quantize(scheme).quantize(torch.randn(64, 1024))
    x = torch.randn(8, 1024)
    x[:, 100] = 1000.0
    wanted = x.double() @ multiplied(weight).T
    error = {
        kind: float((kernels.matmul(x, weight.pack(kind)) - wanted).norm())
        for kind in ("int8", "int8-group")
    }
    assert error["int8-group"] < 0.4 * error["int8"]  # sqrt of 1 group of 16 is 0.25


def test_quantize_rows_by_group(isa: str) -> None:
    for K in (1, 64, 100, 330):
        for group_size in (16, 32, 64, 128, 256):
            x = uneven(5, K, group_size)
            values, scales = kernels.quantize_rows(x, isa, group_size)
            assert values.shape == (5, K)
            assert scales.shape == (5, -(-K // group_size))
            for g in range(scales.shape[1]):
                part = slice(g * group_size, (g + 1) * group_size)
                alone = kernels.quantize_rows(x[:, part], isa)
                assert torch.equal(values[:, part], alone[0])
                assert torch.equal(scales[:, g], alone[1])
    array = kernels.quantize_rows(np.ones((2, 40), dtype=np.float32), group_size=32)
    assert [a.shape for a in array] == [(2, 40), (2, 2)]
    with pytest.raises(ValueError, match=r"quantize_rows: group_size: got 48, wanted None, 16"):
        kernels.quantize_rows(torch.ones(2, 64), group_size=48)


def test_nan_in_one_group_is_the_row() -> None:
    layer = gs.nn.Linear.from_dense(
        torch.nn.Linear(256, 8), gs.Quantize("int4-g32", activations="int8-group")
    )
    x = torch.randn(20, 256)
    x[3, 200] = torch.nan
    x[18, 5] = torch.inf
    with torch.no_grad():
        nan = layer(x).isnan()
    assert nan.all(1).nonzero().flatten().tolist() == [3, 18]
    assert nan.any(1).sum() == 2


@pytest.mark.parametrize("scheme", ["int8", "int4-per-channel", "int4-per-channel-asym"])
def test_without_groups_it_is_refused(scheme: str) -> None:
    weight = gs.Quantize(scheme).quantize(torch.randn(8, 64))
    wanted = f"{weight.name}: activations: got int8-group, wanted int8 or exact: .* per channel"
    with pytest.raises(ValueError, match=wanted):
        weight.pack("int8-group")
    with pytest.raises(ValueError, match=wanted):
        gs.nn.Linear(64, 8, weight=weight, activations="int8-group")


@pytest.mark.parametrize("scheme", ["fp8", "bf16"])
def test_formats_with_exact_activations_refuse_it(scheme: str) -> None:
    with pytest.raises(ValueError, match="activations: got 'int8-group', wanted 'exact'"):
        gs.Quantize(scheme, activations="int8-group")


def test_copies_keep_it() -> None:
    recipe = gs.Quantize("int4-g32", activations="int8-group")
    layer = gs.nn.Linear.from_dense(torch.nn.Linear(96, 16), recipe)
    loaded = gs.nn.Linear.from_dense(torch.nn.Linear(96, 16), recipe)
    loaded.load_state_dict(layer.state_dict())
    for other in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other.packed, layer.packed)
        assert other.activations == "int8-group"


def test_gradient_of_the_input() -> None:
    layer = gs.nn.Linear.from_dense(
        torch.nn.Linear(96, 16), gs.Quantize("int8-g32", activations="int8-group")
    )
    x = torch.randn(3, 96, requires_grad=True)
    layer(x).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, layer.dequantize().sum(0).expand(3, 96))
