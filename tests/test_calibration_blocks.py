"""Which modules of a model are streamed as blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.calibration import block_names, find_chains

from .calibration_models import Residual, Staged, bert, gemma, gpt2, layers_of, llama, plain, t5
from .calibration_models import token_ids as ids


def chains(model: nn.Module, batch: Any) -> list[list[str]]:
    found = find_chains("stream", model.eval(), layers_of(model), batch)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    return [list(chain.names) for chain in found]


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}.{number}" for number in range(count)]


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (llama, [numbered("model.layers", 3)]),
        (gpt2, [numbered("transformer.h", 3)]),
        (bert, [numbered("encoder.layer", 2)]),
        (gemma, [numbered("model.layers", 3)]),
        (t5, [numbered("encoder.block", 2), numbered("decoder.block", 2)]),
    ],
)
def test_transformers(make: Callable[[], nn.Module], names: list[list[str]]) -> None:
    batch = {"input_ids": ids()}
    if make is t5:
        batch["decoder_input_ids"] = ids(2, 4)
    assert chains(make(), batch) == names


def test_arguments_that_differ_from_block_to_block() -> None:
    for make, own in ((llama, False), (gpt2, False), (gemma, True)):
        model = make().eval()
        (chain,) = find_chains("stream", model, layers_of(model), {"input_ids": ids()})
        assert chain.own_arguments is own


def test_layers_by_block() -> None:
    model = llama(2)
    layers = layers_of(model)
    del layers["model.layers.1.self_attn.q_proj"]
    (chain,) = find_chains("stream", model, layers, {"input_ids": ids()})
    assert [len(inside) for inside in chain.layers] == [7, 6]
    assert chain.layers[1]["model.layers.1.mlp.up_proj"] is model.model.layers[1].mlp.up_proj
    names = block_names(model, layers, [{"input_ids": ids()}])
    assert names["lm_head"] == ""
    assert names["model.layers.1.mlp.up_proj"] == "model.layers.1"
    assert names.keys() == layers.keys()


def test_sequential_models() -> None:
    """A sequence inside of one is divided; from the first layer to the last."""
    assert chains(plain(), torch.randn(4, 6)) == [["0", "1", "2.0", "2.1", "2.2", "3", "4"]]
    before_and_after = nn.Sequential(nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU())
    assert chains(before_and_after, torch.randn(4, 6)) == [["1", "2"]]


def test_stages_of_a_cnn() -> None:
    """Sums that are written into an output do not look like chains, in a block or between them."""
    names = [[f"stage{n}.0", f"stage{n}.1"] for n in (1, 2)]
    assert chains(Staged(), torch.randn(2, 3, 8, 8)) == names


def test_blocks_that_write_to_their_input() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 3)).eval()
    (chain,) = find_chains("stream", model, layers_of(model), torch.randn(2, 3))
    assert chain.writes_input == (False, True, False)


class Stack(nn.Module):
    """What is between two lists of blocks is code."""

    def __init__(self, size: int = 8, count: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(size, size) for _ in range(count))
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(input=x)
        return self.norm(x + 0)


def test_a_module_with_most_of_the_weights_is_divided() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Stack(), nn.Linear(8, 3))
    assert chains(model, torch.randn(2, 8)) == [numbered("1.blocks", 4)]
    two = nn.Sequential(nn.Linear(8, 8), Stack(), Stack(), nn.Linear(8, 3))
    assert chains(two, torch.randn(2, 8)) == [["0", "1", "2", "3"]]


def test_what_is_around_a_divided_module_stays_a_chain() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), Stack(8, 6), nn.Linear(8, 3))
    assert chains(model, torch.randn(2, 8)) == [["0", "1"], numbered("2.blocks", 6)]


class Called(nn.Module):
    """Four layers, called as a function says."""

    def __init__(self, function: Callable[[nn.ModuleList, Tensor], Tensor], count: int = 4) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.parts, x)


def written_between(parts: nn.ModuleList, x: Tensor) -> Tensor:
    y = parts[1](parts[0](x))
    y += x
    return parts[3](parts[2](y))


def computed_between(parts: nn.ModuleList, x: Tensor) -> Tensor:
    return parts[3](parts[2](parts[1](parts[0](x)) * 2))


def experts(parts: nn.ModuleList, x: Tensor) -> Tensor:
    return parts[0](x) + parts[1](x) + parts[3](x)


def repeated(parts: nn.ModuleList, x: Tensor) -> Tensor:
    return parts[1](parts[0](parts[1](parts[0](x))))


@pytest.mark.parametrize("function", [written_between, computed_between])
def test_chains_end_where_something_is_computed(function: Any) -> None:
    assert chains(Called(function), torch.randn(2, 8)) == [
        ["parts.0", "parts.1"],
        ["parts.2", "parts.3"],
    ]


@pytest.mark.parametrize("function", [experts, repeated])
def test_what_is_no_chain(function: Any) -> None:
    model = Called(function)
    assert chains(model, torch.randn(2, 8)) == []
    names = block_names(model, layers_of(model), [torch.randn(2, 8)])
    assert set(names.values()) == {""}


class Skipping(nn.Module):
    """The last block gets what the first one made beside its hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Bilinear(8, 8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        first = self.parts[0](x, x)
        second = self.parts[1](first, x)
        return self.parts[3](self.parts[2](second, first), x)


def test_chains_end_where_a_block_gets_an_earlier_output() -> None:
    """Else it would be given what the unchanged model made."""
    model = Skipping()
    layers = dict(model.parts.named_children())
    found = find_chains("stream", model, layers, torch.randn(2, 8))
    assert [chain.names for chain in found] == [("parts.0", "parts.1"), ("parts.2", "parts.3")]


def test_small_chains_are_not_worth_a_pass() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.big = plain(), Residual(16, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.small(x) + self.big(x.new_zeros(1, 16, 4, 4)).mean()

    assert chains(Both(), torch.randn(2, 6)) == [numbered("big.body", 4)]
