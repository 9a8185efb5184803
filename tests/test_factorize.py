"""gs.factorize on linear layers: each method against float64, budgets, break-evens, errors."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer._progress import Progress
from gossamer.factorization import FactorizedLayer, factorize


def decaying(N: int, K: int, power: float = 1.0) -> Tensor:
    """A matrix with singular values i^-power."""
    rank = min(N, K)
    U, V = (torch.linalg.qr(torch.randn(n, rank)).Q for n in (N, K))
    return (U * torch.arange(1, rank + 1).pow(-power)) @ V.T


def make_model() -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 40)
    )
    for layer, power in zip(model[::2], (1.5, 0.3, 0.8), strict=True):
        layer.weight = nn.Parameter(decaying(*layer.weight.shape, power))
    return model


def correlated(samples: int, size: int) -> Tensor:
    return torch.randn(samples, size) @ decaying(size, size, 0.7)


def records(model: nn.Module) -> dict[str, FactorizedLayer]:
    return {layer.name: layer for layer in gs.report(model).factorized}


def weight_of(layer: gs.nn.Linear) -> Tensor:
    assert layer.format == "low-rank"
    return layer.dequantize().double()


def best_error(W: Tensor, rank: int) -> float:
    S = torch.linalg.svdvals(W.double())
    return float(S[rank:].norm() / S.norm())


# --- methods ---


def test_plain_is_the_truncated_svd() -> None:
    model = make_model()
    dense = copy.deepcopy(model)
    assert factorize(model, rank=12) is model
    for index, record in zip((0, 2, 4), records(model).values(), strict=True):
        W, found = dense[index].weight.detach().double(), weight_of(model[index])
        assert torch.linalg.matrix_rank(found, rtol=1e-5) == 12
        error = float((W - found).norm() / W.norm())
        assert error == pytest.approx(best_error(W, 12), rel=1e-3)
        assert record.error == pytest.approx(error, rel=1e-3)
        assert record.measured_error == pytest.approx(error, rel=1e-3)
        assert model[index].bias is not None
        assert torch.equal(model[index].bias, dense[index].bias)


def test_activation_aware_is_the_optimum_of_the_outputs() -> None:
    """U_r U_rᵀ W of the top eigenvectors of W C Wᵀ, which no other rank-r weight beats."""
    W, x = decaying(40, 64, 0.4), correlated(500, 64)
    layer = nn.Linear(64, 40)
    layer.weight = nn.Parameter(W)
    model = nn.Sequential(layer)
    factorize(model, rank=8, method="activation-aware", calibration=[x[:200], (x[200:],)])
    C = x.double().T @ x.double() / len(x)
    U = torch.linalg.eigh(W.double() @ C @ W.double().T).eigenvectors[:, -8:]
    exact = U @ U.T @ W.double()

    def output_error(found: Tensor) -> float:
        return float(
            (x.double() @ (W.double() - found).T).norm() / (x.double() @ W.double().T).norm()
        )

    found = weight_of(model[0])
    assert output_error(found) == pytest.approx(output_error(exact), rel=1e-3)
    (record,) = records(model).values()
    assert record.measured_error == pytest.approx(output_error(exact), rel=1e-3)
    S = torch.linalg.svd(W.double(), full_matrices=False)
    plain = (S.U[:, :8] * S.S[:8]) @ S.Vh[:8]
    assert output_error(found) < 0.9 * output_error(plain)
    assert float((W - found).norm() / W.norm()) == pytest.approx(record.error, rel=1e-3)


def test_second_moments_that_are_singular() -> None:
    W, x = decaying(40, 64, 0.1), torch.randn(300, 5) @ torch.randn(5, 64)
    model = nn.Sequential(nn.Linear(64, 40))
    model[0].weight = nn.Parameter(W)
    factorize(model, rank=5, method="activation-aware", calibration=[x])
    y = x @ W.T
    assert float((x @ weight_of(model[0]).T.float() - y).norm() / y.norm()) < 1e-5


def test_fisher_weights_the_rows() -> None:
    model = make_model()
    dense = copy.deepcopy(model)
    batches = [torch.randn(1, 48) for _ in range(6)]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().sum() + model(batch)[:, 0].sum()

    factorize(model, rank=10, method="fisher", calibration=batches, loss=loss)
    squares = torch.zeros(96, dtype=torch.float64)
    for batch in batches:
        (gradient,) = torch.autograd.grad(loss(dense, batch), dense[2].weight)
        squares += gradient.double().square().sum(1) / len(batches)
    D = squares.sqrt()[:, None]
    W = dense[2].weight.detach().double()
    S = torch.linalg.svd(D * W, full_matrices=False)
    exact = (S.U[:, :10] * S.S[:10]) @ S.Vh[:10] / D
    found = weight_of(model[2])
    error = float((D * (W - exact)).norm() / (D * W).norm())
    assert float((D * (W - found)).norm() / (D * W).norm()) == pytest.approx(error, rel=1e-3)
    assert records(model)["2"].measured_error == pytest.approx(error, rel=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fisher_with_rows_that_have_no_gradient() -> None:
    model = make_model()
    W = model[4].weight.detach().double()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch)[:, :20].square().sum()

    model[4].weight.requires_grad_(False)
    factorize(
        model, rank=20, targets="4", method="fisher", calibration=[torch.ones(3, 48)], loss=loss
    )
    found = weight_of(model[4])
    assert float((W - found)[:20].norm() / W[:20].norm()) < 1e-4
    assert found.isfinite().all()


@pytest.mark.parametrize(("factors", "largest"), [("fp32", 1e-6), ("bf16", 3e-3), ("int8", 2e-2)])
def test_factors(factors: str, largest: float) -> None:
    W = torch.randn(64, 8) @ torch.randn(8, 80)
    model = nn.Sequential(nn.Linear(80, 64))
    model[0].weight = nn.Parameter(W)
    factorize(model, rank=8, factors=factors)
    assert model[0].quantized().factors == factors
    (record,) = records(model).values()
    assert record.error < largest
    assert factors == "fp32" or record.error > 1e-5
    x = torch.randn(5, 80)
    y = torch.nn.functional.linear(x, W, model[0].bias)
    assert float((model(x) - y).detach().norm() / y.detach().norm()) < 2 * largest


# --- how large ---


def test_ratio_energy_and_rel_error() -> None:
    dense = make_model()
    model = factorize(copy.deepcopy(dense), ratio=0.4)
    for name, record in records(model).items():
        N, K = record.shape
        assert record.rank == (int(0.4 * N * K / (N + K)),)
        assert record.parameters_after == record.rank[0] * (N + K) <= 0.4 * N * K, name
    for goal in ({"rel_error": 0.3}, {"energy": 0.91}):
        model = factorize(copy.deepcopy(dense), **goal)
        for name, record in records(model).items():
            S = torch.linalg.svdvals(dense.get_submodule(name).weight.detach().double())
            tails = [float(S[rank:].norm() / S.norm()) for rank in range(len(S) + 1)]
            smallest = next(rank for rank, tail in enumerate(tails) if tail <= 0.3 + 1e-7)
            N, K = record.shape
            if smallest * (N + K) >= N * K:
                assert (record.form, record.rank) == ("dense", ())
                assert f"break-even of {(N * K - 1) // (N + K)}" in record.reason
            else:
                assert smallest <= record.rank[0] <= 1.02 * smallest + 1
                assert record.error <= 0.3 + 1e-5
        assert {record.form for record in records(model).values()} == {"low-rank", "dense"}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_budget_is_met_and_beats_uniform_ranks(share: float) -> None:
    dense = make_model()
    total = sum(layer.weight.numel() for layer in dense[::2])

    def squared_errors(model: nn.Module) -> float:
        found = records(model).values()
        return sum(record.parameters_before * record.error**2 for record in found)

    model = factorize(copy.deepcopy(dense), parameters=share)
    left = sum(record.parameters_after for record in records(model).values())
    assert share * total - 160 < left <= share * total
    uniform = factorize(copy.deepcopy(dense), ratio=share)
    assert squared_errors(model) < 0.95 * squared_errors(uniform)
    counted = factorize(copy.deepcopy(dense), parameters=int(share * total))
    assert [r.rank for r in records(counted).values()] == [r.rank for r in records(model).values()]


def test_a_budget_by_measures() -> None:
    dense, x = make_model(), correlated(200, 48)
    total = sum(layer.weight.numel() for layer in dense[::2])

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    aware = factorize(
        copy.deepcopy(dense), parameters=0.5, method="activation-aware", calibration=[x]
    )
    uniform = factorize(copy.deepcopy(dense), ratio=0.5, method="activation-aware", calibration=[x])
    fisher = factorize(
        copy.deepcopy(dense), parameters=0.5, method="fisher", calibration=[x], loss=loss
    )
    for model in (aware, fisher):
        assert sum(record.parameters_after for record in records(model).values()) <= 0.5 * total
    of_aware, of_uniform = (
        sum(
            record.parameters_before * record.measured_error**2
            for record in records(model).values()
        )
        for model in (aware, uniform)
    )
    assert of_aware < 0.9 * of_uniform


def test_the_whole_budget_leaves_all_as_it_is() -> None:
    model = make_model()
    factorize(model, parameters=1.0)
    assert all(type(layer) is nn.Linear for layer in model[::2])
    assert all("dense by the budget" in record.reason for record in records(model).values())


def test_the_break_even_is_kept() -> None:
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 60), nn.Linear(60, 1))
    factorize(model, rank=12)  # 12 (30 + 20) = 600 = 30 * 20; 12 (20 + 60) < 1200
    found = records(model)
    assert (found["0"].form, found["0"].break_even) == ("dense", (11,))
    assert "needs rank 12, above its break-even of 11" in found["0"].reason
    assert (found["1"].form, found["1"].rank, found["1"].break_even) == ("low-rank", (12,), (14,))
    assert "even rank 1 has no fewer parameters" in found["2"].reason
    assert (found["1"].parameters_before, found["1"].parameters_after) == (1200, 960)
    with pytest.raises(ValueError, match="rank 1 of all layers has 190"):
        factorize(
            nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 60), nn.Linear(60, 1)), parameters=100
        )


# --- the model around the layers ---


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.first = nn.Linear(32, 32)
        self.second = self.first
        self.third = nn.Linear(32, 32, bias=False)
        self.fourth = nn.Linear(32, 32)
        self.fourth.weight = self.third.weight
        self.head = nn.Linear(32, 50)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.fourth(self.third(self.second(self.first(self.embedding(tokens))))))


def test_shared_and_tied_layers() -> None:
    model = Shared()
    factorize(model, rank=4)
    assert model.first is model.second
    assert isinstance(model.first, gs.nn.Linear)
    assert model.third.weight is model.fourth.weight
    assert model.head.weight is model.embedding.weight
    found = records(model)
    assert found["first"].form == "low-rank"
    assert "second" not in found
    for name in ("third", "fourth", "head"):
        assert "tied" in found[name].reason
    assert model(torch.arange(5)).shape == (5, 50)


def test_hooks_modes_and_pruned_weights() -> None:
    from torch.nn.utils import prune

    model = make_model().eval()
    model[2].train()
    calls = []
    model[2].register_forward_hook(lambda module, args, output: calls.append(output.shape))
    prune.l1_unstructured(model[4], "weight", 0.5)
    model(torch.randn(1, 48))
    pruned = model[4].weight.detach().double()
    factorize(model, rank=16)
    assert [layer.training for layer in model[::2]] == [False, True, False]
    calls.clear()
    model(torch.randn(3, 48))
    assert calls == [(3, 96)]
    assert not model[4]._forward_pre_hooks
    error = float((weight_of(model[4]) - pruned).norm() / pruned.norm())
    assert error == pytest.approx(best_error(pruned, 16), rel=1e-3)


def test_conv1d_of_transformers() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(conv1d(96, 48))
    W = model[0].weight.detach().double()
    x = correlated(100, 48)
    factorize(model, rank=8, method="activation-aware", calibration=[x])
    assert records(model)["0"].rank == (8,)
    assert weight_of(model[0]).shape == (96, 48)
    y = x.double() @ W
    assert float((x.double() @ weight_of(model[0]).T - y).norm() / y.norm()) < 0.5


def test_transformer_encoder_layers() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 32)
    factorize(model, rank=8)
    with torch.no_grad():
        y = model(x)
        dense = copy.deepcopy(model)
        for each in dense.layers:
            for name in ("linear1", "linear2"):
                old = getattr(each, name)
                new = nn.Linear(old.in_features, old.out_features)
                new.weight, new.bias = nn.Parameter(old.dequantize()), old.bias
                setattr(each, name, new)
        assert torch.allclose(y, dense(x), atol=1e-4)
    reasons = {record.reason for record in records(model).values() if record.kind != "Linear"}
    assert reasons == {"nn.MultiheadAttention reads its weight directly"}


def test_copies_and_state_dicts() -> None:
    model = factorize(make_model(), rank=8)
    x = torch.randn(4, 48)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), model(x))
    assert records(copied) == records(model)
    other = factorize(make_model(), rank=8)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_calling_again_adds_to_the_report() -> None:
    model = make_model()
    factorize(model, rank=4, targets="2")
    assert records(model)["0"].reason == "not among the targets"
    factorize(model, rank=5, ignore="4")
    ranks = {name: record.rank for name, record in records(model).items()}
    assert ranks == {"0": (5,), "2": (4,), "4": ()}
    factorize(nn.Sequential(model), rank=3)
    assert records(nn.Sequential(model))["0.2"].rank == (4,)


def test_compress_packs_what_stayed_dense() -> None:
    model = factorize(make_model(), rank=4, targets="2")
    gs.compress(model, "int8")
    assert [layer.format for layer in model[::2]] == ["int8", "low-rank", "int8"]
    assert records(model)["2"].rank == (4,)


@pytest.mark.parametrize("goal", [{"rank": 20}, {"parameters": 0.5}])
def test_progress_counts_all_work(goal: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Counting(Progress):
        def __exit__(self, *error: Any) -> None:
            seen.append((self.description, self.total, self.done))

    for name in ("factorization.factorize", "calibration.second_moments"):
        monkeypatch.setattr(importlib.import_module(f"gossamer.{name}"), "Progress", Counting)
    batches = [torch.randn(9, 48) for _ in range(3)]
    factorize(make_model(), method="activation-aware", calibration=batches, **goal)
    total = 48 * 64 + 64 * 96 + 96 * 40
    first, *others = seen
    assert first == ("calibrating", 3, 3)
    spectra = [("finding spectra", total, total)] if "parameters" in goal else []
    assert others == [*spectra, ("factorizing layers", total, total)]


def test_report_shows_both_sides() -> None:
    model = factorize(make_model(), rel_error=0.3, ignore="4")
    text = str(gs.report(model))
    left = sum(record.parameters_after for record in records(model).values())
    assert f"factorized: 1 of 3 layers, 13,056 -> {left:,} parameters" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    rank = records(model)["0"].rank[0]
    assert lines["0"].split()[4:7] == ["low-rank", str(rank), "27"]
    assert lines["2"].endswith("above its break-even of 38")
    assert lines["4"].split()[4:] == ["dense", "-", "-", "3,840", "100%", "-", "ignored"]
    assert gs.report(model).to_dict()["factorized"][0]["break_even"] == (27,)


@pytest.mark.parametrize("goal", [{"rank": 6}, {"parameters": 0.5}])
def test_an_interruption_leaves_a_working_model(
    goal: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gossamer.factorization import plans

    model, count = make_model(), 0
    x = torch.randn(2, 48)
    build = plans.MatrixPlan.build

    def interrupted(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return build(*args)

    monkeypatch.setattr(plans.MatrixPlan, "build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        factorize(model, **goal)
    monkeypatch.undo()
    assert model(x).shape == (2, 40)
    assert sum(isinstance(layer, gs.nn.Linear) for layer in model) == 1
    assert [record.form for record in records(model).values()].count("low-rank") == 1
    factorize(model, rank=6)
    assert sum(isinstance(layer, gs.nn.Linear) for layer in model) == 3


def test_the_seed_gives_the_same_factors_in_any_number_of_threads() -> None:
    dense, threads = make_model(), torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            found.append(factorize(copy.deepcopy(dense), rank=8, seed=3)[2].quantized())
        finally:
            torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b)
        for a, b in zip(found[0].state().values(), found[1].state().values(), strict=True)
    )


# --- errors, before anything changes ---


def bad_calls() -> Iterator[tuple[dict[str, Any], type[Exception], str]]:
    x = torch.randn(2, 48)
    yield {}, ValueError, "got none, wanted exactly one of rank, ratio"
    yield {"rank": 2, "energy": 0.5}, ValueError, "got rank and energy"
    yield {"rank": 0}, ValueError, "rank: got 0"
    yield {"rank": 2.0}, TypeError, "rank: got float 2.0, wanted an int"
    yield {"ratio": 1.0}, ValueError, r"ratio: got 1.0, wanted a number in \(0, 1\)"
    yield {"energy": "0.9"}, TypeError, "energy: got str"
    yield {"rel_error": 1e-5}, ValueError, r"rel_error: got 1e-05, wanted a number in \[0.0001, 1\)"
    yield {"energy": 1.0}, ValueError, r"energy: got 1.0, wanted a number in \(0, 0.99999999\]"
    yield {"rank": 2, "seed": -1}, ValueError, "seed: got -1"
    yield {"rel_error": float("nan")}, ValueError, "rel_error: got nan"
    yield {"parameters": 1.5}, ValueError, r"in \(0, 1\]"
    yield {"parameters": True}, TypeError, "parameters: got bool"
    yield {"parameters": 10}, ValueError, "rank 1 of all layers has 408"
    yield {"rank": 2, "method": "svd"}, ValueError, "method: got 'svd', wanted one of 'plain'"
    yield {"rank": 2, "factors": "int4"}, ValueError, "factors: got 'int4'"
    yield {"rank": 2, "convolutions": "cp"}, ValueError, "convolutions: got 'cp'"
    yield {"rank": 2, "method": "activation-aware"}, ValueError, "calibration: got None"
    yield {"rank": 2, "calibration": [x]}, ValueError, "calibration: got list, wanted None"
    fisher = {"rank": 2, "method": "fisher", "calibration": [x]}
    yield fisher, ValueError, "loss: got None, wanted loss"
    yield {**fisher, "loss": lambda model, x: 1.0}, ValueError, "loss: gave float"
    yield {**fisher, "loss": lambda model, x: model(x)}, ValueError, r"loss: gave shape \[2, 40\]"
    only_first = {**fisher, "loss": lambda model, x: model[0](x).sum()}
    yield only_first, ValueError, "does not depend on layer '2'"
    bad = {**fisher, "loss": lambda model, x: (model(x) * float("nan")).sum()}
    yield bad, ValueError, "gradient at layer '0' has NaN"
    aware = {"rank": 2, "method": "activation-aware"}
    yield {**aware, "calibration": []}, ValueError, "calibration: is empty"
    yield {**aware, "calibration": [x * float("nan")]}, ValueError, "input of '0' holds NaN"
    yield {"rank": 2, "targets": "foo"}, ValueError, "factorize: targets: 'foo' matches no module"


@pytest.mark.parametrize(("arguments", "kind", "message"), list(bad_calls()))
def test_errors(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = make_model()
    with pytest.raises(kind, match=message):
        factorize(model, **arguments)
    assert all(type(layer) is nn.Linear for layer in model[::2])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert gs.report(model).factorized == ()


def test_models_that_cannot_be_factorized() -> None:
    with pytest.raises(TypeError, match="model: got int 3"):
        factorize(3, rank=2)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="is itself a layer"):
        factorize(nn.Linear(4, 4), rank=2)
    with pytest.raises(ValueError, match=r"has no nn\.Linear"):
        factorize(nn.Sequential(nn.ReLU()), rank=2)
    model = make_model()
    with torch.no_grad():
        model[2].weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match="layer '2': its weight holds NaN"):
        factorize(model, rank=2)
    with pytest.raises(RuntimeError, match="layer '0' is on meta"):
        factorize(nn.Sequential(nn.Linear(8, 8, device="meta")), rank=2)


def test_zero_weights_and_double_ones() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16).double())
    nn.init.zeros_(model[0].weight)
    factorize(model, rank=2)
    assert not weight_of(model[0]).any()
    assert records(model)["0"].error == 0
    assert records(model)["1"].reason == "its weight is float64"


@pytest.mark.parametrize(
    "goal", [{"rank": 2}, {"ratio": 0.3}, {"rel_error": 0.2}, {"parameters": 0.4}]
)
def test_zero_weights_with_every_goal(goal: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Conv2d(8, 8, 3))
    for layer in model:
        nn.init.zeros_(layer.weight)
    factorize(model, **goal)
    assert all(record.error == 0 for record in records(model).values())
    assert all(
        record.parameters_after < record.parameters_before for record in records(model).values()
    )
