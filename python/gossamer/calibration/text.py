"""Calibration batches from a text."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import _check
from .._progress import Progress

_FUNCTION = "text_batches"
_CHARACTERS = 2**18  # tokenized at once


def text_batches(
    path_or_text: str | Path,
    tokenizer: Any,
    *,
    windows: int = 128,
    tokens: int = 512,
    seed: int = 0,
    progress: bool | None = None,
) -> list[Tensor]:
    """Windows of a text as token ids, spread evenly over it.

    The text is cut into as many stretches as there are windows; in each, one window begins at a
    random place.

    Parameters
    ----------
    path_or_text : str or Path
        A file in UTF-8, or the text itself: a str is a path if there is such a file.
    tokenizer : object
        Of transformers or tokenizers, or any function from text to a list of token ids. It is
        called for parts of the text, and without special tokens.
    windows : int
        Number of batches.
    tokens : int
        In each.
    seed : int
        Of the places.
    progress : bool, optional
        Show a bar on stderr: True, False, or where it is a terminal, after a second (None).

    Returns
    -------
    list of Tensor
        int64 of shape (1, tokens) each, as ``compress`` takes them for calibration.

    Raises
    ------
    ValueError
        For a text that is too short, or not in UTF-8; for windows or tokens below 1.
    TypeError
        For what is no text or no tokenizer.

    Examples
    --------
    >>> from gossamer.calibration import text_batches
    >>> def letters(text):
    ...     return [ord(letter) - ord("a") for letter in text]
    >>> text_batches("abcdefgh", letters, windows=2, tokens=4)
    [tensor([[0, 1, 2, 3]]), tensor([[4, 5, 6, 7]])]
    """
    for name, value in (("windows", windows), ("tokens", tokens)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{_FUNCTION}: {name}: got {value!r}, wanted a whole number >= 1")
    text = _read(path_or_text)
    ids = _token_ids(text, tokenizer, progress)
    stretch = len(ids) // windows
    if stretch < tokens:
        raise ValueError(
            f"{_FUNCTION}: path_or_text: has {len(ids)} tokens, wanted at least "
            f"{windows * tokens}: {windows} windows of {tokens}{_no_file(path_or_text)}"
        )
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(stretch - tokens + 1, (windows,), generator=generator)
    firsts = (torch.arange(windows) * stretch + places).tolist()
    return [ids[None, first : first + tokens].clone() for first in firsts]


def _read(path_or_text: str | Path) -> str:
    if not isinstance(path_or_text, str | Path):
        raise TypeError(
            f"{_FUNCTION}: path_or_text: got {_check.describe(path_or_text)}, wanted a path or text"
        )
    if isinstance(path_or_text, str) and not _is_file(path_or_text):
        return path_or_text
    try:
        return Path(path_or_text).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{_FUNCTION}: path_or_text: {path_or_text} is not in UTF-8: byte {error.start}: "
            f"{error.reason}"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{_FUNCTION}: path_or_text: {path_or_text} cannot be read: {error.strerror}"
        ) from None


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False


def _no_file(path_or_text: str | Path) -> str:
    """What to add where a text may have been meant as a path."""
    if isinstance(path_or_text, str) and not _is_file(path_or_text) and len(path_or_text) < 256:
        return f"; there is no file {path_or_text!r}"
    return ""


def _token_ids(text: str, tokenizer: Any, progress: bool | None) -> Tensor:
    parts = [text[first : first + _CHARACTERS] for first in range(0, len(text), _CHARACTERS)]
    ids = []
    with Progress("tokenizing", len(parts), progress) as shown:
        for part in parts:
            ids.append(torch.tensor(_encode(tokenizer, part), dtype=torch.int64))
            shown.advance(1)
    return torch.cat(ids) if ids else torch.empty(0, dtype=torch.int64)


def _encode(tokenizer: Any, text: str) -> list[int]:
    if hasattr(tokenizer, "convert_tokens_to_ids"):  # of transformers
        found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    elif hasattr(tokenizer, "encode"):  # of tokenizers
        found = tokenizer.encode(text, add_special_tokens=False).ids
    elif callable(tokenizer):
        found = tokenizer(text)
    else:
        raise TypeError(
            f"{_FUNCTION}: tokenizer: got {_check.describe(tokenizer)}, wanted one of transformers "
            "or tokenizers, or a function from text to token ids"
        )
    try:
        return [operator.index(number) for number in found]
    except TypeError:
        raise TypeError(
            f"{_FUNCTION}: tokenizer: returned {_check.describe(found)}, wanted a list of token ids"
        ) from None
