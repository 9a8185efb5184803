"""What compression did to a model, in figures."""

from __future__ import annotations

from .layers import report
from .records import LayerReport, Report, Totals

__all__ = ["LayerReport", "Report", "Totals", "report"]
