"""Places to scale are found without names, proven, and scaling them changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from gossamer.calibration import Call, Statistics
from gossamer.calibration.sample import sample_rows
from gossamer.calibration.scalable import Known, Scalable, find_scalable, fold, scaled
from gossamer.calibration.scaling import in_channels
from gossamer.calibration.stream import Block

transformers = pytest.importorskip("transformers", reason="architectures of transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "intermediate_size": 48,
    "use_cache": False,
}
NORM1 = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
NORM2 = ("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj")
GATED = {NORM1, NORM2, ("self_attn.v_proj", "self_attn.o_proj"), ("mlp.up_proj", "mlp.down_proj")}
FUSED_NORMS = {
    ("input_layernorm", "self_attn.qkv_proj"),
    ("post_attention_layernorm", "mlp.gate_up_proj"),
}


def llama(**more: Any) -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, **more)
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def gemma() -> nn.Module:
    config = transformers.Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=16)
    model: nn.Module = transformers.Gemma3ForCausalLM(config)
    return model


def phi() -> nn.Module:
    model: nn.Module = transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**SIZES, num_key_value_heads=2)
    )
    return model


def neox() -> nn.Module:
    model: nn.Module = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES))
    return model


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=99,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


def bert() -> nn.Module:
    sizes = {name: size for name, size in SIZES.items() if name != "use_cache"}
    model: nn.Module = transformers.BertModel(transformers.BertConfig(**sizes))
    return model


def opt() -> nn.Module:
    config = transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32)
    model: nn.Module = transformers.OPTForCausalLM(config)
    return model


ARCHITECTURES: dict[str, tuple[Callable[..., nn.Module], str, set[tuple[str, ...]]]] = {
    "llama": (llama, "model.layers.1", GATED),
    "gemma": (
        gemma,
        "model.layers.1",
        GATED - {NORM2} | {("pre_feedforward_layernorm", *NORM2[1:])},
    ),
    "phi": (
        phi,
        "model.layers.1",
        FUSED_NORMS
        | {("self_attn.qkv_proj", "self_attn.o_proj"), ("mlp.gate_up_proj", "mlp.down_proj")},
    ),
    "neox": (
        neox,
        "gpt_neox.layers.1",
        {
            ("input_layernorm", "attention.query_key_value"),
            ("attention.query_key_value", "attention.dense"),
            ("post_attention_layernorm", "mlp.dense_h_to_4h"),
        },
    ),
    "gpt2": (
        gpt2,
        "transformer.h.1",
        {("ln_1", "attn.c_attn"), ("attn.c_attn", "attn.c_proj"), ("ln_2", "mlp.c_fc")},
    ),
    # Norms come after the residual sum, which reads them too; GELU is not homogeneous.
    "bert": (bert, "encoder.layer.1", {("attention.self.value", "attention.output.dense")}),
    "opt": (
        opt,
        "model.decoder.layers.1",
        {
            ("self_attn_layer_norm", *(f"self_attn.{x}_proj" for x in "qkv")),
            ("self_attn.v_proj", "self_attn.out_proj"),
            ("final_layer_norm", "fc1"),
            ("fc1", "fc2"),  # ReLU
        },
    ),
}


def random_norms(model: nn.Module) -> nn.Module:
    """No weight of a norm is 1, no bias is 0."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.rand_like(parameter) / 2)
    return model.eval()


def block_of(model: nn.Module, name: str, *args: Any, **kwargs: Any) -> Block:
    """A block with the call that the model makes of it."""
    calls: list[Call] = []
    block = model.get_submodule(name)
    hook = block.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(Call(args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        model(*args, **kwargs)
    hook.remove()
    layers = {
        f"{name}.{place}" if name else place: module
        for place, module in block.named_modules()
        if in_channels(module)
    }
    return Block(name, model, layers, calls[:1])


def random_factors(scalable: Scalable, spread: float = 1.0) -> Tensor:
    by_producer = torch.exp(torch.randn(int(scalable.channels.max()) + 1) * spread)
    return by_producer[scalable.channels]


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).detach().norm() / exact.detach().double().norm())


IDS = torch.randint(0, 99, (3, 11), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
class TestTransformers:
    def test_what_is_found(self, name: str, dtype: torch.dtype) -> None:
        make, place, expected = ARCHITECTURES[name]
        block = block_of(random_norms(make()).to(dtype), place, IDS)
        before = copy.deepcopy(block.module.state_dict())
        known: Known = {}
        found = find_scalable(block, known)
        assert {scalable.places for scalable in found} == expected
        assert all(name.startswith(place) for one in found for name in one.consumers)
        again = find_scalable(block, known)
        assert [scalable.places for scalable in again] == [one.places for one in found]
        after = block.module.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items())

    def test_the_function_stays(self, name: str, dtype: torch.dtype) -> None:
        make, place, _ = ARCHITECTURES[name]
        model = random_norms(make()).to(dtype)
        block = block_of(model, place, IDS)
        with torch.no_grad():
            before = model(IDS)[0]
            for scalable in find_scalable(block):
                fold(scalable, random_factors(scalable, 0.5))
            assert relative(model(IDS)[0], before) < (1e-5 if dtype is torch.float32 else 3e-2)


def test_heads_that_are_repeated() -> None:
    block = block_of(random_norms(llama()), "model.layers.0", IDS)
    (scalable,) = (one for one in find_scalable(block) if one.places[0] == "self_attn.v_proj")
    by_head = torch.arange(16).view(2, 8)  # 4 heads of 8 read 2
    assert torch.equal(scalable.channels, by_head.repeat_interleave(2, 0).flatten())
    assert scalable.columns is not None
    assert torch.equal(scalable.columns, scalable.channels)


def test_values_in_a_fused_projection() -> None:
    block = block_of(random_norms(neox()), "gpt_neox.layers.0", IDS)
    (scalable,) = (one for one in find_scalable(block) if one.places[1] == "attention.dense")
    values = torch.arange(96).view(4, 3, 8)[:, 2]  # q, k and v of each head
    assert torch.equal(scalable.channels, values.flatten())


def test_blocks_like_one_before_are_proven_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_norms(llama())
    known: Known = {}
    first = find_scalable(block_of(model, "model.layers.0", IDS), known)
    assert len(known) == 1

    def search(*args: Any) -> None:
        raise AssertionError("was searched again")

    monkeypatch.setattr("gossamer.calibration.scalable._search", search)
    second = find_scalable(block_of(model, "model.layers.1", IDS), known)
    assert [one.places for one in first] == [one.places for one in second]
    assert next(iter(second[0].consumers)) == "model.layers.1.self_attn.q_proj"
    assert second[0].producer is model.get_submodule("model.layers.1.input_layernorm")
    kept = [value for findings in known.values() for one in findings for value in one]
    assert kept
    assert not any(isinstance(value, nn.Module) for value in kept)  # they may be replaced


def test_a_block_that_only_looks_like_one_before_is_searched() -> None:
    class Half(nn.Module):
        def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
            self.activation = activation

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.activation(self.up(x)))

    model = nn.Sequential(Half(torch.relu), Half(functional.gelu))
    known: Known = {}
    x = torch.randn(2, 5, 8)
    assert len(find_scalable(block_of(model, "0", x), known)) == 1
    assert find_scalable(block_of(model, "1", x), known) == []


def test_a_head_that_is_tied_is_refused() -> None:
    for tied in (False, True):
        model = random_norms(llama(tie_word_embeddings=tied))
        found = find_scalable(block_of(model, "", IDS))
        places = {scalable.places for scalable in found}
        assert (("model.norm", "lm_head") in places) is not tied
        assert len(found) == 8 + (not tied)


class TestPlain:
    @pytest.mark.parametrize(
        ("activation", "found"),
        [
            (torch.relu, True),
            (functional.leaky_relu, True),
            (functional.gelu, False),
            (functional.silu, False),
            (torch.tanh, False),
            (functional.relu6, False),
            (torch.square, False),
            (lambda x: functional.layer_norm(x, x.shape[-1:]), False),
        ],
    )
    def test_activations(self, activation: Callable[[Tensor], Tensor], found: bool) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.down(activation(self.up(x) * 3))

        places = [one.places for one in find_scalable(block_of(Two(), "", torch.randn(2, 9, 8)))]
        assert places == ([("up", "down")] if found else [])

    def test_an_output_that_is_read_elsewhere(self) -> None:
        class Residual(nn.Module):
            def __init__(self, weight: float) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
                self.weight = weight

            def forward(self, x: Tensor) -> Tensor:
                x = torch.relu(self.a(x))
                return self.weight * x.sum(-1, keepdim=True) + self.b(x)

        x = torch.randn(2, 9, 8)
        assert len(find_scalable(block_of(Residual(0.0), "", x))) == 1
        for weight in (1.0, 1e-3):
            assert find_scalable(block_of(Residual(weight), "", x)) == []

    def test_channels_that_are_shuffled_and_flattened(self) -> None:
        order = torch.randperm(6)

        class Shuffled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 6, 3), nn.Linear(6 * 4 * 5, 7)

            def forward(self, x: Tensor) -> Tensor:
                return self.b(torch.relu(self.a(x))[:, order].flatten(1))

        model, x = Shuffled(), torch.randn(2, 3, 6, 7)
        (scalable,) = find_scalable(block_of(model, "", x))
        assert torch.equal(scalable.channels, order.repeat_interleave(20))
        before = model(x)
        fold(scalable, random_factors(scalable))
        assert relative(model(x), before) < 1e-5

    def test_pruned_weights_keep_their_zeros(self) -> None:
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        for layer in (model[0], model[2]):
            prune.l1_unstructured(layer, "weight", amount=0.5)
        x = torch.randn(3, 5, 8)
        before = model(x)
        (scalable,) = find_scalable(block_of(model, "", x))
        fold(scalable, random_factors(scalable))
        assert relative(model(x), before) < 1e-5
        assert all(int((model[index].weight == 0).sum()) >= 32 for index in (0, 2))

    def test_shared_parameters_are_refused(self) -> None:
        model = nn.Sequential(
            nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)
        )
        x = torch.randn(3, 5, 8)
        assert len(find_scalable(block_of(model, "", x))) == 2
        model[4].weight = model[0].weight
        assert find_scalable(block_of(model, "", x)) == []

    def test_an_expert_that_is_not_reached_is_left_alone(self) -> None:
        class Expert(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

            def forward(self, x: Tensor) -> Tensor:
                return self.down(torch.relu(self.up(x)))

        class Experts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm, self.experts = nn.LayerNorm(8), nn.ModuleList([Expert(), Expert()])

            def forward(self, x: Tensor) -> Tensor:
                x = self.norm(x)
                first = torch.ones_like(x[..., 0], dtype=torch.bool)
                out = torch.zeros_like(x)
                for chosen, expert in zip((first, ~first), self.experts, strict=True):
                    out[chosen] += expert(x[chosen])
                return out

        found = find_scalable(block_of(Experts(), "", torch.randn(1, 6, 8)))
        assert [one.places for one in found] == [("experts.0.up", "experts.0.down")]

    def test_channels_that_are_dead_in_the_sample(self) -> None:
        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gate, self.up, self.down = (nn.Linear(16, 16) for _ in range(3))
                self.gate.bias.data[3:9] = -1000

            def forward(self, x: Tensor) -> Tensor:
                return self.down(torch.relu(self.gate(x)) * self.up(x))

        found = find_scalable(block_of(Gated(), "", torch.randn(1, 6, 16)))
        assert [one.places for one in found] == [("up", "down")]
        assert torch.equal(found[0].channels, torch.arange(16))

    def test_one_row_of_numbers(self) -> None:
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        assert len(find_scalable(block_of(model, "", torch.randn(1, 8)))) == 1
        assert len(find_scalable(block_of(model, "", torch.randn(8)))) == 1

    def test_zeros_and_nan_prove_nothing(self) -> None:
        model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4))
        assert len(find_scalable(block_of(model, "", torch.randn(2, 3, 8)))) == 1
        assert find_scalable(block_of(model, "", torch.full((2, 3, 8), torch.nan))) == []
        without = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False))
        assert find_scalable(block_of(without, "", torch.zeros(2, 3, 8))) == []

    def test_a_block_without_calls(self) -> None:
        with pytest.raises(ValueError, match="find_scalable: block: has no calls"):
            find_scalable(Block("", nn.Linear(2, 2), {}, []))


class CNN(nn.Module):
    """Depthwise and plain convolutions, a batch norm, a residual sum, ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.inner = nn.Conv2d(12, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.pointwise(self.relu(self.depthwise(x))))
        x = x + self.last(self.relu(self.inner(x)))
        return self.head(self.relu(x).mean((2, 3)))


def test_convolutions() -> None:
    model = random_norms(CNN())
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 3, 9, 9)
    found = find_scalable(block_of(model, "", x))
    places = {scalable.places: scalable for scalable in found}
    assert set(places) == {("norm", "depthwise"), ("depthwise", "pointwise"), ("inner", "last")}
    assert places["norm", "depthwise"].columns is None  # in groups
    columns = places["inner", "last"].columns
    assert columns is not None
    assert torch.equal(columns, torch.arange(12).repeat(9))
    with torch.no_grad():
        before = model(x)
        for scalable in found:
            s = random_factors(scalable)
            fold(scalable, s if scalable.columns is None else s[scalable.columns])
        assert relative(model(x), before) < 1e-5


class TestFold:
    def scalable(self, repeat: int = 1) -> Scalable:
        channels = torch.arange(4).repeat_interleave(repeat)
        consumer = nn.Linear(4 * repeat, 3)
        return Scalable(nn.LayerNorm(4), {"a": consumer}, channels, False, ("norm", "a"))

    def test_exactly_what_it_says(self) -> None:
        scalable = self.scalable(2)
        W = scalable.consumers["a"].weight.detach().clone()
        s = torch.tensor([2.0, 2, 1, 1, 4, 4, 0.5, 0.5])
        fold(scalable, s)
        assert scalable.producer.weight.tolist() == [0.5, 1, 0.25, 2]
        assert torch.equal(scalable.consumers["a"].weight, W * s)

    @pytest.mark.parametrize("wrong", [0.0, -1.0, torch.inf, torch.nan])
    def test_wrong_factors(self, wrong: float) -> None:
        with pytest.raises(ValueError, match="fold: s: holds factors that are not positive"):
            fold(self.scalable(), torch.tensor([1, 1, wrong, 1]))

    def test_factors_that_differ(self) -> None:
        scalable = self.scalable(2)
        before = scalable.consumers["a"].weight.detach().clone()
        with pytest.raises(ValueError, match="fold: s: differs"):
            fold(scalable, torch.arange(1.0, 9))
        with pytest.raises(ValueError, match=r"fold: s: got shape \[4\], wanted \[8\]"):
            fold(scalable, torch.ones(4))
        assert torch.equal(scalable.consumers["a"].weight, before)


def test_scaled_statistics() -> None:
    x, s = torch.randn(50, 6) * torch.arange(1.0, 7), torch.rand(6) + 0.5

    def measured(x: Tensor) -> Statistics:
        moment, mean = x.T @ x / len(x), x.mean(0)
        low, high = float(x.min()), float(x.max())
        return Statistics(
            len(x), mean, x.abs().amax(0), x.square().mean(0), moment, low, high, torch.ones(2048)
        )

    found, exact = scaled(measured(x), s), measured(x / s)
    for name in ("mean", "peak", "squares", "moment"):
        assert torch.allclose(getattr(found, name), getattr(exact, name), rtol=1e-5)
    assert found.rows == 50
    assert found.histogram is None
    assert found.low <= exact.low < 0 < exact.high <= found.high
    positive = scaled(measured(x.abs()), s)
    assert positive.low == 0
    assert positive.high == pytest.approx(float((x.abs() / s).max()))


def test_rows_of_a_sample() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(1), nn.Linear(16, 2))
    x = torch.randn(6, 3, 3, 3)
    block = Block(
        "", model, {"0": model[0], "2": model[2]}, [Call((x[:3],), {}), Call((x[3:],), {})]
    )
    rows = sample_rows(block, 8)
    assert rows["2"].shape == (6, 16)
    assert rows["0"].shape[1] == 12
    assert 6 <= len(rows["0"]) <= 8
    inside = model[1](model[0](x))
    assert torch.equal(rows["2"], inside.detach())
