"""What a figure depends on and a reader must know: processor, threads, versions, source revision.

No host names and no paths: results are published.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# Distributions whose version can change a figure; those that are not installed are left out.
DISTRIBUTIONS = (
    "gossamer",
    "numpy",
    "auto-round-lib",
    "onnxruntime",
    "openvino",
    "torchao",
    "transformers",
)


def describe(threads: int) -> dict[str, Any]:
    """Return the environment record of a run with ``threads`` threads, ready for JSON."""
    from gossamer import cpu

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "isa": cpu.isa(),
        "isas_available": list(cpu.available()),
        "compiler": compiler(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": versions(),
        "openmp": list(cpu.openmp_runtimes()),
        "revision": revision(),
    }


@contextmanager
def held_threads(count: int) -> Iterator[None]:
    """Give torch ``count`` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_model() -> str:
    """Model name of the processor as the kernel gives it, or the architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return names[0].strip() if names else platform.machine()


def compiler() -> str | None:
    """Compiler of the extension, when it tells."""
    from gossamer import _C

    return _C.cpu_info().get("compiler")


def versions() -> dict[str, str]:
    """Versions of the installed distributions that take part in benchmarks."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """Commit of the checkout this package runs from, with ``-dirty`` when it was changed."""
    package = Path(__file__).resolve().parents[1]
    top = _git(package, "rev-parse", "--show-toplevel")
    # An installed package may lie inside somebody else's repository.
    if top is None or Path(top).resolve() / "python" / "gossamer" != package:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("-dirty" if _git(package, "status", "--porcelain") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
