"""What there is to say of layers that were fitted to a calibration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerFit:
    """What calibration made of one layer.

    Attributes
    ----------
    name : str
        Of the layer.
    method : str
        Such as "awq, gptq" or "sparsegpt, gptq".
    output_error : float or None
        Root mean square of ``(W - Ŵ) x`` against that of ``W x``, over what the layer was given in
        the calibration; None where E[x xᵀ] was not asked for.
    """

    name: str
    method: str
    output_error: float | None = None


@dataclass(frozen=True)
class CalibrationRecord:
    """What a calibration took.

    Attributes
    ----------
    batches : int
        That the model was run on.
    cached_bytes : int
        Of the hidden states of all batches, which are kept from block to block.
    block_bytes : int
        Of the largest block: beside the model and the hidden states, two of these are the peak.
    seconds : float
        Until all layers were packed.
    model_seconds : float
        Of these, those in which the blocks of the model ran.
    """

    batches: int
    cached_bytes: int
    block_bytes: int
    seconds: float
    model_seconds: float = 0.0
