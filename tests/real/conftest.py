"""Real models: skipped, with the reason, only where neither cached nor to be downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gossamer.bench.assets import Asset, DownloadError, fetch


@pytest.fixture(scope="session")
def need() -> Callable[[Asset], Path]:
    """Fetch an asset or skip the test. A wrong digest is a failure, not a skip."""
    pytest.importorskip("transformers")

    def fetch_or_skip(asset: Asset) -> Path:
        try:
            return fetch(asset)
        except DownloadError as error:
            pytest.skip(f"offline and not cached: {error}")

    return fetch_or_skip
