"""gs.save and gs.load: every module and format comes back bit for bit, into any kind of model."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.checkpoint import load, save
from gossamer.checkpoint.kinds import KINDS
from gossamer.compression import REPLACEMENTS
from gossamer.formats import FORMATS
from gossamer.formats.low_rank_sum import LowRankSum
from gossamer.formats.sparse import Sparse

from .checkpoints import check_same, cnn, dense_copy, mlp, on_meta, same_outputs, through_files
from .random_weights import random_low_rank, random_weight

# --- formats ---


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_every_format_comes_back(name: str, bias: bool, tmp_path: Path) -> None:
    form = FORMATS[name]
    kind = form.activation_kinds[-1]
    for index, group_size in enumerate(form.group_sizes):
        if name == "low-rank":
            weight = random_low_rank(37, 141, 12, seed=1)
        else:
            weight = random_weight(form, 37, 141, group_size, seed=index)
        activations = None if issubclass(form, LowRankSum) else kind
        if name == "low-rank" or (kind == "int8-group" and group_size is None):
            activations = None
        layer = gs.nn.Linear(
            141,
            37,
            weight=weight,
            bias=torch.randn(37) if bias else None,
            activation="gelu",
            dtype=torch.bfloat16,
            activations=activations,
        )
        layer.weight_error, layer.dense_bytes = 0.125, 777
        folder = tmp_path / str(index)
        loaded = through_files(layer, None, folder)
        check_same(loaded, layer)
        assert torch.equal(loaded.packed, layer.packed)
        assert repr(loaded) == repr(layer)
        assert (loaded.dtype, loaded.weight_error) == (torch.bfloat16, 0.125)
        assert same_outputs(loaded, layer, torch.randn(3, 141))


@pytest.mark.parametrize("batch", [4, "large", (1, 64)])
def test_a_sparse_layer_is_laid_out_for_the_same_batch(batch: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    gs.compress(model, [gs.Prune(0.9), "sparse-int8"], batch=batch, targets="0")
    loaded = through_files(model, nn.Sequential(nn.Linear(64, 64)), tmp_path)
    assert issubclass(FORMATS[loaded[0].format], Sparse)
    assert torch.equal(loaded[0].packed, model[0].packed)
    check_same(loaded, model)


def test_static_scales_of_inputs_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(
        gs.nn.Conv1d.from_dense(nn.Conv1d(4, 4, 3), "int8", input_scale=0.1),
        gs.nn.Linear.from_dense(nn.Linear(8, 16), "int8", input_scale=1 / 3),
    )
    loaded = through_files(model, nn.Sequential(nn.Conv1d(4, 4, 3), nn.Linear(8, 16)), tmp_path)
    assert [layer.input_scale for layer in loaded] == [0.1, 1 / 3]
    check_same(loaded, model)
    assert same_outputs(loaded, model, torch.randn(2, 4, 10))


# --- modules ---


class Tied(nn.Module):
    """An embedding and an output head with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(100, 32, padding_idx=-1)
        self.body = nn.Linear(32, 32)
        self.head = nn.Linear(32, 100)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.tokens(ids)))


class Attention(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, **settings)
        self.sizes = settings.get("kdim", 32), settings.get("vdim", 32)

    def forward(self, x: torch.Tensor) -> Any:
        return self.attention(x, x[..., : self.sizes[0]], x[..., : self.sizes[1]])


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


X, ROWS = torch.randn(2, 5, 32), torch.randn(3, 5, 40)
IDS = torch.arange(12).view(2, 6)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], Any]] = {
    "mlp": (mlp, (torch.randn(3, 40),), "int4-g32"),
    "cnn": (cnn, (torch.randn(2, 4, 8, 8),), "int8"),
    "tied": (Tied, (IDS,), "int4-g32-asym"),
    "bag": (lambda: Recurrent(nn.EmbeddingBag(90, 32, mode="max")), (IDS,), "int8"),
    "attention": (Attention, (X,), "int8"),
    "attention-2": (
        lambda: Attention(kdim=16, vdim=8, add_bias_kv=True, add_zero_attn=True, bias=False),
        (X,),
        "fp8",
    ),
    "encoder": (lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (X,), "int8"),
    "lstm": (
        lambda: Recurrent(nn.LSTM(40, 24, 2, bidirectional=True, proj_size=8)),
        (ROWS,),
        "int8",
    ),
    "gru": (lambda: Recurrent(nn.GRU(40, 24, bias=False, batch_first=True)), (ROWS,), "int4-g32"),
    "rnn": (lambda: Recurrent(nn.RNN(40, 24, nonlinearity="relu")), (ROWS,), "nf4"),
    "lstm-cell": (lambda: Recurrent(nn.LSTMCell(40, 24)), (ROWS[0],), "int8"),
    "gru-cell": (lambda: Recurrent(nn.GRUCell(40, 24)), (ROWS[0],), "int8"),
    "rnn-cell": (
        lambda: Recurrent(nn.RNNCell(40, 24, nonlinearity="relu")),
        (ROWS[0],),
        "int8",
    ),
}


def compressed(make: Callable[[], nn.Module], scheme: Any) -> tuple[nn.Module, nn.Module]:
    """A model dense and packed, in eval mode; small layers are named by their classes."""
    torch.manual_seed(0)
    dense = make().eval()
    present = [kind for kind in REPLACEMENTS if any(type(m) is kind for m in dense.modules())]
    return dense, gs.compress(copy.deepcopy(dense), scheme, targets=present or None)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", [dense_copy, on_meta])
def test_every_module_comes_back(
    name: str, target: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    make, inputs, scheme = MODELS[name]
    dense, model = compressed(make, scheme)
    given = target(dense)
    loaded = through_files(model, given, tmp_path / "out")
    assert loaded is given
    check_same(loaded, model)
    assert same_outputs(loaded, model, *inputs)
    assert not any(tensor.is_inference() for tensor in loaded.state_dict().values())


@pytest.mark.parametrize("name", ["cnn", "tied", "attention-2", "lstm"])
def test_a_model_that_is_compressed_already_is_filled(name: str, tmp_path: Path) -> None:
    make, inputs, scheme = MODELS[name]
    _, model = compressed(make, scheme)
    other = compressed(make, "int8")[1]
    loaded = through_files(model, other, tmp_path)
    check_same(loaded, model)
    assert same_outputs(loaded, model, *inputs)


def test_a_dense_model_is_saved_too(tmp_path: Path) -> None:
    model = cnn().eval()
    loaded = through_files(model, dense_copy(model), tmp_path)
    assert same_outputs(loaded, model, torch.randn(2, 4, 8, 8))
    assert type(loaded[0]) is nn.Conv2d


@pytest.mark.parametrize("form", ["tucker", "spatial"])
@pytest.mark.parametrize("scheme", [None, "int8"])
def test_factorized_layers_come_back(form: str, scheme: str | None, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(384, 96)
        )

    model = gs.factorize(make(), rank=4, convolutions=form)
    if scheme:
        gs.compress(model, scheme)
    loaded = through_files(model, make(), tmp_path / "out")
    assert isinstance(loaded[0], nn.Sequential)
    check_same(loaded, model)
    x = torch.randn(2, 16, 8, 8)
    assert same_outputs(loaded, model, x)
    assert same_outputs(load(tmp_path / "out", loaded), model, x)
    block = through_files(model[0], None, tmp_path / "block")
    assert same_outputs(block, model[0], x)
    with pytest.raises(ValueError, match="channels"):
        load(tmp_path / "out", nn.Sequential(nn.Conv2d(16, 20, 3), *make()[1:]))


def test_corrections_and_their_errors_come_back(tmp_path: Path) -> None:
    model = gs.compress(mlp(), ["int4-g32", gs.LowRankCorrection(4)])
    loaded = through_files(model, mlp(), tmp_path)
    found = gs.report(loaded)
    assert found == gs.report(model)
    assert found.layers[0].rank == 4
    assert found.layers[0].uncorrected_error > found.layers[0].error > 0


def test_a_module_in_several_places_stays_one(tmp_path: Path) -> None:
    def make(shared: bool) -> nn.Module:
        layer, norm = nn.Linear(32, 32), nn.LayerNorm(32)
        others = (layer, norm) if shared else (nn.Linear(32, 32), nn.LayerNorm(32))
        return nn.Sequential(layer, norm, *others)

    model = gs.compress(make(True), "int8")
    for shared in (True, False):
        loaded = through_files(model, make(shared), tmp_path / str(shared))
        assert loaded[2] is loaded[0]
        assert loaded[3] is loaded[1]
        assert same_outputs(loaded, model, torch.randn(2, 32))


def test_tied_parameters_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    model = Tied().eval()
    for target in (Tied(), on_meta(Tied()), untied()):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        loaded = through_files(model, target, folder)
        assert loaded.head.weight is loaded.tokens.weight
        assert isinstance(loaded.head.weight, nn.Parameter)
        assert same_outputs(loaded, model, IDS)
    tensors = json.loads((folder / "gossamer.json").read_text())["tensors"]
    assert "head.weight" not in tensors


def untied() -> Any:
    model = Tied()
    model.head.weight = nn.Parameter(torch.zeros(100, 32))
    return model


def test_parameters_that_are_not_tied_any_more_are_not(tmp_path: Path) -> None:
    model = untied()
    loaded = through_files(model, Tied(), tmp_path / "a")
    assert loaded.head.weight is not loaded.tokens.weight
    assert same_outputs(loaded, model, IDS)
    model = gs.compress(untied(), "int8", targets="head")
    loaded = through_files(model, Tied(), tmp_path / "b")
    assert same_outputs(loaded, model, IDS)
    assert type(loaded.tokens) is nn.Embedding


# --- what else a model has ---


class Buffers(nn.Module):
    def __init__(self, length: int = 6) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)
        self.register_buffer("table", torch.randn(length), persistent=False)
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("nothing", None)
        self.register_buffer("none", torch.zeros(0, 3))


def test_buffers_outside_of_the_state_dict_are_right(tmp_path: Path) -> None:
    model = gs.compress(Buffers(), "int8")
    save(model, tmp_path / "out")
    for target in (Buffers(), on_meta(Buffers())):
        loaded = load(tmp_path / "out", target)
        assert torch.equal(loaded.table, model.table)
        assert "table" not in loaded.state_dict()
        check_same(loaded, model)
    other = Buffers(9)
    before = other.table.clone()
    assert torch.equal(load(tmp_path / "out", other).table, before)  # the model knows better
    with pytest.raises(ValueError, match="'table'"):
        load(tmp_path / "out", on_meta(Buffers(9)))


def test_a_buffer_on_meta_without_values_is_named(tmp_path: Path) -> None:
    model = Buffers()
    del model.table
    save(model, tmp_path / "out")
    with pytest.raises(ValueError, match="no 'table'"):
        load(tmp_path / "out", on_meta(Buffers()))


def test_dtypes_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    model = gs.compress(mlp().to(torch.bfloat16), "int8")
    loaded = through_files(model, mlp(), tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    check_same(loaded, model)


def test_gradients_hooks_and_modes_are_those_of_the_model(tmp_path: Path) -> None:
    model = gs.compress(mlp(), "int8").eval()
    target = mlp().train()
    target[0].bias.requires_grad_(False)
    target[3].weight.requires_grad_(False)
    calls: list[Any] = []
    target[0].register_forward_hook(lambda *call: calls.append(call))
    kept = target[3].weight
    loaded = through_files(model, target, tmp_path)
    assert loaded[3].weight is kept
    assert [p.requires_grad for p in loaded.parameters()] == [False, True, False, True]
    assert loaded.training
    assert loaded[0].training
    loaded(torch.randn(2, 40))
    assert len(calls) == 1


def test_it_works_in_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        model = gs.compress(mlp(), "int8")
        loaded = through_files(model, on_meta(mlp()), tmp_path)
    x = torch.randn(2, 40, requires_grad=True)
    loaded(x).sum().backward()
    assert x.grad is not None


def test_a_bias_that_the_dense_layer_has_not_is_added(tmp_path: Path) -> None:
    model = nn.Sequential(gs.nn.Linear.from_dense(nn.Linear(32, 8)))
    loaded = through_files(model, nn.Sequential(nn.Linear(32, 8, bias=False)), tmp_path)
    check_same(loaded, model)


def test_a_block_of_a_model_is_saved_by_itself(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": mlp(), "b": mlp()})
    dense = copy.deepcopy(model)
    gs.compress(model, "int8")
    save(model["b"], tmp_path / "b")
    loaded = load(tmp_path / "b", dense["b"])
    assert loaded is dense["b"]
    assert same_outputs(dense["b"], model["b"], torch.randn(2, 40))


def test_the_layer_itself_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    dense = nn.Linear(40, 16).train()
    layer = gs.nn.Linear.from_dense(dense, "int8")
    loaded = through_files(layer, dense, tmp_path)
    assert type(loaded) is gs.nn.Linear
    assert loaded.training
    check_same(loaded, layer)


def test_an_embedding_outside_of_the_model_has_its_table(tmp_path: Path) -> None:
    model = gs.compress(Tied(), "int8")
    loaded = through_files(model.tokens, None, tmp_path)
    assert torch.equal(loaded.weight.detach(), model.tokens.weight.detach())


# --- a new module, or a new argument of one, must be known here ---


def test_every_module_is_known() -> None:
    modules = {
        getattr(gs.nn, name) for name in gs.nn.__all__ if inspect.isclass(getattr(gs.nn, name))
    }
    assert {kind.module for kind in KINDS.values()} - {nn.Sequential, nn.Conv2d} == modules


@pytest.mark.parametrize("name", [name for name in KINDS if "." not in name])
def test_every_argument_of_a_module_is_saved(name: str) -> None:
    kind = KINDS[name]
    takes_module = "scheme" in inspect.signature(kind.module.__init__).parameters
    made = kind.replaces[0] if takes_module else kind.module
    arguments = set(inspect.signature(made.__init__).parameters)
    if name in ("LSTM", "GRU", "RNN"):
        arguments = set(inspect.signature(nn.RNNBase.__init__).parameters) - {"mode", "proj_size"}
        arguments |= {"LSTM": {"proj_size"}, "RNN": {"nonlinearity"}}.get(name, set())
    weights = {"self", "weight", "dtype", "activations", "input_scale", "device"}
    biases = set() if takes_module else {"bias"}
    own = {"from_conv1d"} if name == "Linear" else set()
    assert arguments - weights - biases == set(kind.settings) - own
