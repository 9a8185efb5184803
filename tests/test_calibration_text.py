"""Calibration batches from a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.calibration import text_batches


def words(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def counted(count: int) -> str:
    return " ".join(map(str, range(count)))


def test_windows_are_spread_evenly() -> None:
    batches = text_batches(counted(1000), words, windows=10, tokens=7)
    assert len(batches) == 10
    for number, batch in enumerate(batches):
        assert batch.shape == (1, 7)
        assert batch.dtype is torch.int64
        first = int(batch[0, 0])
        assert batch[0].tolist() == list(range(first, first + 7))
        assert 100 * number <= first <= 100 * (number + 1) - 7
    assert len({int(batch[0, 0]) % 100 for batch in batches}) > 1


def test_seeds() -> None:
    def drawn(seed: int) -> list[int]:
        return torch.cat(text_batches(counted(500), words, windows=5, tokens=4, seed=seed)).tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_all_of_a_text_that_is_just_long_enough() -> None:
    batches = text_batches(counted(12), words, windows=3, tokens=4)
    assert torch.cat(batches).flatten().tolist() == list(range(12))


def test_a_long_text_is_tokenized_in_parts() -> None:
    lengths: list[int] = []

    def letters(text: str) -> list[int]:
        lengths.append(len(text))
        return [ord(letter) for letter in text]

    text = "abc" * 200_000
    batches = text_batches(text, letters, windows=2, tokens=300_000)
    assert "".join(map(chr, torch.cat(batches).flatten().tolist())) == text
    assert sum(lengths) == len(text)
    assert len(lengths) > 2


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file(tmp_path: Path, kind: Any) -> None:
    file = tmp_path / "text.txt"
    file.write_text("1 2 3 4")
    assert text_batches(kind(file), words, windows=2, tokens=2)[1].tolist() == [[3, 4]]


def test_tokenizers() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocabulary = {"[UNK]": 0, "one": 1, "two": 2, "[BOS]": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", 3)]
    )
    assert tokenizer.encode("one").ids == [3, 1]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    for each in (tokenizer, fast):
        batches = text_batches("one two two three", each, windows=1, tokens=4)
        assert batches[0].tolist() == [[1, 2, 2, 0]]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 10 tokens, wanted at least 12: 3 windows of 4; the"):
        text_batches(counted(10), words, windows=3, tokens=4)
    with pytest.raises(ValueError, match=r"there is no file 'missing.txt'"):
        text_batches("missing.txt", len_of_text, windows=3, tokens=40)
    with pytest.raises(ValueError, match=r"missing.txt cannot be read: No such file"):
        text_batches(Path("missing.txt"), words)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt is not in UTF-8: byte 2: invalid"):
        text_batches(latin, words)
    with pytest.raises(ValueError, match="has 0 tokens"):
        text_batches("", words, windows=1, tokens=1)
    with pytest.raises(TypeError, match="path_or_text: got bytes"):
        text_batches(b"1 2", words)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tokenizer: got None"):
        text_batches(counted(10), None)
    with pytest.raises(TypeError, match="tokenizer: returned"):
        text_batches(counted(10), lambda text: text.split())
    for name in ("windows", "tokens"):
        with pytest.raises(ValueError, match=f"{name}: got 0, wanted a whole number >= 1"):
            text_batches(counted(10), words, **{name: 0})


def len_of_text(text: str) -> list[int]:
    return list(range(len(text)))
