"""How compress() adds a low-rank correction to the layers that it packs."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from .factorization.correction import Corrected, LayerCorrection, LowRankCorrection, sum_of
from .folding import matrices
from .nn.linear import Linear, is_conv1d
from .recipe import Storage
from .schemes import Quantize
from .selection import Layer


@dataclass
class Prepared:
    """A layer that is about to be packed.

    Attributes
    ----------
    layer : Layer
        Where it is.
    original, dense : nn.Module
        As it was, folded, and with zeros where it is pruned. One module, where it is not.
    storage : Storage
        How it will be stored.
    norms : dict
        By weight, the norms of what became zero and of what is left.
    """

    layer: Layer
    original: nn.Module
    dense: nn.Module
    storage: Storage
    norms: dict[str, tuple[float, float]] = field(default_factory=dict)
    input_scale: float | None = None


def corrected(
    prepared: Prepared, correction: LowRankCorrection, moment: Tensor | None
) -> tuple[nn.Module | None, LayerCorrection]:
    """The packed and corrected layer, or None where it is not corrected; and what there is to say.

    Parameters
    ----------
    prepared : Prepared
        The layer.
    correction : LowRankCorrection
        How.
    moment : Tensor or None
        E[x xᵀ] of its inputs; None: data-free.
    """
    layer, scheme = prepared.layer, prepared.storage.scheme
    reason = why_not_corrected(layer, correction) or _why_not_base(scheme)
    if reason:
        return None, LayerCorrection(layer.names[0], reason=reason)
    assert scheme is not None
    dense, pruned = prepared.original, prepared.dense
    (_, W), (_, zeros) = next(matrices(dense)), next(matrices(pruned))
    keeps_zeros = pruned is not dense or scheme.resolved().format.startswith("sparse-")
    found = correction.fit(
        W,
        scheme.quantize,
        pruned=zeros if keeps_zeros else None,
        moment=moment,
        activations=scheme.resolved().activations or "exact",
    )
    errors = found.uncorrected_error, found.output_error_left
    return _linear(prepared, W, found, scheme), LayerCorrection(layer.names[0], *errors)


def why_not_corrected(layer: Layer, correction: LowRankCorrection) -> str:
    """Why a layer cannot be corrected, whatever its base; "" where it can."""
    if not (isinstance(layer.module, nn.Linear) or is_conv1d(layer.module)):
        return f"a correction is for linear layers, not for {type(layer.module).__name__}"
    if layer.partner:
        return f"shares its packed weight with {layer.partner.names[0]}"
    N, K = layer.module.weight.shape  # type: ignore[misc]  # a Conv1D has (K, N): the same
    return correction.why_too_large(N, K)


def _why_not_base(scheme: Quantize | None) -> str:
    """Why what a layer is stored as takes no correction."""
    if scheme is None:
        return "stays dense: zeros and a correction would be a dense layer again"
    name = scheme.resolved().format
    return "" if sum_of(name) else f"there is no low-rank correction of {name}"


def _linear(prepared: Prepared, W: Tensor, found: Corrected, scheme: Quantize) -> Linear:
    """The layer with a fitted weight."""
    dense = prepared.original
    bias: Tensor | None = dense.bias  # type: ignore[assignment]
    N, K = W.shape
    layer = Linear(
        K,
        N,
        weight=found.weight,
        bias=bias,
        dtype=W.dtype,
        activations=scheme.resolved().activations,
        input_scale=prepared.input_scale,
    )
    layer.weight_error = found.error
    layer.dense_bytes = W.numel() * W.element_size()
    layer._from_conv1d = is_conv1d(dense)
    return layer.train(dense.training)
