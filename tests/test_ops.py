"""The torch ops: opcheck, compile, export, autograd, autocast, vmap, and the direct call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gossamer as gs
from gossamer import _ops

ACTIVATIONS = ["none", "relu", "gelu", "gelu_tanh", "silu"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def make_layer(
    N: int = 24,
    K: int = 70,
    *,
    bias: bool = True,
    activation: str = "none",
    group_size: int | None = None,
) -> gs.nn.Linear:
    dense = torch.nn.Linear(K, N, bias=bias)
    return gs.nn.Linear.from_dense(dense, gs.Quantize("int8", group_size), activation=activation)


def make_strided(shape: tuple[int, ...], layout: str) -> Tensor:
    """A tensor of this shape with other strides, all its values in use."""
    if layout == "offset rows":
        return torch.randn(*shape[:-1], shape[-1] + 7)[..., 3 : 3 + shape[-1]]
    if layout == "every second":
        return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    if layout == "transposed":
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
    if layout == "expanded":
        return torch.randn(shape[-1]).expand(shape)
    if layout == "reversed dims":
        return torch.randn(*reversed(shape[:-1]), shape[-1]).permute(
            *reversed(range(len(shape) - 1)), len(shape) - 1
        )
    return torch.randn(shape)


@hypothesis.given(
    leading=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    N=st.integers(1, 50),
    K=st.integers(1, 150),
    dtype=st.sampled_from(FLOATS),
    layout=st.sampled_from(
        ["contiguous", "offset rows", "every second", "transposed", "expanded", "reversed dims"]
    ),
    activation=st.sampled_from(ACTIVATIONS),
    group_size=st.sampled_from([None, 32, 128]),
    bias_dtype=st.sampled_from([None, *FLOATS]),
    seed=st.integers(0, 2**31),
)
@hypothesis.settings(
    max_examples=150, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_any_shape_dtype_and_stride(
    assert_product: Callable[..., None],
    leading: list[int],
    N: int,
    K: int,
    dtype: torch.dtype,
    layout: str,
    activation: str,
    group_size: int | None,
    bias_dtype: torch.dtype | None,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    weight = gs.formats.Int8.quantize(torch.randn(N, K), group_size)
    bias = None if bias_dtype is None else torch.randn(N).to(bias_dtype)
    packed = weight.pack()
    x = make_strided((*leading, K), layout).to(dtype)
    y = _ops.linear_op(x, packed, bias, N, activation)
    assert y.dtype == dtype
    assert y.is_contiguous()
    assert_product(y, x, weight, bias, activation)
    direct = _ops.linear(x, packed, bias, activation, _ops.Handle(packed))
    assert torch.equal(direct, y)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_addend_is_added_before_the_activation(
    isa: str, assert_product: Callable[..., None], activation: str
) -> None:
    weight = gs.formats.Int8.quantize(torch.randn(40, 70))
    bias = torch.randn(40)
    for leading in ((3,), (2, 9), (2, 3, 40)):
        x = torch.randn(*leading, 70)
        for addend in (torch.randn(*leading, 40), torch.randn(*leading, 80)[..., ::2]):
            y = _ops.linear_op(x, weight.pack(), bias, 40, activation, addend)
            assert_product(y, x, weight, bias, activation, addend)


def test_leading_dimensions_are_those_of_f_linear() -> None:
    layer = make_layer()
    with torch.no_grad():
        for leading in ((), (0,), (1,), (2, 0), (2, 3), (2, 1, 3, 4)):
            x = torch.randn(*leading, 70)
            y = layer(x)
            assert y.shape == (*leading, 24)
            if y.numel():
                assert torch.equal(y.reshape(-1, 24), layer(x.reshape(-1, 70)))


def test_rows_of_one_stride_are_read_in_place() -> None:
    """Nothing is copied, and the NaN around the view stays out."""
    layer, x = make_layer(), torch.full((5, 4, 100), float("nan"))
    x[..., 10:80] = torch.randn(5, 4, 70)
    rows, M, row_stride = _ops._strided_rows(x[..., 10:80])
    assert (M, row_stride) == (20, 100)
    assert rows.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    with torch.no_grad():
        assert torch.equal(layer(x[..., 10:80]), layer(x[..., 10:80].contiguous()))


class TestOpcheck:
    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("activation", ["none", "gelu"])
    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_linear(self, dtype: torch.dtype, activation: str, requires_grad: bool) -> None:
        layer = make_layer()
        x = torch.randn(2, 3, 70).to(dtype).requires_grad_(requires_grad)
        bias = layer.bias.detach().clone().requires_grad_(requires_grad)
        torch.library.opcheck(_ops.linear_op, (x, layer.packed, bias, 24, activation))

    def test_linear_with_addend_and_without_bias(self) -> None:
        layer = make_layer()
        x = torch.randn(3, 70, requires_grad=True)
        addend = torch.randn(3, 24, requires_grad=True)
        torch.library.opcheck(_ops.linear_op, (x, layer.packed, None, 24, "silu", addend))

    def test_linear_backward_input(self) -> None:
        layer = make_layer()
        grad = torch.randn(4, 24)
        torch.library.opcheck(_ops.linear_backward_input_op, (grad, layer.packed, 70))

    def test_dequantize(self) -> None:
        layer = make_layer()
        torch.library.opcheck(_ops.dequantize_op, (layer.packed, 24, 70, torch.bfloat16))


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


class TestAutocast:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("grad", [False, True])
    def test_as_f_linear(self, dtype: torch.dtype, grad: bool) -> None:
        dense = torch.nn.Linear(70, 24)
        layer = gs.nn.Linear.from_dense(dense)
        x = torch.randn(3, 70, requires_grad=grad)
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=dtype):
            want, y = dense(x), layer(x)
            inner = layer(x.to(torch.float16))
        assert y.dtype == want.dtype == dtype
        assert inner.dtype == dtype
        assert y.requires_grad == want.requires_grad
        with torch.no_grad():
            assert torch.equal(y, layer(x.to(dtype)))
        if grad:
            y.sum().backward()
            assert x.grad.dtype == torch.float32

    def test_turned_off_inside(self) -> None:
        layer, x = make_layer(), torch.randn(3, 70)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
            assert layer(x).dtype == torch.float32


class TestUnusualTensors:
    def test_negated_views(self) -> None:
        layer = make_layer().requires_grad_(False)
        x = torch.randn(4, 70, dtype=torch.complex64).conj().imag
        assert x.is_neg()
        assert torch.equal(layer(x), layer(x.resolve_neg().contiguous()))

    def test_parameters_as_inputs(self) -> None:
        layer = make_layer()
        x = torch.nn.Parameter(torch.randn(4, 70))
        with torch.no_grad():
            y = layer(x)
        assert type(y) is Tensor
        assert torch.equal(y, layer(x.detach()).detach())

    def test_inference_tensors(self) -> None:
        layer = make_layer()
        with torch.inference_mode():
            x = torch.randn(4, 70)
            y = layer(x)
        assert y.is_inference()
        assert torch.equal(layer(x), y)

    def test_biases_of_other_strides(self) -> None:
        layer = make_layer()
        x, bias = torch.randn(4, 70), torch.randn(48)
        want = gs.kernels.matmul(x, layer.packed, bias[::2].contiguous())
        assert torch.equal(gs.kernels.matmul(x, layer.packed, bias[::2]), want)
        got = _ops.linear(x, layer.packed, bias[::2], "none", layer._handle)
        assert torch.equal(got, want)


class TestErrors:
    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize(
        ("x", "error", "message"),
        [
            (torch.randn(3, 71), ValueError, r"linear: x: .*wanted \[..., 70\]"),
            (torch.tensor(1.0), ValueError, "linear: x"),
            (torch.ones(3, 70, dtype=torch.int64), TypeError, "linear: x: .*int64"),
            (torch.ones(3, 70, dtype=torch.float64), TypeError, "linear: x: .*float64"),
            (
                torch.ones(3, 70).to_sparse(),
                (RuntimeError, NotImplementedError),
                "gossamer::linear",
            ),
            (torch.ones(3, 70, device="meta"), RuntimeError, "linear: x: is on meta"),
        ],
    )
    def test_x(self, x: Tensor, error: type[Exception], message: str, grad: bool) -> None:
        layer = make_layer()
        with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
            layer(x)

    def test_activation(self) -> None:
        layer = make_layer()
        with pytest.raises(ValueError, match="linear: activation: got 'elu', wanted one of none"):
            _ops.linear_op(torch.randn(2, 70), layer.packed, None, 24, "elu")

    def test_addend(self) -> None:
        layer, x = make_layer(), torch.randn(2, 70)
        with pytest.raises(ValueError, match=r"linear: addend: .*wanted \[2, 24\]"):
            _ops.linear_op(x, layer.packed, None, 24, "none", torch.randn(3, 24))
        with pytest.raises(TypeError, match=r"linear: addend: .*wanted float32"):
            _ops.linear_op(x, layer.packed, None, 24, "none", torch.randn(2, 24).bfloat16())

    def test_bias(self) -> None:
        layer, x = make_layer(), torch.randn(2, 70)
        with pytest.raises(ValueError, match=r"linear: bias: .*wanted \[24\]"):
            _ops.linear_op(x, layer.packed, torch.randn(25), 24)
        with pytest.raises(TypeError, match=r"linear: bias: .*float64"):
            _ops.linear_op(x, layer.packed, torch.randn(24).double(), 24)

    def test_packed(self) -> None:
        layer, x = make_layer(), torch.randn(2, 70)
        with pytest.raises(ValueError, match="linear: out_features: got 25"):
            _ops.linear_op(x, layer.packed, None, 25)
        with pytest.raises(ValueError, match="packed"):
            _ops.linear_op(x, layer.packed[:-64], None, 24)
        with pytest.raises(ValueError, match="in_features: got 71"):
            _ops.linear_backward_input_op(torch.randn(2, 24), layer.packed, 71)
        with pytest.raises(ValueError, match="dequantize: got 24 x 71"):
            _ops.dequantize_op(layer.packed, 24, 71, torch.float32)


def activate(z: Tensor, activation: str) -> Tensor:
    functional = torch.nn.functional
    if activation in ("gelu", "gelu_tanh"):
        return functional.gelu(z, approximate="tanh" if activation == "gelu_tanh" else "none")
    return {"none": lambda z: z, "relu": functional.relu, "silu": functional.silu}[activation](z)
