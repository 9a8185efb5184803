"""Truncated singular value decomposition with a certified error."""

from __future__ import annotations

from .truncated import SVDInfo, truncated_svd

__all__ = ["SVDInfo", "truncated_svd"]
