"""README, docs/ and examples/: links lead somewhere, code runs, names and counts are right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gossamer as gs
from gossamer import _C
from gossamer.compression import REPLACEMENTS
from gossamer.fusion import ARCHITECTURES

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").rglob("*.md")],
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors that headings have, as GitHub makes them."""
    text = FENCED.sub("", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_are_found() -> None:
    names = {name_of(page) for page in PAGES}
    assert {"README.md", "docs/index.md", "bench/results/README.md"} <= names
    assert "which-kernel-runs" in anchors(ROOT / "docs/dispatch.md")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [p for p in PAGES if PYTHON.search(p.read_text())], ids=name_of)
def test_code_runs(page: Path) -> None:
    """The blocks of a page, one after the other, in one namespace; they check what they show."""
    code = PYTHON.findall(page.read_text())
    assert any("assert " in block for block in code), "the code of this page checks nothing"
    if any("import transformers" in block for block in code):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    for block in code:
        exec(compile(block, name_of(page), "exec"), names)


@pytest.mark.parametrize("name", ["quickstart.py", "low_level.py", "sparse.py"])
def test_examples_run(name: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / name)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall((ROOT / "docs/index.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


def test_every_scheme_is_in_the_documents() -> None:
    text = (ROOT / "docs/schemes.md").read_text()
    for scheme in gs.schemes.SCHEMES.values():
        assert f"`{scheme.format}" in text
    for name in ("int8", "int4", "nf4", "fp4", "mxfp4", "fp8", "fp8-e5m2", "fp8-block", "bf16"):
        assert f"`{name}`" in text
        assert name in gs.schemes.SCHEMES


def test_every_layer_is_in_the_documents() -> None:
    text = (ROOT / "docs/layers.md").read_text() + (ROOT / "README.md").read_text()
    for kind in REPLACEMENTS:
        assert f"nn.{kind.__name__.removesuffix('Cell')}`" in text, kind


def test_every_pattern_is_in_the_documents() -> None:
    text = (ROOT / "docs/fusion.md").read_text()
    for pattern in ARCHITECTURES:
        assert ", ".join(pattern.layers) in text, pattern
        for family in re.findall(r"[A-Z][A-Za-z]+\d?", pattern.classes.split(")")[0]):
            assert family in text, pattern


@pytest.mark.parametrize("page", ["docs/dispatch.md", "docs/index.md", "docs/adding-an-isa.md"])
def test_every_isa_is_in_the_documents(page: str) -> None:
    text = (ROOT / page).read_text()
    for isa in _C.isa_names():
        assert re.search(rf"\b{isa}\b", text), isa


def test_quoted_code_is_there() -> None:
    """What adding-an-isa.md quotes of the sources is in them, line by line."""
    sources = [*(ROOT / "csrc").rglob("*.[ch]*"), *(ROOT / "cmake").glob("*")]
    sources += (ROOT / "tests/cpp").glob("*")
    there = {line.strip() for path in sources for line in path.read_text().splitlines()}
    blocks = re.findall(
        r"^ *```(?:cpp|cmake)\n(.*?)```",
        (ROOT / "docs/adding-an-isa.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
    lines = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    assert len(lines) > 10
    assert [line for line in lines if line not in there] == []
