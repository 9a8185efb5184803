"""Quality figures, on data small enough to know the answer."""

from __future__ import annotations

import bz2
import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gossamer as gs
from gossamer.bench import accuracy, models, quality, subjects, theory
from gossamer.bench.model import VARIANTS, run_model_benchmark, table
from gossamer.bench.variants import compressed, usual_names


def test_spearman_by_hand() -> None:
    assert quality.spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert quality.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Any increasing function of the values leaves it alone; Pearson's changes.
    assert quality.spearman([1, 2, 3], np.exp([1, 2, 3])) == pytest.approx(1)
    assert quality.pearson([1, 2, 3], np.exp([1, 2, 3])) < 0.97


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=40).filter(
        lambda pairs: all(len(set(column)) > 1 for column in zip(*pairs, strict=True))
    )
)
def test_correlations_equal_scipy_with_ties(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = zip(*pairs, strict=True)
    assert quality.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert quality.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)


def unit_vectors(angles: dict[str, float]) -> quality.Encode:
    return lambda texts: np.array([[math.cos(angles[t]), math.sin(angles[t])] for t in texts])


def test_word_pairs_quality(tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("# comment\na\tb\t9\na\tc\t5.5\nb\td\t1.0\n")
    angles = {"a": 0.0, "b": 0.1, "c": 0.5, "d": 1.5}
    assert quality.word_pairs_quality(unit_vectors(angles), file) == pytest.approx(1)
    angles["b"] = 0.6  # now a and b are further apart than a and c
    assert quality.word_pairs_quality(unit_vectors(angles), file) == pytest.approx(0.5)


def test_documents_quality_reads_the_upper_triangle(tmp_path: Path) -> None:
    documents, similarities = tmp_path / "documents", tmp_path / "similarities"
    documents.write_text("a\nb\nc\n")
    angles = {"a": 0.0, "b": 0.3, "c": 1.2}
    human = np.triu(np.cos(np.subtract.outer([0.0, 0.3, 1.2], [0.0, 0.3, 1.2])))
    np.savetxt(similarities, human)
    assert quality.documents_quality(
        unit_vectors(angles), documents, similarities
    ) == pytest.approx(1)


class Uniform(torch.nn.Module):
    """Gives every token the same probability, but for one that it is sure of after token 0."""

    def forward(self, ids: torch.Tensor) -> SimpleNamespace:
        logits = torch.zeros(*ids.shape, 10)
        logits[ids == 0] = torch.where(torch.arange(10) == 7, 100.0, 0.0)
        return SimpleNamespace(logits=logits)


def test_perplexity_by_hand() -> None:
    assert quality.perplexity(Uniform(), torch.tensor([[1, 2, 3], [4, 5, 6]])) == pytest.approx(10)
    half_known = torch.tensor([[0, 7, 3], [0, 7, 3]])
    assert quality.perplexity(Uniform(), half_known) == pytest.approx(math.sqrt(10))


def test_perplexity_counts_windows() -> None:
    seen: list[tuple[int, int]] = []
    quality.perplexity(
        Uniform(), torch.ones(3, 4).long(), lambda done, all_: seen.append((done, all_))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_wikipedia_markup_goes(tmp_path: Path) -> None:
    filler = "word " * 500
    article = (
        "'''Bold''' [[Target|shown]] [[plain]] {{template|{{nested}}}} &lt;ref&gt;note&lt;/ref&gt;"
        f"&lt;!-- hidden --&gt; {{| table |}} == Heading == [http://example.org link] {filler}"
    )
    dump = (
        f'<page><text xml:space="preserve">{article}</text></page>'
        f"<page><text>#REDIRECT [[Other]] {filler}</text></page><page><text>stub</text></page>"
    )
    path = tmp_path / "wiki.bz2"
    path.write_bytes(bz2.compress(dump.encode()))
    (text,) = quality.wikipedia_articles(path)
    assert text.split()[:5] == ["Bold", "shown", "plain", "Heading", "link"]


def test_encode_keeps_order_and_ignores_padding() -> None:
    class Model(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(
                last_hidden_state=torch.stack([input_ids, 0 * input_ids + 1], -1)
            )

    def tokenizer(texts: list[str], **_: object) -> dict[str, torch.Tensor]:
        longest = max(map(len, texts))
        rows = [[ord(c) for c in t] + [999] * (longest - len(t)) for t in texts]
        mask = [[1] * len(t) + [0] * (longest - len(t)) for t in texts]
        return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}

    texts = ["aaaa", "b", "cc"]
    got = models.encode(Model(), tokenizer, texts, batch_size=3)
    want = np.array([[97.0, 1], [98, 1], [99, 1]])
    np.testing.assert_allclose(got, want / np.linalg.norm(want, axis=1, keepdims=True), rtol=1e-6)


def test_model_bytes_counts_shared_tensors_once() -> None:
    tied = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    assert models.model_bytes(tied) == 4 * (64 + 8 + 8)


def test_model_bytes_of_torch_dynamic_int8() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    light = VARIANTS["torch dynamic int8"].transform(model)
    assert 64 * 32 + 4 * 32 < models.model_bytes(light) < 64 * 32 + 4 * 32 + 32 * 16 + 16


def test_skip_linears_leaves_no_linear() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Sequential(torch.nn.Linear(3, 5)))
    out = models.skip_linears(model)(torch.ones(2, 4, dtype=torch.bfloat16))
    assert torch.equal(out, torch.zeros(2, 5, dtype=torch.bfloat16))
    assert not any(isinstance(module, torch.nn.Linear) for module in model.modules())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model: 'bert' is unknown; there are minilm, smollm2"):
        run_model_benchmark("bert", 1)
    with pytest.raises(ValueError, match=r"variants: \['int3'\] unknown"):
        run_model_benchmark("minilm", 1, variants=["int3"])


def test_usual_variants_follow_the_schemes() -> None:
    names = usual_names(["int4", "nf4"], compiled=True, unfused=True)
    assert all(name in VARIANTS for name in names)
    for name in ("gossamer int4, fp32", "gossamer nf4, bf16, unfused", "dense bf16, compiled"):
        assert name in names
    assert [name for name in usual_names(["int8"]) if "unfused" in name or "compiled" in name] == []
    with pytest.raises(ValueError, match=r"\['int3'\] is no scheme; there are int8"):
        usual_names(["int3"])


def test_a_compressed_variant_has_the_dtype_it_says() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.LayerNorm(32))
    light = compressed(model, "int8", torch.bfloat16)
    assert isinstance(light[0], gs.nn.Linear)  # type: ignore[index]
    assert light(torch.randn(2, 64, dtype=torch.bfloat16)).dtype is torch.bfloat16
    assert pickle.loads(pickle.dumps(VARIANTS["gossamer int8, bf16"])).judged


class Counting(torch.nn.Module):
    """A language model that is sure of the next number, and whose cache holds all it has read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []

    def forward(
        self, ids: torch.Tensor, use_cache: bool, past_key_values: Any = None
    ) -> SimpleNamespace:
        cache = past_key_values or SimpleNamespace(crop=self.crop)
        self.read += ids[0].tolist()
        logits = torch.nn.functional.one_hot((ids + 1) % 10, 10).float()
        return SimpleNamespace(logits=logits, past_key_values=cache)

    def crop(self, count: int) -> None:
        self.before_crop = list(self.read)
        del self.read[count:]


def test_greedy_decoding_does_the_same_work_at_every_call() -> None:
    model = Counting()
    run = subjects.greedy(model, torch.tensor([[3, 4, 5]]), 4)
    assert model.read == [3, 4]
    for _ in range(2):
        assert run().argmax() == 6
        assert model.before_crop == [3, 4, 5, 6, 7, 8]  # each the likeliest after the one before
        assert model.read == [3, 4]


def relative_error(stored: gs.formats.Format, W: torch.Tensor) -> float:
    return float((stored.dequantize() - W).norm() / W.norm())


@pytest.mark.parametrize(
    ("scheme", "name", "group_size"),
    [
        ("int8", "int8", 512),
        ("int8-g32", "int8", 32),
        ("int4", "int4", 128),
        ("int4-g32", "int4", 32),
        ("int4-asym", "int4-asym", 128),
        ("nf4", "nf4", 64),
        ("fp4", "fp4", 32),
        ("mxfp4", "mxfp4", 32),
        ("fp8", "fp8", 512),
        ("fp8-e5m2", "fp8-e5m2", 512),
        ("bf16", "bf16", 512),
    ],
)
def test_theory_foretells_the_error_on_gaussian_weights(
    scheme: str, name: str, group_size: int
) -> None:
    W = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    measured = relative_error(gs.Quantize(scheme).quantize(W), W)
    assert measured == pytest.approx(theory.expected_error(name, group_size), rel=0.03)


def test_theory_in_closed_form() -> None:
    # p bits of mantissa: 2**-p * sqrt(0.54 / 12)
    assert theory.expected_error("bf16", 64) == pytest.approx(
        2**-7 * math.sqrt(0.54 / 12), rel=0.01
    )
    # The expected largest of many Gaussian magnitudes is near sqrt(2 ln 2G) - its usual correction.
    uniform = theory.expected_error("int8", 10**6)
    assert uniform == pytest.approx(4.96 / 127 / math.sqrt(12), rel=0.01)
    assert theory.expected_error("unheard of", 32) is None


def test_errors_of_a_layer_are_those_of_its_parts() -> None:
    sample = accuracy.Sample("mine", torch.randn(48, 64), torch.randn(9, 64))
    row = accuracy.measure_error(sample, "int8")
    stored = gs.Quantize("int8").quantize(sample.W)
    assert row["weight_error"] == pytest.approx(relative_error(stored, sample.W), rel=1e-4)
    assert row["output_error"] == pytest.approx(row["weight_error"], rel=0.5)
    assert row["layer_error"] > row["output_error"]  # x is rounded too
    assert row["bits_per_weight"] == stored.bits_per_weight
    assert row["theory"] is None
    assert accuracy.measure_error(accuracy.draw(accuracy.GAUSSIAN), "int8")["theory"] > 0.005


def test_heavy_tails_are_heavy() -> None:
    sample = accuracy.draw(accuracy.HEAVY)
    others = torch.cat(
        [sample.W[:, : accuracy.SIZE // 2], sample.W[:, accuracy.SIZE // 2 + 1 :]], 1
    )
    assert others.abs().median() == pytest.approx(0.765, rel=0.02)  # of Student's t, 3 degrees
    assert others.abs().max() > 20
    outlier = sample.W[:, accuracy.SIZE // 2]
    assert outlier.abs().median() == pytest.approx(7.65, rel=0.15)


class TinySubject:
    """Stands for a model to be judged: a layer on the grid of int4-g32-asym."""

    def __init__(self) -> None:
        codes = torch.arange(16.0).repeat(8, 4)
        self.weight = codes * 0.25 - 1

    def load(self) -> tuple[torch.nn.Module, None]:
        model = torch.nn.Sequential(torch.nn.Linear(64, 8, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(self.weight)
        return model, None

    def cases(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(ids=np.ones((1, 3, 64), np.float32))]

    def steps(self, windows: int) -> int:
        return windows

    def judge(self, model: torch.nn.Module, _: None, windows: int, on_progress: Any) -> Any:
        for window in range(windows):
            on_progress(window + 1, windows)
        return {"linears": float(sum(isinstance(m, torch.nn.Linear) for m in model.modules()))}


def test_a_weight_on_a_schemes_own_grid_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "SUBJECTS", {"tiny": TinySubject()})
    monkeypatch.setattr(accuracy, "REAL_LAYERS", {"tiny": ("0", 0)})
    seen: list[tuple[int, int]] = []
    measured = accuracy.run_accuracy(
        ["int8", "int4-g32-asym"],
        threads=1,
        subjects=["tiny"],
        windows=2,
        on_progress=lambda done, total, _: seen.append((done, total)),
    )
    found = {(r["kind"], r["scheme"], r.get("weights")): r for r in measured.rows}
    exact = found["accuracy", "int4-g32-asym", "tiny"]
    assert exact["failure"] == accuracy.OWN_GRID_REASON
    assert "weight_error" not in exact
    assert found["quality", "int4-g32-asym", None]["failure"] == accuracy.OWN_GRID_REASON
    assert found["accuracy", "int4-g32-asym", "Gaussian"]["failure"] is None
    assert found["quality", "dense fp32", None]["quality"] == {"linears": 1}
    assert found["quality", "int8", None]["quality"] == {"linears": 0}
    assert seen[-1] == (12, 12)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    header, lines = accuracy.table(measured.rows)
    assert header == ["", "bits", "theory, Gaussian", "Gaussian", "heavy-tailed", "tiny", "linears"]
    assert [line[0] for line in lines] == ["dense fp32", "int8", "int4-g32-asym"]
    assert lines[0][1:] == ["-", "-", "-", "-", "-", "1.000"]
    assert lines[2][-2:] == ["-", "-"]
    assert " % / " in lines[1][3]


def test_accuracy_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"schemes: \['int3'\] unknown; there are int8"):
        accuracy.run_accuracy(["int3"], threads=1)
    with pytest.raises(ValueError, match=r"subjects: \['bert'\] unknown"):
        accuracy.run_accuracy(["int8"], threads=1, subjects=["bert"])
    with pytest.raises(ValueError, match="there are none"):
        accuracy.table([])


def test_table_shows_failures_and_missing_figures() -> None:
    good = {
        "contender": "dense fp32",
        "case": "1 x 16",
        "bytes": 90_900_000,
        "quality": {"Lee": 0.6564},
        "failure": None,
        "ms": 4.0,
        "speedup": 1.0,
        "noisy": True,
        "error": 0.0,
    }
    bad = good | {"contender": "x", "bytes": None, "quality": {}, "failure": "boom", "error": None}
    header, lines = table([good, bad])
    assert header == ["", "size, MB", "Lee", "1 x 16, ms", "error"]
    assert lines == [
        ["dense fp32", "90.9", "0.656", "4.00 (x1.00) noisy", "0"],
        ["x", "-", "-", "failed", "-"],
    ]
    with pytest.raises(ValueError, match="there are none"):
        table([])
