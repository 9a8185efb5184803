"""gs.nn.Conv1d, Conv2d, ConvTranspose1d and ConvTranspose2d against torch, in float64."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer import _ops_conv, schemes
from gossamer.nn.conv import PADDING_MODES, Conv1d, Conv2d
from gossamer.nn.conv_transpose import ConvTranspose1d, ConvTranspose2d
from gossamer.nn.packed_conv import PackedConv

HALF_ULP = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last)
CLASSES: dict[type[nn.Module], type[Conv2d] | type[ConvTranspose2d]] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
}


def packed(dense: nn.Module, scheme: Any = "int8", **settings: Any) -> Any:
    """The layer of this package for one of torch."""
    return CLASSES[type(dense)].from_dense(dense, scheme, **settings)


def rounded(x: Tensor, scale: float | None = None) -> Tensor:
    """x as the s8 lane sees it, in float64: per sample, or with the scale given."""
    x = x.float()
    if scale is not None:
        return (x * (1 / torch.tensor(scale))).round().clamp(-127, 127).double() * scale
    amax = x.abs().amax(tuple(range(1, x.dim())), keepdim=True) if x.numel() else x[:, :1]
    inverse = torch.tensor(127.0) / amax  # 127 / amax would multiply with the reciprocal
    q = (x * inverse).round().nan_to_num(0)
    return q.double() * (amax / 127).double()


def double(dense: nn.Module, weight: Tensor) -> nn.Module:
    """torch's layer in float64 with another weight."""
    reference: Any = copy.deepcopy(dense).double()
    with torch.no_grad():
        reference.weight.copy_(weight)
    return reference  # type: ignore[no-any-return]


def is_depthwise(dense: Any) -> bool:
    """As documented: such layers never round x."""
    transposed = "Transpose" in type(dense).__name__
    return not transposed and dense.groups == dense.in_channels == dense.out_channels > 1


def assert_convolution(y: Tensor, x: Tensor, layer: Any, dense: Any, *arguments: Any) -> None:
    """y is the convolution of the stored operands, up to the roundings of fp32 and of y's dtype.

    Integer sums are exact; exact activations have at most K + 2 roundings of 2^-23 in their lane,
    transposed ones add up their taps.
    """
    rounds = layer.activations == "int8" and not is_depthwise(dense)
    x64 = rounded(x, layer.input_scale) if rounds else x.double()
    weight = layer.dequantize(torch.float64)
    with torch.no_grad():
        wanted = double(dense, weight)(x64, *arguments)
        size: Any = double(dense, weight.abs())
        if size.bias is not None:
            size.bias.abs_()
        size = size(x64.abs(), *arguments)
    taps = dense.weight[0, 0].numel()
    K = taps if rounds else taps * dense.in_channels
    error = (4 + K) * 2.0**-23 * size
    bound = error + 2 * HALF_ULP[y.dtype] * (wanted.abs() + error) + 2.0**-24
    assert y.shape == wanted.shape
    assert y.dtype == x.dtype
    off = (y.double() - wanted).abs()
    assert bool((off <= bound).all()), f"{(off / bound).max().item():.3g} of the bound"


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Any, Tensor]:
    """A dense Conv1d or Conv2d, and an input that it accepts."""
    torch.manual_seed(draw(st.integers(0, 9)))
    dims = draw(st.sampled_from([1, 2, 2]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.sampled_from([1, 3, 17, 32 if groups > 1 else 64]))
    out_channels = groups * draw(st.sampled_from([1, 5, 16, 40]))
    if draw(st.integers(0, 4)) == 0:
        groups = out_channels = channels
    each = st.tuples(*[st.integers(1, 5)] * dims)
    kernel, dilation = draw(each), draw(st.tuples(*[st.integers(1, 2)] * dims))
    stride = draw(st.tuples(*[st.integers(1, 3)] * dims))
    mode = draw(st.sampled_from(PADDING_MODES))
    padding: Any = draw(st.tuples(*[st.integers(0, 3)] * dims))
    if draw(st.integers(0, 3)) == 0:
        padding, stride = draw(st.sampled_from(["same", "valid"])), (1,) * dims
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    # Large enough for the kernel, and for what reflecting and wrapping need.
    size = [max(length, 5) + draw(st.integers(0, 6)) for length in reach]
    batch = draw(st.sampled_from([0, 1, 1, 3]) if mode == "zeros" else st.sampled_from([1, 2]))
    kind: Any = nn.Conv1d if dims == 1 else nn.Conv2d
    dense = kind(
        channels,
        out_channels,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=mode,
        bias=draw(st.booleans()),
    )
    x = torch.randn(batch, channels, *size, dtype=draw(st.sampled_from(list(HALF_ULP))))
    if dims == 2 and draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    return dense, x


@hypothesis.settings(max_examples=100)
@hypothesis.given(convolutions(), st.sampled_from(["int8", "int8-weight-only", "bf16"]))
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_against_torch(case: tuple[Any, Tensor], scheme: str) -> None:
    dense, x = case
    layer = packed(dense, scheme)
    with torch.no_grad():
        y = layer(x)
    last = x.dim() == 4 and not x.is_contiguous()
    assert y.is_contiguous(memory_format=MEMORY_FORMATS[last])
    assert_convolution(y, x, layer, dense)


@st.composite
def transposed(draw: st.DrawFn) -> tuple[Any, Tensor]:
    """A dense transposed convolution, and an input."""
    torch.manual_seed(draw(st.integers(0, 9)))
    dims = draw(st.sampled_from([1, 2, 2]))
    groups = draw(st.sampled_from([1, 1, 2]))
    lengths = [st.tuples(*[st.integers(1, most)] * dims) for most in (4, 3, 2)]
    kernel, stride, dilation = (draw(length) for length in lengths)
    extra = tuple(
        draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
    )
    padding = tuple(
        draw(st.integers(0, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True)
    )
    kind: Any = nn.ConvTranspose1d if dims == 1 else nn.ConvTranspose2d
    dense = kind(
        groups * draw(st.sampled_from([1, 3, 17])),
        groups * draw(st.sampled_from([1, 5, 16])),
        kernel,
        stride=stride,
        padding=padding,
        output_padding=extra,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )
    size = [draw(st.integers(4, 9)) for _ in range(dims)]
    batch = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(list(HALF_ULP)))
    return dense, torch.randn(batch, dense.in_channels, *size, dtype=dtype)


@hypothesis.settings(max_examples=50)
@hypothesis.given(transposed(), st.sampled_from(["int8", "bf16"]))
def test_transposed_against_torch(case: tuple[Any, Tensor], scheme: str) -> None:
    dense, x = case
    layer = packed(dense, scheme)
    with torch.no_grad():
        y = layer(x)
    assert_convolution(y, x, layer, dense)


class TestSchemes:
    @pytest.mark.parametrize("scheme", schemes.SCHEMES)
    def test_every_scheme(self, scheme: str) -> None:
        """The output is off by about as much as the weight."""
        dense = nn.Conv2d(64, 256, 3, padding=1, groups=2)
        x = torch.randn(2, 64, 8, 9)
        layer = packed(dense, scheme)
        with torch.no_grad():
            y, wanted = layer(x), dense(x)
        error = ((y - wanted).norm() / wanted.norm()).item()
        assert layer.weight_error / 2 < error < 1.3 * layer.weight_error + 0.012
        assert torch.equal(packed(dense, schemes.Quantize(scheme)).packed, layer.packed)

    def test_every_isa(self, isa: str) -> None:
        for scheme in ("int8", "int4", "bf16"):
            dense = nn.Conv2d(64, 40, 3, padding=1)
            layer, x = packed(dense, scheme), torch.randn(1, 64, 9, 8, dtype=torch.bfloat16)
            with torch.no_grad():
                y = layer(x).double()
                wanted = double(dense, layer.dequantize())(x.double())
            assert (y - wanted).norm() < 0.015 * wanted.norm()

    def test_given_scale(self) -> None:
        dense = nn.Conv2d(16, 8, 3)
        x = torch.randn(2, 16, 6, 6)
        for scale in (0.05, 0.004):  # the second clamps
            layer = packed(dense, input_scale=scale)
            with torch.no_grad():
                assert_convolution(layer(x), x, layer, dense)

    def test_row_order(self) -> None:
        """Canonical rows are (height, width, channel), and (group, height, width, n) transposed."""
        dense = nn.Conv2d(3, 2, (2, 3))
        matrix = packed(dense, "bf16").quantized().dequantize()
        weight = dense.weight.bfloat16().float()
        assert torch.equal(matrix.view(2, 2, 3, 3), weight.permute(0, 2, 3, 1))
        back = nn.ConvTranspose2d(4, 6, (2, 3), groups=2)
        matrix = packed(back, "bf16").quantized().dequantize()
        weight = back.weight.bfloat16().float().view(2, 2, 3, 2, 3)
        assert torch.equal(matrix.view(2, 2, 3, 3, 2), weight.permute(0, 3, 4, 2, 1))


class TestNumbers:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("scale", [None, 0.1])
    def test_not_a_number_stays_in_its_sample(self, bad: float, scale: float | None) -> None:
        layer = packed(nn.Conv2d(5, 4, 3), input_scale=scale)
        x = torch.randn(3, 5, 7, 6)
        with torch.no_grad():
            clean = layer(x)
            x[1, 2, 3, 3] = bad
            y = layer(x)
        assert bool(y[1].isnan().all())
        assert torch.equal(y[[0, 2]], clean[[0, 2]])

    @pytest.mark.parametrize("groups", [1, 8])
    def test_zeros_give_the_bias(self, groups: int) -> None:
        layer = packed(nn.Conv2d(8, 8, 3, groups=groups))
        with torch.no_grad():
            y = layer(torch.zeros(2, 8, 5, 5))
        assert torch.equal(y, layer.bias.view(1, 8, 1, 1).expand_as(y))

    def test_same_bits_for_every_thread_count(self) -> None:
        x = torch.randn(2, 32, 30, 31)
        for groups in (1, 4, 32):
            layer = packed(nn.Conv2d(32, 32, 3, padding=1, groups=groups))
            run = [
                _ops_conv.run(layer._handle, x, layer.bias.detach(), layer._geometry, threads=n)
                for n in (1, 2, 5)
            ]
            assert torch.equal(run[0], run[1])
            assert torch.equal(run[0], run[2])

    def test_views_are_read_right(self) -> None:
        layer = packed(nn.Conv2d(6, 4, 3, padding=1))
        whole = torch.randn(2, 12, 9, 10)
        with torch.no_grad():
            for x in (whole[:, ::2, 1:, :-1], whole.transpose(2, 3)[:, 6:], whole[:, :6].flip(0)):
                assert torch.equal(layer(x), layer(x.clone(memory_format=torch.contiguous_format)))

    def test_sequences_with_channels_last_are_not_copied(self) -> None:
        layer = packed(nn.Conv1d(6, 4, 3))
        x = torch.randn(2, 20, 6).transpose(1, 2)
        with torch.no_grad():
            y = layer(x)
            assert torch.equal(y, layer(x.contiguous()))
        assert y.transpose(1, 2).is_contiguous()


class TestModule:
    DENSE: tuple[Any, ...] = (
        lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2),
        lambda: nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=False),
        lambda: nn.Conv1d(8, 12, 3, padding="same", padding_mode="reflect"),
        lambda: nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2, output_padding=1),
        lambda: nn.ConvTranspose1d(8, 12, 4, stride=2),
    )

    @staticmethod
    def same(a: PackedConv, b: PackedConv) -> bool:
        x = torch.randn(2, 8, *[9] * a._dims)
        with torch.no_grad():
            same = torch.equal(a(x), b(x))
        return same and torch.equal(a.packed, b.packed) and repr(a) == repr(b)

    @pytest.mark.parametrize("make", DENSE)
    @pytest.mark.parametrize("scheme", ["int8", "int4-g32-asym", "mxfp4", "bf16"])
    def test_copies(self, make: Any, scheme: str) -> None:
        layer = packed(make(), scheme)
        assert self.same(layer, copy.deepcopy(layer))
        assert self.same(layer, pickle.loads(pickle.dumps(layer)))
        other = packed(make(), scheme)
        assert not torch.equal(layer.packed, other.packed)
        other.load_state_dict(layer.state_dict())
        assert self.same(layer, other)

    @pytest.mark.parametrize("make", DENSE)
    def test_loads_a_dense_checkpoint(self, make: Any) -> None:
        dense, layer = make(), packed(make(), "int4")
        layer.load_state_dict(dense.state_dict())
        assert self.same(layer, packed(dense, "int4"))

    def test_wrong_checkpoints(self) -> None:
        layer = packed(nn.Conv2d(4, 6, 3))
        for other in (nn.Conv2d(4, 6, 2), nn.Conv2d(6, 6, 3), packed(nn.Conv2d(5, 6, 3))):
            with pytest.raises(RuntimeError, match="weight"):
                layer.load_state_dict(other.state_dict())
        with pytest.raises(RuntimeError, match=r"Missing key.*weight_scale"):
            layer.load_state_dict({k: v for k, v in layer.state_dict().items() if "scale" not in k})

    def test_attributes(self) -> None:
        for make in self.DENSE:
            dense = make().eval()
            layer = packed(dense, "bf16")
            assert torch.equal(layer.weight, dense.weight.bfloat16().float())
            assert layer.bias is dense.bias
            assert not layer.training
            for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding"):
                assert getattr(layer, name) == getattr(dense, name)
            assert layer.dense_bytes == 4 * dense.weight.numel()

    def test_to(self) -> None:
        layer = packed(nn.Conv2d(4, 6, 3))
        before = layer.packed.clone()
        layer.bfloat16()
        assert layer.weight.dtype is layer.bias.dtype is torch.bfloat16
        assert torch.equal(layer.packed, before)
        assert layer(torch.randn(1, 4, 5, 5)).dtype is torch.float32
        with pytest.raises(RuntimeError, match="device"):
            layer.to("meta")
        with pytest.raises(TypeError, match="dtype"):
            layer.double()

    def test_repr(self) -> None:
        dense = nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2, padding_mode="circular")
        wanted = (
            "Conv2d(4, 6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 0), groups=2, "
            "padding_mode=circular, bias=True, format=int4, group_size=32)"
        )
        assert repr(packed(dense, "int4-g32")) == wanted

    def test_output_size(self) -> None:
        dense = nn.ConvTranspose2d(4, 6, 3, stride=2)
        layer, x = packed(dense), torch.randn(1, 4, 5, 5)
        with torch.no_grad():
            assert_convolution(layer(x, [12, 11]), x, layer, dense, [12, 11])
        with pytest.raises(ValueError, match=r"output_size: got \[13, 11\], wanted 11 to 12"):
            layer(x, [13, 11])
