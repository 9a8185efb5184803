"""tune_scales(): closer to the dense model, by gradients that are right; and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.calibration.minibatches import Sample
from gossamer.distillation.predictions import Distance
from gossamer.distillation.resuming import Kept
from gossamer.distillation.tuned_weights import TunedWeight

from .calibration_models import VOCABULARY, bert, gemma, gpt2, llama


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(72, 64), nn.GELU(), nn.Linear(64, 24)).eval()


def distance(student: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((student(x) - teacher(x)).square().mean())


@pytest.mark.parametrize(
    "scheme",
    ["int4-g32", "int4-g32-asym", "int4-per-channel", "int8", "nf4", "fp4", "sparse-int8"],
)
def test_outputs_come_closer(scheme: str) -> None:
    teacher, x = mlp(), torch.randn(512, 72)
    student = gs.compress(
        copy.deepcopy(teacher), gs.Quantize(scheme, activations="exact"), targets=["0", "2"]
    )
    codes = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    before = distance(student, teacher, x)
    found = gs.tune_scales(student, teacher, x.split(64), epochs=40, batch=64)
    assert found.layers == 2
    assert found.steps == 40 * 8
    assert found.after < found.before
    assert distance(student, teacher, x) < before
    after = student.state_dict()
    changed = {name for name in codes if not torch.equal(codes[name], after[name])}
    assert changed
    assert all(name.endswith("_scale") for name in changed)


class TestLanguageModel:
    @pytest.fixture
    def teacher(self) -> nn.Module:
        torch.manual_seed(0)
        return llama().eval()

    @pytest.fixture
    def batches(self) -> list[dict[str, Any]]:
        ids = torch.randint(0, VOCABULARY, (32, 16), generator=torch.Generator().manual_seed(1))
        return [{"input_ids": part, "logits_to_keep": 1} for part in ids.split(8)]

    def divergence(self, student: nn.Module, teacher: nn.Module, ids: Tensor) -> float:
        with torch.no_grad():
            p, q = (model(ids).logits.log_softmax(-1) for model in (teacher, student))
        return float((p.exp() * (p - q)).sum(-1).mean())

    @pytest.mark.parametrize("fuse", [True, False])
    def test_predictions_come_closer(
        self, teacher: nn.Module, batches: list[dict[str, Any]], fuse: bool
    ) -> None:
        step = gs.Quantize("int4-g32", activations="exact")
        student = gs.compress(copy.deepcopy(teacher), step, ignore="lm_head", fuse=fuse)
        ids = torch.cat([batch["input_ids"] for batch in batches])
        before = self.divergence(student, teacher, ids)
        gs.tune_scales(student, teacher, batches, epochs=6, batch=4, learning_rate=5e-3, seed=3)
        assert self.divergence(student, teacher, ids) < 0.9 * before

    def test_what_is_told_is_the_divergence(self, teacher: nn.Module) -> None:
        step = gs.Quantize("int4-g32", activations="exact")
        student = gs.compress(copy.deepcopy(teacher), step, ignore="lm_head")
        ids = torch.randint(0, VOCABULARY, (4, 16))  # all of them are checked
        before = self.divergence(student, teacher, ids)
        found = gs.tune_scales(student, teacher, [ids], batch=2, learning_rate=5e-3, epochs=4)
        assert found.before == pytest.approx(before, rel=0.1)  # perhaps in bf16
        assert found.after == pytest.approx(self.divergence(student, teacher, ids), rel=0.1)

    def test_one_seed_one_result(self, teacher: nn.Module, batches: list[dict[str, Any]]) -> None:
        def tuned(seed: int) -> dict[str, Tensor]:
            student = gs.compress(copy.deepcopy(teacher), "int4-g32", ignore="lm_head")
            gs.tune_scales(student, teacher, batches, batch=4, learning_rate=5e-3, seed=seed)
            return student.state_dict()

        one, same, other = tuned(1), tuned(1), tuned(2)
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not all(torch.equal(one[name], other[name]) for name in one)

    def test_padding_does_not_count(self, teacher: nn.Module) -> None:
        ids = torch.randint(0, VOCABULARY, (8, 16), generator=torch.Generator().manual_seed(2))
        mask = torch.ones_like(ids)
        mask[:, 10:] = 0
        other = torch.where(mask.bool(), ids, 5)
        found = []
        for tokens in (ids, other):
            student = gs.compress(copy.deepcopy(teacher), "int4-g32", ignore="lm_head")
            batch = {"input_ids": tokens, "attention_mask": mask}
            found.append(gs.tune_scales(student, teacher, [batch], batch=2))
        first, second = (dataclasses.replace(each, seconds=0) for each in found)
        assert first.before == pytest.approx(second.before, rel=1e-3)
        assert first.after == pytest.approx(second.after, rel=1e-3)

    def test_scaled_by_awq_and_saved(
        self, teacher: nn.Module, batches: list[dict[str, Any]], tmp_path: Any
    ) -> None:
        step = gs.Quantize("int4-g32", method="awq")
        student = gs.compress(
            copy.deepcopy(teacher), step, ignore="lm_head", calibration=batches, progress=False
        )
        found = gs.tune_scales(student, teacher, batches, batch=4, learning_rate=5e-3, epochs=3)
        assert found.after < found.before
        gs.save(student, tmp_path / "tuned")
        ids = batches[0]["input_ids"]
        with torch.no_grad():
            assert torch.equal(gs.load(tmp_path / "tuned")(ids).logits, student(ids).logits)


@pytest.mark.parametrize("make", [bert, gpt2, gemma])
def test_other_architectures(make: Any) -> None:
    """A pooler that the hidden states do not depend on; Conv1D; logits with a soft cap."""
    torch.manual_seed(0)
    teacher = make().eval()
    ids = torch.randint(0, VOCABULARY, (32, 16))
    scheme = gs.Quantize("int4-g32", activations="exact")
    student = gs.compress(copy.deepcopy(teacher), scheme, ignore=nn.Embedding)
    found = gs.tune_scales(student, teacher, ids.split(8), batch=2, epochs=2, learning_rate=3e-3)
    assert found.after < found.before


def test_convolutions() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10)
    ).eval()
    x = torch.randn(64, 16, 6, 6)
    student = gs.compress(copy.deepcopy(teacher), gs.Quantize("int4-g32", activations="exact"))
    found = gs.tune_scales(student, teacher, x.split(16), epochs=20, batch=8)
    assert found.layers == 2
    assert found.after < 0.9 * found.before


@pytest.mark.parametrize("K", [64, 70])
def test_gradient_of_factors(K: int) -> None:
    dense = nn.Linear(K, 8, bias=False)
    layer = gs.nn.Linear.from_dense(dense, "int4-g32")
    weight = TunedWeight(layer, layer.quantized(), dense, torch.float32)
    direction = torch.randn(8, K)
    weight.factors += 0.1 * torch.randn(weight.factors.shape)
    exact = torch.empty_like(weight.factors)
    for index in range(exact.numel()):  # Ŵ is linear in the factors
        base = weight.dense()
        weight.factors.view(-1)[index] += 1
        exact.view(-1)[index] = float(((weight.dense() - base) * direction).sum())
        weight.factors.view(-1)[index] -= 1
    assert torch.allclose(weight.gradient(direction), exact, atol=1e-4)


@pytest.mark.parametrize("with_head", [True, False])
def test_gradient_of_the_distance(with_head: bool) -> None:
    head = nn.Linear(12, 40) if with_head else None
    target, outputs = torch.randn(3, 5, 12), torch.randn(3, 5, 12)
    counts = torch.ones(3, 5, 1)
    counts[1, 3:] = 0
    sample = Sample((), {}, target, counts / 15, None)
    value, gradient = Distance(head)(outputs, sample)
    wide = outputs.double().requires_grad_()
    if head is None:
        exact = ((wide - target).square() * sample.weight).sum()
    else:
        head = copy.deepcopy(head).double()
        logs = (head(each).log_softmax(-1) for each in (target.double(), wide))
        p, q = (each[counts.squeeze(-1) > 0] for each in logs)
        exact = (p.exp() * (p - q)).sum(-1).mean()
    exact.backward()
    assert value == pytest.approx(float(exact.detach()), rel=1e-5)
    assert torch.allclose(gradient.double(), wide.grad, atol=1e-6)


def test_a_rate_that_spoils_changes_nothing() -> None:
    teacher, x = mlp(), torch.randn(64, 72)
    student = gs.compress(copy.deepcopy(teacher), gs.Quantize("int8", activations="exact"))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    found = gs.tune_scales(student, teacher, [x], batch=8, learning_rate=0.1)
    assert found.after >= found.before
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_interrupted_the_student_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, x = mlp(), torch.randn(64, 72)
    student = gs.compress(copy.deepcopy(teacher), "int4-g32")
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    calls = iter(range(3))

    def clamp(self: TunedWeight) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(TunedWeight, "clamp", clamp)
    with pytest.raises(KeyboardInterrupt):
        gs.tune_scales(student, teacher, [x], batch=8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


SETTINGS: dict[str, Any] = {"batch": 8, "epochs": 2, "learning_rate": 1e-2}


class TestResume:
    @pytest.fixture(autouse=True)
    def every_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gossamer.distillation.resuming._SECONDS", 0.0)

    def interrupted_at(self, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
        class Interrupted(Kept):
            def save(self, steps: int, *args: Any, **kwargs: Any) -> None:
                super().save(steps, *args, **kwargs)
                if steps == step:
                    raise KeyboardInterrupt

        monkeypatch.setattr("gossamer.distillation.tuning.Kept", Interrupted)

    @pytest.mark.parametrize("step", [1, 5, 16])
    def test_to_the_same_result(
        self, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        teacher, x = mlp(), torch.randn(64, 72)
        whole = gs.compress(copy.deepcopy(teacher), "int4-g32")
        student = copy.deepcopy(whole)
        gs.tune_scales(whole, teacher, [x], **SETTINGS)
        file = tmp_path / "tuning"
        with monkeypatch.context() as patched:
            self.interrupted_at(step, patched)
            with pytest.raises(KeyboardInterrupt):
                gs.tune_scales(student, teacher, [x], resume=file, **SETTINGS)
        assert [path.name for path in tmp_path.iterdir()] == ["tuning"]
        gs.tune_scales(student, teacher, [x], resume=file, **SETTINGS)
        wanted = whole.state_dict()
        assert all(torch.equal(t, wanted[name]) for name, t in student.state_dict().items())

    def test_other_work_and_damage(self, tmp_path: Path) -> None:
        teacher, x = mlp(), torch.randn(64, 72)
        student = gs.compress(copy.deepcopy(teacher), "int4-g32")
        file = tmp_path / "tuning"
        gs.tune_scales(copy.deepcopy(student), teacher, [x], resume=file, **SETTINGS)
        with pytest.raises(ValueError, match="was begun with other"):
            gs.tune_scales(student, teacher, [x + 1], resume=file, **SETTINGS)
        with pytest.raises(ValueError, match="was begun with other"):
            gs.tune_scales(student, teacher, [x], resume=file, seed=4, **SETTINGS)
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(ValueError, match="is damaged"):
            gs.tune_scales(student, teacher, [x], resume=file, **SETTINGS)


class TestRefused:
    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("epochs", 0),
            ("epochs", True),
            ("batch", 0),
            ("seed", -1),
            ("learning_rate", 0.0),
            ("learning_rate", 0.2),
            ("learning_rate", "1"),
        ],
    )
    def test_settings(self, argument: str, value: Any) -> None:
        teacher = mlp()
        student = gs.compress(copy.deepcopy(teacher), "int4-g32")
        with pytest.raises(ValueError, match=f"tune_scales: {argument}: got"):
            gs.tune_scales(student, teacher, [torch.randn(4, 72)], **{argument: value})

    def test_models(self) -> None:
        teacher, x = mlp(), [torch.randn(4, 72)]
        student = gs.compress(copy.deepcopy(teacher), "int4-g32")
        with pytest.raises(TypeError, match="tune_scales: teacher: got"):
            gs.tune_scales(student, None, x)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="teacher: is the student itself"):
            gs.tune_scales(student, student, x)
        with pytest.raises(ValueError, match="student: has no layer whose scales"):
            gs.tune_scales(copy.deepcopy(teacher), teacher, x)
        other = nn.Sequential(nn.Linear(72, 64), nn.GELU())
        with pytest.raises(ValueError, match="student: has nothing in the place of '2'"):
            gs.tune_scales(gs.compress(other, "int4-g32"), teacher, x)

    def test_calibration(self) -> None:
        teacher = mlp()
        student = gs.compress(copy.deepcopy(teacher), "int4-g32")
        with pytest.raises(ValueError, match="tune_scales: calibration: is empty"):
            gs.tune_scales(student, teacher, [])
        with pytest.raises(ValueError, match="NaN or infinity"):
            gs.tune_scales(student, teacher, [torch.full((4, 72), torch.nan)])
        with pytest.raises(TypeError, match="tune_scales: calibration: got a batch of int"):
            gs.tune_scales(student, teacher, [3])
