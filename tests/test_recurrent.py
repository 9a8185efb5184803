"""LSTM, GRU, RNN and their cells: equal to torch's with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

import gossamer as gs
from gossamer.nn.recurrent import LSTM

from .recurrent_layers import CELLS, LAYERS, make
from .torch_twin import SCHEMES, exact_products, one_thread, twin


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def parts(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)


class TestSameAsTorch:
    @hypothesis.settings(max_examples=100)
    @hypothesis.given(data=st.data())
    def test_layers(self, data: st.DataObject) -> None:
        draw, flag = data.draw, st.booleans()
        kind = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
        options = {name: draw(flag) for name in ("bias", "batch_first", "bidirectional")}
        options["num_layers"] = draw(st.integers(1, 3))
        if kind == "LSTM":
            options["proj_size"] = draw(st.sampled_from([0, 3]))
        if kind == "RNN":
            options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
        layer, dense = make(kind, **options)
        T, B = draw(st.integers(1, 5)), draw(st.integers(1, 4))
        form = draw(st.sampled_from(["batched", "unbatched", "sorted", "unsorted"]))
        x, batch = torch.randn((B, T, 6) if layer.batch_first else (T, B, 6)), (B,)
        if form == "unbatched":
            x, batch = torch.randn(T, 6), ()
        elif form != "batched":
            lengths = draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
            lengths = [T, *sorted(lengths, reverse=True)[1:]]
            if form == "unsorted":
                lengths = draw(st.permutations(lengths))
            x = pack_padded_sequence(x, lengths, layer.batch_first, form == "sorted")
        state = None
        if draw(flag):
            rows = (options["num_layers"] * (1 + options["bidirectional"]), *batch)
            h = torch.randn(*rows, layer.proj_size or 5)
            state = (h, torch.randn(*rows, 5)) if kind == "LSTM" else h
        with torch.no_grad(), exact_products():
            (y, after), (want, want_after) = layer(x, state), dense(x, state)
        assert type(y) is type(want)
        for got, wanted in zip(tuple(y), tuple(want), strict=True):
            assert (got is None) == (wanted is None)
            if got is not None:
                assert_close(got, wanted)
        assert type(after) is type(want_after)
        for got, wanted in zip(parts(after), parts(want_after), strict=True):
            assert_close(got, wanted)

    @hypothesis.given(
        kind=st.sampled_from(list(CELLS)),
        bias=st.booleans(),
        batch=st.sampled_from([(), (1,), (3,)]),
        given_state=st.booleans(),
        relu=st.booleans(),
    )
    def test_cells(
        self, kind: str, bias: bool, batch: tuple[int, ...], given_state: bool, relu: bool
    ) -> None:
        options: dict[str, Any] = {"bias": bias}
        if kind == "RNNCell" and relu:
            options["nonlinearity"] = "relu"
        cell, dense = make(kind, **options)
        x, h, c = torch.randn(*batch, 6), torch.randn(*batch, 5), torch.randn(*batch, 5)
        state: Any = None
        if given_state:
            state = (h, c) if kind == "LSTMCell" else h
        with torch.no_grad(), exact_products():
            got, want = cell(x, state), dense(x, state)
        assert type(got) is type(want)
        for one, other in zip(parts(got), parts(want), strict=True):
            assert_close(one, other)

    @pytest.mark.parametrize("kind", LAYERS)
    @pytest.mark.parametrize("packed", [False, True])
    def test_dropout_between_layers(self, kind: str, packed: bool) -> None:
        layer, dense = make(kind, num_layers=3, dropout=0.4)
        x: Any = torch.randn(4, 3, 6)
        if packed:
            x = pack_padded_sequence(x, [4, 2, 1])
        outputs = []
        for module in (layer, dense):
            assert module.training
            with torch.no_grad(), exact_products():
                torch.manual_seed(5)
                outputs.append(module(x)[0])
                evaluated = module.eval()(x)[0]
        got, want = (y.data if packed else y for y in outputs)
        assert_close(got, want)
        assert not torch.equal(want, evaluated.data if packed else evaluated)

    @pytest.mark.parametrize("kind", LAYERS)
    @pytest.mark.parametrize("packed", [False, True])
    def test_gradients(self, kind: str, packed: bool) -> None:
        layer, dense = make(kind, num_layers=2, bidirectional=True)
        grads = []
        for module in (layer, dense):
            torch.manual_seed(1)
            x = torch.randn(4, 3, 6, requires_grad=True)
            state = [torch.randn(4, 3, 5, requires_grad=True) for _ in range(layer._parts)]
            sequence = pack_padded_sequence(x, [4, 3, 1]) if packed else x
            with exact_products():
                y, after = module(sequence, tuple(state) if len(state) > 1 else state[0])
            loss = (y.data if packed else y).square().sum()
            (loss + sum(part.sin().sum() for part in parts(after))).backward()
            biases = [p.grad for name, p in module.named_parameters() if "bias" in name]
            assert len(biases) == 8
            grads.append([x.grad, *(part.grad for part in state), *biases])
        for got, want in zip(*grads, strict=True):
            assert_close(got, want)

    def test_no_rows(self) -> None:
        layer, dense = make()
        x = torch.randn(3, 0, 6)
        assert layer(x)[0].shape == dense(x)[0].shape == (3, 0, 5)


class TestPackedProducts:
    @pytest.mark.parametrize(("kind", "directions"), [("LSTM", 1), ("GRU", 2), ("RNN", 1)])
    def test_one_product_for_all_inputs_and_one_for_each_step(
        self, kind: str, directions: int
    ) -> None:
        layer, _ = make(kind, num_layers=2, bidirectional=directions == 2)
        with exact_products() as calls:
            layer(torch.randn(7, 3, 6))
        rows = [call.args[0].shape[:-1].numel() for call in calls.call_args_list]
        assert rows == ([21] + [3] * 7) * 2 * directions

    def test_product_is_that_of_a_linear_layer(self) -> None:
        dense = nn.LSTM(40, 8)
        layer = LSTM.from_dense(dense, gs.Quantize("int8", group_size=32))
        linear = nn.Linear(40, 32)
        linear.weight, linear.bias = dense.weight_ih_l0, dense.bias_ih_l0
        packed = gs.nn.Linear.from_dense(linear, gs.Quantize("int8", group_size=32))
        x = torch.randn(3, 40)
        with torch.no_grad():
            assert torch.equal(layer.ih_l0.product(x, layer.bias_ih_l0), packed(x))
        assert layer.ih_l0.weight_error == packed.weight_error

    @pytest.mark.parametrize("kind", CELLS)
    def test_error_of_rounding_is_bounded(self, kind: str) -> None:
        """Gates have slopes <= 1, sigmoids <= 1/4; |c|, |h|, |g|, |n| <= 1 here.

        With a gate's argument off by d: an LSTM's c' is off by d (1/4 + 1/4 + 1), and h' by that
        and d / 4; a GRU's n by d + |h_n| d / 4 + d, and h' by that and d / 2; an RNN's h' by d.
        """
        cell, dense = make(kind, 30, 20)
        x, h, c = torch.randn(9, 30), torch.rand(9, 20) * 2 - 1, torch.rand(9, 20) * 2 - 1
        state = (h, c) if kind == "LSTMCell" else h
        with torch.no_grad():
            got, want = parts(cell(x, state)), parts(dense(x, state))
            step_x, step_h = (rows.abs().amax(1, keepdim=True) / 254 for rows in (x, h))
            d = step_x * dense.weight_ih.abs().sum(1) + step_h * dense.weight_hh.abs().sum(1)
            d = d.amax(1, keepdim=True) * (1 + 1e-3)
            h_n = (h @ dense.weight_hh.T + dense.bias_hh).abs().max()
        factor = {"LSTMCell": 1.75, "GRUCell": 2.5 + float(h_n) / 4, "RNNCell": 1.0}[kind]
        assert float((got[0] - want[0]).abs().max()) > 0
        for one, other in zip(got, want, strict=True):
            assert bool(((one - other).abs() <= factor * d).all())

    @pytest.mark.parametrize("kind", LAYERS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_long_sequences_stay_close(self, kind: str, dtype: torch.dtype) -> None:
        layer, dense = make(kind, 64, 48, num_layers=2, bidirectional=True)
        x = torch.randn(25, 4, 64)
        with torch.no_grad():
            y, after = layer.to(dtype)(x.to(dtype))
            want, want_after = dense(x)
        assert y.dtype == parts(after)[0].dtype == dtype
        for got, wanted in ((y, want), (parts(after)[0], parts(want_after)[0])):
            assert float((got.float() - wanted).norm() / wanted.norm()) < 0.03

    @pytest.mark.parametrize("kind", LAYERS)
    def test_gradient_of_the_input_through_packed_weights(self, kind: str) -> None:
        layer, dense = make(kind, 64, 48)
        grads = []
        for module in (layer, dense):
            torch.manual_seed(2)
            x = torch.randn(5, 4, 64, requires_grad=True)
            module(x)[0].square().sum().backward()
            grads.append(x.grad)
        assert float((grads[0] - grads[1]).norm() / grads[1].norm()) < 0.03

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_every_format(self, scheme: str) -> None:
        dense = nn.LSTM(40, 36, batch_first=True, proj_size=33)
        layer = LSTM.from_dense(dense, scheme)
        same, other = twin(dense, layer), LSTM.from_dense(nn.LSTM(40, 36, proj_size=33), scheme)
        other.batch_first = True
        other.load_state_dict(layer.state_dict())
        x = torch.randn(3, 5, 40)
        with torch.no_grad():
            y, want = layer(x)[0], same(x)[0]
            assert float((y - want).norm() / want.norm()) < 0.03
            for new in (other, copy.deepcopy(layer)):
                assert torch.equal(new(x)[0], y)
            with exact_products():
                assert_close(layer(x)[0], want)

    def test_compiles(self) -> None:
        layer, _ = make("LSTM", num_layers=2)
        x = torch.randn(2, 3, 6)
        with torch.no_grad():
            y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)[0]
            assert_close(y, layer(x)[0])

    @pytest.mark.parametrize("kind", LAYERS)
    def test_autocast(self, kind: str) -> None:
        layer, dense = make(kind, 64, 48)
        x = torch.randn(5, 4, 64)
        with torch.no_grad():
            want = dense(x)[0]
            with torch.autocast("cpu", torch.bfloat16):
                y, state = layer(x)
                layer(x.bfloat16(), state)
        assert float((y.float() - want).norm() / want.norm()) < 0.05
