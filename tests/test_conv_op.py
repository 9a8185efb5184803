"""The torch op of convolutions, the gradients through their modules, and the errors of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gossamer import _ops_conv, schemes
from gossamer.nn.conv import Conv1d, Conv2d
from gossamer.nn.conv_transpose import ConvTranspose1d, ConvTranspose2d

MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last)
CLASSES: dict[type[nn.Module], type[Conv2d] | type[ConvTranspose2d]] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
}
DENSE: tuple[Any, ...] = (
    lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2),
    lambda: nn.Conv2d(8, 8, 3, stride=2, padding=(0, 1), groups=8, bias=False),
    lambda: nn.Conv2d(8, 4, (2, 3), padding="same"),
    lambda: nn.Conv1d(8, 12, 3, padding="same", padding_mode="reflect"),
    lambda: nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2, output_padding=1),
)


def packed(dense: nn.Module, scheme: Any = "int8") -> Any:
    """The layer of this package for one of torch."""
    return CLASSES[type(dense)].from_dense(dense, scheme)


class TestOp:
    def test_opcheck(self) -> None:
        layer = packed(nn.Conv2d(6, 4, 3))
        sizes = (4, (3, 3), (1, 2), (1, 0, 2, 1), (1, 1), 1)
        x = torch.randn(2, 6, 7, 8, requires_grad=True)
        torch.library.opcheck(_ops_conv.conv2d_op, (x, layer.packed, layer.bias, *sizes))
        x = torch.randn(2, 6, 7, 8).to(memory_format=torch.channels_last)
        more = (0.1, torch.bfloat16)
        torch.library.opcheck(_ops_conv.conv2d_op, (x, layer.packed, None, *sizes, *more))

    @pytest.mark.filterwarnings("ignore:Using padding='same'")
    @pytest.mark.parametrize("make", DENSE)
    def test_gradients(self, make: Any) -> None:
        """As those of the dense layer with the weight that was packed."""
        dense = make()
        layer = packed(dense, "bf16")
        with torch.no_grad():
            dense.weight.copy_(layer.dequantize())
        x = torch.randn(2, 8, *[9] * layer._dims, requires_grad=True)
        grad = torch.randn_like(dense(x))
        inputs = [x, *([dense.bias] if dense.bias is not None else [])]
        wanted = torch.autograd.grad(dense(x), inputs, grad)
        got = torch.autograd.grad(layer(x), inputs, grad)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    def test_compile(self) -> None:
        model = nn.Sequential(packed(nn.Conv2d(8, 8, 3)), packed(nn.ConvTranspose2d(8, 4, 2)))
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for memory_format in MEMORY_FORMATS:
            x = torch.randn(2, 8, 6, 7).to(memory_format=memory_format)
            y = compiled(x)
            assert torch.equal(y, model(x))
            assert y.stride() == model(x).stride()

    def test_autocast(self) -> None:
        for dense in (nn.Conv2d(8, 4, 3), nn.ConvTranspose2d(8, 4, 3)):
            layer, x = packed(dense), torch.randn(1, 8, 6, 6)
            with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
                y = layer(x)
                assert y.dtype is dense(x).dtype
            assert torch.equal(y, layer(x.bfloat16()))

    def test_vmap(self) -> None:
        layer, x = packed(nn.Conv2d(4, 6, 3)), torch.randn(3, 2, 4, 6, 6)
        with torch.no_grad():
            wanted = torch.stack([layer(sample) for sample in x])
            assert torch.equal(torch.vmap(layer)(x), wanted)


class TestErrors:
    @pytest.mark.parametrize("shape", [(2, 5, 6, 6), (4, 6, 6), (2, 4, 6)])
    def test_shape_of_x(self, shape: tuple[int, ...]) -> None:
        layer = packed(nn.Conv2d(4, 6, 3))
        with pytest.raises(
            ValueError, match=r"Conv2d: x: got .*wanted \[batch, 4, height, width\]"
        ):
            layer(torch.randn(shape))
        with pytest.raises(ValueError, match=r"Conv1d: x: got .*wanted \[batch, 7, length\]"):
            packed(nn.Conv1d(7, 6, 3))(torch.randn(shape))

    def test_x_smaller_than_the_kernel(self) -> None:
        with pytest.raises(ValueError, match=r"conv2d: x: .*wanted at least 5"):
            packed(nn.Conv2d(4, 6, 3, dilation=2))(torch.randn(1, 4, 4, 9))

    def test_dtype_of_x(self) -> None:
        with pytest.raises(TypeError, match=r"conv2d: x: got dtype torch.float64"):
            packed(nn.Conv2d(4, 6, 3))(torch.randn(1, 4, 4, 9, dtype=torch.float64))

    def test_packed_of_another_layer(self) -> None:
        layer, other = packed(nn.Conv2d(4, 6, 3)), packed(nn.Conv2d(4, 6, 2))
        with pytest.raises(ValueError, match=r"conv2d: packed: is 6 x 16, but 4 channels"):
            _ops_conv.call_op(torch.randn(1, 4, 5, 5), other.packed, None, layer._geometry, 0.0)

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"groups": 3}, "groups: got 3"),
            ({"padding": "SAME"}, "padding: got 'SAME'"),
            ({"padding": "same", "stride": 2}, "padding: got 'same' with stride"),
            ({"padding_mode": "mirror"}, "padding_mode: got 'mirror'"),
            ({"stride": 0}, "stride: got 0"),
            ({"dilation": (1, 1, 1)}, r"dilation: got \(1, 1, 1\)"),
            ({"input_scale": -1.0}, "input_scale: got -1.0"),
            ({"bias": torch.zeros(5)}, "bias"),
            ({"activations": "int4"}, "activations: got 'int4'"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], match: str) -> None:
        weight = schemes.Quantize("int8").quantize(torch.randn(6, 36))
        with pytest.raises(ValueError, match=f"Conv2d: {match}"):
            Conv2d(4, 6, 3, weight=weight, **settings)

    def test_weight(self) -> None:
        weight = schemes.Quantize("int8").quantize(torch.randn(6, 35))
        with pytest.raises(
            ValueError, match=r"Conv2d: weight: got shape \(6, 35\), wanted \(6, 36"
        ):
            Conv2d(4, 6, 3, weight=weight)
        with pytest.raises(TypeError, match=r"Conv2d: weight: got .*from_dense"):
            Conv2d(4, 6, 3, weight=torch.randn(6, 36))  # type: ignore[arg-type]
        with pytest.raises(AttributeError, match=r"Conv2d: weight"):
            packed(nn.Conv2d(4, 6, 3)).weight = torch.zeros(1)

    def test_dense_layer(self) -> None:
        for wrong in (nn.Linear(3, 3), nn.Conv1d(3, 3, 1), nn.ConvTranspose2d(3, 3, 1)):
            with pytest.raises(TypeError, match=r"Conv2d.from_dense: conv: got"):
                Conv2d.from_dense(wrong)
        with pytest.raises(RuntimeError, match=r"Conv2d.from_dense: conv: weight: is on meta"):
            Conv2d.from_dense(nn.Conv2d(3, 3, 1, device="meta"))
        weight = schemes.Quantize("int8").quantize(torch.randn(6 * 9, 4))
        with pytest.raises(ValueError, match="output_padding"):
            ConvTranspose2d(4, 6, 3, weight=weight, output_padding=1)

    def test_transposed_without_output(self) -> None:
        with pytest.raises(ValueError, match=r"ConvTranspose1d: x: .*without an output"):
            packed(nn.ConvTranspose1d(3, 3, 1, padding=2))(torch.randn(1, 3, 3))
