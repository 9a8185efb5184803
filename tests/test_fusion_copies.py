"""Fused models through deepcopy, pickle, other dtypes and state dicts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs

from .fusion_models import (
    bert_attention,
    made,
    results,
    run,
    through_pickle,
    through_torch_save,
)


@pytest.mark.parametrize("name", ["Bert", "GPT2", "Llama"])
class TestCopies:
    @pytest.mark.parametrize("again", [copy.deepcopy, through_pickle, through_torch_save])
    def test_copies(self, name: str, again: Callable[[nn.Module], Any]) -> None:
        model = made(name)[2]
        other = again(model)
        assert torch.equal(run(other), run(model))
        assert results(other) == results(model)
        assert gs.report(other).totals == gs.report(model).totals  # shared bytes stay shared
        mine = {id(part) for part in (*model.parameters(), *model.buffers(), *model.modules())}
        theirs = {id(part) for part in (*other.parameters(), *other.buffers(), *other.modules())}
        assert not mine & theirs

    def test_to_dtype(self, name: str) -> None:
        plain, fused = (copy.deepcopy(model).to(torch.bfloat16) for model in made(name)[1:])
        want, got = run(plain), run(fused)
        assert got.dtype == torch.bfloat16
        # Unfused, the output before the activation is rounded to bfloat16 too.
        assert float((got - want).float().norm() / want.float().norm()) < 0.03
        fewer, more = (gs.report(each).totals.model_bytes_after for each in (fused, plain))
        assert fewer <= more

    @pytest.mark.parametrize("source", [0, 1, 2], ids=["dense", "unfused", "fused"])
    def test_loading(self, name: str, source: int) -> None:
        state = made(name)[source].state_dict()
        for wanted in made(name)[1:]:
            target = copy.deepcopy(wanted)
            wipe(target)
            assert not torch.equal(run(target), run(wanted))
            target.load_state_dict(state, strict=True)
            assert torch.equal(run(target), run(wanted))
            assert gs.report(target).fusions == gs.report(wanted).fusions
            assert gs.report(target).totals.bytes_after == gs.report(wanted).totals.bytes_after


def wipe(model: nn.Module) -> None:
    """Load zeros into every packed layer and parameter."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(zeros)


class TestLoadingSome:
    def test_one_of_three(self) -> None:
        attention = bert_attention()
        dense = torch.randn(64, 64)
        x = torch.randn(2, 64)
        want = attention.query(x)
        attention.load_state_dict({"key.weight": dense}, strict=False)
        assert attention.key.shares
        assert torch.equal(attention.key.quantized().values, gs.formats.Int8.quantize(dense).values)
        assert attention.key.weight_error is not None
        assert torch.equal(attention.query(x), want)

    def test_other_group_sizes_take_them_apart_and_the_same_together_again(self) -> None:
        attention = bert_attention()
        other = copy.deepcopy(attention)
        state = {
            f"{name}.{key}": tensor
            for name in ("query", "key", "value")
            for key, tensor in gs.formats.Int8.quantize(torch.randn(64, 64), 32).state().items()
        }
        x = torch.randn(2, 64)
        want = other.value(x)
        first = {key: tensor for key, tensor in state.items() if key.startswith("query")}
        other.load_state_dict(first, strict=False)
        assert (other.query.group_size, other.value.group_size) == (32, None)
        assert not other.value.shares
        assert torch.equal(other.value(x), want)
        attention.load_state_dict(state, strict=False)
        other.load_state_dict(state, strict=False)
        for attn in (attention, other):
            assert attn.query.shares
            assert attn.query.group_size == attn.value.group_size == 32
        for name in ("query", "key", "value"):
            assert torch.equal(attention.get_submodule(name)(x), other.get_submodule(name)(x))

    def test_wrong_shapes_name_the_key_and_leave_the_weight(self) -> None:
        attention = bert_attention()
        before = attention.key.quantized()
        with pytest.raises(RuntimeError, match=r"key\.weight: got shape"):
            attention.load_state_dict({"key.weight": torch.randn(32, 64)}, strict=False)
        assert torch.equal(attention.key.quantized().values, before.values)

    def test_copies_of_layers_that_are_apart(self) -> None:
        attention = bert_attention()
        weight = gs.formats.Int8.quantize(torch.randn(64, 64), 32)
        attention.key.load_state_dict({**weight.state(), "bias": torch.zeros(64)})
        x = torch.randn(2, 64)
        for again in (copy.deepcopy, through_pickle):
            other = again(attention)
            assert not other.key.shares
            for name in ("query", "key", "value"):
                assert torch.equal(other.get_submodule(name)(x), attention.get_submodule(name)(x))
