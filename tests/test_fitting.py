"""compress() with a calibration: block by block, by every method, alone and combined."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.calibration.precision import in_bf16

transformers = pytest.importorskip("transformers")

EXACT = {"scheme": "int4-g32", "activations": "exact"}
METHODS = [
    "rtn",
    "gptq",
    "hqq",
    "awq",
    ("awq", "gptq"),
    "smoothquant",
    gs.AutoRound(iterations=4),
]


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 128, (2, 24), generator=generator)} for _ in range(3)]


def logits(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**batch).logits for batch in batches])


def error(model: nn.Module, dense: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    wanted = logits(dense, batches)
    return float((logits(model, batches) - wanted).norm() / wanted.norm())


class Chain(nn.Module):
    """Three blocks of one linear layer each, in a row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(48, 48), nn.ReLU()) for _ in range(3))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class TestMethods:
    @pytest.mark.parametrize("method", METHODS, ids=str)
    def test_a_language_model(
        self, llama: nn.Module, batches: list[dict[str, Tensor]], method: object
    ) -> None:
        scheme = gs.Quantize(**EXACT, method=method)
        model = gs.compress(copy.deepcopy(llama), scheme, calibration=batches)
        kinds = {layer.format for layer in gs.report(model).layers}
        assert kinds == {"int4:32"}
        assert 0 < error(model, llama, batches) < 0.5

    def test_gptq_is_better_than_rtn(
        self, llama: nn.Module, batches: list[dict[str, Tensor]]
    ) -> None:
        errors = {}
        for method in ("rtn", "gptq"):
            scheme = gs.Quantize("int4-per-channel", activations="exact", method=method)
            model = gs.compress(copy.deepcopy(llama), scheme, calibration=batches)
            errors[method] = error(model, llama, batches)
        assert errors["gptq"] < errors["rtn"]

    def test_each_block_gets_what_the_packed_ones_give(self) -> None:
        x = torch.randn(200, 48, generator=torch.Generator().manual_seed(4))
        scheme = gs.Quantize(**EXACT, method="gptq")
        model = gs.compress(Chain(), scheme, calibration=[x], fuse=False)
        # The same by hand: one block at a time, each calibrated by itself.
        expected, given = Chain(), x
        for block in expected.blocks:
            gs.compress(block, scheme, calibration=[given], fuse=False)
            with torch.no_grad(), torch.autocast("cpu", enabled=in_bf16([Chain().blocks[0][0]])):
                given = block(given).float()
        for got, wanted in zip(model.blocks, expected.blocks, strict=True):
            torch.testing.assert_close(got[0].dequantize(), wanted[0].dequantize(), rtol=0, atol=0)

    @pytest.mark.parametrize("prune", ["magnitude", "wanda", "sparsegpt"])
    @pytest.mark.parametrize("scheme", [None, "int8", gs.Quantize("int4-g32", method="gptq")])
    def test_pruned(
        self,
        llama: nn.Module,
        batches: list[dict[str, Tensor]],
        prune: str,
        scheme: str | gs.Quantize | None,
    ) -> None:
        steps = [gs.Prune(0.5, scope="layer", method=prune), *([scheme] if scheme else [])]
        model = gs.compress(copy.deepcopy(llama), steps, calibration=batches, ignore="lm_head")
        for layer in gs.report(model).layers:
            if layer.name == "model.embed_tokens":
                continue
            W = model.get_submodule(layer.name).dequantize()
            assert abs(float((W == 0).float().mean()) - 0.5) < (0.1 if scheme else 0.02), layer.name

    def test_wanda_over_all_layers_and_owl(
        self, llama: nn.Module, batches: list[dict[str, Tensor]]
    ) -> None:
        for prune in (
            gs.Prune(0.6, scope="global", method="wanda"),
            gs.Prune(0.6, method="wanda", allocation="owl"),
        ):
            model = gs.compress(
                copy.deepcopy(llama), prune, calibration=batches, ignore=["lm_head", "*embed*"]
            )
            layers = gs.report(model).layers
            shares = [layer.sparsity for layer in layers]
            sizes = [layer.shape[0] * layer.shape[1] for layer in layers]
            total = sum(s * n for s, n in zip(shares, sizes, strict=True)) / sum(sizes)
            assert abs(total - 0.6) < 0.01
            assert max(shares) - min(shares) > 0.001

    def test_joint_is_better_than_one_after_the_other(
        self, llama: nn.Module, batches: list[dict[str, Tensor]]
    ) -> None:
        prune = gs.Prune(0.5, method="sparsegpt")
        errors = {}
        for method in ("gptq", "rtn"):
            steps = [prune, gs.Quantize("int4-per-channel", activations="exact", method=method)]
            model = gs.compress(
                copy.deepcopy(llama), steps, calibration=batches, ignore=["lm_head", "*embed*"]
            )
            errors[method] = error(model, llama, batches)
        assert errors["gptq"] < errors["rtn"]

    def test_zeros_and_codes_of_one_pass_are_stored_as_they_are(
        self, llama: nn.Module, batches: list[dict[str, Tensor]]
    ) -> None:
        published = gs.pruning.SparseGPT(iterations=0)
        steps = [
            gs.Prune(0.5, method=published),
            gs.Quantize("int4-g32", activations="exact", method="gptq"),
        ]
        model = gs.compress(copy.deepcopy(llama), steps, calibration=batches, ignore=["*embed*"])
        found = [layer for layer in gs.report(model).layers if "proj" in layer.name]
        assert all(abs(layer.sparsity - 0.5) < 0.06 for layer in found)  # some round to zero
        assert 0 < error(model, llama, batches) < 1

    def test_a_correction_sees_the_weight_before_all_steps(
        self, llama: nn.Module, batches: list[dict[str, Tensor]]
    ) -> None:
        steps = [gs.Quantize(**EXACT, method="gptq")]
        plain = gs.compress(copy.deepcopy(llama), steps, calibration=batches)
        corrected = gs.compress(
            copy.deepcopy(llama), [*steps, gs.LowRankCorrection(8)], calibration=batches
        )
        assert error(corrected, llama, batches) < error(plain, llama, batches)


class TestCombinations:
    def test_overrides(self, llama: nn.Module, batches: list[dict[str, Tensor]]) -> None:
        model = gs.compress(
            copy.deepcopy(llama),
            gs.Quantize("int4-g32", method="gptq"),
            overrides={"*.down_proj": "int8", "model.layers.1": "nf4"},
            calibration=batches,
        )
        formats = {layer.name: layer.format for layer in gs.report(model).layers}
        assert formats["model.layers.0.mlp.down_proj"] == "int8"
        assert formats["model.layers.1.mlp.down_proj"] == "nf4:64"
        assert formats["model.layers.0.mlp.up_proj"] == "int4:32"

    def test_overrides_without_calibration(self) -> None:
        model = gs.compress(Chain(), "int8", overrides={"blocks.1.*": "int4-g32"}, fuse=False)
        assert [layer.format for layer in gs.report(model).layers] == ["int8", "int4:32", "int8"]

    def test_hqq_needs_no_data(self) -> None:
        dense = Chain()
        model = gs.compress(copy.deepcopy(dense), gs.Quantize(**EXACT, method="hqq"), fuse=False)
        assert [layer.method for layer in gs.report(model).layers] == ["hqq"] * 3

    def test_the_report_tells_of_the_calibration(
        self, llama: nn.Module, batches: list[dict[str, Tensor]]
    ) -> None:
        scheme = gs.Quantize(**EXACT, method=("awq", "gptq"))
        report = gs.report(gs.compress(copy.deepcopy(llama), scheme, calibration=batches))
        layer = next(item for item in report.layers if item.name.endswith("down_proj"))
        assert layer.method == "awq, gptq"
        assert layer.output_error is not None
        assert 0 < layer.output_error < 0.3
        assert report.calibration is not None
        assert report.calibration.batches == 3
        hidden = 3 * 2 * 24 * 64 * 4
        assert hidden <= report.calibration.cached_bytes < 1.2 * hidden  # positions, too
        assert "calibrated with 3 batches" in str(report)

    def test_bias_correction(self) -> None:
        x = torch.rand(300, 48, generator=torch.Generator().manual_seed(6))
        means = {}
        for correct_bias in (False, True):
            scheme = gs.Quantize("int4-per-channel", activations="exact", correct_bias=correct_bias)
            dense = Chain()
            model = gs.compress(copy.deepcopy(dense), scheme, calibration=[x], fuse=False)
            with torch.no_grad():
                difference = model.blocks[0][0](x) - dense.blocks[0][0](x)
            means[correct_bias] = float(difference.mean(0).abs().max())
        assert means[True] < 1e-5 < means[False]

    def test_a_cnn(self) -> None:
        torch.manual_seed(5)
        dense = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.ReLU(),
            nn.Conv2d(16, 8, 1),
        )
        x = torch.randn(4, 3, 10, 10)
        scheme = gs.Quantize("int4-per-channel", activations="exact", method="gptq")
        model = gs.compress(copy.deepcopy(dense), scheme, calibration=[x])
        methods = [layer.method for layer in gs.report(model).layers]
        assert methods == ["gptq", "", "gptq"]
        with torch.no_grad():
            difference = (model(x) - dense(x)).norm() / dense(x).norm()
        assert difference < 0.3


class TestResume:
    def test_an_interrupted_call_goes_on_to_the_same_result(
        self,
        llama: nn.Module,
        batches: list[dict[str, Tensor]],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        scheme = gs.Quantize(**EXACT, method=("awq", "gptq"))
        whole = gs.compress(copy.deepcopy(llama), scheme, calibration=batches)
        from gossamer import fitting

        fit, done = fitting._fit_block, []

        def interrupted(block: object, *arguments: object) -> None:
            if done:
                raise KeyboardInterrupt
            done.append(fit(block, *arguments))

        monkeypatch.setattr(fitting, "_fit_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gs.compress(copy.deepcopy(llama), scheme, calibration=batches, resume=tmp_path / "r")
        counted: list[object] = []

        def counting(block: object, *arguments: object) -> None:
            counted.append(fit(block, *arguments))

        monkeypatch.setattr(fitting, "_fit_block", counting)
        model = gs.compress(
            copy.deepcopy(llama), scheme, calibration=batches, resume=tmp_path / "r"
        )
        assert len(counted) == 2  # the second block, and the head
        assert torch.equal(logits(model, batches), logits(whole, batches))
        assert [item.method for item in gs.report(model).layers] == [
            item.method for item in gs.report(whole).layers
        ]

    def test_other_work_is_refused(
        self, llama: nn.Module, batches: list[dict[str, Tensor]], tmp_path: Path
    ) -> None:
        gs.compress(copy.deepcopy(llama), "int8", calibration=batches, resume=tmp_path)
        with pytest.raises(ValueError, match=r"resume: .*another model, scheme or"):
            gs.compress(copy.deepcopy(llama), "int4", calibration=batches, resume=tmp_path)
        with pytest.raises(ValueError, match=r"resume: .*another model, scheme or"):
            gs.compress(copy.deepcopy(llama), "int8", calibration=batches[:2], resume=tmp_path)
        with pytest.raises(ValueError, match="resume: is for work with a calibration"):
            gs.compress(copy.deepcopy(llama), "int8", resume=tmp_path)

    def test_a_folder_with_other_things_is_refused(
        self, llama: nn.Module, batches: list[dict[str, Tensor]], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ValueError, match=r"resume: .*is not empty"):
            gs.compress(copy.deepcopy(llama), "int8", calibration=batches, resume=tmp_path)


class TestExactInputs:
    def test_layers_that_lose_too_much(
        self, llama: nn.Module, batches: list[dict[str, Tensor]]
    ) -> None:
        def kinds(limit: float | None) -> set[str]:
            scheme = gs.Quantize("int8", method=gs.quantization.SmoothQuant(exact_above=limit))
            model = gs.compress(copy.deepcopy(llama), scheme, calibration=batches)
            return {
                module.activations
                for name, module in model.named_modules()
                if isinstance(module, gs.nn.Linear) and name.endswith("_proj")
            }

        assert kinds(None) == kinds(1.0) == {"int8"}
        assert kinds(0.0) == {"exact"}


class TestErrors:
    @pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant", "autoround"])
    def test_a_method_without_its_calibration(self, method: str) -> None:
        with pytest.raises(ValueError, match=f"compress: calibration: {method} needs one"):
            gs.compress(Chain(), gs.Quantize("int4", method=method))

    @pytest.mark.parametrize(
        "prune", [gs.Prune(0.5, method="wanda"), gs.Prune(0.5, "row", allocation="owl")]
    )
    def test_pruning_without_its_calibration(self, prune: gs.Prune) -> None:
        with pytest.raises(ValueError, match=r"compress: calibration: (wanda|owl) needs one"):
            gs.compress(Chain(), prune)

    def test_floats_have_no_method(self) -> None:
        with pytest.raises(ValueError, match="bf16 holds floats, which have no method but 'rtn'"):
            gs.compress(
                Chain(), gs.Quantize("bf16", method="gptq"), calibration=[torch.ones(2, 48)]
            )

    def test_nan_in_the_calibration(self) -> None:
        x = torch.full((4, 48), torch.nan)
        with pytest.raises(ValueError, match=r"compress: .*blocks\.0\.0.* NaN"):
            gs.compress(Chain(), gs.Quantize("int4", method="gptq"), calibration=[x])

    def test_overrides_that_match_nothing(self) -> None:
        with pytest.raises(ValueError, match="overrides: 'nothing' matches no module"):
            gs.compress(Chain(), "int8", overrides={"nothing": "int4"})


class TestStaticActivations:
    def test_one_scale_for_all_rows(
        self, llama: nn.Module, batches: list[dict[str, Tensor]]
    ) -> None:
        scheme = gs.Quantize("int8", activations="int8-static")
        model = gs.compress(copy.deepcopy(llama), scheme, calibration=batches)
        scales = {
            name: module.input_scale
            for name, module in model.named_modules()
            if isinstance(module, gs.nn.Linear) and "embed" not in name
        }
        assert all(scale > 0 for scale in scales.values())
        assert len(set(scales.values())) > 3
        assert 0 < error(model, llama, batches) < 0.1
        with pytest.raises(ValueError, match="calibration: int8-static needs one"):
            gs.compress(copy.deepcopy(llama), scheme)

    @pytest.mark.parametrize("method", ["rtn", "smoothquant"])
    def test_how_the_scale_is_found(self, method: str) -> None:
        x = torch.randn(2048, 48)
        x[0, 0] = 20.0

        def scale(activations: str) -> float:
            model = nn.Sequential(nn.Sequential(nn.Linear(48, 48)), nn.Sequential(nn.ReLU()))
            torch.nn.init.eye_(model[0][0].weight)
            scheme = gs.Quantize("int8", activations=activations, method=method)
            found: float = gs.compress(model, scheme, calibration=[x])[0][0].input_scale
            return found

        largest = scale("int8-static-min-max")
        assert largest == pytest.approx(20 / 127)
        assert scale("int8-static-mse") < largest
        assert scale("int8-static") < scale("int8-static-mse")
        with pytest.raises(ValueError, match="activations: got 'int8-static-max', wanted"):
            gs.Quantize("int8", activations="int8-static-max")


def test_learned_rounding_of_a_pruned_model_remembers_the_weights_before(
    llama: nn.Module, batches: list[dict[str, Tensor]]
) -> None:
    steps = [gs.Prune(0.5, "layer"), gs.Quantize(**EXACT, method=gs.AutoRound(iterations=2))]
    model = gs.compress(copy.deepcopy(llama), steps, calibration=batches, fuse=False)
    name = "model.layers.0.mlp.down_proj"
    W, stored = llama.get_submodule(name).weight, model.get_submodule(name).dequantize()
    assert 0.45 < float((stored == 0).float().mean()) < 0.62
    wanted = float((W - stored).detach().norm() / W.detach().norm())
    layer = next(item for item in gs.report(model).layers if item.name == name)
    assert layer.error == pytest.approx(wanted, rel=1e-3)


def test_layers_that_stay_dense_tell_what_pruning_cost() -> None:
    x = torch.randn(200, 48, generator=torch.Generator().manual_seed(7))
    prune = gs.Prune(0.1, method="sparsegpt")  # so few zeros that no sparse form pays
    model = gs.compress(Chain(), prune, calibration=[x], fuse=False)
    assert all(type(block[0]) is nn.Linear for block in model.blocks)
    assert all(fit.output_error > 0.001 for fit in model._gossamer_fits)
