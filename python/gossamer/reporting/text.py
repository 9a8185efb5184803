"""A report as plain text."""

from __future__ import annotations

from collections.abc import Callable

from ..fits import CalibrationRecord
from ..fusion import Fusion
from . import factorized
from .records import LayerReport, Report
from .table import number, shape_text, size_text, table


def report_text(found: Report) -> str:
    """Every part that has something to say, with an empty line between them."""
    parts = [_layer_table(found)]
    if found.left_alone:
        rows = [
            [item.name, item.kind, shape_text(item.shape), item.reason] for item in found.left_alone
        ]
        parts.append("left alone:\n" + table(["layer", "class", "shape", "reason"], rows, 4))
    if found.kept_dense:
        rows = [
            [item.name, item.format, f"{item.sparsity:.0%}", item.reason]
            for item in found.kept_dense
        ]
        parts.append("kept dense:\n" + table(["layer", "format", "zeros", "reason"], rows, 4))
    if found.factorized:
        rows = factorized.lines(found.factorized)
        lines = table(factorized.HEADER, rows, 3, right_columns=5)
        parts.append(f"{factorized.title(found.factorized)}\n{lines}")
    rows = [[item.name, item.reason] for item in found.corrections if item.reason]
    if rows:
        parts.append("not corrected:\n" + table(["layer", "reason"], rows, 2))
    parts += _fusion_lines(found.fusions)
    if found.calibration:
        parts.append(_calibration_line(found.calibration))
    totals = found.totals
    parts.append(
        f"{totals.layers} packed layers: {size_text(totals.bytes_before)} -> "
        f"{size_text(totals.bytes_after)}; whole model: "
        f"{size_text(totals.model_bytes_before)} -> {size_text(totals.model_bytes_after)}"
    )
    return "\n\n".join(parts)


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
    if any(layer.method for layer in found.layers):
        columns["method"] = lambda layer: layer.method or "-"
    if any(layer.output_error is not None for layer in found.layers):
        columns["output error"] = lambda layer: number(layer.output_error, ".2%")
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


def _calibration_line(calibration: CalibrationRecord) -> str:
    peak = calibration.cached_bytes + 2 * calibration.block_bytes
    return (
        f"calibrated with {calibration.batches} batches in {calibration.seconds:.0f} s; peak of "
        f"memory: the model and {size_text(peak)} (hidden states "
        f"{size_text(calibration.cached_bytes)}, two blocks)"
    )


def _speed_up(layer: LayerReport) -> float | None:
    return None if layer.ms is None or layer.ms_dense is None else layer.ms_dense / layer.ms
