"""Fusion by named pattern: same numbers, same state dict, fewer calls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer import _ops

from .fusion_models import (
    ARCHITECTURES,
    QKV,
    SELF,
    TOKENS,
    bert_attention,
    made,
    make,
    pair,
    reasons,
    results,
    run,
)


@pytest.mark.parametrize("name", ARCHITECTURES)
class TestArchitectures:
    def test_same_output(self, name: str) -> None:
        _, plain, fused = made(name)
        assert results(fused) == set(ARCHITECTURES[name][2])
        assert len(gs.report(fused).fusions) == len(ARCHITECTURES[name][2])
        assert reasons(fused) == {}
        want, got = run(plain), run(fused)
        if "gelu" in str(results(fused)):
            # The kernel's GELU differs from torch's in the last bits, and so may roundings to int8.
            assert float((got - want).norm() / want.norm()) < 2e-3
        else:
            assert torch.equal(got, want)

    def test_same_names_and_tensors(self, name: str) -> None:
        _, plain, fused = made(name)
        want, got = plain.state_dict(), fused.state_dict()
        assert list(want) == list(got)
        for key, value in want.items():
            assert torch.equal(value, got[key]), key
            assert got[key].untyped_storage().nbytes() == value.untyped_storage().nbytes(), key
        assert linear_names(plain) == linear_names(fused)


def linear_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, gs.nn.Linear)]


@pytest.mark.parametrize(
    ("name", "changes"),
    [("Bert", {"hidden_act": "relu"}), ("GPT2", {"activation_function": "relu"})],
)
def test_same_bits_with_an_activation_that_rounds_nothing(
    name: str, changes: dict[str, Any]
) -> None:
    plain, fused = pair(name, **changes)
    assert any("relu" in result for result in results(fused))
    assert torch.equal(run(plain), run(fused))


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the rows of the weight of every direct call of the kernel."""
    seen: list[int] = []
    linear = _ops.linear

    def counted(x: Any, packed: Any, bias: Any, activation: str, handle: Any) -> Any:
        seen.append(handle.out_features)
        return linear(x, packed, bias, activation, handle)

    monkeypatch.setattr(_ops, "linear", counted)
    return seen


class TestOneCall:
    def test_bert(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = gs.compress(make("Bert"), "int8")
        seen = calls(monkeypatch)
        run(model)
        assert seen == [3 * 64, 64, 96, 64, 64]  # q/k/v, attention, up, down, pooler

    def test_llama(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = gs.compress(make("Llama"), "int8", ignore="lm_head")
        seen = calls(monkeypatch)
        run(model)
        assert seen == [64 + 32 + 32, 64, 2 * 96, 64]

    def test_packed_weights_are_held_once(self) -> None:
        attention = bert_attention()
        layers = [attention.query, attention.key, attention.value]
        assert layers[0].packed is layers[1].packed is layers[2].packed
        assert len(list(attention.buffers())) == 1


class TestModels:
    def test_missing_biases(self) -> None:
        model = make("Bert")
        model.get_submodule(SELF).key.bias = None
        plain = gs.compress(copy.deepcopy(model), "int8", fuse=False)
        gs.compress(model, "int8")
        assert QKV in results(model)
        x = torch.randn(2, 64)
        for name in ("query", "key", "value"):
            want = plain.get_submodule(f"{SELF}.{name}")(x)
            assert torch.equal(model.get_submodule(f"{SELF}.{name}")(x), want)
        assert "encoder.layer.0.attention.self.key.bias" not in model.state_dict()

    def test_at_any_depth(self) -> None:
        encoder = nn.ModuleList([nn.ModuleDict({"transformer": make("Bert")}), nn.Linear(64, 8)])
        gs.compress(encoder, "int8")
        found = gs.report(encoder).fusions
        assert len(found) == 2
        assert all(item.module.startswith("0.transformer.encoder.layer.") for item in found)
        assert len(gs.report(nn.Sequential(encoder)).fusions) == 2

    def test_twice_finds_them_again(self) -> None:
        model = gs.compress(make("Llama"), "int8", ignore="lm_head")
        before = gs.report(model)
        attention = model.model.layers[0].self_attn.q_proj
        gs.compress(model, "int8", ignore="lm_head")
        assert gs.report(model).fusions == before.fusions
        assert model.model.layers[0].self_attn.q_proj is attention

    def test_fusing_later(self) -> None:
        _, plain, fused = made("Llama")
        model = gs.compress(copy.deepcopy(plain), "int8")
        assert results(model) == results(fused)
        assert torch.equal(run(model), run(fused))

    def test_hooks_and_layers_put_in_after_fusion(self) -> None:
        model = copy.deepcopy(made("Llama")[2])
        want, seen = run(model), []
        mlp = model.model.layers[0].mlp
        mlp.gate_proj.register_forward_hook(lambda module, args, out: seen.append(out.shape))
        assert torch.equal(run(model), want)
        assert seen == [(2, 12, 96)]
        mlp.up_proj = nn.Sequential(mlp.up_proj)
        assert torch.equal(run(model), want)

    def test_gradients_of_x(self) -> None:
        grads = []
        for model in made("Llama")[1:]:
            x = torch.linspace(-1, 1, 640).view(1, 10, 64).requires_grad_()
            model(inputs_embeds=x).logits.square().sum().backward()
            grads.append(x.grad)
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)

    def test_cached_decoding(self) -> None:
        _, plain, fused = made("Llama")
        wanted, got = (
            model.generate(TOKENS, max_new_tokens=5, do_sample=False, pad_token_id=0)
            for model in (plain, fused)
        )
        assert torch.equal(wanted, got)
        assert wanted.shape == (2, 17)

    def test_shared_memory(self) -> None:
        model = copy.deepcopy(made("Llama")[2])
        want = run(model)
        model.share_memory()
        assert torch.equal(run(model), want)
