"""Learned rounding: lower loss than of nearest on every grid; and one step in float64."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.calibration import Call
from gossamer.calibration.minibatches import Samples
from gossamer.folding import from_matrix
from gossamer.formats import FORMATS, Format
from gossamer.formats.grids import Grid, fit_grid
from gossamer.quantization.autoround import AutoRound
from gossamer.quantization.learned_weight import LearnedWeight
from gossamer.schemes import Scheme

SCHEMES = (
    "int4-g32",
    "int4-g32-asym",
    "int4-per-channel",
    "int8",
    "nf4",
    "fp4",
    "mxfp4",
    "fp8-block",
    "sparse-int4-g32",
)


def scheme(name: str) -> Scheme:
    return gs.Quantize(name).resolved()


class Mixer(nn.Module):
    """A block with attention between tokens, a residual, and an argument beside x."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(
        self, hidden: Tensor, scale: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor]:
        q, k, v = self.qkv(self.norm(hidden)).chunk(3, -1)
        mask = None if attention_mask is None else attention_mask[:, None, :].bool()
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        hidden = hidden + mixed * scale
        return (hidden + self.down(nn.functional.gelu(self.up(hidden))),)


def mixer_calls(block: Mixer, count: int = 4, rows: int = 4) -> tuple[list[Call], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    width = block.norm.weight.numel()
    directions = torch.randn(width, width, generator=generator) * torch.logspace(-1, 0.5, width)
    scale = torch.ones(1, 1, width)
    calls = []
    for _ in range(count):
        x = torch.randn(rows, 12, width, generator=generator) @ directions / 4
        calls.append(Call((x,), {"scale": scale}))
    with torch.no_grad():
        return calls, [block(*call.args, **call.kwargs)[0] for call in calls]


def mixer_layers(block: Mixer, name: str) -> dict[str, tuple[nn.Module, Scheme]]:
    parts = {"qkv": block.qkv, "up": block.up, "down": block.down}
    return {f"model.0.{part}": (layer, scheme(name)) for part, layer in parts.items()}


@torch.no_grad()
def error(
    block: Mixer, calls: list[Call], targets: list[Tensor], weights: dict[str, Format]
) -> float:
    """|block(x; Ŵ) - y|² by direct assignment of Ŵ."""
    rounded = copy.deepcopy(block)
    for name, weight in weights.items():
        rounded.get_submodule(name.rpartition(".")[2]).weight.copy_(weight.dequantize())
    pairs = zip(calls, targets, strict=True)
    return sum(float((rounded(*c.args, **c.kwargs)[0] - y).square().sum()) for c, y in pairs)


def nearest(layers: dict[str, tuple[nn.Module, Scheme]]) -> dict[str, Format]:
    return {
        name: FORMATS[s.format].quantize(layer.weight.detach(), s.group_size, **s.settings)
        for name, (layer, s) in layers.items()
    }


@pytest.fixture
def block() -> Mixer:
    torch.manual_seed(0)
    return Mixer()


@pytest.mark.parametrize("name", SCHEMES)
def test_loss_is_clearly_lower_than_of_nearest(block: Mixer, name: str) -> None:
    calls, targets = mixer_calls(block)
    layers = mixer_layers(block, name)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    block.train()
    found = AutoRound(iterations=30, batch=4).learn(block, layers, calls, targets)

    assert list(found) == list(layers)
    for key, (layer, wanted) in layers.items():
        assert type(found[key]) is FORMATS[wanted.format]
        assert found[key].shape == tuple(layer.weight.shape)
        assert found[key].group_size == wanted.group_size
    share = error(block, calls, targets, found) / error(block, calls, targets, nearest(layers))
    assert share < (0.8 if name in ("int8", "fp8-block") else 0.6)
    # The block is as it was.
    assert block.training
    assert block.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in block.parameters())
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_a_clip_that_is_not_learned_leaves_the_scales(block: Mixer) -> None:
    calls, targets = mixer_calls(block)
    layers = mixer_layers(block, "int4-g32")
    found = AutoRound(iterations=5, clip=False).learn(block, layers, calls, targets)
    again = AutoRound(iterations=5, clip=True).learn(block, layers, calls, targets)
    start = AutoRound(iterations=1, learning_rate=1e-9).learn(block, layers, calls, targets)
    for name in layers:
        assert torch.equal(found[name].scales, start[name].scales)
        assert not torch.equal(again[name].scales, start[name].scales)
        assert not torch.equal(found[name].codes, start[name].codes)


def test_the_seed_decides_the_codes(block: Mixer) -> None:
    calls, targets = mixer_calls(block)
    layers = mixer_layers(block, "int4-g32")

    def codes(seed: int) -> Tensor:
        settings = AutoRound(iterations=6, batch=1, seed=seed)
        return settings.learn(block, layers, calls, targets)["model.0.up"].codes

    first = codes(0)
    torch.manual_seed(123)  # of no importance
    assert torch.equal(first, codes(0))
    assert not torch.equal(first, codes(1))


@pytest.mark.parametrize("name", ["int4-g32-asym", "nf4", "sparse-int4-g32"])
def test_pruned_weights_stay_zero(block: Mixer, name: str) -> None:
    layers = mixer_layers(block, name)
    generator = torch.Generator().manual_seed(5)
    keep = {
        key: torch.rand(layer.weight.shape, generator=generator) > 0.5
        for key, (layer, _) in layers.items()
    }
    masked = copy.deepcopy(block)
    for key, mask in keep.items():
        masked.get_submodule(key.rpartition(".")[2]).weight.data.mul_(mask)
    calls, targets = mixer_calls(masked)
    found = AutoRound(iterations=20, batch=4).learn(block, layers, calls, targets, keep=keep)
    for key, mask in keep.items():
        assert bool((found[key].dequantize()[~mask] == 0).all())
        assert float((found[key].dequantize()[mask] != 0).float().mean()) > 0.8
    plain = nearest(mixer_layers(masked, name))
    assert error(block, calls, targets, found) < 0.7 * error(block, calls, targets, plain)


def naive_step(
    W: Tensor, scales: Tensor, x: Tensor, y: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """V and factors after one step for y = x Wᵀ: signs of gradients, entry by entry, in float64."""
    W, x, y = W.double(), x.double(), y.double()
    N, K = W.shape
    G = K // scales.shape[1]
    level, inside = torch.zeros(N, K).double(), torch.zeros(N, K).bool()
    for n in range(N):
        for k in range(K):
            step = torch.round(W[n, k] / scales[n, k // G].double())
            inside[n, k] = -8 <= step <= 7
            level[n, k] = min(max(step, -8.0), 7.0)
    energy = y.square().mean(-1, keepdim=True)
    weight = 1 / (energy + energy.flatten().median())
    spread = scales.double().repeat_interleave(G, 1)
    slope = 2 * ((x @ (level * spread).T - y) * weight).flatten(0, -2).T @ x.flatten(0, -2)
    V = -rate * (slope * spread * inside).sign()
    lever = (level - inside * W / spread) * spread * slope
    factors = 1 - 0.2 * rate * lever.view(N, -1, G).sum(2).sign()
    return V, factors


def test_one_step_is_that_of_a_naive_reference() -> None:
    torch.manual_seed(3)
    layer = nn.Linear(32, 6, bias=False)
    x = torch.randn(2, 5, 32)
    y = (layer(x) + 0.05 * torch.randn(2, 5, 6)).detach()
    with gs.cpu.force("avx2" if "avx2" in gs.cpu.available() else "scalar"):  # in float32
        found = AutoRound(iterations=1, batch=2, learning_rate=0.1).learn(
            layer, {"x": (layer, scheme("int4-g16"))}, [Call((x,), {})], [y]
        )["x"]
    W, squares = layer.weight.detach(), x.flatten(0, 1).square().mean(0)
    grid = fit_grid("int4", 16, {}, W, importance=squares)
    V, factors = naive_step(W, grid.scales, x, y, 0.1)

    learned = LearnedWeight(W, grid, None, clip=True)
    learned.V.copy_(V.view_as(learned.V))
    learned.factors.copy_(factors)
    expected = learned.format(sparse=False)
    assert bool((expected.codes != grid.to_format(grid.round(W)).codes).any())
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scales, expected.scales)


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "nf4", "fp4", "int8", "fp8"])
def test_a_weight_that_has_learned_nothing_is_rounded_to_nearest(name: str) -> None:
    W = torch.randn(5, 70, generator=torch.Generator().manual_seed(2))
    wanted = scheme(name)
    grid = fit_grid(wanted.format, wanted.group_size, wanted.settings, W)
    weight = LearnedWeight(W, grid, None, clip=True)
    assert torch.equal(grid.dequantize(weight.codes()), grid.dequantize(grid.round(W)))
    assert torch.allclose(weight.rounded(), grid.dequantize(grid.round(W)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["int4-g32", "nf4"])
def test_half_a_step_reaches_both_neighbours(name: str) -> None:
    W = torch.randn(4, 64, generator=torch.Generator().manual_seed(2)) / 4
    wanted = scheme(name)
    grid = fit_grid(wanted.format, wanted.group_size, wanted.settings, W)
    weight = LearnedWeight(W, grid, None, clip=True)
    codes = []
    for V in (-0.499, 0.0, 0.499):
        weight.V.fill_(V)
        codes.append(weight.codes().int())
    for lower, upper in pairwise(codes):
        assert bool((lower <= upper).all())
    assert bool((codes[2] - codes[0] <= 1).all())
    assert float((codes[2] - codes[0]).float().mean()) > 0.9  # clamped ones cannot


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "nf4"])
def test_gradients_are_those_of_straight_through_autograd(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    W = torch.randn(3, 70, generator=generator)
    wanted = scheme(name)
    grid = fit_grid(wanted.format, wanted.group_size, wanted.settings, W)
    grid = grid.with_scales(grid.scales * 0.7, grid.zeros if name.endswith("asym") else None)
    weight = LearnedWeight(W, grid, None, clip=True)
    weight.V.uniform_(-0.4, 0.4, generator=generator)
    weight.factors.uniform_(0.8, 1.2, generator=generator)
    slope = torch.randn(3, 70, generator=generator)
    found_V, found_factors = weight.gradients(slope)
    size = grid.group_size or 70
    for g in range(grid.scales.shape[1]):
        columns = slice(g * size, min(70, (g + 1) * size))
        V, factors = straight_through(grid, weight, W, slope, g, columns)
        width = columns.stop - columns.start
        assert torch.equal(found_V[:, g, :width].sign(), V.sign())
        assert torch.allclose(found_factors[:, g], factors, rtol=1e-4, atol=1e-5)


def straight_through(
    grid: Grid, weight: LearnedWeight, W: Tensor, slope: Tensor, g: int, columns: slice
) -> tuple[Tensor, Tensor]:
    """Autograd through ``value + (rounded - value).detach()`` for one group."""
    V = weight.V[:, g, : columns.stop - columns.start].clone().requires_grad_()
    factors = weight.factors[:, g].clone().requires_grad_()
    s = (grid.scales[:, g] * factors)[:, None]
    level = grid.levels[weight.codes()[:, columns].int()]
    zero = torch.zeros(len(W), 1) if grid.zeros is None else grid.zeros[:, g, None]
    smooth = W[:, columns] / s + V
    lowest, highest = grid.levels[0] - zero, grid.levels[-1] - zero
    # Of uneven levels the outermost interval is as wide as the step to the last level.
    first, last = grid.levels[1] - grid.levels[0], grid.levels[-1] - grid.levels[-2]
    steps = (W[:, columns] / s).detach()
    moved = V.detach()
    below = (steps - lowest) / first + moved < -0.5
    above = (steps - highest) / last + moved > 0.5
    inside = ~(below | above)
    value = torch.where(inside, smooth + (level - zero - smooth).detach(), level - zero)
    (value * s * slope[:, columns]).sum().backward()
    assert V.grad is not None
    assert factors.grad is not None
    return V.grad, factors.grad


def conv1d() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="Conv1D is of transformers")
    layer: nn.Module = transformers.pytorch_utils.Conv1D(40, 24)
    layer.weight.data.normal_()
    return layer


@pytest.mark.parametrize("kind", ["conv1d", "conv2d"])
def test_other_layers_than_linear(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "conv1d":
        block, shape = nn.Sequential(conv1d()), (6, 5, 24)
    else:
        kernel, point = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 6, 1)
        block, shape = nn.Sequential(kernel, nn.ReLU(), point), (6, 8, 7, 7)
    x = torch.randn(shape).cumsum(-1)  # correlated
    calls = [Call((part,), {}) for part in x.split(2)]
    targets = [block(*call.args).detach() for call in calls]
    modules = {name: block[int(name)] for name in "02"[: 1 + (kind == "conv2d")]}
    layers = {name: (module, scheme("int4-g16")) for name, module in modules.items()}

    @torch.no_grad()
    def loss(weights: dict[str, Format]) -> float:
        rounded = copy.deepcopy(block)
        for name, weight in weights.items():
            own = rounded[int(name)]
            values = from_matrix(own, weight.dequantize(), own.weight.shape)
            own.weight.data.copy_(values)
        return float((rounded(x) - torch.cat(targets)).square().sum())

    found = AutoRound(iterations=20, batch=2).learn(block, layers, calls, targets)
    start = AutoRound(iterations=1, learning_rate=1e-9).learn(block, layers, calls, targets)
    assert loss(found) < 0.8 * loss(start)


def test_padding_does_not_count(block: Mixer) -> None:
    calls, targets = mixer_calls(block, count=2)
    layers = mixer_layers(block, "int4-g32")
    mask = torch.ones(4, 12)
    mask[:, 9:] = 0
    calls = [Call(c.args, {**c.kwargs, "attention_mask": mask}) for c in calls]
    with torch.no_grad():
        targets = [block(*c.args, **c.kwargs)[0] for c in calls]

    def learned(wrong: float, masks: list[Tensor | None] | None = None) -> dict[str, Format]:
        spoiled = [y.clone() for y in targets]
        inputs = [c.args[0].clone() for c in calls]
        for tensor in (*spoiled, *inputs):
            tensor[:, 9:] *= wrong
        changed = [Call((x,), c.kwargs) for x, c in zip(inputs, calls, strict=True)]
        settings = AutoRound(iterations=4, batch=4)
        return settings.learn(block, layers, changed, spoiled, masks=masks)

    for masks in (None, [mask.bool()] * 2):
        for name, weight in learned(1.0, masks).items():
            assert torch.equal(weight.codes, learned(30.0, masks)[name].codes)


def test_rows_that_depend_on_each_other_stay_together() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x - x.mean(0))

    block = Centred()
    calls = [Call((torch.randn(4, 3, 16),), {}) for _ in range(2)]
    targets = [block(*call.args).detach() for call in calls]
    assert len(Samples("test", block, calls, targets, None, batch=1)) == 2
    assert len(Samples("test", block.linear, calls, targets, None, batch=1)) == 8


def test_a_batch_has_512_tokens_if_nothing_is_said() -> None:
    block = nn.Linear(16, 16)
    for shape, rows in (((8, 128, 16), 4), ((3, 700, 16), 1), ((600, 16), 512)):
        calls = [Call((torch.randn(shape),), {}) for _ in range(2)]
        targets = [block(*call.args).detach() for call in calls]
        batch = next(Samples("test", block, calls, targets, None, None).batches(0))
        assert sum(len(sample.target) for sample in batch) == rows


def test_calls_are_left_as_they_were() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x.add_(self.linear(x.clone()))

    block, x = InPlace(), torch.randn(4, 3, 16)
    target = block(x.clone()).detach()
    before = x.clone(), target.clone()
    layers = {"linear": (block.linear, scheme("int4-g16"))}
    AutoRound(iterations=2, batch=4).learn(block, layers, [Call((x,), {})], [target])
    assert torch.equal(x, before[0])
    assert torch.equal(target, before[1])


def test_a_beginning_that_is_better_is_kept(block: Mixer) -> None:
    calls, targets = mixer_calls(block)
    layers = mixer_layers(block, "int4-g32")
    shares: list[float] = []
    wild = AutoRound(iterations=2, learning_rate=1.0)
    found = wild.learn(block, layers, calls, targets, advance=shares.append)
    start = AutoRound(iterations=1, learning_rate=1e-9).learn(block, layers, calls, targets)
    assert shares == [0.5, 0.5]
    for name in layers:
        assert torch.equal(found[name].codes, start[name].codes)


def test_errors(block: Mixer) -> None:
    calls, targets = mixer_calls(block)
    layers = mixer_layers(block, "int4-g32")
    settings = AutoRound(iterations=1)
    bad = [calls[0], Call((calls[1].args[0] * torch.nan,), calls[1].kwargs)]
    with pytest.raises(ValueError, match=r"AutoRound.learn: calls: NaN or infinity in number 1"):
        settings.learn(block, layers, bad, targets[:2])
    with pytest.raises(ValueError, match=r"targets: NaN or infinity in number 0"):
        settings.learn(block, layers, calls[:1], [targets[0] / 0])
    with pytest.raises(ValueError, match=r"targets: got 1 for 4 calls"):
        settings.learn(block, layers, calls, targets[:1])
    with pytest.raises(ValueError, match=r"layers: 'x' is no layer of the block"):
        settings.learn(block, {"x": (nn.Linear(4, 4), scheme("int4-g32"))}, calls, targets)
    with pytest.raises(ValueError, match=r"targets: got .* where the block returns"):
        settings.learn(block, layers, calls, [y[..., :1] for y in targets])
    with pytest.raises(ValueError, match="no grid"):
        settings.learn(block, mixer_layers(block, "bf16"), calls, targets)
    with pytest.raises(ValueError, match="keep"):
        settings.learn(block, layers, calls, targets, keep={"model.0.up": torch.ones(1).bool()})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations: got 0"),
        ({"batch": 1.5}, "batch: got 1.5"),
        ({"seed": -1}, "seed: got -1"),
        ({"learning_rate": 0}, r"learning_rate: got 0, wanted a number in \(0, 1\]"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"AutoRound: {message}"):
        AutoRound(**settings)  # type: ignore[arg-type]
