"""The models that methods are judged on: their calibration, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.bench import lowrank_quality, models, quality, trained

TOKENS = 512  # of a window of SmolLM2
_BATCH = 8  # windows of a call

Batches = list[dict[str, Any]]


@dataclass(frozen=True)
class QualitySubject:
    """A model to be compressed and judged.

    ``calibration(tokenizer, windows)`` are batches that nothing is judged by. ``judge(model,
    tokenizer, windows)`` gives figures by name; of "perplexity" less is better, of others more.
    """

    title: str
    load: Callable[[], tuple[nn.Module, Any]]
    ignore: Sequence[str]
    calibration: Callable[[Any, int], Batches]
    judge: Callable[[nn.Module, Any, int], dict[str, float]]


def _smollm2_calibration(tokenizer: Any, windows: int) -> Batches:
    ids = quality.wikipedia_windows(tokenizer, windows, TOKENS, half=0)
    return [
        {"input_ids": part, "use_cache": False, "logits_to_keep": 1}
        for part in torch.split(ids, _BATCH)
    ]


def _smollm2_judge(model: nn.Module, tokenizer: Any, windows: int) -> dict[str, float]:
    texts = quality.wikipedia_windows(tokenizer, windows, TOKENS)
    return {"perplexity": quality.perplexity(model, texts)}


def _minilm_judge(model: nn.Module, tokenizer: Any, windows: int) -> dict[str, float]:
    found = quality.encoder_quality(partial(models.encode, model, tokenizer))
    return {"similarity": lowrank_quality.similarity(model, tokenizer), **found}


def _byte_lm_calibration(tokenizer: Any, windows: int) -> Batches:
    ids = trained.byte_windows(0, 2 * windows)  # as many bytes as SmolLM2 gets tokens
    return [{"input_ids": part, "use_cache": False} for part in torch.split(ids, 2 * _BATCH)]


def _byte_lm_judge(model: nn.Module, tokenizer: Any, windows: int) -> dict[str, float]:
    return {"perplexity": quality.perplexity(model, trained.byte_windows(1, 8 * windows))}


def _digits_calibration(tokenizer: Any, windows: int) -> Batches:
    images, _ = trained.digits(train=True)
    return [{"x": part} for part in torch.split(images[: 8 * windows], 64)]


@torch.inference_mode()
def _digits_judge(model: nn.Module, tokenizer: Any, windows: int) -> dict[str, float]:
    """Accuracy, and the mean cosine between logits and those of the dense model."""
    images, labels = trained.digits(train=False)
    logits: Tensor = model(images)
    dense = trained.load_digits_cnn()(images)
    right = float((logits.argmax(1) == labels).float().mean())
    return {"accuracy": right, "similarity": float(torch.cosine_similarity(logits, dense).mean())}


QUALITY_SUBJECTS: dict[str, QualitySubject] = {
    "smollm2": QualitySubject(
        "SmolLM2-135M",
        models.load_smollm2,
        ("model.embed_tokens", "lm_head"),
        _smollm2_calibration,
        _smollm2_judge,
    ),
    "minilm": QualitySubject(
        "MiniLM-L6",
        models.load_minilm,
        ("embeddings.*",),
        partial(lowrank_quality.calibration_batches, "minilm", seed=0),
        _minilm_judge,
    ),
    "byte-lm": QualitySubject(
        "byte-level Llama",
        lambda: (trained.load_byte_lm(), None),
        ("model.embed_tokens", "lm_head"),
        _byte_lm_calibration,
        _byte_lm_judge,
    ),
    "digits-cnn": QualitySubject(
        "CNN on digits",
        lambda: (trained.load_digits_cnn(), None),
        (),
        _digits_calibration,
        _digits_judge,
    ),
}
