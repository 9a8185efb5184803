"""gs.compress with gs.LowRankCorrection: which layers are corrected, and what is in them."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer._progress import Progress
from gossamer.factorization.correction import Corrected, LowRankCorrection
from gossamer.nn.projections import Projection

SUM = "int4+low-rank:32"
STEPS = ("int4-g32", LowRankCorrection(8))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(96, 128), nn.GELU(), nn.Sequential(nn.Linear(128, 80), nn.Linear(80, 6))
    ).eval()


def batches() -> list[Tensor]:
    torch.manual_seed(1)
    mix = torch.randn(96, 96) * torch.logspace(-1, 1, 96)
    return [torch.randn(4, 32, 96) @ mix for _ in range(3)]


def error(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        want = dense(x)
        return float((model(x) - want).norm() / want.norm())


def formats(model: nn.Module) -> dict[str, str]:
    return {layer.name: layer.format for layer in gs.report(model).layers}


def reasons(model: nn.Module) -> dict[str, str]:
    return {item.name: item.reason for item in gs.report(model).corrections if item.reason}


class TestCorrected:
    def test_a_whole_model(self) -> None:
        dense, calibration = mlp(), batches()
        x = torch.cat(calibration)
        plain = gs.compress(copy.deepcopy(dense), "int4-g32")
        free = gs.compress(copy.deepcopy(dense), STEPS)
        aware = gs.compress(copy.deepcopy(dense), STEPS, calibration=calibration)
        assert formats(free) == formats(aware) == {"0": SUM, "2.0": SUM, "2.1": "int4:32"}
        few = "factors of rank 8 would hold 688 numbers, the weight holds 480"
        assert reasons(free) == reasons(aware) == {"2.1": few}
        errors = [error(model, dense, x) for model in (plain, free, aware)]
        assert errors[1] < errors[0]
        assert errors[2] < 0.8 * errors[0]
        assert aware[0].bias is not None
        assert not aware[0].training

    def test_report(self) -> None:
        dense, calibration = mlp(), batches()
        model = gs.compress(copy.deepcopy(dense), STEPS, calibration=calibration)
        plain = gs.report(gs.compress(copy.deepcopy(dense), "int4-g32", calibration=calibration))
        found = gs.report(model)
        first, last = found.layers[0], found.layers[2]
        assert (first.rank, last.rank) == (8, None)
        assert first.uncorrected_error == pytest.approx(plain.layers[0].error)
        W = dense[0].weight.detach()
        assert first.error == pytest.approx(
            float((model[0].dequantize() - W).norm() / W.norm()), rel=1e-4
        )
        assert first.bytes_after == model[0].packed.numel() > plain.layers[0].bytes_after
        assert first.output_error_left is not None
        assert 0 < first.output_error_left < 0.8
        assert (last.uncorrected_error, last.output_error_left) == (None, None)
        lines = str(found).splitlines()
        header = "error  rank  uncorrected  output error left"
        assert header in lines[0]
        assert lines[1].split()[-3:][0] == "8"
        assert "not corrected:" in lines
        assert found.to_dict()["corrections"][0]["reason"] == ""

    def test_without_a_calibration_there_is_no_error_of_outputs(self) -> None:
        found = gs.report(gs.compress(mlp(), STEPS))
        assert {layer.output_error_left for layer in found.layers} == {None}
        assert "output error" not in str(found)
        assert "uncorrected" not in str(gs.report(gs.compress(mlp(), "int4")))

    def test_layers_keep_dtype_bias_hooks_and_mode(self) -> None:
        model = mlp().bfloat16().train()
        seen: list[int] = []
        bias = model[0].bias
        model[0].register_forward_hook(lambda *args: seen.append(1))
        gs.compress(model, STEPS)
        assert model[0].bias is bias
        assert model[0].weight.dtype is torch.bfloat16
        assert model[0].training
        assert gs.report(model).layers[0].bytes_before == 2 * 96 * 128
        assert model(torch.randn(2, 96, dtype=torch.bfloat16)).dtype is torch.bfloat16
        assert seen == [1]

    @pytest.mark.parametrize("scheme", ["int8", "int4-asym", "nf4", "fp4", "mxfp4", "fp8"])
    def test_every_base(self, scheme: str) -> None:
        dense, x = mlp(), torch.cat(batches())
        plain = gs.compress(copy.deepcopy(dense), scheme)
        model = gs.compress(copy.deepcopy(dense), [scheme, LowRankCorrection(24)], calibration=[x])
        assert formats(model)["0"].startswith(f"{scheme.removesuffix('-asym')}+low-rank")
        assert error(model, dense, x) < error(plain, dense, x)

    @pytest.mark.parametrize(
        ("scheme", "factors"), [("int4", "int8"), ("int4-weight-only", "bf16"), ("fp8", "bf16")]
    )
    def test_factors(self, scheme: str, factors: str) -> None:
        model = gs.compress(mlp(), [scheme, LowRankCorrection(8)])
        assert model[0].settings["factors"] == factors
        model = gs.compress(mlp(), [scheme, LowRankCorrection(8, factors="fp32")])
        assert model[0].settings["factors"] == "fp32"

    def test_twice(self) -> None:
        model = gs.compress(mlp(), STEPS, targets="0")
        layer = model[0]
        gs.compress(model, ["int8", LowRankCorrection(4)], targets="2.0")
        assert model[0] is layer
        assert formats(model) == {"0": SUM, "2.0": "int8+low-rank"}
        assert [item.name for item in gs.report(model).corrections] == ["0", "2.0"]


class TestOtherLayers:
    def test_are_packed_without_a_correction(self) -> None:
        model = nn.ModuleDict(
            {
                "embed": nn.Embedding(96, 64),
                "conv": nn.Conv2d(64, 32, 3),
                "lstm": nn.LSTM(64, 256),
                "attention": nn.MultiheadAttention(64, 4),
                "head": nn.Linear(64, 96),
                "linear": nn.Linear(64, 96),
            }
        )
        model["head"].weight = model["embed"].weight
        gs.compress(model, ["int8", LowRankCorrection(4)])
        why = "a correction is for linear layers, not for"
        assert reasons(model) == {
            "embed": f"{why} Embedding",
            "conv": f"{why} Conv2d",
            "lstm": f"{why} LSTM",
            "attention": f"{why} MultiheadAttention",
            "head": "shares its packed weight with embed",
        }
        assert {form for name, form in formats(model).items() if name != "linear"} == {"int8"}
        assert formats(model)["linear"] == "int8+low-rank"

    def test_conv1d_of_transformers(self) -> None:
        transformers = pytest.importorskip("transformers")
        layer = transformers.pytorch_utils.Conv1D(96, 64)
        model, x = nn.Sequential(layer), torch.randn(200, 64)
        dense = copy.deepcopy(model)
        gs.compress(model, ["int4-g32", LowRankCorrection(16)], calibration=[x])
        assert model[0].weight.shape == (96, 64)
        plain = gs.compress(copy.deepcopy(dense), "int4-g32")
        assert error(model, dense, x) < error(plain, dense, x)
        model.load_state_dict(dense.state_dict())  # (K, N), quantized again
        assert formats(model) == {"0": SUM}
        assert error(model, dense, x) < error(plain, dense, x)


class TestPruned:
    def test_the_correction_sees_the_weight_before(self) -> None:
        dense, calibration = mlp(), batches()
        x = torch.cat(calibration)
        steps = [gs.Prune(0.6, scope="layer"), "int8"]
        plain = gs.compress(copy.deepcopy(dense), steps)
        model = gs.compress(
            copy.deepcopy(dense), [*steps, LowRankCorrection(16, 3)], calibration=calibration
        )
        assert formats(model)["0"] == "sparse-int8+low-rank"
        found = gs.report(model).layers[0]
        assert found.sparsity == pytest.approx(0.6, abs=0.01)
        assert found.uncorrected_error == pytest.approx(gs.report(plain).layers[0].error, rel=1e-3)
        W = dense[0].weight.detach()
        assert found.error == pytest.approx(
            float((model[0].dequantize() - W).norm() / W.norm()), rel=1e-4
        )
        assert error(model, dense, x) < 0.8 * error(plain, dense, x)

    def test_without_quantization(self) -> None:
        dense, x = mlp(), torch.cat(batches())
        model = gs.compress(
            copy.deepcopy(dense),
            [gs.Prune(0.6, scope="layer"), LowRankCorrection(16)],
            calibration=[x],
        )
        assert formats(model)["0"] == "sparse-fp32+low-rank"
        plain = gs.compress(copy.deepcopy(dense), gs.Prune(0.6, scope="layer"))
        assert error(model, dense, x) < error(plain, dense, x)

    def test_what_stays_dense_is_not_corrected(self) -> None:
        model = gs.compress(mlp(), [gs.Prune(0.1), LowRankCorrection(8)])
        why = "stays dense: zeros and a correction would be a dense layer again"
        assert reasons(model)["0"] == why
        assert type(model[0]) is nn.Linear
        model = gs.compress(mlp(), ["sparse-bf16", LowRankCorrection(8)])
        assert reasons(model)["0"] == "there is no low-rank correction of bf16"
        assert formats(model)["0"] == "bf16"

    def test_packed_for_a_batch(self) -> None:
        steps = [gs.Prune(0.9, scope="layer"), "sparse-fp32", LowRankCorrection(8)]
        for batch in (1, "large"):
            found = gs.report(gs.compress(mlp(), steps, batch=batch))  # type: ignore[arg-type]
            assert found.layers[0].format == "sparse-fp32+low-rank"
            assert len(found.layers[0].parts) == 1


class TestSaving:
    def test_state_dict_round_trip(self) -> None:
        model, x = gs.compress(mlp(), STEPS, calibration=batches()), torch.randn(5, 96)
        state = model.state_dict()
        assert {"0.low_rank_U", "0.low_rank_V", "0.low_rank_U_scale"} < set(state)
        for fresh in (mlp(), mlp()):
            for parameter in fresh.parameters():
                nn.init.zeros_(parameter)  # factors of zeros have the same names and shapes
            other = gs.compress(fresh, STEPS)
            other.load_state_dict(state)
            with torch.no_grad():
                assert torch.equal(other(x), model(x))
        found = gs.report(other).layers[0]
        assert (found.rank, found.error, found.uncorrected_error) == (8, None, None)

    def test_copies_and_pickles(self) -> None:
        model, x = gs.compress(mlp(), STEPS), torch.randn(5, 96)
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=False)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
            with torch.no_grad():
                assert torch.equal(other(x), model(x))
            assert gs.report(other) == gs.report(model)


class TestErrors:
    @pytest.mark.parametrize(
        "steps",
        [
            LowRankCorrection(),
            [LowRankCorrection()],
            [LowRankCorrection(), "int4"],
            ["int4", LowRankCorrection(), LowRankCorrection()],
        ],
    )
    def test_order(self, steps: Any) -> None:
        with pytest.raises(ValueError, match=r"compress: scheme: .*LowRankCorrection corrects"):
            gs.compress(mlp(), steps)

    def test_a_step_after_it(self) -> None:
        with pytest.raises(ValueError, match="at last the correction"):
            gs.compress(mlp(), [gs.Prune(0.5), LowRankCorrection(), "int8"])

    def test_no_such_sum(self) -> None:
        with pytest.raises(
            ValueError, match="there is no LowRankCorrection of bf16, wanted one of"
        ):
            gs.compress(mlp(), ["bf16", LowRankCorrection()])

    @pytest.mark.parametrize(
        ("steps", "calibration", "kind", "message"),
        [
            (STEPS, [], ValueError, "is empty, wanted at least one batch"),
            (STEPS, torch.zeros(1, 96), TypeError, "wanted an iterable of batches"),
            (STEPS, [3], TypeError, "got a batch of int"),
            (STEPS, [torch.full((1, 96), torch.nan)], ValueError, "'0' holds NaN or infinity"),
        ],
    )
    def test_calibration(
        self, steps: Any, calibration: Any, kind: type[Exception], message: str
    ) -> None:
        model = mlp()
        with pytest.raises(kind, match=f"compress: calibration: .*{message}"):
            gs.compress(model, steps, calibration=calibration)
        assert type(model[0]) is type(model[2][0]) is nn.Linear

    def test_layers_that_the_calibration_does_not_reach(self) -> None:
        model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64)})
        model.forward = lambda x: model["a"](x)  # type: ignore[assignment]
        with pytest.raises(ValueError, match="compress: calibration: 'b' was given no row of x"):
            gs.compress(model, ["int8", LowRankCorrection(4)], calibration=[torch.randn(3, 64)])
        assert type(model["a"]) is nn.Linear


class TestRunning:
    def test_interruption_leaves_a_model_that_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense, x = mlp(), torch.cat(batches())
        model, fit, made = copy.deepcopy(dense), LowRankCorrection.fit, []

        def interrupted(self: LowRankCorrection, *args: Any, **options: Any) -> Corrected:
            if made:
                raise KeyboardInterrupt
            made.append(1)
            return fit(self, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(LowRankCorrection, "fit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                gs.compress(model, STEPS, calibration=[x])
        assert formats(model) == {"0": SUM}
        assert error(model, dense, x) < 0.2
        gs.compress(model, STEPS, calibration=[x])
        assert formats(model) == {"0": SUM, "2.0": SUM, "2.1": "int4:32"}

    def test_moments_are_freed_as_layers_are_done(self, monkeypatch: pytest.MonkeyPatch) -> None:
        moments: list[weakref.ref[Tensor]] = []
        alive, fit = [], LowRankCorrection.fit

        def watched(self: LowRankCorrection, *args: Any, **options: Any) -> Corrected:
            alive.append([moment() is not None for moment in moments])
            moments.append(weakref.ref(options["moment"]))
            return fit(self, *args, **options)

        monkeypatch.setattr(LowRankCorrection, "fit", watched)
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
        gs.compress(model, ["int8", LowRankCorrection(4)], calibration=[torch.randn(9, 64)])
        assert alive == [[], [False], [False, False]]

    def test_progress(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bars: dict[str, list[float]] = {}

        class Watched(Progress):
            def __init__(self, description: str, total: float, show: bool | None) -> None:
                super().__init__(description, total, False)
                bars[description] = [total]

            def advance(self, amount: float) -> None:
                bars[self.description].append(amount)

        monkeypatch.setattr("gossamer.replacing.Progress", Watched)
        gs.compress(mlp(), STEPS)
        assert list(bars) == ["fitting corrections"]
        total, *amounts = bars["fitting corrections"]
        assert len(amounts) == 3
        assert total == sum(amounts)


class TestFusion:
    def test_an_activation_is_computed_by_the_corrected_layer(self) -> None:
        from .fusion_models import make

        dense = make("Bert")
        plain, fused = copy.deepcopy(dense), copy.deepcopy(dense)
        gs.compress(plain, ["int8", LowRankCorrection(4)], fuse=False)
        gs.compress(fused, ["int8", LowRankCorrection(4)])
        layers = [model.encoder.layer[0].intermediate.dense for model in (plain, fused)]
        assert [layer.format for layer in layers] == ["int8+low-rank"] * 2
        assert [layer.activation for layer in layers] == ["none", "gelu"]
        x = torch.randn(5, 64)
        with torch.no_grad():
            want = nn.functional.gelu(layers[0](x))
            assert torch.allclose(layers[1](x), want, atol=1e-4)

    @pytest.mark.parametrize("name", ["Bert", "Llama"])
    def test_layers_of_one_input_stay_apart(self, name: str) -> None:
        from .fusion_models import make, run

        dense = make(name)
        plain, model = copy.deepcopy(dense), copy.deepcopy(dense)
        gs.compress(plain, ["int8", LowRankCorrection(4)], fuse=False)
        gs.compress(model, ["int8", LowRankCorrection(4)])
        assert not any(isinstance(module, Projection) for module in model.modules())
        apart = [item for item in gs.report(model).fusions if item.reason]
        assert len(apart) == (1 if name == "Bert" else 2)
        assert all("several V" in item.reason for item in apart)
        want = run(plain)
        assert float((run(model) - want).norm() / want.norm()) < 0.02
