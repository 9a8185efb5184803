"""tune_scales(): the scales of a quantized model, learned from the dense one, all together."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import _check
from .._progress import Progress
from ..calibration import Batches, Call, evaluating, sized
from ..calibration.batches import token_mask
from ..calibration.fingerprint import fingerprint
from ..calibration.minibatches import Sample, Samples
from ..calibration.precision import in_bf16
from .predictions import Distance, body_of, calls_of, head_of, hidden
from .resuming import Kept
from .tuned_weights import counterparts

_FUNCTION = "tune_scales"
_BETAS = (0.9, 0.95)
_EPSILON = 1e-30  # gradients of one scale may be that small
_LARGEST_RATE = 0.1
_TOKENS = 1024  # in a step
_CHECKED = 4  # samples that tell whether tuning helped


@dataclass(frozen=True)
class Tuned:
    """What :func:`tune_scales` did.

    Attributes
    ----------
    layers, steps : int
        Layers whose scales were tuned, and steps.
    before, after : float
        The distance to the teacher on a few samples. Where `after` is not smaller, the model is as
        it was.
    seconds : float
        That it took.
    """

    layers: int
    steps: int
    before: float
    after: float
    seconds: float


def tune_scales(
    student: nn.Module,
    teacher: nn.Module,
    calibration: Batches,
    *,
    epochs: int = 1,
    batch: int | None = None,
    learning_rate: float = 1e-3,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Tuned:
    """Tune the scales of a quantized model until it predicts what the dense one does.

    Methods that round one layer or one block after the other cannot see what their errors add up
    to at the end. Here all scales are learned together, by the gradient of the whole model:

        minimize over a   Σ_t KL(p_t ‖ q_t(Ŵ))        Ŵ[n, k] = a[n, k // G] (code[n, k] - zero) s

    with p and q what dense and quantized model predict for token t. Codes stay, and so does every
    byte of the size. Where the model has no output head, or logits are not simply that of its last
    hidden states, the relative squared error of its output takes the place of KL.

    Parameters
    ----------
    student : nn.Module
        What :func:`gossamer.compress` made of the model, in place. Its layers in "int8", "int4",
        "nf4", "fp4", "sparse-int8" and "sparse-int4" are tuned; all others stay.
    teacher : nn.Module
        The model as it was: loaded once more, or a deep copy from before. Float32 on the CPU.
    calibration : iterable of batches
        Inputs of the model, as for :func:`gossamer.compress`; those that it was compressed with do.
    epochs : int
        How often each sample is used, 1 or more.
    batch : int, optional
        Samples (rows of batches) in a step. None: as many as have 1024 tokens.
    learning_rate : float
        How far a scale may move in the first step, relative to it, in (0, 0.1]. Falls to 0 as a
        half cosine.
    seed : int
        Of the order of the samples.
    resume : str or path, optional
        A file in which the state is kept every minute, so that the same call goes on there after
        an interruption, to the same result. It may be deleted at the end.
    progress : bool, optional
        Show a bar on stderr: True, False, or where it is a terminal, after a second (None).

    Returns
    -------
    Tuned
        The distance before and after, and how long it took.

    Raises
    ------
    ValueError, TypeError
        For a setting out of its range; a student that is not the teacher compressed, or has nothing
        to tune; a calibration without a batch, or with outputs that are NaN or infinity; a `resume`
        that is of other work, or damaged.

    Notes
    -----
    An interruption (Ctrl-C) leaves the student as it was. Weights count as what is stored: that x
    is rounded, too, in layers with int8 activations is not seen. Memory, beside both models: about
    8 bytes for each tuned weight, the last hidden states of all batches, and what backpropagation
    through the whole model keeps for one sample.

    References
    ----------
    Chen et al., "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models",
    2024, section 3.3 (scales trained end to end, after blocks). Hinton et al., "Distilling the
    Knowledge in a Neural Network", 2015 (KL to a teacher).

    Examples
    --------
    >>> import copy
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)
    ... )
    >>> x = torch.randn(256, 64)
    >>> small = gs.compress(copy.deepcopy(model), "int4-g32")
    >>> found = gs.tune_scales(small, model, x.split(32), epochs=4)
    >>> found.after < found.before
    True
    """
    whole = {"epochs": (epochs, 1), "batch": (1 if batch is None else batch, 1), "seed": (seed, 0)}
    _check_settings(student, teacher, whole, learning_rate)
    start = time.perf_counter()
    batches = list(sized(_FUNCTION, calibration))
    body = body_of(teacher)
    calls = calls_of(_FUNCTION, body, batches)
    kept = Kept(None)
    if resume is not None:
        settings = {_FUNCTION: (epochs, batch, learning_rate, seed)}
        both = (fingerprint(model, settings, batches) for model in (student, teacher))
        kept = Kept(Path(resume), " ".join(both))
    linears = [module for module in body.modules() if isinstance(module, nn.Linear)]
    with evaluating(teacher):
        model = _Student(body, body_of(student), bool(linears) and in_bf16(linears))
        with Progress("running the dense model", len(calls), progress) as shown:
            targets = [model.target(call, shown) for call in calls]
        masks = [token_mask(teacher, each) for each in batches]
        samples = Samples(_FUNCTION, body, calls, targets, masks, batch, _TOKENS)
        model.find_distance(teacher, samples.sample(0))
        checked = samples.first(_CHECKED)
        before = model.loss(checked)
        steps = max(1, epochs * sum(map(len, targets)) // samples.batch)
        schedule = _Schedule(steps, float(learning_rate), kept)
        _descend(model, samples.batches(seed), schedule, progress)
        after = model.loss(checked)
    if after < before:
        model.store()
    return Tuned(len(model.tuned), steps, before, after, time.perf_counter() - start)


@dataclass(frozen=True)
class _Schedule:
    """How many steps, how far the first one may go, and where they are kept."""

    steps: int
    learning_rate: float
    kept: Kept

    def rate(self, step: int) -> float:
        """Of a step, which begin at 0: a half cosine."""
        return self.learning_rate * (1 + math.cos(math.pi * step / self.steps)) / 2


def _descend(
    model: _Student,
    batches: Iterator[list[Sample]],
    schedule: _Schedule,
    progress: bool | None,
) -> None:
    factors = [weight.factors for weight in model.tuned.values()]
    optimizer = torch.optim.Adam(factors, schedule.learning_rate, _BETAS, _EPSILON)
    done = schedule.kept.load(factors, optimizer)
    for _ in range(done):
        next(batches)
    with Progress("tuning scales", schedule.steps, progress) as shown:
        shown.advance(done)
        while done < schedule.steps:
            model.backward(next(batches))
            optimizer.param_groups[0]["lr"] = schedule.rate(done)
            optimizer.step()
            for weight in model.tuned.values():
                weight.clamp()
            done += 1
            schedule.kept.save(done, factors, optimizer, now=done == schedule.steps)
            shown.advance(1)


def _check_settings(
    student: object,
    teacher: object,
    whole: Mapping[str, tuple[object, int]],
    learning_rate: object,
) -> None:
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{_FUNCTION}: {name}: got {_check.describe(model)}, wanted nn.Module")
    if student is teacher:
        raise ValueError(
            f"{_FUNCTION}: teacher: is the student itself, wanted the model as it was before"
        )
    for name, (value, least) in whole.items():
        _check.whole_number(_FUNCTION, name, value, least)
    if not isinstance(learning_rate, int | float) or not 0 < learning_rate <= _LARGEST_RATE:
        raise ValueError(
            f"{_FUNCTION}: learning_rate: got {_check.describe(learning_rate)}, wanted a number "
            f"in (0, {_LARGEST_RATE}]"
        )


class _Student:
    """The dense model, run with the weights of the compressed one in the places of its own."""

    def __init__(self, body: nn.Module, compressed: nn.Module, bf16: bool) -> None:
        self._body, self._bf16 = body, bf16
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.tuned, self._fixed = counterparts(_FUNCTION, body, compressed, dtype)
        if not self.tuned:
            raise ValueError(f"{_FUNCTION}: student: has no layer whose scales can be tuned")
        self._distance = Distance(None)

    @torch.no_grad()
    def target(self, call: Call, shown: Progress) -> Tensor:
        """What the dense body makes of a call."""
        with self._autocast():
            found = hidden(_FUNCTION, self._body(*call.args, **call.kwargs))
        shown.advance(1)
        return found

    def find_distance(self, teacher: nn.Module, sample: Sample) -> None:
        """How outputs are compared, which a sample tells."""
        with self._autocast():
            self._distance = Distance(head_of(teacher, sample))

    def weights(self) -> dict[str, Tensor]:
        """The weights that are tuned, as they are now."""
        return {name: weight.dense() for name, weight in self.tuned.items()}

    @torch.no_grad()
    def loss(self, samples: list[Sample]) -> float:
        """The mean distance to the teacher."""
        weights = self.weights()
        with self._autocast():
            found = (self._distance(self._run(weights, it), it)[0] for it in samples)
            return math.fsum(found) / len(samples)

    def backward(self, batch: list[Sample]) -> None:
        """Leave the gradients of a batch in the factors."""
        weights = {name: weight.requires_grad_() for name, weight in self.weights().items()}
        sums: list[Tensor] = []
        for sample in batch:
            with self._autocast():
                outputs = self._run(weights, sample)
                value, direction = self._distance(outputs, sample)
            if not math.isfinite(value):
                raise ValueError(f"{_FUNCTION}: calibration: some predictions are NaN or infinity")
            found = torch.autograd.grad(  # some may have no part in it, such as a pooler
                outputs,
                list(weights.values()),
                direction,
                allow_unused=True,
                materialize_grads=True,
            )
            sums = [a.add_(b) for a, b in zip(sums, found, strict=True)] if sums else list(found)
        for weight, gradient in zip(self.tuned.values(), sums, strict=True):
            weight.factors.grad = weight.gradient(gradient)

    def store(self) -> None:
        """Give the compressed model its new scales."""
        for weight in self.tuned.values():
            weight.store()

    def _run(self, weights: Mapping[str, Tensor], sample: Sample) -> Tensor:
        values = {**self._fixed, **weights}
        output = functional_call(self._body, values, sample.args, dict(sample.kwargs))
        return hidden(_FUNCTION, output)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._bf16)
