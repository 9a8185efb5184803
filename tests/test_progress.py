"""Progress: when it is shown, and what it counts."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import gossamer as gs
from gossamer import _progress

from .compressed_models import mlp


class TestProgress:
    @pytest.mark.parametrize(
        ("terminal", "seconds", "argument", "seen"),
        [
            (True, 0.6, None, True),
            (True, 0.4, None, False),
            (False, 0.6, None, False),
            (True, 0.6, False, False),
            (False, 0.0, True, True),
        ],
    )
    @pytest.mark.parametrize("installed", [True, False])
    def test_when_it_is_shown(
        self,
        terminal: bool,
        seconds: float,
        argument: bool | None,
        seen: bool,
        installed: bool,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        pytest.importorskip("rich")
        if not installed:
            monkeypatch.setitem(sys.modules, "rich.progress", None)
        clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
        monkeypatch.setattr(_progress, "time", clock)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        with _progress.Progress("packing layers", 4, argument) as shown:
            for _ in range(2):
                clock.now += seconds
                shown.advance(2)
        assert shown.done == 4
        output = capsys.readouterr()
        assert ("packing layers" in output.err) is (seen and installed)
        assert output.out == ""

    def test_compress_counts_every_weight(self, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("rich")
        gs.compress(mlp(), "int8", progress=True)
        shown = capsys.readouterr().err
        assert "packing layers" in shown
        assert "100%" in shown
        gs.compress(mlp(), "int8", progress=False)
        assert capsys.readouterr().err == ""
