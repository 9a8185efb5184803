"""What a model predicts, and how far other predictions are from that."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import Call
from ..calibration.batches import arguments
from ..calibration.calls import first_tensor, hidden_first, without_cache
from ..calibration.minibatches import Sample

_TOKENS = 128  # whose logits are in memory at once, and in cache
_TOLERANCE = 1e-2  # of logits, relative, by which the head is known to be all that follows


def body_of(model: nn.Module) -> nn.Module:
    """The model without its output head, where it is one of transformers; else the model."""
    body: nn.Module = getattr(model, "base_model", model)
    return body


def calls_of(function: str, body: nn.Module, batches: Sequence[Any]) -> list[Call]:
    """The batches as calls of the body, with the tensor that counts samples first."""
    found, known = [], inspect.signature(body.forward).parameters
    for batch in batches:
        args, kwargs = arguments(function, batch)
        call = hidden_first(body, args, {k: v for k, v in kwargs.items() if k in known})
        if call is None:
            raise TypeError(
                f"{function}: calibration: the first argument of the model is no tensor there"
            )
        found.append(without_cache(body, call))
    return found


def hidden(function: str, output: Any) -> Tensor:
    """What comes first in the output of a body, such as the last hidden states; float32."""
    first = first_tensor(output)
    if first is None:
        raise TypeError(f"{function}: teacher: returns no tensor for the calibration")
    return first.float()


@torch.no_grad()
def head_of(model: nn.Module, sample: Sample) -> nn.Module | None:
    """The output head, where logits are nothing but that of what the body makes of a sample."""
    find = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = find() if find is not None else None
    if head is None or body_of(model) is model:
        return None
    logits = first_tensor(model(*sample.args, **sample.kwargs))
    found: Tensor = head(sample.target)
    if logits is None or logits.shape != found.shape:
        return None
    return head if float((logits - found).norm()) <= _TOLERANCE * float(found.norm()) else None


class Distance:
    """How far outputs of the body are from those of the teacher, and in which direction.

    With a head: the mean over tokens of ``KL(p ‖ q)``, p and q being what the head predicts of the
    teacher's outputs and of these. Without one, the relative squared error that AutoRound takes,
    ``|h - y|² / (|y|² + median |y|²)``.
    """

    def __init__(self, head: nn.Module | None) -> None:
        self._head = head

    def __call__(self, outputs: Tensor, sample: Sample) -> tuple[float, Tensor]:
        """The distance of the outputs for a sample, and its gradient by them."""
        outputs = outputs.detach()
        if self._head is None:
            error = outputs - sample.target
            weighted = error * sample.weight
            return float((weighted * error).sum()), weighted.mul_(2)
        counted = (sample.weight > 0).expand(*outputs.shape[:-1], 1).squeeze(-1)
        gradient = torch.zeros_like(outputs)
        value, own = self._divergence(outputs[counted], sample.target[counted])
        gradient[counted] = own
        return value, gradient

    def _divergence(self, outputs: Tensor, targets: Tensor) -> tuple[float, Tensor]:
        """KL over tokens [T, H], some at a time: logits are many.

        The gradient by the logits of q is ``q - p``, which spares autograd a dozen passes.
        """
        assert self._head is not None
        total, gradients = 0.0, torch.zeros_like(outputs)
        for first in range(0, len(outputs), _TOKENS):
            here = slice(first, first + _TOKENS)
            with torch.enable_grad():
                leaf = outputs[here].requires_grad_()
                logits = self._head(leaf)
            with torch.no_grad():
                log_p, log_q = (
                    each.float().log_softmax(-1) for each in (self._head(targets[here]), logits)
                )
                p = log_p.exp()
                total += float((log_p.sub_(log_q)).mul_(p).sum())
                direction = log_q.exp_().sub_(p).div_(len(outputs)).to(logits.dtype)
            gradients[here] = torch.autograd.grad(logits, leaf, direction)[0]
        return total / max(len(outputs), 1), gradients
