"""AutoRound: roundings are learned, block by block, by the gradient of the block's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import _check, cpu
from ..calibration import Call, Statistics, evaluating
from ..calibration.calls import first_tensor
from ..calibration.statistics import Gathering
from ..folding import from_matrix, to_matrix
from ..formats import Format
from ..formats.grids import fit_grid
from ..schemes import Scheme
from .learned_samples import Sample, Samples
from .learned_weight import LearnedWeight
from .rounding import checked, masked, squares_of

_FUNCTION = "AutoRound.learn"
_BETAS = (0.8, 0.95)
_EPSILON = 1e-30  # gradients of one entry may be that small
_RANGE_RATE = 0.2  # of the scales, as a share of that of V
_MEASURED = 8  # samples that E[x²] is measured on
_CHECKED = 4  # samples that tell whether learning helped
_BF16_ISAS = ("avx512bf16", "amx")

Layers = Mapping[str, tuple[nn.Module, Scheme]]
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
    batch : int
        Samples (rows of calls) in a step.
    learning_rate : float, optional
        Of V in the first step; it falls to 0 as a half cosine. None: ``1 / iterations``, at most
        0.01.
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
    sign. That needs a fraction of the samples for the same loss, see docs/learned-rounding.md.

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
    batch: int = 2
    learning_rate: float | None = None
    clip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for argument, least in (("iterations", 1), ("batch", 1), ("seed", 0)):
            value = getattr(self, argument)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"AutoRound: {argument}: got {value!r}, wanted a whole number >= {least}"
                )
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
        _parameter_names(block, layers)
        with evaluating(block):
            samples = Samples(block, calls, targets, masks, self.batch)
            if statistics is None:
                statistics = _measure(block, layers, samples)
            tuned = Tuned(block, layers, keep or {}, statistics, self.clip)
            self._descend(tuned, samples, advance)
        return tuned.formats()

    def _descend(self, tuned: Tuned, samples: Samples, advance: Advance | None) -> None:
        checked_on = samples.first(_CHECKED)
        before, beginning = tuned.loss(checked_on), tuned.state()
        optimizer, schedule = self._optimizer(tuned.weights)
        batches = samples.batches(self.seed)
        for _ in range(self.iterations):
            tuned.backward(next(batches))
            optimizer.step()
            schedule.step()
            for weight in tuned.weights.values():
                weight.clamp()
            if advance is not None:
                advance(1 / self.iterations)
        if not tuned.loss(checked_on) < before:
            tuned.restore(beginning)

    def _optimizer(
        self, weights: Mapping[str, LearnedWeight]
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        rate = self.learning_rate or min(0.01, 1 / self.iterations)
        parameters = [weight.parameters() for weight in weights.values()]
        groups = [{"params": [own[0] for own in parameters], "lr": rate}]
        factors = [own[1] for own in parameters if len(own) > 1]
        if factors:
            groups.append({"params": factors, "lr": rate * _RANGE_RATE})
        optimizer = torch.optim.Adam(groups, betas=_BETAS, eps=_EPSILON, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
        return optimizer, schedule


class Tuned:
    """A block, run with weights that are being learned in the places of its own."""

    def __init__(
        self,
        block: nn.Module,
        layers: Layers,
        keep: Mapping[str, Tensor],
        statistics: Mapping[str, Statistics],
        clip: bool,
    ) -> None:
        self._block, self._layers = block, layers
        self._names = _parameter_names(block, layers)
        self._fixed = {
            name: tensor.detach()
            for name, tensor in (*block.named_parameters(), *block.named_buffers())
            if name not in self._names.values()
        }
        self.weights = {
            name: _learned(name, *layers[name], keep.get(name), statistics.get(name), clip)
            for name in layers
        }
        self._bf16 = _in_bf16(layers)

    def backward(self, batch: Sequence[Sample]) -> None:
        """Add up the loss over a batch, and leave the gradients in what is learned."""
        weights = self._rounded()
        leaves = [weights[name].requires_grad_() for name in self._names.values()]
        sums: list[Tensor] = []
        for sample in batch:
            loss = self._loss(weights, sample)
            if not loss.isfinite():
                raise ValueError(
                    f"{_FUNCTION}: calls: the block returns NaN or infinity for some of them"
                )
            found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else list(found)
        for (name, weight), gradient in zip(self.weights.items(), sums, strict=True):
            matrix = to_matrix(self._layers[name][0], gradient)
            for parameter, own in zip(weight.parameters(), weight.gradients(matrix), strict=True):
                parameter.grad = own

    @torch.no_grad()
    def loss(self, samples: Sequence[Sample]) -> float:
        """The loss over samples, as things are now."""
        weights = self._rounded()
        return sum(float(self._loss(weights, sample)) for sample in samples)

    def state(self) -> list[list[Tensor]]:
        """A copy of what is learned."""
        return [weight.state() for weight in self.weights.values()]

    def restore(self, state: list[list[Tensor]]) -> None:
        """Take back a state."""
        for weight, own in zip(self.weights.values(), state, strict=True):
            weight.restore(own)

    def formats(self) -> dict[str, Format]:
        """What was learned."""
        return {
            name: weight.format(self._layers[name][1].format.startswith("sparse-"))
            for name, weight in self.weights.items()
        }

    def _rounded(self) -> dict[str, Tensor]:
        """The weights Ŵ by the names of parameters, in the layouts of the layers."""
        rounded = {}
        for name, weight in self.weights.items():
            module = self._layers[name][0]
            own = _weight(module)
            dtype = torch.bfloat16 if self._bf16 else own.dtype
            rounded[self._names[name]] = from_matrix(module, weight.rounded(dtype), own.shape)
        return rounded

    def _loss(self, weights: Mapping[str, Tensor], sample: Sample) -> Tensor:
        values = {**self._fixed, **weights}
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            returned = functional_call(self._block, values, sample.args, dict(sample.kwargs))
        output = first_tensor(returned)
        if output is None or output.shape != sample.target.shape:
            raise ValueError(
                f"{_FUNCTION}: targets: got {_check.describe(sample.target)} where the block "
                f"returns {_check.describe(output)}"
            )
        return ((output.float() - sample.target).square() * sample.weight).sum()


def _learned(
    name: str,
    module: nn.Module,
    scheme: Scheme,
    keep: Tensor | None,
    statistics: Statistics | None,
    clip: bool,
) -> LearnedWeight:
    matrix = to_matrix(module, _weight(module).detach())
    W = checked(f"{_FUNCTION}: {name!r}", matrix, keep)
    if keep is None and scheme.format.startswith("sparse-"):
        keep = W != 0
    W = masked(W, keep)
    importance = None
    if statistics is not None and len(statistics.squares) == W.shape[1]:
        importance = squares_of(_FUNCTION, statistics, W.shape[1])
    grid = fit_grid(scheme.format, scheme.group_size, scheme.settings, W, importance=importance)
    return LearnedWeight(W, grid, keep, clip)


def _in_bf16(layers: Layers) -> bool:
    """Whether to multiply in bf16: where that is faster, and the model is not in bf16 anyway."""
    dtypes = {_weight(module).dtype for module, _ in layers.values()}
    return dtypes == {torch.float32} and cpu.isa() in _BF16_ISAS


def _weight(module: nn.Module) -> nn.Parameter:
    return module.get_parameter("weight")


def _parameter_names(block: nn.Module, layers: Layers) -> dict[str, str]:
    """What the weights of the layers are called in the block."""
    places = {module: prefix for prefix, module in block.named_modules()}
    names = {}
    for name, (module, _) in layers.items():
        if module not in places or not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise ValueError(
                f"{_FUNCTION}: layers: {name!r} is no layer of the block with a weight of its own"
            )
        names[name] = f"{places[module]}.weight".lstrip(".")
    return names


@torch.no_grad()
def _measure(block: nn.Module, layers: Layers, samples: Samples) -> dict[str, Statistics]:
    """E[x²] of the inputs of the layers, over a few samples."""
    modules = {name: module for name, (module, _) in layers.items()}
    gathering = Gathering(_FUNCTION, modules, moments=False)
    with gathering, torch.autocast("cpu", torch.bfloat16, enabled=_in_bf16(layers)):
        for sample in samples.first(_MEASURED):
            gathering.mask = sample.mask
            block(*sample.args, **sample.kwargs)
            gathering.close()
    return gathering.results()
