"""What is not fused, and the reason that the report gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.fusion.gated import GatedMLP
from gossamer.nn.projections import Projection

from .fusion_models import (
    GATED,
    LAYER,
    QKV,
    SELF,
    make,
    reasons,
    run,
)


class TestNotFused:
    """What is not fused computes as the unfused model does, and the report says why."""

    def check(self, model: nn.Module, expected: dict[str, str], **options: Any) -> nn.Module:
        plain = gs.compress(copy.deepcopy(model), "int8", fuse=False, **options)
        gs.compress(model, "int8", **options)
        assert reasons(model) == expected
        return plain

    def bert(self, **changes: Any) -> nn.Module:
        return make("Bert", **changes)

    def test_turned_off(self) -> None:
        model = gs.compress(make("Llama"), "int8", fuse=False)
        assert gs.report(model).fusions == ()
        assert not any(isinstance(module, Projection | GatedMLP) for module in model.modules())
        assert "fusion" not in str(gs.report(model))

    def test_unknown_architectures(self) -> None:
        model = gs.compress(nn.Sequential(nn.Linear(8, 8), nn.GELU()), "int8")
        assert reasons(model) == {"": "no pattern for Sequential"}
        assert "fusion: no pattern for Sequential" in str(gs.report(model)).splitlines()

    @pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
    def test_hooks(self, kind: str) -> None:
        model, seen = self.bert(), []
        for name in ("attention.self.key", "intermediate.dense"):
            layer = model.get_submodule(LAYER + name)
            getattr(layer, f"register_{kind}_hook")(lambda *args: seen.append(1))
        plain = self.check(
            model,
            {
                f"{SELF} {QKV}": "key: has hooks",
                f"{LAYER}intermediate dense + gelu": "dense: has hooks",
            },
        )
        assert torch.equal(run(model), run(plain))
        assert kind == "full_backward" or seen

    def test_hooks_on_activations_and_blocks(self) -> None:
        bert = self.bert()
        act = bert.get_submodule(LAYER + "intermediate.intermediate_act_fn")
        act.register_forward_hook(lambda *args: None)
        gs.compress(bert, "int8")
        key = f"{LAYER}intermediate dense + gelu"
        assert reasons(bert) == {key: "intermediate_act_fn: has hooks"}
        llama = make("Llama")
        llama.model.layers[0].mlp.register_forward_hook(lambda *args: None)
        gs.compress(llama, "int8")
        assert reasons(llama) == {f"model.layers.0.mlp {GATED}": "the module has hooks"}

    def test_ignored_and_not_targeted(self) -> None:
        model = self.bert()
        plain = self.check(model, {f"{SELF} {QKV}": "value: ignored"}, ignore="*.value")
        assert torch.equal(
            model.get_submodule(SELF).query(torch.ones(1, 64)),
            plain.get_submodule(SELF).query(torch.ones(1, 64)),
        )
        model = self.bert()
        self.check(
            model,
            {
                f"{SELF} {QKV}": "query: not among the targets",
                f"{LAYER}intermediate dense + gelu": "dense: not among the targets",
            },
            targets="*.key",
        )

    def test_subclasses_and_several_places(self) -> None:
        class Loud(nn.Linear):
            pass

        model = self.bert()
        attention = model.get_submodule(SELF)
        attention.key = Loud(64, 64)
        why = "key: Loud is a subclass of nn.Linear; name its class in targets"
        self.check(model, {f"{SELF} {QKV}": why})
        model = self.bert()
        attention = model.get_submodule(SELF)
        attention.key = attention.query
        self.check(model, {f"{SELF} {QKV}": "query: is in several places"})
        assert model.get_submodule(SELF).key is model.get_submodule(SELF).query

    def test_formats_that_cannot_be_joined(self) -> None:
        model = self.bert()  # layers of 64 rows, blocks of 128
        gs.compress(model, "fp8-block")
        (reason,) = reasons(model).values()
        assert "blocks cannot be divided" in reason
        assert type(model.get_submodule(SELF).query) is gs.nn.Linear

    def test_different_layers(self) -> None:
        model = self.bert()
        model.get_submodule(SELF).key.bfloat16()
        self.check(model, {f"{SELF} {QKV}": f"{QKV}: have different dtypes"})
        model = self.bert()
        gs.compress(model, gs.Quantize("int8", 32), targets="*.key", fuse=False)
        gs.compress(model, "int8")
        assert reasons(model) == {f"{SELF} {QKV}": f"{QKV}: have different formats"}

    def test_activations_no_kernel_computes(self) -> None:
        model = self.bert(hidden_act="quick_gelu")
        plain = self.check(
            model,
            {
                f"{LAYER}intermediate dense + QuickGELUActivation": (
                    "intermediate_act_fn: no kernel computes QuickGELUActivation"
                )
            },
        )
        assert torch.equal(run(model), run(plain))
        llama = make("Llama", hidden_act="gelu")
        gs.compress(llama, "int8")
        assert reasons(llama) == {
            f"model.layers.0.mlp {GATED}": "act_fn: no kernel computes GELUActivation"
        }

    def test_cross_attention(self) -> None:
        model = self.bert(is_decoder=True, add_cross_attention=True)
        gs.compress(model, "int8")
        cross = model.get_submodule(LAYER + "crossattention.self")
        assert type(cross.query) is gs.nn.Linear
        assert isinstance(model.get_submodule(SELF).query, Projection)
