"""int8 activations with one scale for all rows, in linear layers and convolutions."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gossamer as gs
from gossamer import _ops, kernels
from gossamer.nn.projections import share

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
STEP = 2.0**-5


def rounded(x: Tensor, scale: float) -> np.ndarray[Any, Any]:
    """x as the kernels must see it, naively: integers."""
    step = np.float32(scale)
    lift = np.float32(2.0**100 if scale < 2.0**-100 else 1.0)  # or 1 / step would be infinite
    with np.errstate(over="ignore", under="ignore"):
        q = np.rint(x.float().numpy() * lift * (np.float32(1) / (step * lift)))
    return np.clip(q, -127, 127).astype(np.int64)


def stored(weight: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The integers of a weight with one scale for each channel, and the scales."""
    if weight.name.startswith("sparse-"):
        weight = weight.dense()
    if weight.name == "int8":
        return weight.values.numpy().astype(np.int64), weight.scales[:, 0].numpy()
    codes = torch.stack([weight.codes & 15, weight.codes >> 4], 2).flatten(1)[:, : weight.shape[1]]
    return codes.numpy().astype(np.int64) - 8, weight.float_scales()[:, 0].numpy()


def layer_of(scheme: str, N: int, K: int, scale: float | None, bias: bool = True) -> gs.nn.Linear:
    torch.manual_seed(1)
    dense = torch.nn.Linear(K, N, bias=bias)
    return gs.nn.Linear.from_dense(dense, scheme, input_scale=scale).requires_grad_(False)


def on_the_grid(M: int, K: int) -> Tensor:
    """Rows whose own scale is STEP, exactly."""
    q = torch.randint(-127, 128, (M, K))
    q[:, K // 2] = 127
    return q * STEP


class TestKernels:
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_rows(self, isa: str, dtype: torch.dtype) -> None:
        for K in (1, 15, 64, 65, 200):
            x = torch.randn(5, K).to(dtype)
            for scale in (0.03, 0.004):  # the second clamps
                values, scales = kernels.quantize_rows(x, isa, input_scale=scale)
                assert np.array_equal(values.numpy(), rounded(x, scale))
                assert torch.equal(scales, torch.full((5,), scale))

    @pytest.mark.parametrize("scale", [2.0**-149, 1e-40, 2.0**-126, 2.0**-100, 1.0, 3e38])
    def test_extreme_scales(self, isa: str, scale: float) -> None:
        x = (torch.rand(60, 1) - 0.5) * (torch.arange(-149, 127)).double().exp2()
        x = torch.cat([x, torch.zeros(60, 1)], 1).float()
        assert np.array_equal(kernels.quantize_rows(x, input_scale=scale)[0], rounded(x, scale))

    def test_errors(self) -> None:
        x = torch.ones(2, 64)
        with pytest.raises(ValueError, match="quantize_rows: input_scale: got -1"):
            kernels.quantize_rows(x, input_scale=-1)
        with pytest.raises(ValueError, match=r"input_scale: got 0.5 with group_size"):
            kernels.quantize_rows(x, group_size=32, input_scale=0.5)


class TestProducts:
    @pytest.mark.parametrize("scheme", ["int8", "int4-per-channel", "sparse-int8"])
    def test_bit_for_bit(self, isa: str, scheme: str) -> None:
        """Sums are exact, then there are the roundings of two products."""
        layer = layer_of(scheme, 37, 130, 0.01, bias=False)
        values, scales = stored(layer.quantized())
        for M in (*range(1, 34), 70):
            x = torch.randn(M, 130)  # three in ten beyond 1.27
            sums = rounded(x, 0.01) @ values.T
            wanted = sums.astype(np.float32) * scales * np.float32(0.01)
            assert np.array_equal(layer(x).numpy(), wanted)

    @pytest.mark.parametrize(
        "scheme", ["int8", "int8-g64", "int4-g16", "int4-asym", "nf4", "mxfp4", "sparse-int4"]
    )
    @pytest.mark.parametrize("rank", [None, 8])
    def test_as_with_the_same_scale_for_each_row(self, scheme: str, rank: int | None) -> None:
        W = torch.randn(50, 200)
        weight: Any = gs.Quantize(scheme).quantize(W)
        if rank is not None:
            form: Any = gs.formats.FORMATS[f"{weight.name}+low-rank"]
            weight = form.quantize(W, weight.group_size, rank=rank, **weight.settings)
        static, dynamic = (
            gs.nn.Linear(200, 50, weight=weight, input_scale=scale) for scale in (STEP, None)
        )
        for M in (1, 4, 17, 40):
            x = on_the_grid(M, 200)
            y = static(x)
            assert torch.equal(y, dynamic(x))
            assert torch.equal(static(torch.where(x.abs() == 127 * STEP, x * 9, x)), y)
            assert not torch.equal(static(x * 0.5), dynamic(x * 0.5))

    @pytest.mark.parametrize("scheme", ["int8", "int4"])
    def test_special_rows(self, isa: str, scheme: str) -> None:
        layer = layer_of(scheme, 20, 70, 0.02)
        x = torch.randn(19, 70)
        x[3] = 0
        clean = layer(x)
        assert torch.equal(clean[3], layer.bias)
        for m, bad in enumerate((float("nan"), float("inf"), -float("inf"))):
            x[m, 69 - m] = bad
        y = layer(x)
        assert bool(y[:3].isnan().all())
        assert torch.equal(y[3:], clean[3:])

    def test_tiny_scale(self) -> None:
        layer = layer_of("int8", 20, 70, 2e-45, bias=False)
        assert torch.equal(layer(torch.zeros(2, 70)), torch.zeros(2, 20))
        assert bool(layer(torch.randn(2, 70)).isfinite().all())

    def test_the_op(self) -> None:
        layer = layer_of("int4", 20, 70, 0.02)
        x = torch.randn(3, 70)
        y = _ops.linear_op(x, layer.packed, layer.bias, 20, "none")
        assert torch.equal(y, layer(x))


class TestLayers:
    def test_what_it_says(self) -> None:
        layer = layer_of("int8", 20, 70, 0.125)
        assert layer.input_scale == 0.125
        assert layer.activations == "int8"
        assert "input_scale=0.125" in repr(layer)
        assert layer_of("int8", 20, 70, None).input_scale is None
        with pytest.raises(AttributeError):
            layer.input_scale = 0.5  # type: ignore[misc]

    def test_only_the_header_knows(self) -> None:
        static, dynamic = (layer_of("int8", 20, 70, scale) for scale in (0.125, None))
        differs = (static.packed != dynamic.packed).nonzero().flatten()
        assert 60 <= int(differs.min()) <= int(differs.max()) < 64
        assert dynamic.packed[56:64].eq(0).all()  # as in versions before
        assert static.packed[60:64].view(torch.float32).item() == 0.125
        a, b = static.quantized(), dynamic.quantized()
        assert torch.equal(a.pack(), b.pack())
        assert list(static.state_dict()) == list(dynamic.state_dict())

    def test_copies(self) -> None:
        layer = layer_of("int4", 20, 70, 0.02)
        x = torch.randn(3, 70)
        other = layer_of("int4", 20, 70, 0.5)
        other.load_state_dict(layer.state_dict())
        assert other.input_scale == 0.5
        stream = io.BytesIO(pickle.dumps(layer))
        for copied in (copy.deepcopy(layer), pickle.load(stream)):
            assert copied.input_scale == 0.02
            assert torch.equal(copied(x), layer(x))
            copied.load_state_dict(other.state_dict())
            assert torch.equal(copied.packed, layer.packed)

    def test_head_with_an_embedding(self) -> None:
        head = layer_of("int8", 20, 70, 0.02, bias=False)
        dense = torch.nn.Embedding(20, 70)
        table = gs.nn.Embedding.from_dense(dense, head=head)
        assert torch.equal(table(torch.arange(20)), head.dequantize())

    @pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf, 1e39, 1e-46, True, "1"])
    def test_bad_values(self, value: Any) -> None:
        for dense in (torch.nn.Linear(8, 4), torch.nn.Conv1d(8, 4, 1)):
            kind = type(dense).__name__
            with pytest.raises(ValueError, match=rf"{kind}: input_scale: got .*, wanted None or"):
                getattr(gs.nn, kind).from_dense(dense, input_scale=value)

    def test_other_activations(self) -> None:
        wanted = r"Linear: input_scale: got 0.5 with activations '{}', wanted it with 'int8' only"
        for scheme, kind in (("int8-weight-only", "exact"), ("fp8", "exact")):
            with pytest.raises(ValueError, match=wanted.format(kind)):
                layer_of(scheme, 8, 64, 0.5)
        grouped = gs.Quantize("int4", activations="int8-group")
        with pytest.raises(ValueError, match=wanted.format("int8-group")):
            gs.nn.Linear.from_dense(torch.nn.Linear(64, 8), grouped, input_scale=0.5)
        weight = gs.formats.LowRank.quantize(torch.randn(8, 8), rank=4, factors="int8")
        with pytest.raises(ValueError, match=r"low-rank: input_scale: got 0.5.*, wanted none in"):
            gs.nn.Linear(8, 8, weight=weight, activations="int8", input_scale=0.5)


class TestProjections:
    def test_one_scale(self) -> None:
        layers = [layer_of("int4", N, 64, 0.02) for N in (32, 16, 16)]
        x = torch.randn(3, 64)
        shared = share(layers)
        assert all(member.shares and member.input_scale == 0.02 for member in shared)
        for member, layer in zip(shared, layers, strict=True):
            assert torch.equal(member(x), layer(x))
            assert torch.equal(member.weight._packed, layer.packed)  # type: ignore[attr-defined]
        shared[0].load_state_dict(layer_of("int4", 32, 64, 0.02).state_dict())  # parts and joins
        assert torch.equal(shared[0](x), layers[0](x))

    def test_several_scales(self) -> None:
        layers = [layer_of("int8", 16, 64, scale) for scale in (0.02, None)]
        with pytest.raises(ValueError, match=r"got input scales \[0.02, None\], wanted one"):
            share(layers)

    def test_are_not_fused(self) -> None:
        from .fusion_models import LAYER, QKV, SELF, make, reasons  # skips without transformers

        model = make("Bert")
        parent = model.get_submodule(SELF)
        for name, scale in (("query", 0.1), ("key", 0.1), ("value", 0.2)):
            packed = gs.nn.Linear.from_dense(getattr(parent, name), input_scale=scale)
            setattr(parent, name, packed)
        gs.compress(model, "int8", ignore=f"{LAYER}intermediate*")
        assert reasons(model)[f"{SELF} {QKV}"] == f"{QKV}: have different input scales"


class TestSchemes:
    def test_resolved(self) -> None:
        static = gs.Quantize("int4-g32", activations="int8-static")
        assert static.resolved().activations == "int8"
        assert static.resolved().static_scale == "percentile"
        assert gs.Quantize("int4-g32").resolved().static_scale is None
        with pytest.raises(ValueError, match=r"Quantize: activations: got 'int8-static', wanted"):
            gs.Quantize("fp8", activations="int8-static")

    def test_a_scale_is_needed(self) -> None:
        static = gs.Quantize("int8", activations="int8-static")
        for kind, dense in (
            ("Linear", torch.nn.Linear(8, 4)),
            ("Conv2d", torch.nn.Conv2d(8, 4, 3)),
            ("ConvTranspose1d", torch.nn.ConvTranspose1d(8, 4, 3)),
        ):
            make: Any = getattr(gs.nn, kind).from_dense
            with pytest.raises(ValueError, match=f"{kind}.from_dense: input_scale: .* calibration"):
                make(dense, static)
            assert make(dense, static, input_scale=0.25).input_scale == 0.25
        depthwise = torch.nn.Conv2d(8, 8, 3, groups=8)  # its x is never rounded
        assert gs.nn.Conv2d.from_dense(depthwise, static).input_scale is None

    def test_linear_is_a_convolution_of_one_pixel(self) -> None:
        static = gs.Quantize("int8", activations="int8-static")
        dense, conv = torch.nn.Linear(70, 20), torch.nn.Conv1d(70, 20, 1)
        conv.load_state_dict({"weight": dense.weight.detach()[:, :, None], "bias": dense.bias})
        layer = gs.nn.Linear.from_dense(dense, static, input_scale=0.01)
        x = torch.randn(3, 70)
        y = gs.nn.Conv1d.from_dense(conv, static, input_scale=0.01)(x[:, :, None])
        assert torch.equal(layer(x), y[:, :, 0])

    def test_convolutions_with_a_tiny_scale(self) -> None:
        conv = gs.nn.Conv1d.from_dense(torch.nn.Conv1d(8, 4, 1), input_scale=1e-44)
        y = conv(torch.zeros(1, 8, 5))
        assert torch.equal(y, conv.bias.view(1, 4, 1).expand_as(y))
