"""Docstrings: every public name has one with Parameters and Returns, and its examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import gossamer as gs

MODULES = [
    "gossamer",
    "gossamer.compression",
    "gossamer.cpu",
    "gossamer.formats",
    "gossamer.formats.int8",
    "gossamer.kernels",
    "gossamer.nn",
    "gossamer.nn.linear",
    "gossamer.nn.weight",
    "gossamer.reporting",
    "gossamer.reporting.layers",
]


def public_objects() -> Iterator[tuple[str, Any]]:
    """What users call: functions and classes of the package, and the methods of these classes."""
    places = {
        "gossamer": (gs, gs.__all__),
        "cpu": (gs.cpu, _own_names(gs.cpu)),
        "kernels": (gs.kernels, _own_names(gs.kernels)),
        "formats": (gs.formats, ["Int8"]),
        "nn": (gs.nn, gs.nn.__all__),
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


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    torch.manual_seed(0)
    names = {"gs": gs, "torch": torch, "np": np, "Int8": gs.formats.Int8}
    found = importlib.import_module(module)
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner()
    for test in finder.find(found, module, extraglobs=names):
        runner.run(test)
    assert runner.failures == 0


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
        "formats.Int8",
        "nn.Linear",
    ],
)
def test_has_an_example(name: str) -> None:
    assert ">>> " in (OBJECTS[name].__doc__ or "")
