"""Plots and the HTML page: what is in them, and that nothing half-written is left."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gossamer.reporting import html, plots

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved, to look into."""
    pytest.importorskip("matplotlib")
    saved: list[Any] = []
    original = plots._save
    monkeypatch.setattr(
        plots, "_save", lambda figure, path: (saved.append(figure), original(figure, path))
    )
    return saved


def texts_of(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_speedup_bars(tmp_path: Path, figures: list[Any]) -> None:
    path = tmp_path / "new" / "speed.png"
    plots.speedup_bars(
        path, ["1 x 16", "32 x 128"], {"light": [3.2, None]}, "dense", "rows x tokens"
    )

    assert path.read_bytes().startswith(PNG)
    assert [file.name for file in path.parent.iterdir()] == ["speed.png"]
    (axes,) = figures[0].axes
    low, high = axes.get_ylim()
    assert low == 0
    assert axes.get_xlabel() == "rows x tokens"
    assert high > 3.2
    assert texts_of(figures[0]) == ["3.20x", "n/a"]


def test_slow_bars_still_show_the_baseline(tmp_path: Path, figures: list[Any]) -> None:
    plots.speedup_bars(tmp_path / "slow.png", ["a"], {"slow": [0.4]}, "dense")
    assert figures[0].axes[0].get_ylim()[1] > 1


def test_metric_panels(tmp_path: Path, figures: list[Any]) -> None:
    panels = [plots.Panel("Size, MB", [90.86, 35.04]), plots.Panel("Lee", [0.6564, None], digits=3)]
    plots.metric_panels(tmp_path / "overview.png", ["dense", "light"], panels)
    assert (tmp_path / "overview.png").read_bytes().startswith(PNG)
    assert [axes.get_xlim()[0] for axes in figures[0].axes] == [0, 0]
    assert texts_of(figures[0]) == ["90.9", "35.0", "0.656", "n/a"]
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == [
        "dense",
        "light",
    ]


def test_plots_refuse_series_of_the_wrong_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="speedup_bars: 'light' has 1 values, wanted 2"):
        plots.speedup_bars(tmp_path / "x.png", ["a", "b"], {"light": [1.0]}, "dense")
    with pytest.raises(ValueError, match="metric_panels: 'Size' has 1 values, wanted 2"):
        plots.metric_panels(tmp_path / "x.png", ["a", "b"], [plots.Panel("Size", [1.0])])
    with pytest.raises(ValueError, match="wanted at least one"):
        plots.metric_panels(tmp_path / "x.png", ["a"], [])
    assert not (tmp_path / "x.png").exists()


class Reader(HTMLParser):
    """Collects table cells and whatever the page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(PNG + b"pixels")
    blocks: list[html.Block] = [
        html.Table("Measured", ["", "ms"], [["a <b> & c", "1.5"]], note="lower is better"),
        html.Picture("Speed", picture, 'bars "by" case'),
        html.PlainText("Layers", "x  <y>\nz"),
    ]
    path = tmp_path / "page.html"
    html.write_page(path, "Title <1>", "Summary & more", blocks)
    source = path.read_text("utf-8")
    reader = Reader()
    reader.feed(source)
    assert reader.open == []
    assert reader.cells == ["ms", "a <b> & c", "1.5"]
    (data,) = reader.loads
    assert base64.b64decode(data.removeprefix("data:image/png;base64,")) == PNG + b"pixels"
    assert "<pre>x  &lt;y&gt;\nz</pre>" in source
    assert "<h1>Title &lt;1&gt;</h1>\n<p>Summary &amp; more</p>" in source
    assert 'alt="bars &quot;by&quot; case"' in source
    assert '<p class="note">lower is better</p>' in source
    assert not re.search(r"<script|@import|https?://", source)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["page.html", "picture.png"]


def test_page_refuses_ragged_tables(tmp_path: Path) -> None:
    table = html.Table("Measured", ["a", "b"], [["1"]])
    with pytest.raises(ValueError, match="'Measured': a row has 1 cells, wanted 2"):
        html.write_page(tmp_path / "page.html", "t", "i", [table])
    assert list(tmp_path.iterdir()) == []
