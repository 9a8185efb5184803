"""A block whose weights are being learned: it runs with them in the places of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import _check
from ..calibration import Statistics
from ..calibration.calls import first_tensor
from ..calibration.known import squares_of
from ..calibration.minibatches import Sample
from ..calibration.precision import in_bf16
from ..calibration.statistics import Gathering
from ..folding import from_matrix, to_matrix
from ..formats import Format
from ..formats.grids import fit_grid
from ..schemes import Scheme
from .learned_weight import LearnedWeight
from .rounding import checked, masked

_FUNCTION = "AutoRound.learn"

Layers: TypeAlias = Mapping[str, tuple[nn.Module, Scheme]]


class LearnedBlock:
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
        self._names = parameter_names(block, layers)
        self._fixed = {
            name: tensor.detach()
            for name, tensor in (*block.named_parameters(), *block.named_buffers())
            if name not in self._names.values()
        }
        self.weights = {
            name: _learned(name, *layers[name], keep.get(name), statistics.get(name), clip)
            for name in layers
        }
        self._bf16 = in_bf16(module for module, _ in layers.values())

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

    def forget(self) -> None:
        """Go back to the beginning."""
        for weight in self.weights.values():
            weight.forget()

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


def _weight(module: nn.Module) -> nn.Parameter:
    return module.get_parameter("weight")


def parameter_names(block: nn.Module, layers: Layers) -> dict[str, str]:
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
def measure(block: nn.Module, layers: Layers, samples: Sequence[Sample]) -> dict[str, Statistics]:
    """Statistics of the inputs of the layers, over samples."""
    modules = {name: module for name, (module, _) in layers.items()}
    gathering = Gathering(_FUNCTION, modules, moments=False)
    with (
        gathering,
        torch.autocast(
            "cpu", torch.bfloat16, enabled=in_bf16(module for module, _ in layers.values())
        ),
    ):
        for sample in samples:
            gathering.mask = sample.mask
            block(*sample.args, **sample.kwargs)
            gathering.close()
    return gathering.results()
