"""gs.factorize on convolutions: the same function as torch's layer, in fewer parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.factorization import FactorizedLayer, convolution, factorize
from gossamer.factorization.sensitivity import PLAIN, Measure

SETTINGS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"padding": "same", "dilation": 2},
    {"padding": "valid", "bias": False},
    {"padding": (1, 2), "padding_mode": "reflect"},
    {"padding": (2, 1), "padding_mode": "circular", "stride": 3},
    {"padding": 1, "padding_mode": "replicate"},
]


def records(model: nn.Module) -> dict[str, FactorizedLayer]:
    return {layer.name: layer for layer in gs.report(model).factorized}


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).detach().norm() / exact.detach().norm())


def tucker_kernel(
    outputs: int, inputs: int, size: tuple[int, int], ranks: tuple[int, int]
) -> Tensor:
    core = torch.randn(*ranks, *size)
    A, B = torch.randn(outputs, ranks[0]), torch.randn(inputs, ranks[1])
    return torch.einsum("or,rshw,is->oihw", A, core, B) / 10


def separable_kernel(outputs: int, inputs: int, size: tuple[int, int], rank: int) -> Tensor:
    down, across = torch.randn(rank, inputs, size[0]), torch.randn(outputs, rank, size[1])
    return torch.einsum("rih,orw->oihw", down, across) / 10


def conv_of(kernel: Tensor, **settings: Any) -> nn.Conv2d:
    outputs, inputs, *size = kernel.shape
    conv = nn.Conv2d(inputs, outputs, tuple(size), **settings)
    conv.weight = nn.Parameter(kernel)
    return conv


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("form", ["tucker", "spatial"])
@pytest.mark.parametrize("size", [(3, 3), (5, 3), (1, 3)])
def test_kernels_of_low_rank_come_out_exact(
    form: str, settings: dict[str, Any], size: tuple[int, int]
) -> None:
    make = tucker_kernel if form == "tucker" else separable_kernel
    rank: Any = (4, 3) if form == "tucker" else 4
    model = nn.Sequential(conv_of(make(12, 10, size, rank), **settings))
    x = torch.randn(2, 10, 13, 12)
    y = model(x)
    factorize(model, rel_error=1e-3, convolutions=form)
    (record,) = records(model).values()
    assert (record.form, record.rank) == (form, (4, 3) if form == "tucker" else (4,))
    assert record.error < 1e-5
    assert model(x).shape == y.shape
    assert relative(model(x), y) < 1e-5
    assert model(x[0]).shape == y[0].shape
    assert record.parameters_after == sum(layer.weight.numel() for layer in model[0])
    assert [layer.bias is not None for layer in model[0]][:-1] == [False] * (len(model[0]) - 1)


def test_pointwise_convolutions_are_matrices() -> None:
    kernel = (torch.randn(24, 5) @ torch.randn(5, 32))[:, :, None, None]
    model = nn.Sequential(conv_of(kernel, stride=2, padding=1))
    x = torch.randn(2, 32, 9, 9)
    y = model(x)
    factorize(model, rank=5)
    assert [tuple(layer.weight.shape[:2]) for layer in model[0]] == [(5, 32), (24, 5)]
    assert records(model)["0"].form == "1x1, 1x1"
    assert relative(model(x), y) < 1e-5


def test_a_rank_of_all_channels_needs_no_layer() -> None:
    model = nn.Sequential(conv_of(tucker_kernel(16, 16, (3, 3), (16, 3))))
    x = torch.randn(1, 16, 8, 8)
    y = model(x)
    factorize(model, rel_error=1e-3)
    assert records(model)["0"].rank == (16, 3)
    assert [tuple(layer.weight.shape) for layer in model[0]] == [(3, 16, 1, 1), (16, 3, 3, 3)]
    assert relative(model(x), y) < 1e-5


@pytest.mark.parametrize("form", ["tucker", "spatial"])
def test_the_error_is_that_of_the_function(form: str) -> None:
    """Random kernels: the record's error is that of the kernel that the new layers compute with."""
    model = nn.Sequential(nn.Conv2d(12, 20, 3, padding=1))
    kernel = model[0].weight.detach()
    factorize(model, ratio=0.5, convolutions=form)
    (record,) = records(model).values()
    assert record.parameters_after <= 0.5 * kernel.numel()
    impulses = torch.eye(12)[:, :, None, None] * nn.functional.pad(
        torch.ones(1, 1, 1, 1), (2, 2, 2, 2)
    )
    with torch.no_grad():
        response = (model(impulses) - model(torch.zeros_like(impulses)))[:, :, 1:4, 1:4]
    found = response.flip(2, 3).transpose(0, 1)
    assert relative(found, kernel) == pytest.approx(record.error, rel=1e-4)
    assert record.measured_error == pytest.approx(record.error, rel=1e-4)


def test_spatial_is_the_best_of_its_rank() -> None:
    kernel = torch.randn(8, 6, 3, 5)
    model = nn.Sequential(conv_of(kernel))
    factorize(model, rank=7, convolutions="spatial")
    S = torch.linalg.svdvals(kernel.double().permute(0, 3, 1, 2).reshape(40, 18))
    assert records(model)["0"].error == pytest.approx(float(S[7:].norm() / S.norm()), rel=1e-3)


def test_sweeps_improve_on_the_start_and_the_curve_is_right() -> None:
    kernel = torch.randn(14, 11, 3, 3, dtype=torch.float64)
    found = convolution.Tucker.solve(kernel, PLAIN)
    curve = found.curve(PLAIN)
    assert (curve.sizes.diff() > 0).all()
    assert (curve.kept.diff() > 0).all()
    for index in range(0, len(curve), 7):
        outputs, inputs = curve.ranks[index].tolist()
        U, V = found.outputs[:, :outputs], found.inputs[:, :inputs]
        projected = torch.einsum("op,pihw,ij->ojhw", U @ U.T, kernel, V @ V.T)
        start = 1 - float((kernel - projected).square().sum() / kernel.square().sum())
        assert float(curve.kept[index]) == pytest.approx(start, rel=1e-9)
        A, core, B, kept = found.factors(outputs, inputs)
        swept = torch.einsum("or,rshw,si->oihw", A, core, B)
        share = 1 - float((kernel - swept).square().sum() / kernel.square().sum())
        assert kept == pytest.approx(share, rel=1e-9)
        assert kept >= start - 1e-12
        size = convolution.tucker_size(kernel.shape, outputs, inputs)
        assert size == curve.sizes[index] < kernel.numel()


def test_tucker_by_a_measure() -> None:
    """|diag(D) (W - Ŵ) C^½|, which comes out lower than without the measure."""
    kernel = torch.randn(10, 12, 3, 3, dtype=torch.float64)
    mix = torch.randn(12, 12, dtype=torch.float64) * torch.logspace(0, -2, 12)
    C, D = mix.T @ mix, torch.logspace(0, -2, 10, dtype=torch.float64)

    def measured(approximation: Tensor) -> float:
        error = (kernel - approximation) * D[:, None, None, None]
        return float(torch.einsum("oihw,ij,ojhw->", error, C, error))

    errors = []
    for measure in (Measure(C, D), PLAIN):
        A, core, B, kept = convolution.Tucker.solve(kernel, measure).factors(5, 6)
        errors.append(measured(torch.einsum("or,rshw,si->oihw", A, core, B)))
        if measure is not PLAIN:
            assert 1 - kept == pytest.approx(
                errors[0] / measured(torch.zeros_like(kernel)), rel=1e-6
            )
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("form", ["tucker", "spatial"])
@pytest.mark.parametrize("size", [1, 3])
def test_activation_aware_lowers_the_error_of_the_output(form: str, size: int) -> None:
    mix = torch.randn(16, 16) * torch.logspace(0, -2, 16)[:, None]
    x = torch.einsum("nchw,cd->ndhw", torch.randn(4, 16, 12, 12), mix)
    dense = nn.Sequential(nn.Conv2d(16, 16, size, padding=size // 2, stride=2))
    errors = {}
    for method in ("plain", "activation-aware"):
        model = copy.deepcopy(dense)
        calibration = None if method == "plain" else [x]
        factorize(model, rank=5, method=method, calibration=calibration, convolutions=form)
        errors[method] = relative(model(x), dense(x))
        if method != "plain" and size == 1:
            y = dense(x) - dense[0].bias[:, None, None]
            error = float((model(x) - dense(x)).detach().norm() / y.detach().norm())
            assert error == pytest.approx(records(model)["0"].measured_error, rel=1e-3)
    assert errors["activation-aware"] < 0.8 * errors["plain"]


@pytest.mark.parametrize("form", ["tucker", "spatial"])
def test_fisher(form: str) -> None:
    dense = nn.Sequential(nn.Conv2d(8, 12, 3), nn.Flatten(), nn.LazyLinear(4))
    x = torch.randn(6, 8, 6, 6)
    dense(x)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model[0](batch) * torch.logspace(1, -3, 12)[:, None, None]).square().mean()

    model = copy.deepcopy(dense)
    factorize(
        model,
        rank=4,
        targets="0",
        method="fisher",
        calibration=list(x.split(1)),
        loss=loss,
        convolutions=form,
    )
    plain = factorize(copy.deepcopy(dense), rank=4, targets="0", convolutions=form)
    first = slice(0, 4)
    assert relative(model[0](x)[:, first], dense[0](x)[:, first]) < 0.95 * relative(
        plain[0](x)[:, first], dense[0](x)[:, first]
    )


def test_what_is_left_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 3), nn.Conv1d(2, 2, 3), nn.Conv2d(8, 8, 3)
    )
    factorize(model, rank=6, targets=["0", "1", "3"])
    found = records(model)
    assert found["0"].reason == "a convolution in 2 groups"
    assert "needs rank 2 x 6, above its break-even of 2 x 5" in found["1"].reason
    assert found["3"].rank == (6, 6)
    assert "2" not in found
    assert type(model[2]) is nn.Conv1d
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(8, 8))
    factorize(model, rank=2, convolutions=None)
    assert records(model)["0"].reason == "convolutions=None"


@pytest.mark.parametrize(
    "goal", [{"rank": 1}, {"ratio": 0.5}, {"rel_error": 0.5}, {"parameters": 1.0}]
)
@pytest.mark.parametrize("form", ["tucker", "spatial"])
def test_convolutions_with_nothing_to_gain(form: str, goal: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 2), nn.Conv2d(1, 3, 1))
    factorize(model, convolutions=form, **goal)
    assert all(type(layer) is nn.Conv2d for layer in model)
    assert [record.form for record in records(model).values()] == ["dense", "dense"]
    assert all(record.reason for record in records(model).values())


@pytest.mark.parametrize("form", ["tucker", "spatial"])
def test_a_budget_over_convolutions_and_linear_layers(form: str) -> None:
    dense = nn.Sequential(
        conv_of(tucker_kernel(24, 16, (3, 3), (6, 6)) + 0.02 * torch.randn(24, 16, 3, 3)),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3),
        nn.Flatten(),
        nn.Linear(32 * 16, 20),
    )
    total = sum(dense[index].weight.numel() for index in (0, 2, 4))
    model = factorize(copy.deepcopy(dense), parameters=0.6, convolutions=form)
    left = sum(record.parameters_after for record in records(model).values())
    assert 0.55 * total < left <= 0.6 * total
    uniform = factorize(copy.deepcopy(dense), ratio=0.6, convolutions=form)
    of_model, of_uniform = (
        sum(record.parameters_before * record.error**2 for record in records(each).values())
        for each in (model, uniform)
    )
    assert of_model < of_uniform
    assert model(torch.randn(2, 16, 8, 8)).shape == (2, 20)


def test_the_new_layers_are_torch_layers_that_compress_packs() -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)).to(torch.bfloat16).eval()
    bias = model[0].bias
    model[0].weight.requires_grad_(False)
    calls = []
    model[0].register_forward_hook(lambda module, args, output: calls.append(output.dtype))
    factorize(model, rank=8)
    assert all(type(layer) is nn.Conv2d for layer in model[0])
    assert all(not layer.weight.requires_grad and not layer.training for layer in model[0])
    assert model[0][-1].bias is bias
    x = torch.randn(1, 32, 8, 8, dtype=torch.bfloat16)
    y = model(x)
    assert calls == [torch.bfloat16]
    state = copy.deepcopy(model).state_dict()
    model.load_state_dict(state)
    factorize(model, rank=2)  # its parts are left alone
    assert list(records(model)) == ["0"]
    assert torch.equal(model(x), y)
    gs.compress(model, "int8")
    assert len(gs.report(model).layers) == 3
    assert relative(model(x).float(), y.float()) < 0.05
