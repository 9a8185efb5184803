"""The torch ops in torch.compile, torch.export, vmap, traces and modes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer import _ops

from .linear_layers import make_layer

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


class TestCompile:
    @pytest.fixture(autouse=True)
    def _fresh(self) -> None:
        torch._dynamo.reset()

    def test_inductor_forward(self) -> None:
        model = torch.nn.Sequential(make_layer(), torch.nn.GELU(), make_layer(9, 24)).eval()
        compiled = torch.compile(model, fullgraph=True, dynamic=True)
        with torch.no_grad():
            for M in (1, 5, 8):
                x = torch.randn(M, 70)
                torch.testing.assert_close(compiled(x), model(x))

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("activation", ["none", "gelu"])
    def test_forward_and_backward(self, dtype: torch.dtype, activation: str) -> None:
        layer = make_layer(activation=activation)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        grads = []
        for call in (layer, compiled):
            x = torch.linspace(-1, 1, 3 * 70).view(3, 70).to(dtype).requires_grad_()
            layer.zero_grad()
            y = call(x)
            y.float().pow(2).sum().backward()
            grads.append((y.detach(), x.grad, layer.bias.grad.clone()))
        for got, want in zip(*grads, strict=True):
            assert torch.equal(got, want)

    def test_autocast(self) -> None:
        layer = make_layer().requires_grad_(False)

        def forward(x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return layer(x)

        x = torch.randn(3, 70)
        y = torch.compile(forward, fullgraph=True, backend="aot_eager")(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, forward(x))

    def test_reading_the_dtype_of_the_weight(self) -> None:
        layer = make_layer().to(torch.bfloat16)

        def forward(x: Tensor) -> Tensor:
            return layer(x.to(layer.weight.dtype)) * layer.weight.shape[0]

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            y = torch.compile(forward, fullgraph=True, backend="aot_eager")(torch.ones(2, 70))
        assert y.dtype == torch.bfloat16

    def test_reading_the_values_of_the_weight(self) -> None:
        layer = make_layer()
        compiled = torch.compile(lambda: layer.weight.sum(), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(), layer.dequantize().sum())

    def test_wrong_shape_is_an_error(self) -> None:
        compiled = torch.compile(make_layer(), fullgraph=True, backend="aot_eager")
        with pytest.raises(ValueError, match="linear: x: got"), torch.no_grad():
            compiled(torch.randn(3, 71))


class TestExport:
    @pytest.mark.parametrize("strict", [True, False])
    def test_dynamic_batch(self, strict: bool) -> None:
        model = torch.nn.Sequential(make_layer(activation="silu"), make_layer(9, 24)).eval()
        batch = torch.export.Dim("batch", min=1, max=4096)
        program = torch.export.export(
            model, (torch.randn(4, 70),), dynamic_shapes=({0: batch},), strict=strict
        )
        targets = [str(node.target) for node in program.graph.nodes]
        assert targets.count("gossamer.linear.default") == 2
        for M in (1, 7, 33):
            x = torch.randn(M, 70)
            with torch.no_grad():
                assert torch.equal(program.module()(x), model(x))

    def test_saved_program(self, tmp_path: Any) -> None:
        layer = make_layer().eval()
        program = torch.export.export(layer, (torch.randn(4, 70),))
        torch.export.save(program, tmp_path / "layer.pt2")
        loaded = torch.export.load(tmp_path / "layer.pt2")
        x = torch.randn(4, 70)
        with torch.no_grad():
            assert torch.equal(loaded.module()(x), layer(x))


class TestTransforms:
    @pytest.mark.parametrize("in_dim", [0, 1, 2])
    def test_vmap(self, in_dim: int) -> None:
        layer = make_layer(activation="gelu").requires_grad_(False)
        batch = torch.randn(5, 3, 70)
        x = batch.movedim(0, in_dim)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as torch's about its slow fallback
            y = torch.func.vmap(layer, in_dims=in_dim)(x)
        assert torch.equal(y, layer(batch))

    def test_vmap_with_addend(self) -> None:
        layer = make_layer().requires_grad_(False)
        x, addend = torch.randn(5, 3, 70), torch.randn(5, 3, 24)

        def call(x: Tensor, addend: Tensor) -> Tensor:
            return _ops.linear_op(x, layer.packed, None, 24, "none", addend)

        want = call(x, addend)
        assert torch.equal(torch.func.vmap(call)(x, addend), want)
        assert torch.equal(torch.func.vmap(call, in_dims=(0, None))(x, addend[0])[0], want[0])
        assert torch.equal(torch.func.vmap(call, in_dims=(None, 0))(x[0], addend)[0], want[0])

    def test_vmap_over_the_bias_is_refused(self) -> None:
        layer, x = make_layer(), torch.randn(3, 70)
        with pytest.raises(RuntimeError, match="vmap over the packed weight or the bias"):
            torch.func.vmap(lambda b: _ops.linear_op(x, layer.packed, b, 24))(torch.randn(5, 24))

    def test_batched_gradients(self) -> None:
        layer = make_layer(activation="silu").requires_grad_(False)
        x, dy = torch.randn(5, 70, requires_grad=True), torch.randn(3, 5, 24)
        y = layer(x)
        (batched,) = torch.autograd.grad(y, x, dy, retain_graph=True, is_grads_batched=True)
        for i in range(3):
            (want,) = torch.autograd.grad(y, x, dy[i], retain_graph=True)
            torch.testing.assert_close(batched[i], want)

    def test_functional_gradients_are_refused(self) -> None:
        layer = make_layer().requires_grad_(False)
        with pytest.raises(RuntimeError, match="functorch transforms"):
            torch.func.grad(lambda x: layer(x).sum())(torch.randn(5, 70))

    def test_functional_call_uses_the_tensors_given(self) -> None:
        layer, other = make_layer(), make_layer()
        x = torch.randn(2, 70)
        given = {"packed": other.packed, "bias": other.bias}
        with torch.no_grad():
            assert torch.equal(torch.func.functional_call(layer, given, (x,)), other(x))

    def test_torch_jit_trace_records_the_op(self) -> None:
        layer = make_layer().requires_grad_(False)
        traced = torch.jit.trace(layer, torch.randn(3, 70))
        assert "gossamer::linear" in str(traced.graph)
        x = torch.randn(9, 70)
        assert torch.equal(traced(x), layer(x))

    def test_fx_records_the_op(self) -> None:
        layer = make_layer().requires_grad_(False)
        graph = torch.fx.symbolic_trace(torch.nn.Sequential(layer, torch.nn.ReLU()))
        x = torch.randn(9, 70)
        assert torch.equal(graph(x), layer(x).relu())

    def test_dispatch_and_function_modes_see_the_op(self) -> None:
        class Dispatch(TorchDispatchMode):
            seen: list[str] = []  # noqa: RUF012

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
                self.seen.append(str(func))
                return func(*args, **(kwargs or {}))

        class Function(torch.overrides.TorchFunctionMode):
            seen: list[str] = []  # noqa: RUF012

            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
                self.seen.append(str(func))
                return func(*args, **(kwargs or {}))

        layer = make_layer()
        for mode in (Dispatch(), Function()):
            with mode, torch.no_grad():
                layer(torch.randn(2, 70))
            assert "gossamer.linear.default" in mode.seen

    def test_fake_tensors(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        layer = make_layer()
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            y = layer(mode.from_tensor(torch.randn(2, 70)))
            assert y.shape == (2, 24)
            assert isinstance(y, torch._subclasses.FakeTensor)

    def test_subclasses_see_the_op(self) -> None:
        class Tagged(Tensor):
            pass

        y = make_layer()(torch.randn(2, 70).as_subclass(Tagged))
        assert type(y) is Tagged
