"""How compress() adds a low-rank correction to the layers that it packs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from .calibration import Batches, second_moments
from .factorization.correction import Corrected, LayerCorrection, LowRankCorrection, sum_of
from .folding import matrices
from .nn.linear import Linear, is_conv1d
from .schemes import Quantize
from .selection import Layer


@dataclass
class Correcting:
    """What is known while layers are corrected.

    Attributes
    ----------
    correction : LowRankCorrection
        How.
    results : list of LayerCorrection
        Is told of every layer that is packed.
    moments : dict
        By layer, by identity: E[x xᵀ] of its inputs. Empty without a calibration.
    """

    correction: LowRankCorrection
    results: list[LayerCorrection]
    moments: dict[int, Tensor] = field(default_factory=dict)

    def calibrate(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        batches: Batches,
        progress: bool | None,
    ) -> None:
        """Take the moments of all layers that may be corrected. The model is as it was."""
        found = [layer for layer in layers if not self._why_not_kind(layer)]
        if not found:
            return
        modules = {layer.names[0]: layer.module for layer in found}
        try:
            moments = second_moments(model, modules, batches, progress)
        except (TypeError, ValueError) as error:
            own = str(error).removeprefix("second_moments: ")
            if own == str(error):  # of the model
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            why = own.removeprefix("calibration: ")
            raise kind(f"compress: calibration: {why}") from error
        self.moments = {id(layer): moments[layer.names[0]] for layer in found}

    def replacement(
        self, layer: Layer, dense: nn.Module, pruned: nn.Module, scheme: Quantize | None
    ) -> nn.Module | None:
        """The packed and corrected layer; None where it is not corrected, and `results` says why.

        Parameters
        ----------
        layer : Layer
            Where it is in the model.
        dense, pruned : nn.Module
            As it was before all steps, and with zeros. One module, where nothing was pruned.
        scheme : Quantize or None
            Of the base; None: it stays dense.
        """
        moment = self.moments.pop(id(layer), None)
        reason = self._why_not_kind(layer) or _why_not_base(scheme)
        if reason:
            self.results.append(LayerCorrection(layer.names[0], reason=reason))
            return None
        assert scheme is not None
        (_, W), (_, zeros) = next(matrices(dense)), next(matrices(pruned))
        keeps_zeros = pruned is not dense or scheme.resolved().format.startswith("sparse-")
        found = self.correction.fit(
            W,
            scheme.quantize,
            pruned=zeros if keeps_zeros else None,
            moment=moment,
            activations=scheme.resolved().activations or "exact",
        )
        errors = found.uncorrected_error, found.output_error_left
        self.results.append(LayerCorrection(layer.names[0], *errors))
        return _linear(dense, W, found, scheme)

    def _why_not_kind(self, layer: Layer) -> str:
        """Why a layer cannot be corrected, whatever its base."""
        if not (isinstance(layer.module, nn.Linear) or is_conv1d(layer.module)):
            return f"a correction is for linear layers, not for {type(layer.module).__name__}"
        if layer.partner:
            return f"shares its packed weight with {layer.partner.names[0]}"
        N, K = layer.module.weight.shape  # type: ignore[misc]  # a Conv1D has (K, N): the same
        return self.correction.why_too_large(N, K)


def _why_not_base(scheme: Quantize | None) -> str:
    """Why what a layer is stored as takes no correction."""
    if scheme is None:
        return "stays dense: zeros and a correction would be a dense layer again"
    name = scheme.resolved().format
    return "" if sum_of(name) else f"there is no low-rank correction of {name}"


def _linear(dense: nn.Module, W: Tensor, found: Corrected, scheme: Quantize) -> Linear:
    """The layer with a fitted weight."""
    bias: Tensor | None = dense.bias  # type: ignore[assignment]
    N, K = W.shape
    activations = scheme.resolved().activations
    layer = Linear(K, N, weight=found.weight, bias=bias, dtype=W.dtype, activations=activations)
    layer.weight_error = found.error
    layer.dense_bytes = W.numel() * W.element_size()
    layer._from_conv1d = is_conv1d(dense)
    return layer.train(dense.training)
