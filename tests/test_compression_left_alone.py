"""Layers that gs.compress leaves alone, and the reasons."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import gossamer as gs

from .compressed_models import mlp, packed_names, reasons


def tied_model() -> nn.ModuleDict:
    parts = {"embed": nn.Embedding(96, 64), "body": nn.Linear(64, 64), "head": nn.Linear(64, 96)}
    model = nn.ModuleDict(parts)
    model["head"].weight = model["embed"].weight
    return model


class LoudLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 100


class TestLeftAlone:
    def test_subclasses_unless_named(self) -> None:
        def make() -> nn.Sequential:
            return nn.Sequential(LoudLinear(4, 4), nn.Linear(4, 4))

        for targets in (None, "*", nn.Linear, "re:.*"):
            model = gs.compress(make(), "int8", targets=targets)
            assert packed_names(model) == ["1"]
            assert reasons(model) == {
                "0": "LoudLinear is a subclass of nn.Linear; name its class in targets"
            }
        for targets in (LoudLinear, "0"):
            assert packed_names(gs.compress(make(), "int8", targets=targets)) == ["0"]

    def test_weights_tied_in_another_way(self) -> None:
        model = tied_model()
        model["again"] = nn.Linear(64, 96)
        model["again"].weight = model["embed"].weight
        gs.compress(model, "int8")
        assert packed_names(model) == ["body"]
        assert set(reasons(model)) == {"embed", "head", "again"}
        assert reasons(model)["again"] == "its weight is tied to embed.weight"
        assert model["head"].weight is model["embed"].weight

    def test_one_of_a_tied_pair(self) -> None:
        for name, other in (("embed", "head"), ("head", "embed")):
            model = gs.compress(tied_model(), "int8", ignore=name)
            assert packed_names(model) == ["body"]
            why = f"its weight is tied to {name}.weight, which is left alone (ignored)"
            assert reasons(model) == {name: "ignored", other: why}
            assert model["head"].weight is model["embed"].weight

    def test_small_tables_unless_named(self) -> None:
        def make() -> nn.ModuleDict:
            sizes = {"few": (63, 128), "narrow": (100, 16), "enough": (64, 17)}
            return nn.ModuleDict({name: nn.Embedding(*size) for name, size in sizes.items()})

        model = gs.compress(make(), "int8")
        assert packed_names(model) == ["enough"]
        assert reasons(model) == {
            "few": "63 rows: a table of less than 64 is not worth packing",
            "narrow": "would grow: the 16 values of a row are padded to 64",
        }
        for targets in (["few", "narrow"], nn.Embedding):
            assert {"few", "narrow"} <= set(packed_names(gs.compress(make(), "int8", targets)))

    def test_tables_that_lookups_write_to(self) -> None:
        model = nn.Sequential(nn.Embedding(100, 64, max_norm=1.0), nn.Linear(64, 4))
        gs.compress(model, "int8")
        assert reasons(model) == {"0": "max_norm=1.0: its lookups write to the weight"}

    def test_small_recurrent_layers_unless_named(self) -> None:
        def make() -> nn.ModuleDict:
            return nn.ModuleDict({"a": nn.GRU(8, 255), "b": nn.GRU(8, 256), "c": nn.LSTMCell(8, 8)})

        model = gs.compress(make(), "int8")
        assert packed_names(model) == ["b"]
        assert reasons(model)["a"] == (
            "hidden size 255: below 256 the dense layer is faster; name it in targets to pack it"
        )
        assert reasons(model)["c"].startswith("hidden size 8: ")
        assert packed_names(gs.compress(make(), "int8", targets=["a", nn.LSTMCell])) == ["a", "c"]

    def test_subclasses_with_a_forward_of_their_own(self) -> None:
        class Scaled(nn.Embedding):
            def forward(self, input: torch.Tensor) -> torch.Tensor:
                return 8 * super().forward(input)

        class Same(nn.Embedding):
            pass

        model = nn.Sequential(Scaled(100, 64), Same(100, 64), nn.Linear(64, 64))
        gs.compress(model, "int8", targets=["0", "1", "2"])
        assert packed_names(model) == ["1", "2"]
        assert reasons(model) == {"0": "Scaled has another forward than nn.Embedding"}

    def test_groups_that_blocks_lie_across(self) -> None:
        def make() -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(64, 64, 3, groups=4),
                nn.Conv2d(64, 64, 3, groups=64),
                nn.ConvTranspose2d(64, 64, 3, groups=2),
                nn.Conv2d(64, 256, 1, groups=2),
            )

        model = gs.compress(make(), "fp8-block")
        assert packed_names(model) == ["1", "3"]
        assert all("wanted multiples of 128" in reason for reason in reasons(model).values())
        assert packed_names(gs.compress(make(), "fp8")) == ["0", "1", "2", "3"]

    def test_linear_layers_that_share_a_weight(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        gs.compress(model, "int8")
        assert packed_names(model) == ["2"]
        assert reasons(model)["0"] == "its weight is tied to 1.weight"

    def test_tied_biases_stay_tied(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].bias = model[0].bias
        gs.compress(model, "int8")
        assert model[1].bias is model[0].bias

    def test_computed_weights(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        nn.utils.parametrizations.weight_norm(model[0])
        del model[1].weight
        model[1].weight = torch.randn(4, 4)  # a plain tensor, as weight_norm leaves it
        gs.compress(model, "int8")
        assert packed_names(model) == ["2"]
        assert "subclass" in reasons(model)["0"]
        assert "is computed" in reasons(model)["1"]

    def test_weights_of_other_tensor_types(self) -> None:
        class Quantized(torch.Tensor):
            pass

        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[0].weight = nn.Parameter(torch.randn(4, 4).as_subclass(Quantized))
        gs.compress(model, "int8")
        assert reasons(model) == {"0": "its weight is a Quantized"}

    def test_lazy_layers_are_an_error(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4))
        with pytest.raises(ValueError, match="layer '1' is lazy"):
            gs.compress(model, "int8")
        model(torch.randn(2, 4))
        assert packed_names(gs.compress(model, "int8")) == ["0", "1"]

    def test_replaced_forward(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[0].forward = lambda x: x  # type: ignore[method-assign]
        gs.compress(model, "int8")
        assert reasons(model) == {"0": "its forward was replaced on the instance"}

    def test_float64(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4).double(), nn.Linear(4, 4))
        gs.compress(model, "int8")
        assert reasons(model) == {"0": "its weight is float64"}

    @pytest.mark.parametrize(
        "again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
    )
    def test_is_remembered_by_copies(self, again: Callable[[nn.Module], nn.Module]) -> None:
        model = gs.compress(mlp(), "int8", ignore="0")
        assert reasons(again(model)) == {"0": "ignored"}
        assert reasons(nn.Sequential(again(model))) == {"0.0": "ignored"}


def test_attention_that_is_left_alone_is_counted() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(32, 4), "out": nn.Linear(32, 4)})
    whole, out = gs.report(gs.compress(model, "int8", ignore="attention")).left_alone
    assert (whole.name, whole.kind, whole.reason) == ("attention", "MultiheadAttention", "ignored")
    assert (whole.shape, whole.bytes) == ((96, 32), 96 * 32 * 4)
    assert (out.name, out.bytes) == ("attention.out_proj", 32 * 32 * 4)
    wide = nn.Sequential(nn.MultiheadAttention(32, 4, kdim=16, vdim=8), nn.Linear(4, 4))
    assert gs.report(gs.compress(wide, "int8", ignore="0")).left_alone[0].bytes == 32 * 56 * 4
