"""Streaming over blocks gives each what the changed model, run as a whole, would give it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.calibration import Block, Call, cached_bytes, call, stream, whole_model

from .calibration_models import (
    Residual,
    Staged,
    bert,
    blocks,
    gemma,
    gpt2,
    layers_of,
    llama,
    padded_batches,
    plain,
    rows,
    t5,
    token_ids,
)


def images() -> list[Tensor]:
    return [torch.randn(2, 3, 8, 8) for _ in range(3)]


def tokens() -> list[dict[str, Tensor]]:
    return [{"input_ids": token_ids(2, count)} for count in (11, 11, 8)]


def short_first() -> list[dict[str, Tensor]]:
    """Within the first, all tokens see each other: no block needs a mask."""
    return [{"input_ids": token_ids(2, count)} for count in (3, 11)]


def translations() -> list[dict[str, Tensor]]:
    return [{**batch, "decoder_input_ids": token_ids(2, 4)} for batch in padded_batches(3)]


CASES = [
    (llama, tokens),
    (llama, lambda: padded_batches(3)),
    (gpt2, tokens),
    (gpt2, lambda: padded_batches(2)),
    (bert, lambda: padded_batches(3)),
    (gemma, tokens),
    (gemma, short_first),
    (t5, translations),
    (Staged, images),
    (plain, rows),
]
each_model = pytest.mark.parametrize(
    ("make", "batches"),
    CASES,
    ids=[
        "llama",
        "llama-padded",
        "gpt2",
        "gpt2-padded",
        "bert",
        "gemma",
        "gemma-short",
        "t5",
        "cnn",
        "plain",
    ],
)
Make = Callable[[], nn.Module]
MakeBatches = Callable[[], list[Any]]


@torch.no_grad()
def change(layer: nn.Module) -> None:
    layer.weight.mul_(1.3)
    if layer.bias is not None:
        layer.bias.add_(0.05)


def seen_by(model: nn.Module, names: list[str], batches: Any) -> dict[str, list[tuple[Any, Any]]]:
    """Input and output of modules for each batch, when the model runs as a whole."""
    seen: dict[str, list[tuple[Any, Any]]] = {name: [] for name in names}
    inputs: dict[str, Tensor] = {}
    hooks = []
    for name in names:

        def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            inputs[name] = (args[0] if args else next(iter(kwargs.values()))).clone()

        def after(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            output = output if isinstance(output, Tensor) else output[0]
            seen[name].append((inputs[name], output.clone()))

        module = model.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(module.register_forward_hook(after))
    with torch.no_grad():
        for batch in batches:
            call("test", model, batch)
    for hook in hooks:
        hook.remove()
    return seen


def assert_hidden(calls: list[Tensor], expected: list[Tensor]) -> None:
    assert len(calls) == len(expected)
    for found, wanted in zip(calls, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def hidden(block: Block) -> list[Tensor]:
    return [arguments.args[0].clone() for arguments in block.calls]


@each_model
def test_blocks_get_what_the_changed_model_gives_them(make: Make, batches: MakeBatches) -> None:
    model, data = make().eval(), batches()
    layers = layers_of(model)
    given: dict[str, list[Tensor]] = {}
    changed: list[str] = []
    for block in blocks(model, data):
        if block.name:
            given[block.name] = hidden(block)
        for name, layer in block.layers.items():
            assert layer is layers[name]
            change(layer)
            changed.append(name)
    assert sorted(changed) == sorted(layers)
    assert len(given) >= 2
    # What comes last may come first in the model: the stem of a CNN.
    for name in block.layers if not block.name else ():
        with torch.no_grad():
            layer = layers[name]
            layer.weight.div_(1.3)
            if layer.bias is not None:
                layer.bias.sub_(0.05)
    for name, calls in seen_by(model, list(given), data).items():
        assert_hidden(given[name], [x for x, _ in calls])


@each_model
def test_dense_calls_and_outputs_are_those_of_the_unchanged_model(
    make: Make, batches: MakeBatches
) -> None:
    model, data = make().eval(), batches()
    dense = copy.deepcopy(model)
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    changes = 0.0
    for block in blocks(model, data, keep_dense=True):
        if not block.name:
            assert block.dense_calls is block.dense_outputs is None
            continue
        inputs = [arguments.args[0].clone() for arguments in block.dense_calls]
        found[block.name] = inputs, [x.clone() for x in block.dense_outputs]
        changes += sum((x - y).abs().sum() for x, y in zip(hidden(block), inputs, strict=True))
        for layer in block.layers.values():
            change(layer)
    assert changes > 0
    for name, calls in seen_by(dense, list(found), data).items():
        assert_hidden(found[name][0], [x for x, _ in calls])
        assert_hidden(found[name][1], [y for _, y in calls])


@each_model
def test_running_a_block_changes_nothing(make: Make, batches: MakeBatches) -> None:
    """No cache grows, no input is written to: the second time gives the same."""
    model, data = make().eval(), batches()
    for block in blocks(model, data):
        before = hidden(block) if block.name else []
        first = block.outputs(block.calls)
        statistics = block.statistics(moments=True)
        again = block.statistics(moments=True)
        for name, found in statistics.items():
            assert found.rows == again[name].rows
            assert torch.equal(found.moment, again[name].moment)
        assert_hidden(block.outputs(block.calls), first)
        if block.name:
            assert all(map(torch.equal, hidden(block), before))


def test_statistics_of_blocks_are_those_of_the_whole_model() -> None:
    model, data = llama().eval(), padded_batches(3)
    layers = layers_of(model)
    whole = whole_model(model, layers, data, progress=False).statistics(moments=True)
    kept = sum(int(batch["attention_mask"].sum()) for batch in data)
    for block in blocks(model, data):
        found = block.statistics(moments=True)
        assert found.keys() == block.layers.keys()
        for name, statistics in found.items():
            assert statistics.rows == whole[name].rows == kept
            assert torch.allclose(statistics.moment, whole[name].moment, rtol=1e-2, atol=1e-4)
        if block.name:
            q, k, v, gate, up = (
                found[f"{block.name}.{name}_proj"]
                for name in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up")
            )
            assert q is k is v is not gate
            assert gate is up


class Routed(nn.Module):
    """A layer for most inputs, and one for those above 100."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.rare = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rare(x) if x.max() > 100 else self.usual(x)
        return y


def test_statistics_of_some_rows_go_on_until_all_layers_have_them() -> None:
    model = Routed()
    batches = [torch.full((1, 4), float(index)) for index in range(9)]
    block = whole_model(model, {"usual": model.usual}, batches)
    some = block.statistics(moments=False, rows=3)["usual"]
    assert some.rows == 3
    assert torch.equal(some.mean, block.statistics(moments=False, rows=3)["usual"].mean)
    assert (
        len({block.statistics(moments=False, rows=rows)["usual"].rows for rows in (1, 9, 99)}) == 2
    )
    for rare in range(9):
        batches = [torch.full((1, 4), 1000.0 if index == rare else 1.0) for index in range(9)]
        block = whole_model(model, {"usual": model.usual, "rare": model.rare}, batches)
        found = block.statistics(moments=False, rows=1)
        assert found["rare"].rows == 1
        assert found["rare"].mean.tolist() == [1000.0] * 4
        assert found["usual"].rows >= 1


def test_modules_are_swapped() -> None:
    """A block may be a layer itself."""
    model, data = plain().eval(), rows()
    for block in blocks(model, data):
        for name, layer in block.layers.items():
            parent, _, key = name.rpartition(".")
            twin = copy.deepcopy(layer)
            change(twin)
            setattr(model.get_submodule(parent), key, twin)
            assert block.module is twin
        assert_hidden(
            [block.calls[0].args[0]],
            [seen_by(model, [block.name], data)[block.name][0][0]],
        )


def test_only_one_hidden_state_of_each_batch_is_kept() -> None:
    model, data = llama(), tokens()
    alive: list[weakref.ref[Tensor]] = []
    lists = set()
    for block in blocks(model, data):
        if block.name:
            assert [ref() for ref in alive] == [None] * len(alive)
            alive = [weakref.ref(arguments.args[0]) for arguments in block.calls]
            lists.add(id(block.calls))
    assert len(lists) == 1


def test_equal_arguments_are_kept_once() -> None:
    model = llama()
    batches = [{"input_ids": token_ids(1, 11)} for _ in range(4)]
    block = next(blocks(model, batches))
    cos = [arguments.kwargs["position_embeddings"][0] for arguments in block.calls]
    assert len(set(map(id, cos))) == 1
    assert block.calls[0].args[0] is not block.calls[1].args[0]
    small = 2 * 11 * 8 * 4 + 11 * 8  # cos, sin and the positions
    assert cached_bytes(block.calls) == 4 * 11 * 32 * 4 + small
    assert cached_bytes([Call((torch.zeros(3),), {"again": None})] * 2) == 12


def test_caches_are_dropped() -> None:
    for make in (llama, gpt2):
        model = make()
        block = next(blocks(model, [{"input_ids": token_ids(), "use_cache": True}]))
        arguments = block.calls[0]
        values = [*arguments.args, *arguments.kwargs.values()]
        assert not any(type(value).__name__.endswith("Cache") for value in values)
        assert arguments.kwargs["use_cache"] is False


class Chain(nn.Module):
    """Blocks that get other arguments each, and one that is called through a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Gated() for _ in range(3))
        self.running = False
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.running:
            raise RuntimeError("entered twice")
        self.running, self.note = True, "left behind"
        self.scale = self.scale + 1
        try:
            for number, layer in enumerate(self.layers):
                x = layer(hidden=x, gate=torch.full((4,), float(number)), name=f"layer {number}")
        except Exception as error:  # what ends a forward early is not to be caught here
            raise RuntimeError("handled") from error
        self.running = False
        del self.note
        return x


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, gate: Tensor, name: str) -> tuple[Tensor, str]:
        hidden += gate
        return self.linear(hidden)


def test_arguments_of_each_block_and_a_model_that_remembers() -> None:
    model, data = Chain(), [torch.randn(2, 4) for _ in range(3)]
    copies = [x.clone() for x in data]
    found = []
    for block in blocks(model, copies):
        gate, name = block.calls[2].kwargs["gate"], block.calls[2].kwargs["name"]
        assert name == f"layer {len(found)}"
        assert gate.tolist() == [len(found)] * 4
        assert block.writes_input
        block.statistics(moments=False)  # is to leave the calls alone
        found.append(hidden(block))
    assert not model.running
    assert not hasattr(model, "note")
    assert model.scale.item() == 2  # one whole run
    for index, x in enumerate(data):
        for number, layer in enumerate(model.layers):
            assert torch.allclose(found[number][index], x)
            x = layer(x.clone(), torch.full((4,), float(number)), "")


class Masking(nn.Module):
    """Only long inputs need a mask, another one for each block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Bilinear(4, 4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x, torch.full_like(x, number if len(x) > 2 else 1.0))
        return x


def test_the_largest_batch_tells_which_arguments_differ() -> None:
    model, data = Masking(), [torch.randn(2, 4), torch.randn(5, 4), torch.randn(2, 4)]
    layers = dict(model.layers.named_children())
    masks = [
        [arguments.args[1].mean().item() for arguments in block.calls]
        for block in stream(model, layers, data, progress=False)
    ]
    assert masks == [[1, 0, 1], [1, 1, 1], [1, 2, 1]]


def test_blocks_without_layers_are_passed() -> None:
    model, data = llama(), tokens()
    layers = {name: layer for name, layer in layers_of(model).items() if "layers.1." not in name}
    names = [block.name for block in stream(model, layers, data, progress=False)]
    assert names == ["model.layers.0", "model.layers.2", ""]


def test_layers_in_two_blocks_are_yielded_once() -> None:
    model = nn.Sequential(nn.Sequential(), *(Residual(3, 3) for _ in range(3)))
    model[3].body = model[1].body
    seen = [name for block in blocks(model, [torch.randn(1, 3, 6, 6)]) for name in block.layers]
    assert sorted(seen) == sorted(layers_of(model))


def test_a_model_without_blocks_is_one() -> None:
    model = nn.Bilinear(3, 3, 2)
    holder = nn.ModuleDict({"only": nn.Linear(4, 2)})
    holder.forward = lambda x: holder["only"](x)  # type: ignore[method-assign]
    (block,) = blocks(holder, [torch.randn(5, 4), (torch.randn(3, 4),), {"x": torch.randn(2, 4)}])
    assert (block.name, block.module) == ("", holder)
    assert block.statistics(moments=True)["only"].rows == 10
    assert [y.shape[0] for y in block.outputs(block.calls)] == [5, 3, 2]
    assert list(blocks(model, [(torch.randn(1, 3), torch.randn(1, 3))])) == []


def test_progress_over_all_blocks_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("sys").modules[Block.__module__]
    bars = []
    original = module.Progress

    def recording(*args: Any) -> Any:
        bars.append(original(*args))
        return bars[-1]

    monkeypatch.setattr(module, "Progress", recording)
    model, data = llama(), tokens()
    done = [bars[0].done for _ in blocks(model, data)]
    assert done == [0, 3, 6, 9]
    assert bars[0].done == bars[0].total == 12


def test_batches_are_read_once() -> None:
    data = iter(tokens())
    assert [len(block.calls) for block in blocks(llama(), data)] == [3] * 4
