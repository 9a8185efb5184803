"""Layers that hold low-rank weights and sums: saving, loading, copies, graphs, reports."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import gossamer as gs
from gossamer import _ops
from gossamer.formats import BF16, FORMATS, FP32, Int4LowRank, Int8, LowRank
from gossamer.formats.low_rank_sum import LowRankSum, SparseLowRankSum
from gossamer.nn.projections import share

from .random_weights import low_rank_weight, same

EPS = torch.finfo(torch.float32).eps
SUMS: list[Any] = [form for form in FORMATS.values() if issubclass(form, LowRankSum)]
ALL: list[Any] = [LowRank, *SUMS]
RANKS = (1, 17, 33)
every = pytest.mark.parametrize("form", ALL, ids=[form.name for form in ALL])
sums = pytest.mark.parametrize("form", SUMS, ids=[form.name for form in SUMS])
formats_of_factors = pytest.mark.parametrize("factors", [FP32, BF16, Int8], ids=lambda f: f.name)


def layer_of(form: Any, seed: int = 0, factors: Any = Int8) -> tuple[gs.nn.Linear, Any]:
    weight = low_rank_weight(form, 24, 71, 5, seed, factors)
    return gs.nn.Linear(71, 24, weight=weight, bias=torch.randn(24)), weight


@every
def test_state_dict_pickle_and_copies(form: Any) -> None:
    layer, weight = layer_of(form)
    other, _weight = layer_of(form, 7 * 8 * 12)
    assert list(layer.state_dict()) == [*weight.state(), "bias"]
    assert not torch.equal(layer.packed, other.packed)
    assert str(other.load_state_dict(layer.state_dict())) == "<All keys matched successfully>"
    x = torch.randn(3, 71)
    for again in (other, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(again.packed, layer.packed)
        assert repr(again) == repr(layer)
        assert same(again.quantized(), weight)
        assert torch.equal(again(x), layer(x))
    want = weight.dequantize()
    torch.testing.assert_close(
        layer.dequantize(), want, rtol=0, atol=1e-6 * float(want.abs().max())
    )
    assert (layer.weight.shape, layer.weight.dtype) == ((24, 71), torch.float32)
    assert f"format={form.name}" in repr(layer)
    assert "rank=5, factors=int8" in repr(layer)


@every
def test_factors_of_another_format_and_rank_are_loaded(form: Any) -> None:
    layer, weight = layer_of(form, factors=BF16)
    wanted = form.quantize(torch.randn(24, 71), weight.group_size, rank=3, factors="int8")
    layer.load_state_dict(gs.nn.Linear(71, 24, weight=wanted, bias=layer.bias).state_dict())
    assert same(layer.quantized(), wanted)
    assert layer.settings["rank"] == 3
    state = layer.state_dict()
    del state["low_rank_V"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"low_rank_V"'):
        layer.load_state_dict(state)
    wrong = {
        **layer.state_dict(),
        "low_rank_V": torch.ones(4, 71).char(),
        "low_rank_V_scale": torch.ones(4, 1),
    }
    with pytest.raises(RuntimeError, match=r"LowRank: U, V: got shapes \(24, 3\) and \(4, 71\)"):
        layer.load_state_dict(wrong)


@every
def test_loading_a_dense_checkpoint_quantizes_with_the_same_settings(form: Any) -> None:
    layer, weight = layer_of(form)
    dense = torch.nn.Linear(71, 24)
    assert not layer.load_state_dict(dense.state_dict()).missing_keys
    wanted = form.quantize(dense.weight.detach(), weight.group_size, **weight.settings)
    assert same(layer.quantized(), wanted)
    error = (wanted.dequantize() - dense.weight).norm() / dense.weight.norm()
    assert layer.weight_error == pytest.approx(float(error), rel=1e-3)


@every
def test_report(form: Any) -> None:
    layer, weight = layer_of(form)
    found = gs.report(torch.nn.Sequential(layer)).layers[0]
    assert found.format.split(":")[0] == form.name
    assert (found.bytes_after, found.shape) == (layer.packed.numel(), (24, 71))
    assert found.bits_per_weight == 8 * layer.packed.numel() / (24 * 71)
    if issubclass(form, SparseLowRankSum):
        assert found.sparsity == 1 - weight.nnz / (24 * 71)
        assert "bitmask" in found.parts or "spmm" in found.parts


@pytest.mark.parametrize("form", [LowRank, Int4LowRank, gs.formats.FP8LowRank])
def test_ops_gradients_and_graphs(form: Any) -> None:
    layer, _weight = layer_of(form)
    x = torch.randn(5, 71, requires_grad=True)
    torch.library.opcheck(_ops.linear_op, (x, layer.packed, layer.bias, 24, "gelu"))
    layer(x).sum().backward()
    want = layer.dequantize().sum(0).expand(5, -1)
    torch.testing.assert_close(x.grad, want, rtol=1e-5, atol=1e-3)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), layer(x))


def test_layers_with_different_v_do_not_share_a_product() -> None:
    weights = [low_rank_weight(Int4LowRank, 16, 64, 3, seed, Int8) for seed in (0, 6 * 7 * 8)]
    layers = [gs.nn.Linear(64, 16, weight=weight) for weight in weights]
    with pytest.raises(ValueError, match=r"LowRank.cat: weights: got several V, wanted the same"):
        share(layers)
    whole = low_rank_weight(Int4LowRank, 32, 64, 3, 0, Int8)
    parts = [gs.nn.Linear(64, 16, weight=whole.rows(n, n + 16)) for n in (0, 16)]
    x = torch.randn(2, 64)
    for layer, part in zip(share(parts), parts, strict=True):
        assert torch.equal(layer(x), part(x))
        assert same(layer.quantized(), part.quantized())


def test_names_in_modules_with_several_weights() -> None:
    def attention(seed: int) -> gs.nn.MultiheadAttention:
        new = gs.nn.MultiheadAttention.from_dense(torch.nn.MultiheadAttention(32, 4), "int4-g32")
        child = new._named_weight("in_proj")
        child._set_weight(low_rank_weight(Int4LowRank, 96, 32, 3, seed, Int8))
        return new

    first, second = attention(0), attention(6 * 7 * 8)
    assert "in_proj_weight_low_rank_U_scale" in first.state_dict()
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 2, 32)
    assert torch.equal(second(x, x, x)[0], first(x, x, x)[0])


@pytest.mark.parametrize("form", [LowRank, Int4LowRank, gs.formats.SparseInt8LowRank])
def test_convolutions(form: Any) -> None:
    weight = low_rank_weight(form, 24, 8 * 9, 5, 0, FP32)
    layer = gs.nn.Conv2d(8, 24, (3, 3), padding=(1, 1), weight=weight, activations="exact")
    x = torch.randn(2, 8, 6, 5)
    want = torch.nn.functional.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again.packed, layer.packed)
    assert same(again.quantized(), weight)


def test_groups_of_convolutions_share_v_or_are_refused() -> None:
    weight = low_rank_weight(Int4LowRank, 24, 4 * 9, 5, 0, FP32)
    layer = gs.nn.Conv2d(8, 24, (3, 3), groups=2, weight=weight, activations="exact")
    x = torch.randn(2, 8, 6, 5)
    want = torch.nn.functional.conv2d(x, layer.weight, groups=2)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    assert same(layer.quantized(), weight)
    dense = torch.nn.Conv2d(8, 24, 3, groups=2, bias=False)
    with pytest.raises(RuntimeError, match=r"weight: LowRank.cat: weights: got several V"):
        layer.load_state_dict(dense.state_dict())


@pytest.mark.parametrize("form", [LowRank, Int4LowRank])
def test_embeddings(form: Any) -> None:
    weight = low_rank_weight(form, 24, 71, 5, 0)
    table = gs.nn.Embedding(24, 71, weight=weight)
    rows = torch.tensor([[3, 0], [23, 3]])
    torch.testing.assert_close(table(rows), weight.dequantize()[rows], rtol=1e-5, atol=1e-5)
