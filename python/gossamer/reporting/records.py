"""What a report holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..factorization import FactorizedLayer, LayerCorrection
from ..fits import CalibrationRecord
from ..fusion import Fusion
from ..selection import KeptDense, LeftAlone


@dataclass(frozen=True)
class LayerReport:
    """One packed weight.

    Attributes
    ----------
    name : str
        Name of the module in the model; where that has several weights, as ``nn.LSTM`` and
        ``nn.MultiheadAttention`` have, of the weight, such as "encoder.weight_hh_l0".
    shape : tuple of int
        Of the dense weight.
    format : str
        Name of the format, with the group size after a colon where there is one.
    bits_per_weight : float
        Of the packed weight, scales and padding included.
    bytes_before, bytes_after : int
        Of the weight, dense (float32 where the dense layer is not known) and packed.
    error : float or None
        ``|W - Ŵ| / |W|`` (Frobenius), of the weight before ``gs.Prune``; None where the dense
        weight was never seen.
    sparsity : float or None
        Share of the weights that are zero and not stored; None for dense formats.
    pattern : str
        Of a sparse weight: "any", or the blocks that its zeros are stored as, such as "1x4".
    parts : tuple of str
        Of a sparse weight: "bitmask", from which zeros are expanded, "spmm", which skips them, or
        both.
    rank : int or None
        R of a low-rank weight, or of a low-rank correction.
    uncorrected_error : float or None
        What `error` would be without the correction.
    output_error_left : float or None
        Of the error of the layer's outputs over the calibration (root mean square), the share that
        the correction left; None without a calibration.
    method : str
        How it was pruned and rounded, such as "awq, gptq"; "" where that was not fitted.
    output_error : float or None
        Root mean square of ``(W - Ŵ) x`` against that of ``W x`` over the calibration; None where
        E[x xᵀ] was not taken.
    fused : str
        What it computes together with, such as "query, key, value"; "" where by itself.
    tied_to : str
        Name of the embedding that reads the same packed weight, which is counted here only; "" for
        most.
    ms, ms_dense : float or None
        Milliseconds of a call, packed and dense; None unless measured, and for all but linear
        layers. Layers that share a packed weight are called together: by rows, this is its part of
        the bytes and of the time.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    error: float | None
    sparsity: float | None = None
    pattern: str = ""
    parts: tuple[str, ...] = ()
    rank: int | None = None
    uncorrected_error: float | None = None
    output_error_left: float | None = None
    method: str = ""
    output_error: float | None = None
    fused: str = ""
    tied_to: str = ""
    ms: float | None = None
    ms_dense: float | None = None


@dataclass(frozen=True)
class Totals:
    """Sums over the packed layers, and over all parameters and buffers of the model.

    Attributes
    ----------
    layers : int
        Packed layers.
    bytes_before, bytes_after : int
        Of their weights.
    model_bytes_before, model_bytes_after : int
        Of the whole model.
    ms, ms_dense : float or None
        Sums over the layers; None unless measured.
    """

    layers: int
    bytes_before: int
    bytes_after: int
    model_bytes_before: int
    model_bytes_after: int
    ms: float | None = None
    ms_dense: float | None = None


@dataclass(frozen=True)
class Report:
    """What :func:`report` found; ``str()`` is a plain table.

    Attributes
    ----------
    layers : tuple of LayerReport
        In the order of the model.
    left_alone : tuple of LeftAlone
        Layers that stayed as they were, and why.
    kept_dense : tuple of KeptDense
        Layers for which a sparse form was asked for and that have a dense one, and why.
    fusions : tuple of Fusion
        Groups of layers that match a pattern of :func:`gossamer.compress`, fused or not, and why;
        none after ``fuse=False``.
    totals : Totals
        Sums.
    batch : int or None
        Rows per call, where times were measured.
    factorized : tuple of FactorizedLayer
        Layers that :func:`gossamer.factorize` replaced or left dense: rank, break-even, why.
    corrections : tuple of LayerCorrection
        What ``gs.LowRankCorrection`` did to each layer, or why nothing.
    calibration : CalibrationRecord or None
        What the layers were fitted to; None where they were packed by their weights alone.
    """

    layers: tuple[LayerReport, ...]
    left_alone: tuple[LeftAlone, ...]
    kept_dense: tuple[KeptDense, ...]
    fusions: tuple[Fusion, ...]
    totals: Totals
    batch: int | None = None
    factorized: tuple[FactorizedLayer, ...] = ()
    corrections: tuple[LayerCorrection, ...] = ()
    calibration: CalibrationRecord | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, tuples, strings and numbers.

        Returns
        -------
        dict
            With the attributes of the report as keys; ``json.dumps`` takes it.
        """
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        from .text import report_text  # which imports this file

        return report_text(self)
