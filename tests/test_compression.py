"""gs.compress: which layers are swapped, what stays as it was, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.compression import REPLACEMENTS

from .compressed_models import mlp, packed_names, reasons


class TestSwapping:
    def test_swaps_every_linear_and_returns_the_model(self) -> None:
        model = mlp()
        bias = model[0].bias
        assert gs.compress(model, "int8") is model
        assert packed_names(model) == ["0", "2.0", "2.1"]
        assert model[0].bias is bias
        assert reasons(model) == {}

    @pytest.mark.parametrize("group_size", [None, 32, 64, 128])
    def test_output_is_close(self, group_size: int | None) -> None:
        model, x = mlp().eval(), torch.randn(7, 32)
        with torch.no_grad():
            want = model(x)
            got = gs.compress(model, gs.Quantize("int8", group_size=group_size))(x)
        assert float((got - want).norm() / want.norm()) < 0.03
        assert {layer.group_size for layer in (model[0], *model[2])} == {group_size}

    def test_bfloat16_and_float16_models(self) -> None:
        for dtype in (torch.bfloat16, torch.float16):
            model = gs.compress(mlp().to(dtype), "int8")
            assert model(torch.randn(2, 32, dtype=dtype)).dtype == dtype

    def test_training_mode_hooks_and_frozen_biases_stay(self) -> None:
        model, seen = mlp(), []
        model[0].eval()
        model[0].bias.requires_grad_(False)
        handle = model[0].register_forward_hook(lambda *args: seen.append("forward"))
        model[0].register_forward_pre_hook(lambda *args: seen.append("pre"))
        gs.compress(model, "int8")
        assert (model[0].training, model[2][0].training) == (False, True)
        assert not model[0].bias.requires_grad
        model(torch.randn(2, 32))
        assert seen == ["pre", "forward"]
        handle.remove()
        model(torch.randn(2, 32))
        assert seen == ["pre", "forward", "pre"]

    def test_shared_modules_are_swapped_once_and_stay_shared(self) -> None:
        layer = nn.Linear(8, 8)
        block = nn.Sequential(layer, nn.ReLU())
        model = nn.ModuleDict({"a": layer, "b": block, "c": block, "d": nn.ModuleList([layer])})
        gs.compress(model, "int8")
        assert packed_names(model) == ["a"]
        assert model["a"] is model["b"][0] is model["c"][0] is model["d"][0]
        assert model["b"] is model["c"]

    def test_twice_is_once(self) -> None:
        model = gs.compress(mlp(), "int8")
        layer = model[0]
        gs.compress(model, gs.Quantize("int8", group_size=32))
        assert model[0] is layer

    def test_training_the_rest(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1))
        gs.compress(model, "int8", targets="2")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        x = torch.randn(16, 8)
        before = model(x).pow(2).mean().item()
        for _ in range(20):
            optimizer.zero_grad()
            loss = model(x).pow(2).mean()
            loss.backward()
            optimizer.step()
        assert loss.item() < before

    def test_root_linear_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"compress: model: is itself a layer \(Linear\)"):
            gs.compress(nn.Linear(4, 4), "int8")

    def test_nothing_to_compress_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"compress: model: has no layer that .* nn\.Linear, "):
            gs.compress(nn.Sequential(nn.Conv3d(3, 3, 3)), "int8")


class TestPatterns:
    @pytest.mark.parametrize(
        ("targets", "ignore", "expected"),
        [
            ("0", None, ["0"]),
            ("2", None, ["2.0", "2.1"]),
            ("2.*", None, ["2.0", "2.1"]),
            ("*.0", None, ["2.0"]),
            ("re:(.*\\.)?0", None, ["0", "2.0"]),
            ("re:2\\.[01]", "2.1", ["2.0"]),
            (["0", "2.1"], None, ["0", "2.1"]),
            (nn.Linear, None, ["0", "2.0", "2.1"]),
            ([nn.Linear], ["2"], ["0"]),
            (None, ["0", "re:.*1"], ["2.0"]),
            (None, "2.?", ["0"]),
        ],
    )
    def test_choice(self, targets: Any, ignore: Any, expected: list[str]) -> None:
        model = gs.compress(mlp(), "int8", targets=targets, ignore=ignore)
        assert packed_names(model) == expected
        left = set(reasons(model))
        assert left == {"0", "2.0", "2.1"} - set(expected)

    def test_reasons(self) -> None:
        model = gs.compress(mlp(), "int8", targets="2", ignore="2.1")
        assert reasons(model) == {"0": "not among the targets", "2.1": "ignored"}

    def test_container_classes(self) -> None:
        class Head(nn.Sequential):
            pass

        model = nn.Sequential(nn.Linear(4, 4), Head(nn.Linear(4, 4)))
        gs.compress(model, "int8", ignore=[Head])
        assert packed_names(model) == ["0"]

    def test_any_name_of_a_shared_module_counts(self) -> None:
        layer = nn.Linear(4, 4)
        model = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Linear(4, 4)})
        gs.compress(model, "int8", ignore="b")
        assert packed_names(model) == ["c"]

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"targets": "foo"}, ValueError, "compress: targets: 'foo' matches no module"),
            ({"ignore": ["0", "re:x+"]}, ValueError, "compress: ignore: 're:x\\+' matches no"),
            (
                {"targets": "1"},
                ValueError,
                "targets: '1' matches no layer that is replaced",
            ),
            ({"targets": nn.Conv2d}, ValueError, "targets: .*Conv2d.* matches no module"),
            ({"targets": "re:("}, ValueError, "compress: targets: 're:\\('"),
            ({"targets": [3]}, TypeError, "compress: targets: got int 3"),
            ({"ignore": int}, TypeError, "compress: ignore: got type"),
        ],
    )
    def test_wrong_patterns_leave_the_model(
        self, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        model = mlp()
        with pytest.raises(error, match=message):
            gs.compress(model, "int8", **arguments)
        assert packed_names(model) == []


class TestFailing:
    def test_nan_names_the_layer_and_leaves_the_model(self) -> None:
        model = mlp()
        with torch.no_grad():
            model[2][1].weight[3, 4] = float("nan")
        with pytest.raises(ValueError, match=r"layer '2.1': .*NaN or infinity in row\(s\) 3"):
            gs.compress(model, "int8")
        assert packed_names(model) == []

    def test_meta_and_leaves_the_model(self) -> None:
        model = mlp()
        model[2][1].to("meta")
        with pytest.raises(RuntimeError, match=r"layer '2.1' is on meta; move the model"):
            gs.compress(model, "int8")
        assert packed_names(model) == []
        gs.compress(model, "int8", ignore="2.1")
        assert packed_names(model) == ["0", "2.0"]

    def test_wrong_biases_leave_the_model(self) -> None:
        model = mlp()
        model[2][1].bias = nn.Parameter(torch.zeros(8, dtype=torch.float64))
        with pytest.raises(TypeError, match=r"compress: model: layer '2.1': .*float64"):
            gs.compress(model, "int8")
        assert packed_names(model) == []

    def test_interruption_leaves_a_model_that_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
        model, x, made = encoder.eval(), torch.randn(2, 5, 32), []
        with torch.no_grad():
            want = model(x)

        def interrupted(linear: nn.Module, recipe: gs.Quantize) -> nn.Module:
            if len(made) == 3:
                raise KeyboardInterrupt
            made.append(linear)
            return gs.nn.Linear.from_dense(linear, recipe)

        with monkeypatch.context() as patch:
            patch.setitem(REPLACEMENTS, nn.Linear, interrupted)
            with pytest.raises(KeyboardInterrupt):
                gs.compress(model, "int8", ignore="*.self_attn")
        assert packed_names(model) == ["layers.0.linear1", "layers.0.linear2", "layers.1.linear1"]
        with torch.no_grad():
            assert float((model(x) - want).norm() / want.norm()) < 0.02
        gs.compress(model, "int8")
        assert len(packed_names(model)) == 6

    @pytest.mark.parametrize(
        ("scheme", "error", "message"),
        [
            ("int3", ValueError, "Quantize: scheme: got 'int3', wanted one of int8"),
            (8, TypeError, "compress: scheme: got int 8"),
        ],
    )
    def test_wrong_scheme(self, scheme: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            gs.compress(mlp(), scheme)

    def test_wrong_model(self) -> None:
        with pytest.raises(TypeError, match="compress: model: got str"):
            gs.compress("model", "int8")  # type: ignore[type-var]

    def test_wrong_group_size(self) -> None:
        with pytest.raises(ValueError, match="Quantize: group_size: got 48"):
            gs.Quantize("int8", group_size=48)


class TestRegistry:
    """How layers of other kinds take part."""

    class PackedEmbedding(nn.Embedding):
        @classmethod
        def from_dense(cls, module: nn.Module, scheme: gs.Quantize) -> TestRegistry.PackedEmbedding:
            return cls.from_pretrained(module.weight.detach(), freeze=True)

    @pytest.fixture(autouse=True)
    def _register(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(REPLACEMENTS, nn.Embedding, self.PackedEmbedding.from_dense)

    def test_one_line_is_enough(self) -> None:
        model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 4))
        gs.compress(model, "int8")
        assert type(model[0]) is self.PackedEmbedding
        assert type(model[1]) is gs.nn.Linear

    def test_rules_hold(self) -> None:
        model = nn.ModuleDict({"one": nn.Embedding(100, 64), "two": nn.Embedding(100, 64)})
        model["two"].weight = model["one"].weight
        gs.compress(model, "int8")
        assert reasons(model) == {
            "one": "its weight is tied to two.weight",
            "two": "its weight is tied to one.weight",
        }
        again = nn.Sequential(*(nn.Embedding(100, 64) for _ in range(2)))
        again.append(self.PackedEmbedding(100, 64))
        with torch.no_grad():
            again[1].weight[2] = torch.inf
        with pytest.raises(ValueError, match=r"layer '1': weight: NaN or infinity in row\(s\) 2"):
            gs.compress(again, "int8")
        gs.compress(again, "int8", targets=nn.Embedding, ignore="1")
        why = "PackedEmbedding is a subclass of nn.Embedding; name its class in targets"
        assert reasons(again) == {"1": "ignored", "2": why}

    def test_layers_inside_a_replaced_one_go_with_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kind = nn.MultiheadAttention
        monkeypatch.setitem(REPLACEMENTS, kind, lambda module, scheme: nn.Identity())
        model = nn.ModuleDict({"a": kind(8, 2), "b": kind(8, 2)})
        gs.compress(model, "int8", ignore="b")
        assert type(model["a"]) is nn.Identity
        assert reasons(model) == {"b": "ignored", "b.out_proj": "ignored"}
