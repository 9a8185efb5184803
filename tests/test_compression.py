"""gs.compress: which layers are swapped, which are left alone and why, and what stays as it was."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import gossamer as gs
from gossamer import _progress
from gossamer.compression import REPLACEMENTS


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(32, 48), nn.ReLU(), nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 8))
    )


def packed_names(model: nn.Module) -> list[str]:
    """Modules, those inside them apart, that are packed."""
    found = [
        name
        for name, module in model.named_modules()
        if type(module).__module__.startswith("gossamer.nn")
    ]
    return [name for name in found if name.rpartition(".")[0] not in found]


def reasons(model: nn.Module) -> dict[str, str]:
    return {item.name: item.reason for item in gs.report(model).left_alone}


def tied_model() -> nn.ModuleDict:
    parts = {"embed": nn.Embedding(96, 64), "body": nn.Linear(64, 64), "head": nn.Linear(64, 96)}
    model = nn.ModuleDict(parts)
    model["head"].weight = model["embed"].weight
    return model


class LoudLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 100


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
        prune.identity(model[1], "weight")
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


def test_attention_that_is_left_alone_is_counted() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(32, 4), "out": nn.Linear(32, 4)})
    whole, out = gs.report(gs.compress(model, "int8", ignore="attention")).left_alone
    assert (whole.name, whole.kind, whole.reason) == ("attention", "MultiheadAttention", "ignored")
    assert (whole.shape, whole.bytes) == ((96, 32), 96 * 32 * 4)
    assert (out.name, out.bytes) == ("attention.out_proj", 32 * 32 * 4)
    wide = nn.Sequential(nn.MultiheadAttention(32, 4, kdim=16, vdim=8), nn.Linear(4, 4))
    assert gs.report(gs.compress(wide, "int8", ignore="0")).left_alone[0].bytes == 32 * 56 * 4


PEAK = """
import re, sys
import torch
from torch import nn
import gossamer as gs

def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

torch.set_num_threads(1)
SIZE = 3072
gs.compress(nn.Sequential(nn.Linear(256, 256)), "int8")  # what is loaded and allocated only once
model = nn.Sequential(*(nn.utils.skip_init(nn.Linear, SIZE, SIZE, bias=False) for _ in range(10)))
with torch.no_grad():
    for layer in model:
        layer.weight.copy_(torch.linspace(-1, 1, SIZE))
try:
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
except OSError as error:
    sys.exit(f"skip: {error}")
before = kib("VmRSS")
gs.compress(model, "int8", progress=False)
assert gs.report(model).totals.layers == 10
print((kib("VmHWM") - before) / (4 * SIZE * SIZE / 1024))
print((before - kib("VmRSS")) / (4 * SIZE * SIZE / 1024))
"""


def test_peak_memory_is_the_model_and_one_layer() -> None:
    """In dense layers: 1.5, most of it to measure the error; ten packed at once would add 2.25."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of memory is read from Linux's /proc")
    result = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True)
    if result.stderr.startswith("skip: "):
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stderr
    peak, freed = map(float, result.stdout.split())
    assert peak < 2.2
    assert freed > 5


class TestProgress:
    @pytest.mark.parametrize(
        ("terminal", "seconds", "argument", "seen"),
        [
            (True, 0.6, None, True),
            (True, 0.4, None, False),
            (False, 0.6, None, False),
            (True, 0.6, False, False),
            (False, 0.0, True, True),
        ],
    )
    @pytest.mark.parametrize("installed", [True, False])
    def test_when_it_is_shown(
        self,
        terminal: bool,
        seconds: float,
        argument: bool | None,
        seen: bool,
        installed: bool,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        pytest.importorskip("rich")
        if not installed:
            monkeypatch.setitem(sys.modules, "rich.progress", None)
        clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
        monkeypatch.setattr(_progress, "time", clock)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        with _progress.Progress("packing layers", 4, argument) as shown:
            for _ in range(2):
                clock.now += seconds
                shown.advance(2)
        assert shown.done == 4
        output = capsys.readouterr()
        assert ("packing layers" in output.err) is (seen and installed)
        assert output.out == ""

    def test_compress_counts_every_weight(self, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("rich")
        gs.compress(mlp(), "int8", progress=True)
        shown = capsys.readouterr().err
        assert "packing layers" in shown
        assert "100%" in shown
        gs.compress(mlp(), "int8", progress=False)
        assert capsys.readouterr().err == ""
