"""gs.compress on whole models of torch's own layers: what they compute stays close, end to end."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs

# Of the output, relative (Frobenius): what the errors of the weights and, if rounded, of the
# activations add up to in these models, and half as much again.
LARGEST_ERROR = {"int8": 0.03, "int8-weight-only": 0.03, "bf16": 0.015, "fp8": 0.09}
LARGEST_ERROR |= {"int4-g32": 0.3, "nf4": 0.3}


class Tagger(nn.Module):
    """A recurrent tagger: embeddings, two directions of an LSTM, a label for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(500, 64, padding_idx=0)
        self.lstm = nn.LSTM(64, 256, batch_first=True, bidirectional=True)
        self.label = nn.Linear(512, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(tokens), (tokens > 0).sum(1), batch_first=True, enforce_sorted=False
        )
        output, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        scores: Tensor = self.label(output)
        return scores


class Bottleneck(nn.Module):
    """1x1, 3x3 in groups and 1x1 convolutions around which the input passes."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        inner = channels // 2
        self.body = nn.Sequential(
            *normed(nn.Conv2d(channels, inner, 1, bias=False)),
            nn.ReLU(),
            *normed(nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False)),
            nn.ReLU(),
            *normed(nn.Conv2d(inner, channels, 1, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def normed(conv: nn.Conv2d) -> tuple[nn.Module, ...]:
    return conv, nn.BatchNorm2d(conv.out_channels)


def cnn() -> tuple[nn.Module, tuple[Any, ...]]:
    model = nn.Sequential(
        *normed(nn.Conv2d(3, 32, 7, stride=2, padding=3, bias=False)),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        Bottleneck(32, groups=1),
        *normed(nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)),
        nn.ReLU(),
        Bottleneck(64, groups=2),
        Bottleneck(64, groups=32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        model(images)  # statistics for the norms
    return model, (images,)


def transformer() -> tuple[nn.Module, tuple[Any, ...]]:
    model = nn.Transformer(64, 4, 2, 2, 128, batch_first=True)
    return model, (torch.randn(2, 9, 64), torch.randn(2, 7, 64))


def tagger() -> tuple[nn.Module, tuple[Any, ...]]:
    tokens = torch.randint(1, 500, (3, 11))
    tokens[1, 6:] = 0
    return Tagger(), (tokens,)


MODELS = {"cnn": cnn, "transformer": transformer, "tagger": tagger}
PACKED_KINDS = {
    "cnn": {"Conv2d": 11, "Linear": 1},
    "transformer": {"MultiheadAttention": 6, "Linear": 8},
    "tagger": {"Embedding": 1, "LSTM": 1, "Linear": 1},
}


def outputs(model: nn.Module, arguments: tuple[Any, ...]) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(*arguments)
    return result


def error(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want).norm() / want.norm())


@pytest.mark.parametrize("name", MODELS)
class TestEndToEnd:
    @pytest.mark.parametrize("scheme", LARGEST_ERROR)
    def test_output_stays_close(self, name: str, scheme: str) -> None:
        dense, arguments = MODELS[name]()
        want = outputs(dense.eval(), arguments)
        model = gs.compress(dense, scheme)
        assert gs.report(model).left_alone == ()
        found = error(outputs(model, arguments), want)
        assert 1e-6 < found < LARGEST_ERROR[scheme]

    def test_every_layer_is_packed(self, name: str) -> None:
        model = gs.compress(MODELS[name]()[0], "int8")
        kinds: dict[str, int] = {}
        inside: set[int] = set()
        for module in model.modules():
            if type(module).__module__.startswith("gossamer.nn") and id(module) not in inside:
                inside |= set(map(id, module.modules()))
                kinds[type(module).__name__] = kinds.get(type(module).__name__, 0) + 1
        assert kinds == PACKED_KINDS[name]

    def test_saved_copied_and_loaded(self, name: str) -> None:
        dense, arguments = MODELS[name]()
        model = gs.compress(copy.deepcopy(dense).eval(), "int8")
        want = outputs(model, arguments)
        other = gs.compress(MODELS[name]()[0].eval(), "int8")
        assert not torch.equal(outputs(other, arguments), want)
        for state in (model.state_dict(), dense.state_dict()):
            other.load_state_dict(state)
            assert torch.equal(outputs(other, arguments), want)
        assert torch.equal(outputs(copy.deepcopy(model), arguments), want)

    @pytest.mark.parametrize("scheme", ["int8", "int4-asym", "fp8"])
    def test_pickled(self, name: str, scheme: str) -> None:
        dense, arguments = MODELS[name]()
        model = gs.compress(dense.eval(), scheme)
        other = pickle.loads(pickle.dumps(model))
        assert torch.equal(outputs(other, arguments), outputs(model, arguments))
        assert gs.report(other).totals == gs.report(model).totals

    def test_in_bfloat16(self, name: str) -> None:
        dense, arguments = MODELS[name]()
        want = outputs(dense.eval(), arguments)
        model = gs.compress(dense, "int8").to(torch.bfloat16)
        arguments = tuple(x.bfloat16() if x.is_floating_point() else x for x in arguments)
        got = outputs(model, arguments)
        assert got.dtype is torch.bfloat16
        assert error(got, want) < 0.06


def test_what_cannot_be_packed_leaves_the_model_as_it_was() -> None:
    """Of any kind: the last layer is the wrong one, and nothing before it was touched."""
    broken = {
        "conv": nn.Conv2d(64, 64, 3),
        "up": nn.ConvTranspose1d(64, 64, 3),
        "embed": nn.Embedding(100, 64),
        "bag": nn.EmbeddingBag(100, 64),
        "gru": nn.GRU(64, 256),
        "cell": nn.RNNCell(64, 256),
        "attention": nn.MultiheadAttention(64, 4),
    }
    for name, module in broken.items():
        weight = next(parameter for parameter in module.parameters() if parameter.dim() > 1)
        with torch.no_grad():
            weight.view(-1)[70] = torch.nan
        model = nn.ModuleDict({"first": nn.Linear(64, 64), name: module})
        with pytest.raises(ValueError, match=rf"layer '{name}': weight: NaN or infinity in row"):
            gs.compress(model, "int8")
        assert (type(model["first"]), model[name]) == (nn.Linear, module)
