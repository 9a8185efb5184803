"""report(): every packed layer of a model with its size and error, and what was left dense."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .._ops_packing import SparseInfo, packed_info
from ..factorization import FactorizedLayer, LayerCorrection
from ..fusion import Fusion
from ..nn.conv_transpose import ConvTranspose2d
from ..nn.linear import Linear
from ..nn.packed_conv import PackedConv
from ..nn.packed_table import PackedTable
from ..nn.projections import Projection
from ..packed_names import packed_weights
from ..selection import KeptDense, LeftAlone
from . import factorized
from .table import number, shape_text, size_text, table
from .timing import cached_time, rows_of


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
    """

    layers: tuple[LayerReport, ...]
    left_alone: tuple[LeftAlone, ...]
    kept_dense: tuple[KeptDense, ...]
    fusions: tuple[Fusion, ...]
    totals: Totals
    batch: int | None = None
    factorized: tuple[FactorizedLayer, ...] = ()
    corrections: tuple[LayerCorrection, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, tuples, strings and numbers.

        Returns
        -------
        dict
            With the attributes of the report as keys; ``json.dumps`` takes it.
        """
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        parts = [_layer_table(self)]
        if self.left_alone:
            rows = [
                [item.name, item.kind, shape_text(item.shape), item.reason]
                for item in self.left_alone
            ]
            parts.append("left alone:\n" + table(["layer", "class", "shape", "reason"], rows, 4))
        if self.kept_dense:
            rows = [
                [item.name, item.format, f"{item.sparsity:.0%}", item.reason]
                for item in self.kept_dense
            ]
            parts.append("kept dense:\n" + table(["layer", "format", "zeros", "reason"], rows, 4))
        if self.factorized:
            rows = factorized.lines(self.factorized)
            lines = table(factorized.HEADER, rows, 3, right_columns=5)
            parts.append(f"{factorized.title(self.factorized)}\n{lines}")
        rows = [[item.name, item.reason] for item in self.corrections if item.reason]
        if rows:
            parts.append("not corrected:\n" + table(["layer", "reason"], rows, 2))
        parts += _fusion_lines(self.fusions)
        totals = self.totals
        parts.append(
            f"{totals.layers} packed layers: {size_text(totals.bytes_before)} -> "
            f"{size_text(totals.bytes_after)}; whole model: "
            f"{size_text(totals.model_bytes_before)} -> {size_text(totals.model_bytes_after)}"
        )
        return "\n\n".join(parts)


def report(model: nn.Module, measure: bool = False, batch: int = 1) -> Report:
    """List the packed layers of a model, their size and error, and what was left alone.

    Parameters
    ----------
    model : nn.Module
        After :func:`gossamer.compress`.
    measure : bool
        Also time each linear layer against the dense one: ``F.linear`` in the dtype of the layer,
        medians of interleaved rounds, each distinct layer once.
    batch : int
        Rows (tokens) per call to be timed.

    Returns
    -------
    Report
        ``print`` it for a table, ``.to_dict()`` for JSON.

    Raises
    ------
    TypeError, ValueError
        Where `model` is no module or `batch` is below 1.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    >>> found = gs.report(gs.compress(model, "int8", ignore="1"))
    >>> found.layers[0].name, found.layers[0].bytes_before, found.layers[0].error < 0.01
    ('0', 16384, True)
    >>> found.left_alone[0].reason
    'ignored'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"report: model: got {type(model).__name__}, wanted nn.Module")
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"report: batch: got {batch!r}, wanted a number of rows >= 1")
    fusions = tuple(_remembered(model, "_gossamer_fusions", "module"))
    fused = {
        ".".join(filter(None, (fusion.module, layer))): fusion.result
        for fusion in fusions
        if not fusion.reason
        for layer in fusion.layers
    }
    timings: dict[tuple[Any, ...], tuple[float, float]] = {}
    tied = {
        id(head): name
        for name, module in model.named_modules()
        if isinstance(module, PackedTable)
        for head in module._tied
    }
    corrections = tuple(_remembered(model, "_gossamer_corrections", "name"))
    corrected = {item.name: item for item in corrections}
    layers = []
    for name, module in packed_weights(model):
        found = _layer(name, module, fused.get(name, ""), tied.get(id(module), ""))
        if name in corrected and found.error is not None:
            found = dataclasses.replace(
                found,
                uncorrected_error=corrected[name].uncorrected_error,
                output_error_left=corrected[name].output_error_left,
            )
        if measure and type(module) in (Linear, Projection):
            ms, ms_dense = cached_time(module, batch, timings)  # type: ignore[arg-type]
            found = dataclasses.replace(found, ms=ms, ms_dense=ms_dense)
        layers.append(found)
    return Report(
        tuple(layers),
        tuple(_remembered(model, "_gossamer_left_alone", "name")),
        tuple(_remembered(model, "_gossamer_kept_dense", "name")),
        fusions,
        _totals(model, layers),
        batch if measure else None,
        tuple(_remembered(model, "_gossamer_factorized", "name")),
        corrections,
    )


def _layer(name: str, layer: Linear | PackedConv, fused: str, tied_to: str) -> LayerReport:
    shape = _weight_shape(layer)
    weights = math.prod(shape)
    after = _packed_bytes(layer)
    before = 4 * weights if layer.dense_bytes is None else layer.dense_bytes
    suffix = "" if layer.group_size is None else f":{layer.group_size}"
    sparse = None
    if layer.format.startswith("sparse-"):
        sparse = packed_info(layer.packed).sparse
    return LayerReport(
        name=name,
        shape=shape,
        format=layer.format + suffix,
        bits_per_weight=8 * after / weights,
        bytes_before=before,
        bytes_after=after,
        error=layer.weight_error,
        sparsity=None if sparse is None else _sparsity(layer, sparse),
        pattern="" if sparse is None else sparse.pattern,
        parts=() if sparse is None else sparse.parts,
        rank=layer.settings.get("rank"),
        fused=fused,
        tied_to=tied_to,
    )


def _sparsity(layer: Linear | PackedConv, info: SparseInfo) -> float:
    """Share of zeros; a layer that shares its packed weight is unpacked to count its own."""
    nnz = info.nnz
    if isinstance(layer, Projection) and layer.shares:
        nnz = layer.quantized().nnz  # type: ignore[attr-defined]  # sparse formats have it
    return 1 - nnz / math.prod(_weight_shape(layer))


def _weight_shape(layer: Linear | PackedConv) -> tuple[int, ...]:
    """The shape of torch's weight."""
    if isinstance(layer, Linear):
        return layer.out_features, layer.in_features
    channels = layer.out_channels, layer.in_channels
    first, second = channels[::-1] if isinstance(layer, ConvTranspose2d) else channels
    return first, second // layer.groups, *layer.kernel_size


def _packed_bytes(layer: Linear | PackedConv) -> int:
    """Bytes of the packed weight; of one that is shared, a part by rows, so that all add up."""
    if isinstance(layer, PackedConv):
        return layer.packed.numel()
    first, N = rows_of(layer)
    size = layer.packed.numel()
    return size * (first + layer.out_features) // N - size * first // N


def _remembered(model: nn.Module, attribute: str, key: str) -> Iterator[Any]:
    """What compress() left on a model, wherever in this model that now is, with full names."""
    for name, module in model.named_modules():
        for item in getattr(module, attribute, ()):
            full = ".".join(filter(None, (name, getattr(item, key))))
            yield dataclasses.replace(item, **{key: full})


def _totals(model: nn.Module, layers: list[LayerReport]) -> Totals:
    before = sum(layer.bytes_before for layer in layers)
    after = sum(layer.bytes_after for layer in layers)
    tensors = [*model.parameters(), *model.buffers()]
    whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    times = [(layer.ms, layer.ms_dense) for layer in layers]
    ms = [packed for packed, _ in times if packed is not None]
    ms_dense = [dense for _, dense in times if dense is not None]
    return Totals(
        layers=len(layers),
        bytes_before=before,
        bytes_after=after,
        model_bytes_before=whole - after + before,
        model_bytes_after=whole,
        ms=sum(ms) if ms else None,
        ms_dense=sum(ms_dense) if ms_dense else None,
    )


# --- the table ---


def _layer_table(found: Report) -> str:
    columns = _columns(found)
    rows = [[cell(layer) for cell in columns.values()] for layer in found.layers]
    return table(list(columns), rows, 1)


def _columns(found: Report) -> dict[str, Callable[[LayerReport], str]]:
    """What each column of the table shows; those that would be empty are left out."""
    columns: dict[str, Callable[[LayerReport], str]] = {
        "layer": lambda layer: layer.name,
        "shape": lambda layer: shape_text(layer.shape),
        "format": lambda layer: layer.format,
        "bits": lambda layer: f"{layer.bits_per_weight:.2f}",
        "before": lambda layer: size_text(layer.bytes_before),
        "after": lambda layer: size_text(layer.bytes_after),
        "error": lambda layer: "-" if layer.error is None else f"{layer.error:.2%}",
    }
    if any(layer.parts for layer in found.layers):
        columns["zeros"] = lambda layer: "-" if layer.sparsity is None else f"{layer.sparsity:.0%}"
        columns["pattern"] = lambda layer: layer.pattern or "-"
        columns["parts"] = lambda layer: "+".join(layer.parts) or "-"
    if any(layer.rank for layer in found.layers):
        columns["rank"] = lambda layer: number(layer.rank, "d")
    if any(layer.uncorrected_error is not None for layer in found.layers):
        columns["uncorrected"] = lambda layer: number(layer.uncorrected_error, ".2%")
    if any(layer.output_error_left is not None for layer in found.layers):
        columns["output error left"] = lambda layer: number(layer.output_error_left, ".0%")
    if found.batch is not None:
        columns[f"ms, {found.batch} rows"] = lambda layer: number(layer.ms, ".4f")
        columns["dense ms"] = lambda layer: number(layer.ms_dense, ".4f")
        columns["speed-up"] = lambda layer: number(_speed_up(layer), ".2f", "x")
    if any(layer.fused for layer in found.layers):
        columns["fused"] = lambda layer: layer.fused or "-"
    if any(layer.tied_to for layer in found.layers):
        columns["tied to"] = lambda layer: layer.tied_to or "-"
    return columns


def _fusion_lines(fusions: tuple[Fusion, ...]) -> list[str]:
    """What was not fused; what was is a column of the table."""
    lines = [f"fusion: {item.reason}" for item in fusions if not item.layers]
    rows = [[item.module, item.result, item.reason] for item in fusions if item.layers]
    rows = [row for row in rows if row[-1]]
    if rows:
        lines.append("not fused:\n" + table(["module", "layers", "reason"], rows, 3))
    return lines


def _speed_up(layer: LayerReport) -> float | None:
    return None if layer.ms is None or layer.ms_dense is None else layer.ms_dense / layer.ms
