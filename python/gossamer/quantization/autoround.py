"""AutoRound: roundings are learned, block by block, by the gradient of the block's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import _check
from ..calibration import Call, Statistics, evaluating
from ..calibration.minibatches import Samples
from ..formats import Format
from .learned_block import Layers, LearnedBlock, measure, parameter_names

_TRAVEL = 0.7  # steps of the scale that V could go at the first rate
_LARGEST_RATE = 0.02
_BETAS = (0.8, 0.95)
_EPSILON = 1e-30  # gradients of one entry may be that small
_RANGE_RATE = 0.2  # of the scales, as a share of that of V
_MEASURED = 8  # samples that E[x²] is measured on
_CHECKED = 4  # samples that tell whether learning helped

Advance = Callable[[float], None]


@dataclass(frozen=True)
class AutoRound:
    """Learn which way each weight of a block is rounded.

    Minimizes ``Σ_t |block(x; Ŵ)_t - y_t|² / (|y_t|² + median |y|²)`` over tokens t, where x comes
    from the compressed blocks before and y from the dense model. Each weight moves by V in
    [-0.5, 0.5] steps of its scale before it is rounded, each scale by a factor.

    Parameters
    ----------
    iterations : int
        Steps for each block.
    batch : int, optional
        Samples (rows of calls) in a step. None: as many as have 512 tokens, at least 1.
    learning_rate : float, optional
        Of V in the first step, in (0, 1]; it falls to 0 as a half cosine. None: ``0.7 /
        iterations``, at most 0.02.
    clip : bool
        Learn the scales, too.
    seed : int
        Of the order of the samples. The same gives the same codes.

    Raises
    ------
    ValueError
        For a setting out of its range.

    Notes
    -----
    Rounding counts as the identity in gradients. Cheng et al. step by the sign of the gradient;
    here it is smoothed and divided by its running magnitude (Adam), the first step of which is the
    sign. That needs about half the samples for the same loss, see docs/learned-rounding.md.

    The scales that learning begins with minimize the error of each group weighted by E[x²]. Where
    what was learned is no better on some of the samples than that beginning, the beginning is
    taken.

    References
    ----------
    Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of
    LLMs", 2023, section 3. Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2014.

    Examples
    --------
    >>> from gossamer.quantization.autoround import AutoRound
    >>> AutoRound(iterations=20).learning_rate is None
    True
    """

    name: ClassVar[str] = "autoround"
    needs: ClassVar[str] = "squares"

    iterations: int = 100
    batch: int | None = None
    learning_rate: float | None = None
    clip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for argument, least in (("iterations", 1), ("batch", 1), ("seed", 0)):
            value = getattr(self, argument)
            if argument != "batch" or value is not None:
                _check.whole_number("AutoRound", argument, value, least)
        rate = self.learning_rate
        if rate is not None and not (isinstance(rate, int | float) and 0 < rate <= 1):
            raise ValueError(f"AutoRound: learning_rate: got {rate!r}, wanted a number in (0, 1]")

    def learn(
        self,
        block: nn.Module,
        layers: Layers,
        calls: Sequence[Call],
        targets: Sequence[Tensor],
        *,
        keep: Mapping[str, Tensor] | None = None,
        masks: Sequence[Tensor | None] | None = None,
        statistics: Mapping[str, Statistics] | None = None,
        advance: Advance | None = None,
    ) -> dict[str, Format]:
        """Round the weights of the layers of a block together.

        Parameters
        ----------
        block : nn.Module
            On the CPU. It is left as it is.
        layers : mapping of str to tuple
            Layers in the block, by any name, each with the scheme of its result: a format that has
            a grid. ``nn.Linear``, ``Conv1D`` of transformers or a convolution.
        calls : sequence of Call
            Of the block; hidden states come first, with samples as their first dimension.
        targets : sequence of Tensor
            For each call, what the (first) output should be.
        keep : mapping of str to Tensor, optional
            Bool (N, K) for layers whose other weights are zero in the result.
        masks : sequence, optional
            For each call None, or bool (B, S), False where a token is padding. Otherwise an
            ``attention_mask`` of that shape tells.
        statistics : mapping of str to Statistics, optional
            Of the inputs of the layers. None: measured on a few samples.
        advance : callable, optional
            Is told after each step which share of the work that was.

        Returns
        -------
        dict of str to Format
            By name, of the classes that the schemes name.

        Raises
        ------
        ValueError
            For NaN or infinity in calls, targets or weights; without a call; for a layer that is
            not in the block, or a scheme whose format has no grid.
        """
        parameter_names(block, layers)
        with evaluating(block):
            samples = Samples("AutoRound.learn", block, calls, targets, masks, self.batch)
            if statistics is None:
                statistics = measure(block, layers, samples.first(_MEASURED))
            learned = LearnedBlock(block, layers, keep or {}, statistics, self.clip)
            self._descend(learned, samples, advance)
        return learned.formats()

    def _descend(self, learned: LearnedBlock, samples: Samples, advance: Advance | None) -> None:
        checked_on = samples.first(_CHECKED)
        before = learned.loss(checked_on)
        optimizer, schedule = self._optimizer(learned)
        batches = samples.batches(self.seed)
        for _ in range(self.iterations):
            learned.backward(next(batches))
            optimizer.step()
            schedule.step()
            for weight in learned.weights.values():
                weight.clamp()
            if advance is not None:
                advance(1 / self.iterations)
        if not learned.loss(checked_on) < before:
            learned.forget()

    def _optimizer(
        self, learned: LearnedBlock
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        rate = self.learning_rate or min(_LARGEST_RATE, _TRAVEL / self.iterations)
        parameters = [weight.parameters() for weight in learned.weights.values()]
        groups = [{"params": [own[0] for own in parameters], "lr": rate}]
        factors = [own[1] for own in parameters if len(own) > 1]
        if factors:
            groups.append({"params": factors, "lr": rate * _RANGE_RATE})
        optimizer = torch.optim.Adam(groups, betas=_BETAS, eps=_EPSILON, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
        return optimizer, schedule
