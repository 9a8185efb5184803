"""factorize(): swaps the layers of a model for products of smaller ones, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from .. import _check, selection
from .._progress import Progress
from ..calibration import Batches
from ..folding import folded
from ..nn.linear import dense_weight, is_conv1d
from ..placing import disable_transformer_fast_path, is_packed, place
from ..selection import Layer, Patterns
from .allocation import allocate
from .arguments import as_goal, check_method, check_seed, naming_factorize
from .plans import Goal, Plan, Ranks, plan_for
from .sensitivity import Loss, Measure, measures

Model = TypeVar("Model", bound=nn.Module)
KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
_PART = "is a part of a factorized layer"


@dataclass(frozen=True)
class FactorizedLayer:
    """One layer that :func:`factorize` replaced or left dense.

    Attributes
    ----------
    name, kind : str
        Its name in the model, and its class.
    shape : tuple of int
        Of its weight.
    form : str
        "low-rank": one layer with two factors; "tucker", "spatial" or "1x1, 1x1": convolutions one
        after the other; "dense" where it stayed.
    rank : tuple of int
        R; of output and input channels for "tucker"; empty where it stayed.
    break_even : tuple of int
        The largest rank with fewer parameters than the dense weight; the same of both channels, as
        far as there are so many, for "tucker"; empty where factorizing was no question.
    parameters_before, parameters_after : int
        Of the weight.
    error : float
        ``|W - Ŵ| / |W|`` (Frobenius), with the rounding of the factors; 0 where it stayed.
    measured_error : float
        The relative error by the measure of the method: of the outputs over the calibration for
        "activation-aware", weighted by rows for "fisher".
    reason : str
        Why it stayed dense; "" where it did not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    form: str
    rank: tuple[int, ...]
    break_even: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    error: float = 0.0
    measured_error: float = 0.0
    reason: str = ""


def factorize(
    model: Model,
    *,
    rank: int | None = None,
    ratio: float | None = None,
    energy: float | None = None,
    rel_error: float | None = None,
    parameters: float | int | None = None,
    method: str = "plain",
    calibration: Batches | None = None,
    loss: Loss | None = None,
    factors: str = "fp32",
    convolutions: str | None = "tucker",
    targets: Patterns = None,
    ignore: Patterns = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Model:
    """Replace the layers of a model by products of smaller ones, in place.

    ``nn.Linear`` and the ``Conv1D`` of transformers become ``gs.nn.Linear`` with a weight
    ``Ŵ = U V`` of format "low-rank"; ``nn.Conv2d`` becomes ``nn.Sequential`` of two or three
    smaller convolutions of torch, which :func:`gossamer.compress` can pack. A layer is factorized
    only where that has fewer parameters: a linear one if ``R (N + K) < N K``.
    :func:`gossamer.report` lists rank, break-even and error, and why others stayed dense.

    Exactly one of `rank`, `ratio`, `energy`, `rel_error` and `parameters` decides the ranks.

    Parameters
    ----------
    model : nn.Module
        On the CPU. Hooks, bias, training mode and everything else stay.
    rank : int, optional
        R of each layer, and of the input and output channels of a kernel.
    ratio : float, optional
        Share of its parameters that each layer keeps at most, in (0, 1).
    energy : float, optional
        Share of the sum of σ² that each layer keeps at least, in (0, 1 - 1e-8].
    rel_error : float, optional
        ``|W - Ŵ| / |W|`` of each layer at most, in [1e-4, 1), by the measure of the method and
        before the factors are rounded: the same as ``energy = 1 - rel_error ** 2``.
    parameters : float or int, optional
        What all these layers together keep at most of their parameters: a share in (0, 1] or a
        number (int). Ranks are allocated by the spectra, where they lower the sum over all layers
        of squared relative error times parameters the most; for "fisher" that of the squared
        errors by its measure.
    method : str
        By which measure errors count. "plain": of the weight, ``|W - Ŵ|``. "activation-aware": of
        the outputs over the calibration, ``E |(W - Ŵ) x|²``; in kernels larger than 1x1 the taps of
        x are taken as uncorrelated. "fisher": ``|diag(D) (W - Ŵ)|``, with
        ``D_n = sqrt(Σ_k mean (∂L/∂W_nk)²)``.
    calibration : iterable, optional
        Batches, for the last two: each a tensor, a tuple of arguments or a dict of keyword
        arguments; for "fisher" what `loss` takes, best of one sample each.
    loss : callable, optional
        ``loss(model, batch)`` gives a scalar; for "fisher".
    factors : str
        How U and V of linear layers are stored: "fp32", "bf16" or "int8".
    convolutions : str or None
        "tucker": 1x1, kernel, 1x1 (Tucker-2). "spatial": h x 1, then 1 x w. Kernels of 1x1 become
        two of them in both. None leaves convolutions alone.
    targets, ignore : pattern or sequence of patterns, optional
        Which layers, and which not, as of :func:`gossamer.compress`.
    seed : int
        Of the solver, :func:`gossamer.truncated_svd`.
    progress : bool, optional
        Show a bar on stderr: True, False, or where it is a terminal, after a second (None).

    Returns
    -------
    nn.Module
        The same `model`.

    Raises
    ------
    ValueError
        For numbers out of range, none or several of those that decide the ranks, a budget below
        rank 1 of all layers, patterns that match nothing, a model without such layers, and weights,
        inputs or gradients with NaN or infinity. The model is then as it was.
    TypeError
        Where an argument has another type.
    RuntimeError
        Where a layer to be replaced is on another device than the CPU. The model is as it was.

    Notes
    -----
    An interruption (Ctrl-C) leaves a model that works, with some layers factorized. With a budget
    the bases of all layers are kept until it is allocated: at most half as many numbers as the
    model has, in float32.

    References
    ----------
    Wang et al., "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model
    Compression", 2024. Hsu et al., "Language Model Compression with Weighted Low-rank
    Factorization", 2022. Kim et al., "Compression of Deep Convolutional Neural Networks for Fast
    and Low Power Mobile Applications", 2016. Jaderberg et al., "Speeding up Convolutional Neural
    Networks with Low Rank Expansions", 2014.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> gs.factorize(model, ratio=0.5, ignore="2")[0]
    Linear(in_features=64, out_features=64, bias=True, format=low-rank, rank=16, factors=fp32)
    """
    goal = as_goal(rank, ratio, energy, rel_error, parameters)
    check_method(method, calibration, loss, factors, convolutions)
    seed = check_seed(seed)
    layers = _find_layers(model, targets, ignore, convolutions)
    chosen = [layer for layer in layers if not layer.reason]
    for layer in chosen:
        _check_layer(layer)
    found = measures(method, model, _modules(chosen), calibration, loss, progress)
    work = [
        _Work(layer, found.pop(layer.names[0]), factors, convolutions, seed) for layer in chosen
    ]
    done = {layer.names[0]: _stayed(layer) for layer in layers if layer.reason}
    budget = None if goal.parameters is None else _budget(work, goal.parameters)
    try:
        if budget is None:
            _one_by_one(work, goal, done, progress)
        else:
            _within_budget(work, budget, done, progress)
    finally:
        _remember(model, done)
        disable_transformer_fast_path(model)
    return model


# --- everything that can fail, before anything changes ---


def _find_layers(
    model: nn.Module, targets: Patterns, ignore: Patterns, convolutions: str | None
) -> list[Layer]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"factorize: model: got {_check.describe(model)}, wanted nn.Module")
    if isinstance(model, KINDS) or is_conv1d(model):
        raise ValueError(
            f"factorize: model: is itself a layer ({type(model).__name__}) and cannot be replaced "
            "in place; put it into nn.Sequential"
        )
    with naming_factorize():
        layers = selection.choose(model, KINDS, targets, ignore)
    if not layers and not any(map(is_packed, model.modules())):
        raise ValueError("factorize: model: has no nn.Linear, Conv1D or nn.Conv2d")
    before = [item.name for item in remembered(model) if item.form != "dense"]
    for layer in layers:
        layer.reason = layer.reason or _why_not(layer, convolutions, before)
    return layers


def _why_not(layer: Layer, convolutions: str | None, before: Sequence[str]) -> str:
    name, module = layer.names[0], layer.module
    if any(name.startswith(f"{outer}.") for outer in before):
        return _PART
    if isinstance(module, nn.Conv2d):
        if convolutions is None:
            return "convolutions=None"
        if module.groups > 1:
            return f"a convolution in {module.groups} groups"
    return ""


def _check_layer(layer: Layer) -> None:
    """Raises what replacing the layer would raise."""
    module, start = layer.module, f"factorize: model: layer {layer.names[0]!r}"
    for parameter in module.parameters():
        if parameter.device.type != "cpu":
            raise RuntimeError(f"{start} is on {parameter.device}; move the model to the CPU first")
    dense = folded(module)
    bias = dense.bias
    if isinstance(bias, Tensor):
        _check.bias(start, bias, len(_weight(dense)))
    low, high = _weight(dense).aminmax()  # NaN if one is
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(f"{start}: its weight holds NaN or infinity")


def _weight(dense: nn.Module) -> Tensor:
    if isinstance(dense, nn.Conv2d):
        return dense.weight.detach()
    return dense_weight(dense)


def _budget(work: Sequence[_Work], parameters: float | int) -> int:
    """Parameters of all layers together, which must do for rank 1 of each."""
    total = sum(each.plan.dense_size for each in work)
    budget = int(parameters * total) if isinstance(parameters, float) else parameters
    least = sum(each.plan.least_size for each in work)
    if budget < least:
        raise ValueError(
            f"factorize: parameters: got {parameters}: {budget} of {total}, but rank 1 of all "
            f"layers has {least}"
        )
    return budget


def _modules(layers: Sequence[Layer]) -> dict[str, nn.Module]:
    """By name; who keeps this keeps the dense weights."""
    return {layer.names[0]: layer.module for layer in layers}


# --- factorizing ---


class _Work:
    """A layer to be factorized, the plan for it and what becomes of it."""

    def __init__(
        self, layer: Layer, measure: Measure, factors: str, convolutions: str | None, seed: int
    ) -> None:
        self.layer = layer
        self.name, self.kind = layer.names[0], type(layer.module).__name__
        self.plan: Plan = plan_for(folded(layer.module), measure, factors, convolutions, seed)
        self.shape = tuple(_weight(layer.module).shape)

    def stay(self, reason: str) -> FactorizedLayer:
        """The record of a layer that stays dense."""
        size = self.plan.dense_size
        return FactorizedLayer(
            self.name,
            self.kind,
            self.shape,
            "dense",
            (),
            self.plan.break_even,
            size,
            size,
            reason=reason,
        )

    def replace(self, ranks: Ranks) -> FactorizedLayer:
        """Swap the layer, and record it."""
        built = self.plan.build(ranks)
        place(self.layer, built.module)
        return FactorizedLayer(
            self.name,
            self.kind,
            self.shape,
            self.plan.form,
            ranks,
            self.plan.break_even,
            self.plan.dense_size,
            self.plan.size(ranks),
            built.error,
            (1 - built.kept) ** 0.5,
        )


def _one_by_one(
    work: list[_Work], goal: Goal, done: dict[str, FactorizedLayer], progress: bool | None
) -> None:
    """Each layer by itself; its basis and its dense weight are freed before the next."""
    total = sum(each.plan.dense_size for each in work)
    with Progress("factorizing layers", total, progress) as shown:
        while work:
            each = work.pop(0)
            ranks = each.plan.choose(goal)
            size = each.plan.dense_size
            done[each.name] = each.stay(ranks) if isinstance(ranks, str) else each.replace(ranks)
            shown.advance(size)


def _within_budget(
    work: list[_Work], budget: int, done: dict[str, FactorizedLayer], progress: bool | None
) -> None:
    """All spectra first, then the ranks, then the layers."""
    total = sum(each.plan.dense_size for each in work)
    curves = []
    with Progress("finding spectra", total, progress) as shown:
        for each in work:
            curves.append(each.plan.curve())
            shown.advance(each.plan.dense_size)
    options = allocate(curves, budget)
    with Progress("factorizing layers", total, progress) as shown:
        for curve, option in zip(curves, options, strict=True):
            each = work.pop(0)
            size = each.plan.dense_size
            if option == len(curve):
                done[each.name] = each.stay(_why_dense(each.plan))
            else:
                done[each.name] = each.replace(tuple(curve.ranks[option].tolist()))
            shown.advance(size)


def _why_dense(plan: Plan) -> str:
    if not plan.break_even[0]:
        return "even rank 1 has no fewer parameters than the dense layer"
    return "dense by the budget: it gains more than lower errors elsewhere would"


# --- what is remembered for the report ---


def _stayed(layer: Layer) -> FactorizedLayer:
    """The record of a layer that was never a question."""
    left = selection.left_alone(layer)
    size = sum(weight.numel() for weight in selection.weights(layer.module))
    return FactorizedLayer(
        left.name, left.kind, left.shape, "dense", (), (), size, size, reason=left.reason
    )


def remembered(model: nn.Module) -> tuple[FactorizedLayer, ...]:
    """What earlier calls did to a model."""
    return getattr(model, "_gossamer_factorized", ())


def _remember(model: nn.Module, done: dict[str, FactorizedLayer]) -> None:
    """Add to what earlier calls did; parts of layers that they factorized are not listed."""
    before = {item.name: item for item in remembered(model)}
    parts = {name for name, item in done.items() if item.reason == _PART}
    found = before | {name: item for name, item in done.items() if name not in parts}
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    model._gossamer_factorized = tuple(  # type: ignore[assignment]
        sorted(found.values(), key=lambda item: order.get(item.name, len(order)))
    )
