"""The models that can be benchmarked: their inputs, what is timed, how they are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gossamer.bench import models, quality
from gossamer.bench.assets import MINILM, SMOLLM2, TEXTS, Asset, fetch
from gossamer.bench.variants import VARIANTS
from gossamer.bench.worker import Prepare, Run

MINILM_SHAPES = ((1, 16), (1, 128), (32, 128))
SMOLLM2_TOKENS = 256
GREEDY_TOKENS = 16

Step = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class Case:
    """One input to time: token ids [batch, tokens], of which a call processes ``counted``."""

    name: str
    ids: npt.NDArray[np.int64]
    counted: int


@dataclass(frozen=True)
class Subject:
    """A model that can be benchmarked.

    ``judge(model, tokenizer, windows, on_progress)`` gives its quality, in ``steps(windows)``.
    """

    assets: Sequence[Asset]
    load: Callable[[], tuple[nn.Module, Any]]
    build: Callable[[str], Prepare]
    cases: Callable[[], list[Case]]
    judge: Callable[[nn.Module, Any, int, Step], dict[str, float]]
    steps: Callable[[int], int]


def build_minilm(variant: str) -> Prepare:
    """Contender: token ids in, unit sentence embeddings out."""
    model = VARIANTS[variant].transform(models.load_minilm()[0])

    def prepare(case: Case) -> Run:
        ids = torch.from_numpy(case.ids)
        return lambda: models.embed(model, ids)

    return prepare


def build_smollm2(variant: str) -> Prepare:
    """Contender: the logits of the next token, after reading a prompt or by continuing it."""
    model = VARIANTS[variant].transform(models.load_smollm2()[0])

    def prepare(case: Case) -> Run:
        ids = torch.from_numpy(case.ids)
        if case.name.startswith("prefill"):
            return lambda: model(ids, logits_to_keep=1).logits[0, -1].float()
        return greedy(model, ids, case.counted)

    return prepare


def greedy(model: nn.Module, ids: torch.Tensor, count: int) -> Run:
    """Continue ``ids`` [1, S] by ``count`` tokens, each the likeliest; the work of every call.

    The last token of ``ids`` is the first that is read, the others lie in the cache. Returned are
    the logits [V] that followed it: those of later tokens hang on what was chosen before.
    """
    cache = model(ids[:, :-1], use_cache=True).past_key_values

    def decode() -> torch.Tensor:
        token, first = ids[:, -1:], None
        for _ in range(count):
            logits: torch.Tensor = model(token, past_key_values=cache, use_cache=True).logits[:, -1]
            token = logits.argmax(dim=-1, keepdim=True)
            first = logits if first is None else first
        cache.crop(-count)  # so that every call does the same work
        return first[0].float() if first is not None else torch.empty(0)

    return decode


def _minilm_cases() -> list[Case]:
    tokenizer = models.load_minilm()[1]
    text = (fetch(TEXTS) / "lee_background.cor").read_text("latin-1")
    stream = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return [
        Case(f"{b} x {s}", stream[: b * s].reshape(b, s).astype(np.int64), b * s)
        for b, s in MINILM_SHAPES
    ]


def _smollm2_cases() -> list[Case]:
    tokenizer = models.load_smollm2()[1]
    ids = quality.wikipedia_windows(tokenizer, 1)[:, :SMOLLM2_TOKENS].numpy()
    return [
        Case(f"prefill {SMOLLM2_TOKENS}", ids, SMOLLM2_TOKENS),
        Case(f"decode {GREEDY_TOKENS} after {SMOLLM2_TOKENS}", ids, GREEDY_TOKENS),
    ]


def _judge_minilm(
    model: nn.Module, tokenizer: Any, windows: int, on_progress: Step
) -> dict[str, float]:
    return quality.encoder_quality(partial(models.encode, model, tokenizer))


def _judge_smollm2(
    model: nn.Module, tokenizer: Any, windows: int, on_progress: Step
) -> dict[str, float]:
    texts = quality.wikipedia_windows(tokenizer, windows)
    return {"perplexity": quality.perplexity(model, texts, on_progress)}


SUBJECTS = {
    "minilm": Subject(
        assets=(MINILM, TEXTS),
        load=models.load_minilm,
        build=build_minilm,
        cases=_minilm_cases,
        judge=_judge_minilm,
        steps=lambda windows: 1,
    ),
    "smollm2": Subject(
        assets=(SMOLLM2, TEXTS),
        load=models.load_smollm2,
        build=build_smollm2,
        cases=_smollm2_cases,
        judge=_judge_smollm2,
        steps=lambda windows: windows,
    ),
}
