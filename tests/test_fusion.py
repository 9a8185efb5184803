"""Fusion by named pattern: same numbers, same state dict, fewer calls, and the reasons for none."""

from __future__ import annotations

import copy
import functools
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import gossamer as gs
from gossamer import _ops
from gossamer.fusion.gated import GatedMLP
from gossamer.nn.projections import Projection, share

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
ONE_OF_EACH_FORMAT = (
    *("int8-g64", "int8-weight-only", "int4", "int4-asym", "nf4", "fp4", "mxfp4"),
    *("fp8", "fp8-block", "bf16"),
)
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


def bert_attention(fuse: bool = True, **changes: Any) -> nn.Module:
    model = gs.compress(make("Bert", **changes), "int8", fuse=fuse)
    return model.get_submodule("encoder.layer.0.attention.self")


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


class TestSiblings:
    """Layers q, k, v with 64, 32 and 16 rows, one without a bias."""

    def layers(self) -> list[gs.nn.Linear]:
        dense = [nn.Linear(48, 64), nn.Linear(48, 32, bias=False), nn.Linear(48, 16)]
        return [gs.nn.Linear.from_dense(layer) for layer in dense]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("M", [1, 3, 16, 70])
    def test_bits(self, dtype: torch.dtype, M: int, isa: str) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(M, 48).to(dtype)
        with torch.no_grad():
            for want, got in zip(plain, siblings, strict=True):
                assert torch.equal(got(x), want(x))

    @pytest.mark.parametrize("scheme", ONE_OF_EACH_FORMAT)
    def test_formats(self, scheme: str) -> None:
        dense = [nn.Linear(192, N) for N in (256, 128, 48)]
        plain = [gs.nn.Linear.from_dense(layer, scheme) for layer in dense]
        for x in torch.randn(1, 192), torch.randn(20, 192).bfloat16():
            siblings = share(plain)
            for want, got in zip(plain, siblings, strict=True):
                assert torch.equal(got(x), want(x))
        for again in (copy.deepcopy(siblings), through_torch_save(siblings)):
            for want, got in zip(plain, again, strict=True):
                assert got.shares
                assert torch.equal(got(x), want(x))
                assert torch.equal(got.dequantize(), want.dequantize())
                wanted = want.state_dict()
                assert wanted.keys() == got.state_dict().keys()
                assert all(torch.equal(got.state_dict()[key], wanted[key]) for key in wanted)

    def test_any_order_and_any_number_of_times(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x, y = torch.randn(2, 5, 48)
        for index, source in [(2, x), (2, x), (0, y), (1, y), (0, x), (2, y), (1, x), (0, y)]:
            assert torch.equal(siblings[index](source), plain[index](source))

    def test_nothing_is_kept_when_all_have_theirs(self) -> None:
        siblings = share(self.layers())
        x = torch.randn(3, 48)
        held = [weakref.ref(layer(x)) for layer in siblings]
        assert [ref() for ref in held] == [None] * 3
        assert siblings[0]._shared._pending.value is None

    def test_nothing_outlives_x(self) -> None:
        siblings = share(self.layers())
        x = torch.randn(3, 48)
        siblings[1](x)
        outputs = siblings[0]._shared._pending.value[2]
        assert [output is None for output in outputs] == [False, True, False]
        gc.disable()  # by counting references alone
        try:
            del x
        finally:
            gc.enable()
        assert outputs == []

    def test_x_written_to_between_the_calls(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(3, 48)
        with torch.no_grad():
            siblings[0](x)
            x.mul_(2)
            assert torch.equal(siblings[1](x), plain[1](x))

    def test_modes_that_change_between_the_calls(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(3, 48)
        with torch.no_grad():
            siblings[0](x)
        assert siblings[2](x).requires_grad
        with torch.inference_mode():
            siblings[0](x)
        assert not siblings[1](x).is_inference()
        with torch.autocast("cpu", torch.bfloat16):
            siblings[0](x)
        assert siblings[1](x).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            for want, got in zip(plain, siblings, strict=True):
                assert torch.equal(got(x), want(x))

    def test_outputs_can_be_written_to(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(3, 48, requires_grad=True)
        outputs = [layer(x).mul_(2).relu_() for layer in siblings]
        for layer, output in zip(plain, outputs, strict=True):
            assert torch.equal(output, layer(x).mul(2).relu())
        sum(output.sum() for output in outputs).backward()
        assert x.grad is not None

    def test_inference_tensors_and_strides(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        with torch.inference_mode():
            x = torch.randn(48, 7).T
            for want, got in zip(plain, siblings, strict=True):
                assert torch.equal(got(x), want(x))

    def test_gradients(self) -> None:
        plain = self.layers()
        siblings = share(copy.deepcopy(plain))
        grads = []
        for layers in (plain, siblings):
            x = torch.linspace(-1, 1, 96).view(2, 48).requires_grad_()
            sum((layer(x) ** 2).sum() for layer in layers).backward()
            grads.append([x.grad, *(each.bias.grad for each in layers if each.bias is not None)])
        for want, got in zip(*grads, strict=True):
            torch.testing.assert_close(got, want)

    def test_trained_biases_count(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(3, 48)
        with torch.no_grad():
            siblings[0](x), siblings[1](x), siblings[2](x)
            plain[2].bias.data.add_(1)
            assert siblings[2].bias is plain[2].bias
            assert torch.equal(siblings[2](x), plain[2](x))

    def test_threads(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(2, 48)
        wants = [layer(x) for layer in plain]
        start, wrong = threading.Barrier(4), []

        def work() -> None:
            start.wait()
            with torch.no_grad():
                for _ in range(200):
                    for want, layer in zip(wants, siblings, strict=True):
                        if not torch.equal(layer(x), want):
                            wrong.append(layer)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_vmap(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(4, 3, 48)
        with torch.no_grad():
            got = torch.vmap(lambda row: tuple(layer(row) for layer in siblings))(x)
            for want, output in zip(plain, got, strict=True):
                torch.testing.assert_close(output, want(x))

    @pytest.mark.filterwarnings("ignore:the values of a packed weight")
    def test_weight(self) -> None:
        plain = self.layers()
        for want, got in zip(plain, share(plain), strict=True):
            assert (got.weight.shape, got.weight.dtype) == (want.weight.shape, torch.float32)
            assert torch.equal(got.weight.detach() + 0, want.dequantize())
            assert torch.equal(got.dequantize(torch.bfloat16), want.dequantize(torch.bfloat16))
            assert torch.equal(got.quantized().values, want.quantized().values)
            assert torch.equal(copy.deepcopy(got.weight) + 0, want.dequantize())

    def test_layers_that_do_not_fit(self) -> None:
        a, b = gs.nn.Linear.from_dense(nn.Linear(48, 8)), gs.nn.Linear.from_dense(nn.Linear(40, 8))
        with pytest.raises(ValueError):
            share([a, b])
        with pytest.raises(ValueError, match="share: layers: one has the activation 'relu'"):
            share([a, gs.nn.Linear.from_dense(nn.Linear(48, 8), activation="relu")])


def through_pickle(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


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


class TestCompiled:
    @pytest.mark.parametrize("name", ["Bert", "Llama"])
    def test_same_output_without_breaks(self, name: str) -> None:
        torch._dynamo.reset()
        model = made(name)[2]
        block = model.encoder.layer[0] if name == "Bert" else model.model.layers[0].mlp
        x = torch.randn(2, 5, 64)
        with torch.no_grad():
            want = block(x)
            got = torch.compile(block, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("indices", [(0, 1, 2), (2, 0), (1, 2, 0, 0, 2, 1)])
    @pytest.mark.parametrize("grad", [False, True])
    def test_one_call_in_the_graph(self, indices: tuple[int, ...], grad: bool) -> None:
        torch._dynamo.reset()
        layers, seen = share([gs.nn.Linear.from_dense(nn.Linear(64, N)) for N in (64, 32, 16)]), []

        def backend(graph: torch.fx.GraphModule, example: Any) -> Any:
            seen.append(sum("gossamer.linear" in str(node.target) for node in graph.graph.nodes))
            return graph

        def called(x: torch.Tensor) -> list[torch.Tensor]:
            return [layers[index](x) for index in indices]

        compiled = torch.compile(called, backend=aot_autograd(fw_compiler=backend), fullgraph=True)
        with torch.set_grad_enabled(grad):
            for _ in range(3):
                x = torch.randn(2, 64)
                for want, got in zip(called(x), compiled(x), strict=True):
                    assert torch.equal(got, want)
        assert set(seen) == {-(-len(indices) // 3)}
        if len(indices) % 3 == 0:
            assert layers[0]._shared.traced is None

    def test_exported(self) -> None:
        attention = bert_attention()
        x = torch.randn(2, 64)
        exported = torch.export.export(Three(attention), (x,)).module()
        for want, got in zip(Three(attention)(x), exported(x), strict=True):
            assert torch.equal(got, want)


class Three(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.attention.query(x), self.attention.key(x), self.attention.value(x)


LAYER = "encoder.layer.0."
SELF = LAYER + "attention.self"


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
