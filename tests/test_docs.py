"""Docstrings: every public name has one with Parameters and Returns, and its examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import gossamer as gs

MODULES = [
    "gossamer",
    "gossamer.bench.linear",
    "gossamer.bench.peers.deepsparse",
    "gossamer.bench.quality",
    "gossamer.bench.sparse_cases",
    "gossamer.bench.sparse_contenders",
    "gossamer.bench.sparse_tables",
    "gossamer.bench.theory",
    "gossamer.compression",
    "gossamer.cpu",
    "gossamer.calibration.inverse_factor",
    "gossamer.calibration.obs",
    "gossamer.calibration.second_moments",
    "gossamer.calibration.stream",
    "gossamer.calibration.text",
    "gossamer.checkpoint.writing",
    "gossamer.distillation.tuning",
    "gossamer.factorization.correction",
    "gossamer.factorization.factorize",
    "gossamer.formats",
    "gossamer.formats.bf16",
    "gossamer.formats.fp32",
    "gossamer.formats.fp4",
    "gossamer.formats.fp8",
    "gossamer.formats.grids",
    "gossamer.formats.int4",
    "gossamer.formats.int8",
    "gossamer.formats.low_rank",
    "gossamer.formats.nf4",
    "gossamer.formats.sparse_converters",
    "gossamer.formats.sparse_float",
    "gossamer.formats.sparse_integer",
    "gossamer.formats.sums",
    "gossamer.interop.compressed_tensors_writer",
    "gossamer.kernels",
    "gossamer.kernels_sparse",
    "gossamer.loading",
    "gossamer.kernels_svd",
    "gossamer.nn.attention",
    "gossamer.nn.conv",
    "gossamer.nn.conv_transpose",
    "gossamer.nn.embedding",
    "gossamer.nn.linear",
    "gossamer.nn.projections",
    "gossamer.nn.recurrent",
    "gossamer.nn.recurrent_cells",
    "gossamer.nn.tied",
    "gossamer.preview",
    "gossamer.pruning.allocation",
    "gossamer.pruning.magnitude",
    "gossamer.pruning.magnitude_mask",
    "gossamer.pruning.prune",
    "gossamer.pruning.sparsegpt",
    "gossamer.pruning.wanda",
    "gossamer.quantization.autoround",
    "gossamer.quantization.awq",
    "gossamer.quantization.bias",
    "gossamer.quantization.equalization",
    "gossamer.quantization.gptq",
    "gossamer.quantization.hqq",
    "gossamer.quantization.rtn",
    "gossamer.quantization.smoothquant",
    "gossamer.quantization.static_scales",
    "gossamer.recipe_files",
    "gossamer.reporting.layers",
    "gossamer.schemes",
    "gossamer.svd.truncated",
]


def public_objects() -> Iterator[tuple[str, Any]]:
    """What users call: functions and classes of the package, and the methods of these classes."""
    places = {
        "gossamer": (gs, gs.__all__),
        "cpu": (gs.cpu, _own_names(gs.cpu)),
        "kernels": (gs.kernels, gs.kernels.__all__),
        "formats": (gs.formats, [kind.__name__ for kind in gs.formats.FORMATS.values()]),
        "nn": (gs.nn, gs.nn.__all__),
        "pruning": (gs.pruning, gs.pruning.__all__),
        "quantization": (gs.quantization, gs.quantization.__all__),
        "interop": (gs.interop, gs.interop.__all__),
        "reporting": (importlib.import_module("gossamer.reporting"), ["Report", "LayerReport"]),
    }
    for place, (module, names) in places.items():
        for name in names:
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{place}.{name}", value
            for method, function in vars(value).items() if inspect.isclass(value) else ():
                inner = getattr(function, "__func__", function)
                if not method.startswith("_") and inspect.isfunction(inner):
                    yield f"{place}.{name}.{method}", inner


def _own_names(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


OBJECTS = dict(public_objects())


def test_the_public_names_are_found() -> None:
    for name in ("gossamer.compress", "cpu.force", "kernels.matmul", "formats.Int8.quantize"):
        assert name in OBJECTS
    assert "nn.Linear.from_dense" in OBJECTS


@pytest.mark.parametrize("name", OBJECTS)
def test_docstring_is_complete(name: str) -> None:
    value = OBJECTS[name]
    text = inspect.getdoc(value) or ""
    assert text, "no docstring"
    summary = text.split("\n\n")[0]
    assert summary.endswith((".", "::")), "the first paragraph is no sentence"
    if inspect.isclass(value):
        if name != "cpu.Forced":  # made by cpu.force() only
            assert "Parameters\n---" in text or "Attributes\n---" in text
        return
    parameters = [p for p in inspect.signature(value).parameters if p not in ("self", "cls")]
    if parameters:
        section = re.split(r"\n\w[\w ]*\n-{3,}\n", text.split("Parameters\n---", 1)[1])[0]
        for parameter in parameters:
            assert re.search(rf"^(\w+, )*{parameter}(, \w+)* : ", section, re.MULTILINE), parameter
    assert "Returns\n---" in text


def test_every_module_with_examples_is_listed() -> None:
    package = Path(gs.__path__[0])
    found = {
        ".".join(("gossamer", *path.relative_to(package).with_suffix("").parts))
        for path in package.rglob("*.py")
        if ">>> " in path.read_text()
    }
    assert {name.removesuffix(".__init__") for name in found} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    torch.manual_seed(0)
    names = {"gs": gs, "torch": torch, "np": np, "Int8": gs.formats.Int8}
    found = importlib.import_module(module)
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner()
    for test in finder.find(found, module, extraglobs=names):
        runner.run(test)
    assert runner.failures == 0
    assert runner.tries > 0 or module == "gossamer"


@pytest.mark.parametrize(
    "name",
    [
        "gossamer.compress",
        "gossamer.report",
        "gossamer.Quantize",
        "cpu.isa",
        "cpu.available",
        "cpu.force",
        "cpu.show",
        "kernels.quantize_rows",
        "kernels.pack",
        "kernels.matmul",
        "kernels.accumulate",
        *(f"formats.{kind.__name__}" for kind in gs.formats.FORMATS.values()),
        *(f"nn.{name}" for name in gs.nn.__all__),
    ],
)
def test_has_an_example(name: str) -> None:
    assert ">>> " in (OBJECTS[name].__doc__ or "")
