"""LSTM, GRU, RNN and their cells as modules: state_dict, copies, attributes, errors."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.nn.recurrent import GRU, LSTM, RNN
from gossamer.nn.recurrent_cells import GRUCell, LSTMCell, RNNCell

from .recurrent_layers import CELLS, LAYERS, make
from .torch_twin import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


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
