"""The torch ops: shapes, strides and dtypes, opcheck, autocast, and the direct call."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import gossamer as gs
from gossamer import _ops

from .linear_layers import make_layer

ACTIVATIONS = ["none", "relu", "gelu", "gelu_tanh", "silu"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


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
