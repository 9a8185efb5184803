"""Quality figures, on data small enough to know the answer."""

from __future__ import annotations

import bz2
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.bench import models, quality
from gossamer.bench.model import VARIANTS, run_model_benchmark, table


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
