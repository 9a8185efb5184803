"""gs.nn.Linear and the torch ops with every format: saving, loading, copies, gradients, tracing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gossamer as gs
from gossamer import _ops


def same(a: gs.nn.Linear, b: gs.nn.Linear) -> bool:
    """Equal bytes, settings and outputs."""
    x = torch.randn(3, a.in_features)
    with torch.no_grad():
        return torch.equal(a.packed, b.packed) and repr(a) == repr(b) and torch.equal(a(x), b(x))


class TestModules:
    @pytest.mark.parametrize("scheme", gs.schemes.SCHEMES)
    def test_state_dict_pickle_and_copies(self, scheme: str) -> None:
        dense = torch.nn.Linear(71, 24)
        layer = gs.nn.Linear.from_dense(dense, scheme, activation="relu")
        other = gs.nn.Linear.from_dense(torch.nn.Linear(71, 24), scheme, activation="relu")
        names = [*layer.quantized().state(), "bias"]
        assert list(layer.state_dict()) == names
        assert str(other.load_state_dict(layer.state_dict())) == "<All keys matched successfully>"
        want = gs.Quantize(scheme).resolved().activations
        for same_layer in (other, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
            assert same(layer, same_layer)
            assert same_layer.activations == want
        error = (layer.dequantize() - dense.weight).norm() / dense.weight.norm()
        assert layer.weight_error == pytest.approx(float(error), rel=1e-4)
        assert (layer.weight_error == 0) == (scheme == "sparse-fp32")
        assert layer.weight_error < 0.2

    @pytest.mark.parametrize("scheme", gs.schemes.SCHEMES)
    def test_loading_a_dense_checkpoint_quantizes_with_the_same_settings(self, scheme: str) -> None:
        first, second = torch.nn.Linear(71, 24), torch.nn.Linear(71, 24)
        layer = gs.nn.Linear.from_dense(first, scheme)
        assert not layer.load_state_dict(second.state_dict()).missing_keys
        want = gs.nn.Linear.from_dense(second, scheme)
        assert same(layer, want)
        assert layer.weight_error == want.weight_error

    def test_scale_dtypes_are_kept_when_quantizing_again(self) -> None:
        dense = torch.nn.Linear(64, 8, bias=False)
        weight = gs.formats.Int4.quantize(
            dense.weight, 32, symmetric=False, scale_dtype=torch.bfloat16
        )
        layer = gs.nn.Linear(64, 8, weight=weight)
        layer.load_state_dict(torch.nn.Linear(64, 8, bias=False).state_dict())
        again = layer.quantized()
        assert again.scales.dtype is torch.bfloat16
        assert again.zero_points is not None
        assert "symmetric=False, scale_dtype=bfloat16" in repr(layer)

    def test_zero_points_are_loaded_and_missed(self) -> None:
        dense = torch.nn.Linear(64, 8)
        plain = gs.nn.Linear.from_dense(dense, "int4")
        points = gs.nn.Linear.from_dense(dense, "int4-asym")
        plain.load_state_dict(points.state_dict())
        assert same(plain, points)
        state = points.state_dict()
        del state["weight_zero_point"]
        with pytest.raises(RuntimeError, match=r'Missing key.*"weight_zero_point"'):
            plain.load_state_dict(state)

    def test_scales_of_blocks_go_by_the_name_of_deepseek(self) -> None:
        dense = torch.nn.Linear(200, 130)
        blocks = gs.nn.Linear.from_dense(dense, "fp8-block")
        assert blocks.state_dict()["weight_scale_inv"].shape == (2, 2)
        layer = gs.nn.Linear.from_dense(dense, "fp8")
        layer.load_state_dict(blocks.state_dict())
        assert same(layer, blocks)

    def test_scales_of_both_kinds_are_too_many(self) -> None:
        layer = gs.nn.Linear.from_dense(torch.nn.Linear(8, 4), "fp8")
        state = {**layer.state_dict(), "weight_scale_inv": torch.ones(1, 1)}
        with pytest.raises(RuntimeError, match=r"weight: got weight, weight_scale, weight_scale_i"):
            layer.load_state_dict(state)

    def test_activations(self) -> None:
        dense = torch.nn.Linear(64, 8)
        exact = gs.nn.Linear.from_dense(dense, gs.Quantize("int8", activations="exact"))
        assert exact.activations == "exact"
        assert "activations=exact" in repr(exact)
        x = torch.randn(3, 64)
        want = x.double() @ exact.dequantize(torch.float64).T + dense.bias.double()
        assert float((exact(x) - want).abs().max()) < 1e-5
        assert not same(exact, gs.nn.Linear.from_dense(dense, "int8"))
        assert "activations" not in repr(gs.nn.Linear.from_dense(dense, "fp8"))
        weight = gs.formats.FP8.quantize(dense.weight)
        with pytest.raises(ValueError, match=r"Linear: activations: got 'int8', wanted 'exact'"):
            gs.nn.Linear(64, 8, weight=weight, activations="int8")

    def test_schemes_name_what_is_wrong(self) -> None:
        message = r"scheme: got 'int3', wanted one of int8, .*, sparse-fp32$"
        with pytest.raises(ValueError, match=message):
            gs.Quantize("int3")
        with pytest.raises(ValueError, match=r"Quantize: group_size: got 16, wanted None, 32, 64"):
            gs.Quantize("int8", group_size=16)
        with pytest.raises(ValueError, match=r"Quantize: activations: got 'int8', wanted 'exact'"):
            gs.Quantize("bf16", activations="int8")

    def test_no_dense_copy_of_the_weight_is_made(self) -> None:
        """Making a layer takes memory for pieces, not for a second dense weight."""
        largest = 0

        class Sizes(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
                nonlocal largest
                out = func(*args, **(kwargs or {}))
                for tensor in torch.utils._pytree.tree_leaves(out):
                    fresh = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
                    if fresh and tensor.untyped_storage().data_ptr() != source:
                        largest = max(largest, tensor.untyped_storage().nbytes())
                return out

        dense = torch.nn.Linear(2048, 4096, bias=False)
        source = dense.weight.untyped_storage().data_ptr()
        with Sizes(), torch.no_grad():
            gs.nn.Linear.from_dense(dense, "int4")
        assert 0 < largest <= 8 << 20  # of 32 MiB


EVERY_FORMAT = ["int8-weight-only", "int4", "int4-asym", "nf4", "fp4", "mxfp4", "fp8", "bf16"]


@pytest.mark.parametrize("scheme", EVERY_FORMAT)
class TestOps:
    def layer(self, scheme: str) -> gs.nn.Linear:
        return gs.nn.Linear.from_dense(torch.nn.Linear(70, 24), scheme, activation="gelu")

    def test_opcheck(self, scheme: str) -> None:
        layer, x = self.layer(scheme), torch.randn(2, 3, 70, requires_grad=True)
        bias = layer.bias.detach().clone().requires_grad_()
        torch.library.opcheck(_ops.linear_op, (x, layer.packed, bias, 24, "gelu"))
        torch.library.opcheck(_ops.dequantize_op, (layer.packed, 24, 70, torch.bfloat16))

    def test_direct_call_and_op_give_the_same_bits(self, scheme: str) -> None:
        layer = self.layer(scheme)
        for M in (1, 40):
            x = torch.randn(M, 70)
            with torch.no_grad():
                want = _ops.linear_op(x, layer.packed, layer.bias, 24, "gelu")
                assert torch.equal(layer(x), want)

    def test_gradients_are_those_of_the_dequantized_layer(self, scheme: str) -> None:
        layer = gs.nn.Linear.from_dense(torch.nn.Linear(70, 24), scheme)
        x, dy = torch.randn(5, 70, requires_grad=True), torch.randn(5, 24)
        layer(x).backward(dy)
        W = layer.dequantize()
        torch.testing.assert_close(x.grad, dy @ W, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.bias.grad, dy.sum(0), rtol=1e-5, atol=1e-5)

    def test_compile_export_and_vmap(self, scheme: str) -> None:
        torch._dynamo.reset()
        layer, x = self.layer(scheme).eval(), torch.randn(4, 3, 70)
        with torch.no_grad():
            want = layer(x)
            compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(x), want)
            program = torch.export.export(layer, (x,))
            assert torch.equal(program.module()(x), want)
            assert torch.equal(torch.func.vmap(layer)(x), want)

    def test_weight_attribute(self, scheme: str) -> None:
        layer = self.layer(scheme)
        assert (layer.weight.shape, layer.weight.dtype) == ((24, 70), torch.float32)
        assert torch.equal(layer.dequantize(), layer.quantized().dequantize())
