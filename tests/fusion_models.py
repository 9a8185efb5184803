"""Small models of each architecture that is fused: dense, packed, and packed and fused."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs

transformers = pytest.importorskip("transformers")

SMALL = {
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}  # fewer heads for keys and values than for queries
QKV = "query, key, value"
QKV_PROJ = "q_proj, k_proj, v_proj"
GATED = "gate_proj, up_proj + silu * mul"
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "Bert": ("BertModel", SMALL, (QKV, "dense + gelu")),
    "Roberta": ("RobertaModel", SMALL, (QKV, "dense + gelu")),
    "XLMRoberta": ("XLMRobertaModel", SMALL, (QKV, "dense + gelu")),
    "GPT2": (
        "GPT2LMHeadModel",
        {"n_layer": 1, "n_head": 4, "n_embd": 64, "n_positions": 64, "vocab_size": 100},
        ("c_fc + gelu_tanh",),
    ),
    "Llama": ("LlamaForCausalLM", GROUPED, (QKV_PROJ, GATED)),
    "Mistral": ("MistralForCausalLM", GROUPED, (QKV_PROJ, GATED)),
    "Qwen2": ("Qwen2ForCausalLM", GROUPED, (QKV_PROJ, GATED)),
    "Qwen3": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}, (QKV_PROJ, GATED)),
    "SmolLM3": ("SmolLM3ForCausalLM", {**GROUPED, "pad_token_id": 0}, (QKV_PROJ, GATED)),
}
LAYER = "encoder.layer.0."
SELF = LAYER + "attention.self"
TOKENS = torch.arange(24).view(2, 12) + 3


def make(name: str, **changes: Any) -> nn.Module:
    kind, settings, _ = ARCHITECTURES[name]
    config = getattr(transformers, f"{name}Config")(**{**settings, **changes})
    model: nn.Module = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):  # transformers makes them zero
                parameter.normal_()
    return model


def run(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output = model(input_ids=TOKENS)
    return output.logits if "logits" in output else output.last_hidden_state


def pair(name: str, **changes: Any) -> tuple[nn.Module, nn.Module]:
    """The same model packed, unfused and fused."""
    plain = make(name, **changes)
    fused = copy.deepcopy(plain)
    return gs.compress(plain, "int8", fuse=False), gs.compress(fused, "int8")


@functools.cache
def made(name: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Dense, packed, and packed and fused: for tests that change nothing."""
    dense = make(name)
    plain, fused = copy.deepcopy(dense), copy.deepcopy(dense)
    return dense, gs.compress(plain, "int8", fuse=False), gs.compress(fused, "int8")


def results(model: nn.Module) -> set[str]:
    return {item.result for item in gs.report(model).fusions if not item.reason}


def reasons(model: nn.Module) -> dict[str, str]:
    return {
        f"{item.module} {item.result}".strip(): item.reason
        for item in gs.report(model).fusions
        if item.reason
    }


def bert_attention(fuse: bool = True, **changes: Any) -> nn.Module:
    model = gs.compress(make("Bert", **changes), "int8", fuse=fuse)
    return model.get_submodule(SELF)


def through_pickle(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
