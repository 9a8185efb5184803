"""Small models with blocks of every kind, and batches for them; randomly initialised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.calibration import Block, has_rows, stream

TOKENS, VOCABULARY = 11, 90


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if has_rows(module)}


def blocks(model: nn.Module, batches: Any, **settings: Any) -> Iterator[Block]:
    return stream(model, layers_of(model), batches, progress=False, **settings)


def token_ids(samples: int = 2, tokens: int = TOKENS) -> Tensor:
    return torch.randint(VOCABULARY, (samples, tokens))


def padded_batches(count: int) -> list[dict[str, Any]]:
    """Batches with an attention mask; the second sample ends early."""
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[1, 7:] = 0
    return [{"input_ids": token_ids(), "attention_mask": mask} for _ in range(count)]


def llama(layers: int = 3) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return transformers.BertModel(config)


def t5() -> nn.Module:
    """An encoder and a decoder; the first block of each gives the others a position bias."""
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def gemma() -> nn.Module:
    """Blocks get different masks and position embeddings."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return transformers.Gemma3ForCausalLM(config)


class Residual(nn.Module):
    """Two convolutions around which the input goes; the sum is written into the second's output."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(channels, out, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += self.shortcut(x)
        return self.relu(y)


class Staged(nn.Module):
    """As ResNet: stages that are attributes, a stem before and a head behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stage1 = nn.Sequential(Residual(8, 8), Residual(8, 8))
        self.stage2 = nn.Sequential(Residual(8, 12, 2), Residual(12, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.stage1(self.stem(x).relu()))
        return self.head(x.mean((2, 3)))


def plain() -> nn.Sequential:
    """Layers one after the other, some in an nn.Sequential of their own."""
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 7)),
        nn.Identity(),
        nn.Linear(7, 3),
    )


def rows() -> list[Tensor]:
    """Batches for it."""
    return [torch.randn(5, 6) for _ in range(3)]
