"""gs.equalize: equal ranges, the same function; and the bias that keeps the mean output."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import gossamer as gs
from gossamer.calibration.rows import input_rows
from gossamer.folding import from_matrix, to_matrix
from gossamer.quantization.bias import corrected_bias
from gossamer.quantization.equalization import equalize


def trained(model: nn.Module) -> nn.Module:
    """As after training: norms and biases have values, and channels differ by a factor of 1000."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            spread = torch.logspace(-2, 1, module.weight.shape[0])[
                torch.randperm(module.weight.shape[0])
            ]
            module.weight.data *= spread.view(-1, *[1] * (module.weight.dim() - 1))
    return model.eval()


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).detach().norm() / exact.detach().norm())


def output_range(layer: nn.Module) -> Tensor:
    return layer.weight.detach().abs().flatten(1).amax(1)


def input_range(layer: nn.Module) -> Tensor:
    weight = layer.weight.detach().abs()
    if getattr(layer, "groups", 1) > 1:  # depthwise
        return weight.flatten(1).amax(1)
    return weight.transpose(0, 1).flatten(1).amax(1)


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 12),
        nn.LeakyReLU(),
        nn.Linear(12, 4),
    )


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        ),
        nn.Conv2d(8, 12, 1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


class Residual(nn.Module):
    """What nn.Sequential cannot say: a sum, and a batch norm whose input is read elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.shown, self.shown_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.a, self.b = nn.Conv2d(6, 10, 3, padding=1), nn.Conv2d(10, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.norm(self.stem(x)))
        shown = self.shown(x)
        x = x + self.b(torch.relu(self.a(torch.relu(self.shown_norm(shown)))))
        return self.head(x.mean((2, 3))), shown


class TestSequences:
    def test_ranges_are_those_of_the_paper(self) -> None:
        model = trained(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
        r1, r2 = output_range(model[0]), input_range(model[2])
        before = [copy.deepcopy(model[index]) for index in (0, 2)]
        assert equalize(model) is model
        s = (r1 / r2).sqrt()
        assert torch.allclose(model[0].weight, before[0].weight / s[:, None], rtol=1e-5)
        assert torch.allclose(model[0].bias, before[0].bias / s, rtol=1e-5)
        assert torch.allclose(model[2].weight, before[1].weight * s, rtol=1e-5)
        assert torch.equal(model[2].bias, before[1].bias)

    @pytest.mark.parametrize("make", [mlp, cnn])
    @pytest.mark.parametrize("sampled", [False, True])
    def test_the_function_stays_and_ranges_settle(
        self, make: Callable[[], nn.Sequential], sampled: bool
    ) -> None:
        model = trained(make())
        x = torch.randn(5, 8) if make is mlp else torch.randn(5, 3, 11, 11)
        with torch.no_grad():
            before = model(x)
            equalize(model, x) if sampled else equalize(model)
            assert relative(model(x), before) < 1e-5
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        layers = [one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
        for first, second in pairwise(layers):
            produced, read = output_range(first), input_range(second)
            if getattr(second, "groups", 1) == 3:
                by_group = second.weight.detach().abs().view(3, 4, 4, 9)
                read = by_group.amax((1, 3)).flatten()
            if len(read) != len(produced):
                read = read.view(len(produced), -1).amax(1)
            assert torch.allclose(produced, read, rtol=0.02)

    def test_ranges_of_activations_come_closer(self) -> None:
        model = trained(cnn())
        x = torch.randn(5, 3, 11, 11)

        def spread() -> float:
            peaks = model[3](model[2](model[1](model[0](x)))).amax((0, 2, 3))
            return float(peaks.detach().max() / peaks.detach().median())

        before = spread()
        equalize(model)
        assert spread() < before / 3

    def test_pairs_that_are_left_alone(self) -> None:
        for between in (nn.GELU(), nn.Sigmoid(), nn.ReLU6(), nn.LayerNorm(16), nn.BatchNorm1d(16)):
            model = trained(nn.Sequential(nn.Linear(8, 16), between, nn.Linear(16, 4)))
            before = copy.deepcopy(model.state_dict())
            equalize(model)
            after = model.state_dict()
            assert all(torch.equal(value, after[name]) for name, value in before.items())

    def test_shared_modules_and_parameters_are_left_alone(self) -> None:
        layer = nn.Linear(8, 8)
        twice = nn.Sequential(layer, nn.ReLU(), layer)
        tied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        tied[2].weight = tied[0].weight
        for model in (twice, tied):
            before, x = layer.weight.detach().clone(), torch.randn(3, 8)
            exact = model(x)
            equalize(model.eval())
            assert torch.equal(model(x), exact)
            assert torch.equal(layer.weight, before)

    def test_a_dead_channel(self) -> None:
        model = trained(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
        model[0].weight.data[3] = 0
        model[2].weight.data[:, 5] = 0
        bias, row = model[0].bias.detach().clone(), model[0].weight.detach()[5].clone()
        x = torch.randn(9, 8)
        before = model(x)
        equalize(model)
        assert relative(model(x), before) < 1e-5
        assert model[0].bias[3] == bias[3]
        assert torch.equal(model[0].weight[5], row)

    def test_pruned_weights_keep_their_zeros(self) -> None:
        model = trained(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
        prune.l1_unstructured(model[0], "weight", amount=0.5)
        x = torch.randn(9, 8)
        before = model(x)
        zeros = model[0].weight == 0
        equalize(model)
        assert relative(model(x), before) < 1e-5
        assert torch.equal(model[0].weight == 0, zeros)


class TestSample:
    def test_a_residual_network(self) -> None:
        model = trained(Residual())
        x = torch.randn(3, 3, 9, 9)
        with torch.no_grad():
            before = model(x)
            equalize(model, (x,))
            after = model(x)
        assert all(relative(y, exact) < 1e-5 for y, exact in zip(after, before, strict=True))
        assert isinstance(model.norm, nn.Identity)
        # What the norm reads is an output, too.
        assert isinstance(model.shown_norm, nn.BatchNorm2d)
        assert torch.allclose(output_range(model.a), input_range(model.b), rtol=0.02)

    def test_without_a_sample_nothing_is_known_of_it(self) -> None:
        model = trained(Residual())
        before = copy.deepcopy(model.state_dict())
        equalize(model)
        after = model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())

    def test_samples_of_all_kinds(self) -> None:
        ranges = []
        for kind in ("tensor", "tuple", "dict"):
            torch.manual_seed(0)
            model, x = trained(mlp()), torch.randn(3, 8)
            sample = {"tensor": x, "tuple": (x,), "dict": {"input": x}}[kind]
            equalize(model, sample)
            ranges.append(output_range(model[0]))
        assert torch.equal(ranges[0], ranges[1])
        assert torch.equal(ranges[0], ranges[2])

    def test_a_repeated_head(self) -> None:
        class Repeated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.value, self.out = nn.Linear(8, 8), nn.Linear(16, 8)

            def forward(self, x: Tensor) -> Tensor:
                values = self.value(x).unflatten(-1, (2, 4)).repeat_interleave(2, -2)
                return self.out(values.flatten(-2))

        model, x = trained(Repeated()), torch.randn(2, 5, 8)
        before = model(x)
        equalize(model, x)
        assert relative(model(x), before) < 1e-5
        read = input_range(model.out).view(2, 2, 4).amax(1).flatten()
        assert torch.allclose(output_range(model.value), read, rtol=0.02)


class TestErrors:
    def test_batch_norms_in_training_mode(self) -> None:
        with pytest.raises(ValueError, match=r"equalize: model: '0.1' is in training mode"):
            equalize(cnn())

    def test_nan(self) -> None:
        model = mlp().eval()
        model[3].weight.data[0, 0] = torch.nan
        with pytest.raises(
            ValueError, match=r"equalize: model: NaN or infinity in a weight of 0, 3"
        ):
            equalize(model)

    def test_kinds(self) -> None:
        with pytest.raises(TypeError, match=r"equalize: model: got .* wanted an nn\.Module"):
            equalize([3])
        with pytest.raises(TypeError, match="equalize: sample: got int 3"):
            equalize(mlp().eval(), 3)


class TestBias:
    @pytest.mark.parametrize(
        "layer",
        [
            nn.Linear(8, 5),
            nn.Linear(8, 5, bias=False),
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv1d(4, 6, 3, stride=2),
            nn.Conv2d(6, 4, (3, 2), groups=2),
            nn.Conv2d(6, 6, 3, groups=6, padding=2),
        ],
    )
    def test_mean_outputs_are_what_they_were(self, layer: nn.Module) -> None:
        shape = {nn.Linear: (40, 8), nn.Conv1d: (9, 4, 12), nn.Conv2d: (9, 0, 7, 7)}[type(layer)]
        x = torch.rand([layer.in_channels if size == 0 else size for size in shape]) + 1
        W = to_matrix(layer, layer.weight.detach())
        rounded = gs.formats.Int4.quantize(W, None).dequantize()
        rows = torch.cat(list(input_rows(layer, x)))
        taps = rows.shape[1] // (layer.in_channels if hasattr(layer, "groups") else rows.shape[1])
        bias = corrected_bias(W, rounded, layer.bias, rows.mean(0), taps)
        other = copy.deepcopy(layer)
        other.weight.data = from_matrix(layer, rounded, layer.weight.shape)
        other.bias = nn.Parameter(bias)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        exact, found = layer(x).mean(axes), other(x).mean(axes)
        assert torch.allclose(found, exact, rtol=1e-5, atol=1e-5)
        if layer.bias is not None:
            other.bias = layer.bias
            assert not torch.allclose(other(x).mean(axes), exact, rtol=1e-3, atol=1e-3)

    def test_dtype_is_kept(self) -> None:
        W, mean = torch.randn(3, 4), torch.ones(4)
        bias = torch.ones(3, dtype=torch.bfloat16)
        assert corrected_bias(W, W, bias, mean).dtype is torch.bfloat16
        assert torch.equal(corrected_bias(W, W, bias, mean), bias)

    def test_errors(self) -> None:
        W, mean = torch.randn(3, 4), torch.ones(4)
        with pytest.raises(ValueError, match=r"corrected_bias: rounded: got .* wanted \[3, 4\]"):
            corrected_bias(W, W[:2], None, mean)
        with pytest.raises(ValueError, match=r"corrected_bias: bias: got .* wanted \[3\]"):
            corrected_bias(W, W, torch.ones(4), mean)
        with pytest.raises(ValueError, match=r"corrected_bias: mean: got .* wanted \[4\]"):
            corrected_bias(W, W, None, torch.ones(5))
        with pytest.raises(ValueError, match="corrected_bias: mean: holds NaN"):
            corrected_bias(W, W, None, mean * torch.nan)
