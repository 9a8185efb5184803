"""How good a model still is, by human judgements and by perplexity on real text.

Sentence encoders: WordSim353 and SimLex999 (people's scores of word pairs; Spearman) and the 50
documents of Lee, Pincombe and Welsh (people's similarities of all pairs; Pearson). Language models:
perplexity on Wikipedia articles.
"""

from __future__ import annotations

import bz2
import html
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gossamer.bench.assets import TEXTS, fetch

__all__ = [
    "encoder_quality",
    "pearson",
    "perplexity",
    "spearman",
    "wikipedia_articles",
    "wikipedia_windows",
]

Floats = npt.NDArray[np.floating[Any]]
Encode = Callable[[Sequence[str]], Floats]

MINIMUM_ARTICLE = 2000  # characters; shorter ones are stubs and lists
TEMPLATE_DEPTH = (
    4  # templates nested deeper than this are left: a stray brace would eat the article
)


def pearson(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    r"""Pearson correlation of two sequences of equal length.

    .. math:: r = \frac{\sum (x-\bar x)(y-\bar y)}{\sqrt{\sum (x-\bar x)^2 \sum (y-\bar y)^2}}

    >>> round(pearson([1, 2, 3], [1, 2, 4]), 4)
    0.982
    """
    a, b = (np.asarray(v, np.float64) - np.mean(np.asarray(v, np.float64)) for v in (x, y))
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Spearman correlation: Pearson's, of the ranks; equal values share their mean rank.

    >>> round(spearman([1, 2, 3, 4], [10, 20, 40, 30]), 4)
    0.8
    """
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def encoder_quality(encode: Encode) -> dict[str, float]:
    """Correlation of an encoder's cosine similarities with those that people gave.

    Parameters
    ----------
    encode : callable
        Texts -> unit vectors [len(texts), D].

    Returns
    -------
    dict
        ``"WordSim353"`` and ``"SimLex999"`` (Spearman), ``"Lee"`` (Pearson); 0 is chance.

    Notes
    -----
    Finkelstein et al., "Placing search in context", 2002. Hill, Reichart, Korhonen, "SimLex-999",
    2015. Lee, Pincombe, Welsh, "An empirical evaluation of models of text document similarity",
    2005.
    """
    folder = fetch(TEXTS)
    return {
        "WordSim353": word_pairs_quality(encode, folder / "wordsim353.tsv"),
        "SimLex999": word_pairs_quality(encode, folder / "simlex999.txt"),
        "Lee": documents_quality(encode, folder / "lee.cor", folder / "lee_similarities.txt"),
    }


def word_pairs_quality(encode: Encode, path: Path) -> float:
    """Spearman correlation over the lines "word <tab> word <tab> human score" of a file."""
    lines = path.read_text("utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    words = sorted({word for first, second, _ in pairs for word in (first, second)})
    vectors = dict(zip(words, encode(words), strict=True))
    cosines = [float(vectors[first] @ vectors[second]) for first, second, _ in pairs]
    return spearman(cosines, [float(score) for *_, score in pairs])


def documents_quality(encode: Encode, documents: Path, similarities: Path) -> float:
    """Pearson correlation over all pairs of the documents (one a line) of a file."""
    texts = documents.read_text("latin-1").splitlines()
    human = np.loadtxt(similarities)
    vectors = encode(texts)
    pairs = np.triu_indices(len(texts), 1)
    return pearson((vectors @ vectors.T)[pairs], human[pairs])


def perplexity(
    model: nn.Module,
    windows: torch.Tensor,
    on_progress: Callable[[int, int], None] | None = None,
) -> float:
    r"""Perplexity of a language model over windows of tokens, each read from its own beginning.

    .. math:: \exp\Big(-\frac1n \sum_{w}\sum_{t\ge1} \log p(w_t \mid w_{<t})\Big)

    Parameters
    ----------
    model : nn.Module
        Returns ``.logits`` [B, S, V] for token ids [B, S].
    windows : Tensor
        int64 [windows, S].
    on_progress : callable, optional
        Called with (windows done, windows in all).
    """
    total = 0.0
    with torch.inference_mode():
        for i, window in enumerate(windows):
            logits = model(window[None]).logits[0, :-1].float()
            total += nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
            if on_progress:
                on_progress(i + 1, len(windows))
    return math.exp(total / windows[:, 1:].numel())


def wikipedia_windows(
    tokenizer: Any, count: int = 48, tokens: int = 512, half: int = 1
) -> torch.Tensor:
    """Token ids [count, tokens] spread evenly over one half of the Wikipedia articles.

    The second (1) is what models are judged by; the first (0) is left for calibration.
    """
    articles = wikipedia_articles(fetch(TEXTS) / "wiki.xml.bz2")
    middle = len(articles) // 2
    chosen = articles[middle:] if half else articles[:middle]
    ids = torch.tensor(tokenizer("\n\n".join(chosen))["input_ids"])
    whole = len(ids) // tokens
    windows = ids[: whole * tokens].view(whole, tokens)
    return windows[torch.linspace(0, whole - 1, min(count, whole)).long()]


def wikipedia_articles(path: Path) -> list[str]:
    """Plain text of the longer articles of a Wikipedia dump."""
    dump = bz2.decompress(path.read_bytes()).decode("utf-8")
    sources = re.findall(r"<text[^>]*>(.*?)</text>", dump, re.DOTALL)
    texts = (
        _plain_text(html.unescape(source))
        for source in sources
        if not source.lower().startswith("#redirect")
    )
    return [text for text in texts if len(text) > MINIMUM_ARTICLE]


_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_MARKUP = [
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"\{\|.*?\|\}", ""),  # tables
        (r"<ref[^>]*/>|<ref.*?</ref>|<!--.*?-->|<[^>]+>", ""),
        (r"\[\[(?:File|Image|Category)[^\]]*\]\]", ""),
        (r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1"),  # [[target|shown]]
        (r"\[https?:\S+ ?([^\]]*)\]", r"\1"),
        (r"'{2,}|={2,}", ""),  # bold, italics, headings
        (r"\n{3,}", "\n\n"),
    )
]


def _plain_text(source: str) -> str:
    for _ in range(TEMPLATE_DEPTH):  # the innermost go first
        source = _TEMPLATE.sub("", source)
    for pattern, replacement in _MARKUP:
        source = pattern.sub(replacement, source)
    return source.strip()
