"""Gradients through the torch ops, and those that are refused."""

from __future__ import annotations

import pytest
import torch

import gossamer as gs
from gossamer import _ops

from .conftest import activate
from .linear_layers import make_layer

ACTIVATIONS = ["none", "relu", "gelu", "gelu_tanh", "silu"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


class TestGradients:
    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
    def test_are_those_of_the_dequantized_layer(
        self, dtype: torch.dtype, activation: str, leading: tuple[int, ...]
    ) -> None:
        layer = make_layer(activation=activation)
        x = torch.randn(*leading, 70).to(dtype).requires_grad_()
        y = layer(x)
        dy = torch.randn_like(y)
        y.backward(dy)
        # The same from the op's own pre-activations, in fp64.
        z = _ops.linear_op(x.detach(), layer.packed, layer.bias.detach(), 24, "none")
        z = z.double().requires_grad_()
        (dz,) = torch.autograd.grad(activate(z, activation), z, dy.double())
        W = layer.dequantize(torch.float64)
        eps = torch.finfo(dtype).eps
        size = dy.double().abs() * 1.13 @ W.abs()
        assert bool(((x.grad.double() - dz @ W).abs() <= 4 * eps * size + eps).all())
        dbias = dz.reshape(-1, 24).sum(0)
        size = dy.double().abs().reshape(-1, 24).sum(0)
        assert bool(((layer.bias.grad.double() - dbias).abs() <= 4 * eps * (size + 1)).all())
        assert x.grad.dtype == dtype
        assert layer.bias.grad.dtype == layer.bias.dtype

    def test_of_a_weight_that_takes_several_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, grad = make_layer(300, 65), torch.randn(7, 300)
        whole = _ops.linear_backward_input_op(grad, layer.packed, 65)
        monkeypatch.setattr(_ops, "_CHUNK_ELEMENTS", 65 * 64)
        pieces = _ops.linear_backward_input_op(grad, layer.packed, 65)
        size = grad.abs() @ layer.dequantize().abs()
        assert bool(((pieces - whole).abs() <= 300 * torch.finfo(torch.float32).eps * size).all())
        assert torch.allclose(whole, grad @ layer.dequantize(), atol=1e-4)

    def test_of_the_addend(self) -> None:
        layer = make_layer()
        addend = torch.randn(3, 24, requires_grad=True)
        x = torch.randn(3, 70)
        _ops.linear_op(x, layer.packed, None, 24, "relu", addend).sum().backward()
        z = _ops.linear_op(x, layer.packed, None, 24, "none", addend.detach())
        assert torch.equal(addend.grad, (z > 0).float())

    def test_a_trained_lora_branch_beside_the_layer(self) -> None:
        layer = make_layer().requires_grad_(False)
        down = torch.randn(70, 4, requires_grad=True)
        x = torch.randn(6, 70)
        (layer(x) + x @ down @ torch.randn(4, 24)).pow(2).sum().backward()
        assert down.grad is not None
        assert not layer(x).requires_grad

    def test_flow_through_a_frozen_layer(self) -> None:
        layer = make_layer().requires_grad_(False)
        x = torch.randn(6, 70, requires_grad=True)
        (dx,) = torch.autograd.grad(layer(x).sum(), x)
        want = layer.dequantize().sum(0).expand(6, -1)
        assert torch.allclose(dx, want, atol=1e-5)

    def test_second_derivatives_are_refused(self) -> None:
        layer = make_layer()
        x = torch.randn(6, 70, requires_grad=True)
        dy = torch.randn(6, 24, requires_grad=True)
        (dx,) = torch.autograd.grad(layer(x), x, dy, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            torch.autograd.grad(dx.sum(), dy)

    def test_forward_mode_is_refused_rather_than_lost(self) -> None:
        layer = make_layer().requires_grad_(False)
        with torch.autograd.forward_ad.dual_level():
            x = torch.autograd.forward_ad.make_dual(torch.randn(2, 70), torch.randn(2, 70))
            with pytest.raises(RuntimeError, match="forward-mode differentiation"):
                layer(x)
            assert torch.equal(layer(torch.ones(2, 70))[0], layer(torch.ones(70)))
        x = torch.randn(2, 70)
        with pytest.raises(RuntimeError, match="forward-mode differentiation"):
            torch.func.jvp(layer, (x,), (x,))

    def test_layers_made_in_inference_mode_can_be_trained_through(self) -> None:
        with torch.inference_mode():
            weight = gs.formats.Int8.quantize(torch.randn(24, 70))
            packed = weight.pack()
        x = torch.randn(2, 70, requires_grad=True)
        _ops.linear_op(x, packed, None, 24).sum().backward()
        assert x.grad is not None
