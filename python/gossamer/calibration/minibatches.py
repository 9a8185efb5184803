"""Minibatches of the calls of a block, with what the block should make of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .calls import Call, first_tensor

_TOLERANCE = 1e-3  # of outputs of a sample alone, relative to those in its batch


@dataclass(frozen=True)
class Sample:
    """Some rows of a call.

    Attributes
    ----------
    args, kwargs
        Of a call of the block.
    target : Tensor
        What the block should return.
    weight : Tensor
        What a squared error counts; broadcasts to the target.
    mask : Tensor or None
        Bool (B, S), False where a token is padding.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Tensor
    weight: Tensor
    mask: Tensor | None


class Samples:
    """The rows of all calls, cut into pieces of at most `batch` rows of one call.

    A batch of None is what has `tokens` tokens; ``batch`` tells.

    Where rows of a call do not go through the block apart from each other, a call is one piece.

    Errors count relative to their token: ``1 / (|y|² + median |y|²)`` for the target y of each
    token, and 0 for padding. A few tokens of language models, such as the first, have outputs
    thousands of times as large as the others, and normalization follows.
    """

    def __init__(
        self,
        function: str,
        block: nn.Module,
        calls: Sequence[Call],
        targets: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None,
        batch: int | None,
        tokens: int = 512,
    ) -> None:
        _check(function, calls, targets)
        batch = _rows_with(tokens, targets) if batch is None else batch
        self._calls, self._targets, self.batch = calls, targets, batch
        given = masks or [None] * len(calls)
        self._masks = [_mask(call, mask) for call, mask in zip(calls, given, strict=True)]
        whole = not all(_separable(block, call) for call in _one_of_each_size(calls))
        self._pieces = [
            (index, slice(first, min(first + step, rows)))
            for index, rows in enumerate(len(target) for target in targets)
            for step in (max(rows, 1) if whole else batch,)
            for first in range(0, rows, step)
        ]
        self._floor = self._median_energy()

    def __len__(self) -> int:
        return len(self._pieces)

    def batches(self, seed: int) -> Iterator[list[Sample]]:
        """Without end: pieces in random order, as many at a time as a batch takes."""
        generator = torch.Generator().manual_seed(seed)
        chosen: list[Sample] = []
        rows = 0
        while True:
            for piece in torch.randperm(len(self), generator=generator).tolist():
                chosen.append(self.sample(piece))
                rows += len(chosen[-1].target)
                if rows >= self.batch:
                    yield chosen
                    chosen, rows = [], 0

    def first(self, rows: int) -> list[Sample]:
        """As many of the pieces, from all over the calls, as have so many rows."""
        step = max(1, len(self) * self.batch // rows)
        return [self.sample(piece) for piece in range(0, len(self), step)]

    def sample(self, piece: int) -> Sample:
        """One of the pieces."""
        index, rows = self._pieces[piece]
        target = self._targets[index]
        call = _rows_of(self._calls[index], rows)
        mask = self._masks[index]
        mask = None if mask is None else mask[rows]
        weight = self._weight(target[rows], mask)
        return Sample(call.args, call.kwargs, target[rows], weight, mask)

    def _weight(self, target: Tensor, mask: Tensor | None) -> Tensor:
        if target.dim() == 4:  # of images; no normalization of each position follows
            weight = torch.full((1, 1, 1, 1), 0.5 / self._floor)
        else:
            weight = 1 / (target.float().square().mean(-1, keepdim=True) + self._floor)
        if mask is not None and mask.shape == target.shape[:2]:
            weight = weight * mask.unsqueeze(-1)
        return weight / target.numel()

    def _median_energy(self) -> float:
        """The mean square of the numbers of a token, in the middle of all tokens; 1 for zeros."""
        energies = []
        for target, mask in zip(self._targets, self._masks, strict=True):
            energy = target.float().square().mean(1 if target.dim() == 4 else -1)
            fits = mask is not None and mask.shape == energy.shape
            energies.append(energy[mask] if fits else energy.flatten())
        tokens = torch.cat(energies)
        tokens = tokens[tokens > 0]
        return float(tokens.median()) if len(tokens) else 1.0


def _check(function: str, calls: Sequence[Call], targets: Sequence[Tensor]) -> None:
    if not calls or len(calls) != len(targets):
        raise ValueError(
            f"{function}: targets: got {len(targets)} for {len(calls)} calls, wanted one for each "
            "of at least one call"
        )
    for index, (call, target) in enumerate(zip(calls, targets, strict=True)):
        for name, tensor in (("calls", call.args[0]), ("targets", target)):
            if not torch.stack(tensor.aminmax()).isfinite().all():
                raise ValueError(f"{function}: {name}: NaN or infinity in number {index}")


def _rows_with(wanted: int, targets: Sequence[Tensor]) -> int:
    """How many samples have so many tokens."""
    rows = sum(len(target) for target in targets)
    tokens = sum(target.select(1 if target.dim() == 4 else -1, 0).numel() for target in targets)
    return max(1, rows * wanted // max(tokens, 1))


def _mask(call: Call, mask: Tensor | None) -> Tensor | None:
    """False where a token is padding, bool [B, S]; None where nothing tells."""
    if mask is None:
        mask = call.kwargs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.shape != call.args[0].shape[:2]:
            return None
    return mask != 0


def _one_of_each_size(calls: Sequence[Call]) -> list[Call]:
    return list({tuple(call.args[0].shape): call for call in calls}.values())


def _separable(block: nn.Module, call: Call) -> bool:
    """Whether the first row of a call, alone, gives the first row of the output."""
    if len(call.args[0]) == 1:
        return True
    with torch.no_grad():
        whole = _rows_of(call, slice(0, len(call.args[0])))
        together = first_tensor(block(*whole.args, **whole.kwargs))
        part = _rows_of(call, slice(0, 1))
        try:
            alone = first_tensor(block(*part.args, **part.kwargs))
        except (RuntimeError, ValueError, IndexError):  # a tensor was cut that should not be
            return False
    if together is None or alone is None or alone.shape != together[:1].shape:
        return False
    return bool((alone - together[:1]).norm() <= _TOLERANCE * together[:1].norm())


def _rows_of(call: Call, rows: slice) -> Call:
    """Some rows: of every tensor that has as many as the hidden states, which are copied."""
    hidden = call.args[0]
    B = len(hidden)

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows] if value.dim() and len(value) == B else value
        if type(value) in (tuple, list):
            return type(value)(map(cut, value))
        return value

    if rows != slice(0, B):
        call = Call(tuple(map(cut, call.args)), {k: cut(v) for k, v in call.kwargs.items()})
    # Some blocks change their input.
    return Call((hidden[rows].clone(), *call.args[1:]), call.kwargs)
