"""LSTM, GRU, RNN and their cells: equal to torch's with the same weights, and good modules."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import gossamer as gs
from gossamer import _ops
from gossamer.nn.recurrent import GRU, LSTM, RNN
from gossamer.nn.recurrent_cells import GRUCell, LSTMCell, RNNCell

LAYERS = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
CELLS = {"LSTMCell": LSTMCell, "GRUCell": GRUCell, "RNNCell": RNNCell}
# Every format, kind of activations, and what changes its canonical tensors.
SCHEMES = (
    *("int8-g32", "int8-weight-only", "int4", "int4-g32-asym", "int4-weight-only", "nf4", "fp4"),
    *("mxfp4", "fp8", "fp8-block", "bf16"),
)
close = torch.testing.assert_close


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small do not wait for threads, which takes long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def exact_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, activation: str, handle: _ops.Handle
) -> Tensor:
    W = _ops.dequantize_op(packed, handle.out_features, handle.in_features, x.dtype)
    return nn.functional.linear(x, W, bias)


@contextmanager
def exact_products() -> Iterator[mock.Mock]:
    """No rounding of activations: what is left is to be equal to torch. Yields the calls."""
    with mock.patch.object(_ops, "linear", side_effect=exact_linear) as calls:
        yield calls


def twin(dense: nn.Module, layer: nn.Module) -> Any:
    """The dense module with the weights that the packed one multiplies with."""
    dense = copy.deepcopy(dense)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values of packed weights are read
        for name, parameter in dense.named_parameters():
            parameter.copy_(functools.reduce(getattr, name.split("."), layer))  # type: ignore[arg-type]
    return dense


def make(kind: str = "LSTM", *sizes: int, **options: Any) -> tuple[Any, Any]:
    """A packed layer, and its dense twin."""
    dense = getattr(nn, kind)(*(sizes or (6, 5)), **options)
    layer = (LAYERS | CELLS)[kind].from_dense(dense, "int8")
    return layer, twin(dense, layer)


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
                close(got, wanted)
        assert type(after) is type(want_after)
        for got, wanted in zip(parts(after), parts(want_after), strict=True):
            close(got, wanted)

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
            close(one, other)

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
        close(got, want)
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
            close(got, want)

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
                close(layer(x)[0], want)

    def test_compiles(self) -> None:
        layer, _ = make("LSTM", num_layers=2)
        x = torch.randn(2, 3, 6)
        with torch.no_grad():
            y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)[0]
            close(y, layer(x)[0])

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


class TestStateDict:
    @pytest.mark.parametrize("kind", LAYERS)
    @pytest.mark.parametrize("group_size", [None, 32])
    def test_names_are_those_of_torch(self, kind: str, group_size: int | None) -> None:
        options: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
        if kind == "LSTM":
            options["proj_size"] = 3
        make_one = functools.partial(getattr(nn, kind), 40, 36, **options)
        scheme = gs.Quantize("int8", group_size=group_size)
        dense = make_one()
        layer, other = (LAYERS[kind].from_dense(one, scheme) for one in (dense, make_one()))
        state, names = layer.state_dict(), list(dense.state_dict())
        assert set(state) == {*names, *(f"{name}_scale" for name in names if "weight" in name)}
        assert state["weight_hh_l1_reverse"].dtype == torch.int8
        assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
        x = torch.randn(3, 2, 40)
        assert torch.equal(layer(x)[0], other(x)[0])
        biases = {name for name in names if "bias" in name}
        assert {name for name, _ in layer.named_parameters()} == biases

    def test_dense_checkpoint_is_quantized(self) -> None:
        dense = nn.ModuleDict({"rnn": nn.GRU(6, 5), "cell": nn.LSTMCell(6, 5)})
        model = nn.ModuleDict(
            {
                "rnn": GRU.from_dense(nn.GRU(6, 5)),
                "cell": LSTMCell.from_dense(nn.LSTMCell(6, 5)),
            }
        )
        assert str(model.load_state_dict(dense.state_dict())) == "<All keys matched successfully>"
        want = GRU.from_dense(dense["rnn"])
        assert torch.equal(model["rnn"].hh_l0.packed, want.hh_l0.packed)
        assert model["rnn"].hh_l0.weight_error == want.hh_l0.weight_error
        x = torch.randn(3, 2, 6)
        assert torch.equal(model["rnn"](x)[0], want(x)[0])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rnn.weight_hh_l0": None}, r'Missing key.*"rnn.weight_hh_l0"'),
            ({"rnn.weight_ih_l0_scale": None}, r'Missing key.*"rnn.weight_ih_l0_scale"'),
            ({"rnn.bias_hh_l0": None}, r'Missing key.*"rnn.bias_hh_l0"'),
            ({"rnn.weight_hh_l1": torch.ones(1)}, r'Unexpected key.*"rnn.weight_hh_l1"'),
            ({"rnn.hh_l0.weight": torch.ones(1)}, r'Unexpected key.*"rnn.hh_l0.weight"'),
            (
                {"rnn.weight_hh_l0": torch.ones(20, 6, dtype=torch.int8)},
                r"rnn.weight_hh_l0: got shape \[20, 6\], wanted \[20, 5\]",
            ),
            ({"rnn.weight_ih_l0_scale": torch.ones(20)}, "rnn.weight_ih_l0: Int8: scales"),
            ({"rnn.bias_ih_l0": torch.ones(7)}, "rnn.bias_ih_l0"),
        ],
    )
    def test_errors_name_the_key(self, change: dict[str, Tensor | None], message: str) -> None:
        model = nn.ModuleDict({"rnn": LSTM.from_dense(nn.LSTM(6, 5))})
        state, packed = model.state_dict(), model["rnn"].hh_l0.packed.clone()
        for name, tensor in change.items():
            state[name] = tensor  # type: ignore[assignment]
            if tensor is None:
                del state[name]
        with pytest.raises(RuntimeError, match=message):
            model.load_state_dict(state)
        assert torch.equal(model["rnn"].hh_l0.packed, packed)

    def test_partial_loading_reports_the_names_of_torch(self) -> None:
        layer, _ = make("GRU")
        found = layer.load_state_dict({"bias_ih_l0": torch.ones(15)}, strict=False)
        missing = {"weight_ih_l0", "weight_ih_l0_scale", "weight_hh_l0", "weight_hh_l0_scale"}
        assert set(found.missing_keys) == {*missing, "bias_hh_l0"}
        assert bool((layer.bias_ih_l0 == 1).all())


class TestModule:
    @pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
    def test_copies(self, kind: str) -> None:
        layer, _ = make(kind)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        x = torch.randn(3, 2, 6) if kind in LAYERS else torch.randn(2, 6)
        want = layer(x)[0]
        loaded = torch.load(file, weights_only=False)
        for new in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
            assert torch.equal(new(x)[0], want)
            assert repr(new) == repr(layer)
            assert set(new.state_dict()) == set(layer.state_dict())
            assert next(new.parameters()) is not next(layer.parameters())

    def test_attributes(self) -> None:
        dense = nn.LSTM(6, 5, num_layers=2, batch_first=True, dropout=0.5, proj_size=3).eval()
        layer = LSTM.from_dense(dense)
        for name in (
            *("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first"),
            *("dropout", "bidirectional", "proj_size", "training"),
        ):
            assert getattr(layer, name) == getattr(dense, name)
        layer.flatten_parameters()
        assert layer.bias_ih_l1 is dense.bias_ih_l1
        assert not hasattr(layer, "weight_ih_l2")
        assert repr(layer).startswith(
            "LSTM(\n  6, 5, proj_size=3, num_layers=2, batch_first=True, dropout=0.5\n"
        )
        assert RNN.from_dense(nn.RNN(6, 5, nonlinearity="relu")).nonlinearity == "relu"
        cell = RNNCell.from_dense(nn.RNNCell(6, 5, bias=False, nonlinearity="relu"))
        assert (cell.nonlinearity, cell.bias, cell.hidden_size) == ("relu", False, 5)
        assert repr(cell).startswith("RNNCell(\n  6, 5, bias=False, nonlinearity=relu\n")

    def test_weights_answer_for_free_and_cannot_be_assigned(self) -> None:
        layer, _ = make("GRU")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert layer.weight_hh_l0.shape == (15, 5)
            assert layer.to(torch.bfloat16).weight_ih_l0.dtype == torch.bfloat16
        assert layer.bias_ih_l0.dtype == torch.bfloat16
        with pytest.raises(AttributeError, match="GRU: weight_hh_l0: is packed"):
            layer.weight_hh_l0 = nn.Parameter(torch.ones(15, 5))

    def test_report_lists_every_weight(self) -> None:
        model = nn.ModuleDict({"rnn": LSTM.from_dense(nn.LSTM(64, 48, proj_size=16))})
        layers = gs.report(model).layers
        names = [f"rnn.weight_{part}_l0" for part in ("ih", "hh", "hr")]
        assert [layer.name for layer in layers] == names
        assert [layer.shape for layer in layers] == [(192, 64), (192, 16), (16, 48)]


class TestErrors:
    @pytest.mark.parametrize(
        ("x", "state", "error", "message"),
        [
            (torch.ones(2, 3, 7), None, ValueError, r"LSTM: input: got .*\[2, 3, 7\], wanted .*6"),
            (torch.ones(6), None, ValueError, r"LSTM: input: got .*\[6\], wanted \[T, B, 6\]"),
            (torch.ones(2, 3, 6).long(), None, TypeError, "LSTM: input: .*float32, bfloat16 or"),
            (torch.ones(0, 3, 6), None, ValueError, "LSTM: input: got no time steps"),
            (torch.ones(2, 3, 6), torch.ones(1, 3, 5), ValueError, "LSTM: hx: got 1 tensor"),
            (
                torch.ones(2, 3, 6),
                (torch.ones(1, 3, 5), torch.ones(1, 2, 5)),
                ValueError,
                r"LSTM: hx: got .*\[1, 2, 5\], wanted \[1, 3, 5\]",
            ),
            (
                torch.ones(2, 6),
                (torch.ones(1, 1, 5), torch.ones(1, 1, 5)),
                ValueError,
                r"LSTM: hx: got .*\[1, 1, 5\], wanted \[1, 5\]",
            ),
            (
                torch.ones(2, 3, 6),
                (torch.ones(1, 3, 5).half(), torch.ones(1, 3, 5)),
                TypeError,
                "LSTM: hx: got torch.float16, wanted torch.float32",
            ),
        ],
    )
    def test_of_layers(self, x: Tensor, state: Any, error: type[Exception], message: str) -> None:
        layer, _ = make("LSTM")
        with pytest.raises(error, match=message):
            layer(x, state)

    @pytest.mark.parametrize(
        ("x", "state", "message"),
        [
            (torch.ones(2, 7), None, r"GRUCell: input: got .*\[2, 7\], wanted .*6"),
            (torch.ones(2, 2, 6), None, r"GRUCell: input: got .*wanted \[B, 6\] or \[6\]"),
            (torch.ones(2, 6), torch.ones(3, 5), r"GRUCell: hx: got .*wanted \[2, 5\]"),
            (torch.ones(2, 6), (torch.ones(2, 5),) * 2, "GRUCell: hx: got 2 tensor"),
            (torch.ones(2, 6), [None], r"GRUCell: hx: got NoneType None, wanted \[2, 5\]"),
        ],
    )
    def test_of_cells(self, x: Tensor, state: Any, message: str) -> None:
        cell, _ = make("GRUCell")
        with pytest.raises(ValueError, match=message):
            cell(x, state)

    def test_of_making(self) -> None:
        with pytest.raises(TypeError, match=r"LSTM.from_dense: module: got GRU, wanted nn.LSTM"):
            LSTM.from_dense(nn.GRU(6, 5))
        with pytest.raises(TypeError, match=r"GRUCell.from_dense: module: got LSTMCell"):
            GRUCell.from_dense(nn.LSTMCell(6, 5))
        with pytest.raises(ValueError, match="scheme"):
            LSTM.from_dense(nn.LSTM(6, 5), "int3")
        with pytest.raises(TypeError, match=r"module: bias_ih_l0: got dtype torch.float64, wanted"):
            LSTM.from_dense(nn.LSTM(6, 5).double())
        dense = nn.LSTM(6, 5)
        nn.init.constant_(dense.weight_hh_l0, float("nan"))
        with pytest.raises(ValueError, match=r"LSTM.from_dense: module: weight_hh_l0: .*NaN"):
            LSTM.from_dense(dense)
