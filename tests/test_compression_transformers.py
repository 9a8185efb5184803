"""gs.compress on models of transformers and on torch's encoders."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs

from .compressed_models import packed_names, reasons


class Conv1D(nn.Module):
    """A stand-in with the name, module and arithmetic of the class in transformers."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(
            *x.shape[:-1], self.nf
        )


class TestConv1D:
    def test_stand_in(self) -> None:
        model = nn.Sequential(Conv1D(24, 16)).eval()
        x = torch.randn(2, 5, 16)
        with torch.no_grad():
            want = model(x)
            got = gs.compress(model, "int8")(x)
        assert model[0].weight.shape == (24, 16)
        assert float((got - want).norm() / want.norm()) < 0.02

    def test_same_name_elsewhere_is_not_one(self) -> None:
        other = type("Conv1D", (Conv1D,), {"__module__": "elsewhere"})
        model = nn.Sequential(other(24, 16), nn.Linear(4, 4))
        gs.compress(model, "int8")
        assert packed_names(model) == ["1"]

    def test_gpt2_of_transformers(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=64, vocab_size=100)
        model = transformers.GPT2LMHeadModel(config).eval()
        tokens = torch.arange(12)[None]
        with torch.no_grad():
            want = model(tokens).logits
            gs.compress(model, "int8")
            got = model(tokens).logits
        assert len(packed_names(model)) == 11  # eight in two blocks, two embeddings and the head
        assert reasons(model) == {}
        assert model.lm_head.packed is model.transformer.wte.packed
        assert float((got - want).norm() / want.norm()) < 0.05

    def test_bert_of_transformers(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_size=64,
            intermediate_size=96,
            vocab_size=100,
        )
        model = transformers.BertModel(config).eval()
        tokens = torch.arange(12)[None]
        with torch.no_grad():
            want = model(tokens).last_hidden_state
            got = gs.compress(model, "int8")(tokens).last_hidden_state
        assert len(packed_names(model)) == 15  # two of three embeddings: token types are two rows
        assert set(reasons(model)) == {"embeddings.token_type_embeddings"}
        assert float((got - want).norm() / want.norm()) < 0.05


@pytest.mark.filterwarnings("error:the values of a packed weight")
class TestTransformerEncoder:
    """torch's fused encoder kernel and its nested tensors must never meet packed weights."""

    def make(self, **options: Any) -> nn.TransformerEncoder:
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, **options)
        return nn.TransformerEncoder(layer, 2).eval()

    @pytest.mark.parametrize("activation", ["relu", "gelu"])
    @pytest.mark.parametrize("padded", [False, True])
    @pytest.mark.parametrize("dense_attention", [False, True])
    def test_same_as_the_ordinary_path(
        self, activation: str, padded: bool, dense_attention: bool
    ) -> None:
        model = self.make(activation=activation)
        x = torch.randn(3, 6, 32)
        mask = torch.zeros(3, 6, dtype=torch.bool)
        mask[1, 4:] = True
        arguments = {"src_key_padding_mask": mask} if padded else {}
        seen = []
        with torch.no_grad():
            want = model(x, **arguments)
            gs.compress(model, "int8", ignore="*.self_attn" if dense_attention else None)
            model.layers[0].linear1.register_forward_hook(lambda *args: seen.append(args))
            got = model(x, **arguments)
        assert seen
        keep = ~mask if padded else torch.ones_like(mask)
        assert float((got - want)[keep].norm() / want[keep].norm()) < 0.02
        linear = {f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)}
        attention = {f"layers.{i}.self_attn" for i in (0, 1)}
        inner = {f"{name}.out_proj" for name in attention}
        if dense_attention:
            assert set(packed_names(model)) == linear
            assert set(reasons(model)) == attention | inner
        else:
            assert set(packed_names(model)) == linear | attention
            assert reasons(model) == {}

    def test_compiled(self) -> None:
        torch._dynamo.reset()
        model = gs.compress(self.make(), "int8")
        x = torch.randn(3, 6, 32)
        with torch.no_grad():
            got = torch.compile(model, backend="aot_eager")(x)
            torch.testing.assert_close(got, model(x))

    def test_layers_left_alone_keep_their_fast_path(self) -> None:
        model = nn.ModuleDict({"a": self.make(), "b": self.make()})
        gs.compress(model, "int8", targets="a")
        assert model["b"].layers[0].activation_relu_or_gelu == 1
        assert model["a"].layers[0].activation_relu_or_gelu == 0
        assert (model["a"].use_nested_tensor, model["b"].use_nested_tensor) == (False, True)

    def test_multihead_attention_alone(self) -> None:
        model = nn.ModuleDict({"attention": nn.MultiheadAttention(32, 4), "out": nn.Linear(32, 4)})
        inner = nn.modules.linear.NonDynamicallyQuantizableLinear
        for settings in ({"targets": [inner, "out"]}, {"ignore": inner}):
            other = gs.compress(copy.deepcopy(model), "int8", **settings)
            assert packed_names(other) == ["out"]
        assert reasons(other)["attention"] == "attention.out_proj, in it, is ignored"
        gs.compress(model, "int8")
        assert packed_names(model) == ["attention", "out"]
        x = torch.randn(5, 2, 32)
        assert model["attention"](x, x, x)[0].shape == (5, 2, 32)
