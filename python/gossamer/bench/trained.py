"""Two small models that are trained here, in full precision: a byte-level Llama and a CNN.

What is published has often been rounded before; these have not. Training takes minutes, is kept in
the cache folder, and depends on the seed alone, up to the rounding of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.bench import quality
from gossamer.bench.assets import TEXTS, cache_folder, fetch

SEED = 0
WINDOW = 256  # bytes
_LM_STEPS, _LM_BATCH, _LM_RATE = 500, 16, 2e-3
_CNN_EPOCHS, _CNN_BATCH, _CNN_RATE = 20, 64, 2e-3
_TRAINING_IMAGES = 1297  # of 1797; the rest is judged by


def load_byte_lm() -> nn.Module:
    """A Llama over bytes: 4 layers, 256 wide, grouped queries, 3.0 M parameters; Wikipedia text.

    Raises
    ------
    RuntimeError
        transformers is not installed, or the text cannot be downloaded.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise RuntimeError(
            "load_byte_lm: needs transformers: pip install 'gossamer[hf]'"
        ) from error
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model: nn.Module = LlamaForCausalLM(config)
    return _trained("byte-lm", model.eval(), _train_byte_lm)


def byte_windows(half: int, count: int) -> Tensor:
    """Windows of bytes [count, 256], evenly spread over one half of the Wikipedia articles.

    The first half (0) is trained on and calibrated with, the second (1) judged by.
    """
    articles = quality.wikipedia_articles(fetch(TEXTS) / "wiki.xml.bz2")
    middle = len(articles) // 2
    text = "\n\n".join(articles[middle:] if half else articles[:middle]).encode()
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    whole = data[: len(data) // WINDOW * WINDOW].view(-1, WINDOW)
    return whole[torch.linspace(0, len(whole) - 1, min(count, len(whole))).long()].long()


def load_digits_cnn() -> nn.Module:
    """A residual CNN on 8 x 8 images of digits: 0.17 M parameters.

    Raises
    ------
    RuntimeError
        scikit-learn, which brings the images, is not installed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = DigitsCNN()
    return _trained("digits-cnn", model.eval(), _train_digits_cnn)


def digits(train: bool) -> tuple[Tensor, Tensor]:
    """Images [n, 1, 8, 8] in [0, 1] and what they show."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError("digits: needs scikit-learn: pip install 'gossamer[bench]'") from error
    found: Any = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    chosen = order[:_TRAINING_IMAGES] if train else order[_TRAINING_IMAGES:]
    return images[chosen], torch.tensor(found.target)[chosen]


class DigitsCNN(nn.Module):
    """A stem, two stages of residual blocks with batch norm, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential(
            _Residual(32, 32, 1), _Residual(32, 64, 2), _Residual(64, 64, 1)
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 10]."""
        logits: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def _train_byte_lm(model: nn.Module) -> Iterator[Tensor]:
    windows = byte_windows(0, 1 << 20)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(_LM_STEPS):
        batch = windows[torch.randint(len(windows), (_LM_BATCH,), generator=generator)]
        yield model(batch, labels=batch).loss


def _train_digits_cnn(model: nn.Module) -> Iterator[Tensor]:
    images, labels = digits(train=True)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(_CNN_EPOCHS):
        for chosen in torch.randperm(len(images), generator=generator).split(_CNN_BATCH):  # type: ignore[no-untyped-call]
            yield nn.functional.cross_entropy(model(images[chosen]), labels[chosen])


_STEPS = {
    "byte-lm": (_LM_STEPS, _LM_RATE),
    "digits-cnn": (_CNN_EPOCHS * math.ceil(_TRAINING_IMAGES / _CNN_BATCH), _CNN_RATE),
}


def _trained(
    name: str, model: nn.Module, losses: Callable[[nn.Module], Iterator[Tensor]]
) -> nn.Module:
    """The model with its trained weights, which are kept."""
    from safetensors.torch import load_model, save_model

    path = cache_folder() / f"{name}-1.safetensors"
    if path.exists():
        load_model(model, path)
        return model
    steps, rate = _STEPS[name]
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    model.train()
    for loss in losses(model):
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    partial = path.with_suffix(".partial")
    save_model(model.eval(), str(partial))
    partial.replace(path)
    return model
