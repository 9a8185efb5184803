"""What compression did to a model, in figures."""

from __future__ import annotations

from .layers import LayerReport, Report, Totals, report

__all__ = ["LayerReport", "Report", "Totals", "report"]
