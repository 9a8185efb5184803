"""report(): every packed layer of a model with its size and error, and what was left dense."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from .._ops_packing import SparseInfo, packed_info
from ..nn.conv_transpose import ConvTranspose2d
from ..nn.linear import Linear
from ..nn.packed_conv import PackedConv
from ..nn.packed_table import PackedTable
from ..nn.projections import Projection
from ..packed_names import packed_weights
from .records import LayerReport, Report, Totals
from .timing import cached_time, rows_of


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
    fits = {item.name: item for item in _remembered(model, "_gossamer_fits", "name")}
    layers = []
    for name, module in packed_weights(model):
        found = _layer(name, module, fused.get(name, ""), tied.get(id(module), ""))
        if name in corrected and found.error is not None:
            found = dataclasses.replace(
                found,
                uncorrected_error=corrected[name].uncorrected_error,
                output_error_left=corrected[name].output_error_left,
            )
        if name in fits:
            fit = fits[name]
            found = dataclasses.replace(found, method=fit.method, output_error=fit.output_error)
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
        getattr(model, "_gossamer_calibration", None),
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
