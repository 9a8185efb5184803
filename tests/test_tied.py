"""An embedding and an output head that share one packed weight."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import gossamer as gs

N, K = 96, 64


class Model(torch.nn.Module):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(N, K)
        self.head = torch.nn.Linear(K, N, bias=bias)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.embed(tokens))


def tied(scheme: str = "int8", bias: bool = False) -> Model:
    model = Model(bias)
    model.embed, model.head = gs.nn.tied_pair(model.embed, model.head, scheme)  # type: ignore[assignment]
    return model


def shares(model: Model) -> bool:
    one = model.embed.packed is model.head.packed
    return one and [name for name, _ in model.named_buffers()] == ["head.packed"]


def outputs(model: Model) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(N).view(4, -1))  # type: ignore[no-any-return]


class TestPair:
    @pytest.mark.parametrize("scheme", ["int8", "int8-weight-only", "int4-g32", "nf4", "fp8"])
    def test_equals_two_layers_made_apart(self, scheme: str) -> None:
        dense = Model(bias=True)
        embed, head = gs.nn.tied_pair(dense.embed, dense.head, scheme)
        assert embed.packed is head.packed
        assert head.bias is dense.head.bias
        tokens = torch.randint(0, N, (2, 7))
        x = embed(tokens)
        assert torch.equal(x, gs.nn.Embedding.from_dense(dense.embed, scheme)(tokens))
        assert torch.equal(head(x), gs.nn.Linear.from_dense(dense.head, scheme)(x))
        assert embed.weight_error == head.weight_error

    def test_memory_is_counted_once(self) -> None:
        model = tied()
        assert shares(model)
        assert repr(model.embed) == "Embedding(96, 64, format=int8, tied)"
        assert list(model.parameters()) == []

    def test_copies_share(self) -> None:
        model = tied("int4", bias=True)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        saved = torch.load(file, weights_only=False)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), saved):
            assert shares(other)
            assert other.head.packed is not model.head.packed
            assert torch.equal(outputs(other), outputs(model))

    def test_state_dict_holds_both_names(self) -> None:
        model = tied("int8", bias=True)
        state = model.state_dict()
        names = ["embed.weight", "embed.weight_scale", "head.bias"]
        assert sorted(state) == [*names, "head.weight", "head.weight_scale"]
        other = tied("int8", bias=True)
        other.load_state_dict(state)
        assert shares(other)
        assert torch.equal(outputs(other), outputs(model))

    @pytest.mark.parametrize("missing", ["embed", "head"])
    def test_one_of_both_names_is_enough_where_not_strict(self, missing: str) -> None:
        model, other = tied(), tied()
        state = {k: v for k, v in model.state_dict().items() if not k.startswith(missing)}
        with pytest.raises(RuntimeError, match=f"Missing key.*{missing}.weight"):
            tied().load_state_dict(state)
        other.load_state_dict(state, strict=False)
        assert shares(other)
        assert torch.equal(outputs(other), outputs(model))

    def test_dense_checkpoints_are_quantized(self) -> None:
        dense, model = Model(), tied()
        model.load_state_dict(dense.state_dict())
        assert shares(model)
        embed, head = gs.nn.tied_pair(dense.embed, dense.head)
        assert torch.equal(outputs(model), head(embed(torch.arange(N).view(4, -1))))

    def test_dtypes_move_together(self) -> None:
        model = tied(bias=True).to(torch.bfloat16)
        assert model.embed.dtype is model.head.dtype is torch.bfloat16
        assert outputs(model).dtype is torch.bfloat16
        model.embed.float()
        assert model.head.weight.dtype is torch.float32
        assert shares(model)

    def test_compile_and_export(self) -> None:
        model, tokens = tied(), torch.randint(0, N, (2, 3))
        with torch.no_grad():
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
            assert torch.equal(compiled(tokens), model(tokens))
            program = torch.export.export(model, (tokens,))
            assert torch.equal(program.module()(tokens), model(tokens))

    def test_what_is_not_tied(self) -> None:
        dense = Model()
        with pytest.raises(ValueError, match="its weight is not the parameter of the embedding"):
            gs.nn.tied_pair(torch.nn.Embedding(N, K), dense.head)

        class Scaled(torch.nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        scaled = Scaled(K, N, bias=False)
        scaled.weight = dense.embed.weight
        with pytest.raises(TypeError, match=r"tied_pair: head: got Scaled, wanted nn\.Linear"):
            gs.nn.tied_pair(dense.embed, scaled)
        other = gs.nn.Linear.from_dense(torch.nn.Linear(K, N + 1))
        with pytest.raises(ValueError, match=r"Embedding: weight: got shape \(97, 64\)"):
            gs.nn.Embedding.from_dense(dense.embed, head=other)

    def test_tying_again_changes_nothing(self) -> None:
        model = tied()
        model.head.weight = model.embed.weight
        model.embed.weight = model.head.weight
        assert shares(model)
        assert list(model.parameters()) == []
        with pytest.raises(AttributeError, match="packed"):
            model.head.weight = tied().embed.weight
        with pytest.raises(AttributeError, match="packed"):
            model.embed.weight = tied().head.weight


class TestTransformers:
    @pytest.fixture
    def model(self) -> Any:
        transformers = pytest.importorskip("transformers")
        config = transformers.LlamaConfig(
            vocab_size=N,
            hidden_size=K,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=0,
        )
        return transformers.LlamaForCausalLM(config).eval()

    @pytest.mark.parametrize("scheme", ["int8", "int4-g32"])
    def test_llama(self, model: Any, scheme: str) -> None:
        apart = copy.deepcopy(model)
        pair = gs.nn.tied_pair(model.model.embed_tokens, model.lm_head, scheme)
        model.model.embed_tokens, model.lm_head = pair
        embed = gs.nn.Embedding.from_dense(apart.model.embed_tokens, scheme)
        apart.lm_head = gs.nn.Linear.from_dense(apart.lm_head, scheme)
        apart.model.embed_tokens = embed
        tokens = torch.randint(1, N, (2, 9))
        with torch.inference_mode():
            assert torch.equal(model(tokens).logits, apart(tokens).logits)
            settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": tokens > 0}
            new = model.generate(tokens, **settings)
            assert torch.equal(new, apart.generate(tokens, **settings))
        assert new.shape == (2, 14)

    def test_tie_weights_is_harmless(self, model: Any) -> None:
        embed, head = gs.nn.tied_pair(model.model.embed_tokens, model.lm_head)
        model.set_input_embeddings(embed)
        model.set_output_embeddings(head)
        model.tie_weights()
        assert model.lm_head.packed is model.model.embed_tokens.packed
        names = [name for name, _ in model.named_parameters()]
        assert not any("embed_tokens" in name or "lm_head" in name for name in names)
