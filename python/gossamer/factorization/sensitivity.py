"""By which measure errors count: of the weight, of the outputs, or of what the loss feels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import selection
from .._progress import Progress
from ..calibration import Batches, evaluating, second_moments, sized
from ..nn.linear import is_conv1d

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
METHODS = ("plain", "activation-aware", "fisher")


@dataclass(frozen=True)
class Measure:
    """The error of W - Ŵ, for a weight [N, K], is ``|diag(D) (W - Ŵ) C^½|²`` (Frobenius).

    Attributes
    ----------
    columns : Tensor or None
        C, shape (K, K): the second moment of the inputs (channels). None: the identity.
    rows : Tensor or None
        D, shape (N,), in (0, 1], float64. None: ones.
    scale : float or None
        The squared error times this is on one scale with that of other layers; None: the squared
        relative error is, times the number of weights.
    """

    columns: Tensor | None = None
    rows: Tensor | None = None
    scale: float | None = None

    def worth_of(self, total: float, size: int) -> float:
        """What it is worth not to lose all of a layer, of some squared norm and size."""
        return size if self.scale is None else self.scale * total


PLAIN = Measure()


def measures(
    method: str,
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calibration: Batches | None,
    loss: Loss | None,
    progress: bool | None,
) -> dict[str, Measure]:
    """The measure of each layer, by name."""
    if not layers:
        return {}
    if method == "activation-aware":
        assert calibration is not None
        moments = second_moments(model, layers, calibration, progress)
        return {name: Measure(columns=moment) for name, moment in moments.items()}
    if method == "fisher":
        assert calibration is not None
        assert loss is not None
        found = fisher_rows(model, layers, calibration, loss, progress)
        return {name: _from_fisher(rows) for name, rows in found.items()}
    return dict.fromkeys(layers, PLAIN)


def _from_fisher(rows: Tensor) -> Measure:
    largest = float(rows.max())
    # A row without a gradient still has to come out as something.
    return Measure(rows=(rows / largest).clamp_min(1e-6), scale=largest**2)


def fisher_rows(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    loss: Loss,
    progress: bool | None = None,
) -> dict[str, Tensor]:
    """The square roots of the Fisher information of the rows of some weights.

    ``D_n = sqrt(Σ_k mean_b (∂L_b / ∂W_nk)²)``, b being the batches: one sample a batch gives the
    empirical Fisher information, larger batches a smaller estimate of it.

    Parameters
    ----------
    model : nn.Module
        Is run in eval mode; no ``.grad`` changes.
    layers : mapping of str to nn.Module
        By name; layers with one weight each.
    batches : iterable
        What `loss` is called with.
    loss : callable
        ``loss(model, batch)``: a scalar.
    progress : bool, optional
        As of :func:`gossamer.factorize`.

    Returns
    -------
    dict of str to Tensor
        By name, float64 of shape (N,): output features or channels.
    """
    found = sized("factorize", batches)
    weights = {name: next(selection.weights(layer)) for name, layer in layers.items()}
    sums: dict[str, Tensor] = {}
    with (
        evaluating(model),
        _needing_gradients(weights),
        torch.enable_grad(),
        Progress("taking gradients", len(found), progress) as shown,
    ):
        for batch in found:
            for name, gradient in _gradients(loss(model, batch), weights):
                rows = _row_sums(layers[name], gradient)
                sums[name] = sums[name] + rows if name in sums else rows
            shown.advance(1)
    for name in layers:
        if name not in sums or not bool(sums[name].any()):
            raise ValueError(
                f"factorize: loss: does not depend on layer {name!r} in any batch; leave it out by "
                "ignore"
            )
        if not sums[name].isfinite().all():
            raise ValueError(f"factorize: loss: its gradient at layer {name!r} has NaN or infinity")
    return {name: (total / len(found)).sqrt() for name, total in sums.items()}


def _gradients(value: Any, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"factorize: loss: gave {what}, wanted a scalar tensor with a gradient")
    found = torch.autograd.grad(value.sum(), list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, found, strict=True):
        if gradient is not None:
            yield name, gradient


def _row_sums(layer: nn.Module, gradient: Tensor) -> Tensor:
    """The sums of squares over all weights of an output, float64."""
    rows = gradient.T if is_conv1d(layer) else gradient.flatten(1)
    return rows.double().square_().sum(1)


@contextmanager
def _needing_gradients(weights: Mapping[str, Tensor]) -> Iterator[None]:
    before = [(weight, weight.requires_grad) for weight in weights.values()]
    try:
        for weight, _ in before:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, needed in before:
            weight.requires_grad_(needed)
