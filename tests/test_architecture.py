"""The layering rules of the design, held by reading the sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "gossamer"
TECHNIQUES = ("quantization", "pruning", "factorization", "distillation")
# What each file of the package may import of it, beside its own folder; bench and cli may all.
ALLOWED = {
    "_check": set(),
    "_progress": set(),
    "_ops": {"_C", "_check"},
    "_ops_conv": {"_C", "_check", "_ops"},
    "_ops_embedding": {"_C", "_check", "_ops"},
    "_ops_packing": {"_C", "_check"},
    "_ops_svd": {"_C", "_check"},
    "cpu": {"_C", "_check"},
    "sparse_choice": {"_C", "_check"},
    "svd": {"_check", "_ops_svd", "_progress"},
    "formats": {"_check", "_ops", "_ops_packing", "sparse_choice", "svd"},
    "_products": {"_C", "_check", "_ops", "formats", "sparse_choice"},
    "kernels_sparse": {"_check", "_products", "formats", "sparse_choice"},
    "kernels_svd": {"_check", "_ops_svd", "_products", "svd"},
    "kernels": {
        "_C",
        "_check",
        "_ops",
        "_products",
        "formats",
        "kernels_sparse",
        "kernels_svd",
        "sparse_choice",
    },
    "schemes": {"_check", "formats"},
    "nn": {
        "_check",
        "_ops",
        "_ops_conv",
        "_ops_embedding",
        "_ops_packing",
        "formats",
        "schemes",
        "sparse_choice",
    },
    "fusion": {"_progress", "nn"},
    "pruning": {"_check", "calibration", "formats", "svd"},
    "folding": {"nn"},
    "packed_names": {"nn"},
    "selection": {"_check", "folding", "nn"},
    "placing": {"folding", "nn", "selection"},
    "_ops_calibration": {"_C", "_check"},
    "calibration": {
        "_check",
        "_ops_calibration",
        "_progress",
        "cpu",
        "folding",
        "formats",
        "nn",
        "svd",
    },
    "quantization": {
        "_check",
        "_ops_calibration",
        "_ops_packing",
        "calibration",
        "folding",
        "formats",
        "nn",
        "schemes",
        "svd",
    },
    "factorization": {
        "_check",
        "_progress",
        "calibration",
        "folding",
        "formats",
        "nn",
        "placing",
        "selection",
        "svd",
    },
    "distillation": {"_check", "_progress", "calibration", "folding", "formats", "nn", "placing"},
    "recipe": {
        "_check",
        "factorization",
        "formats",
        "pruning",
        "quantization",
        "schemes",
        "sparse_choice",
    },
    "correcting": {"factorization", "folding", "nn", "recipe", "schemes", "selection"},
    "fits": set(),
    "checkpoint": {
        "_check",
        "_progress",
        "factorization",
        "fits",
        "formats",
        "fusion",
        "nn",
        "placing",
        "selection",
    },
    "loading": {"checkpoint", "interop"},
    "interop": {
        "_check",
        "_progress",
        "checkpoint",
        "formats",
        "nn",
        "packed_names",
        "placing",
        "schemes",
    },
    "recipe_yaml": set(),
    "recipe_files": {
        "_check",
        "factorization",
        "pruning",
        "quantization",
        "recipe",
        "recipe_yaml",
        "schemes",
        "sparse_choice",
    },
    "decisions": {
        "_check",
        "folding",
        "nn",
        "placing",
        "recipe",
        "recipe_files",
        "replacing",
        "schemes",
        "selection",
        "sparse_choice",
    },
    "preview": {
        "decisions",
        "fitting",
        "folding",
        "recipe",
        "reporting",
        "schemes",
        "selection",
        "sparse_choice",
    },
    "fitting_layers": {
        "calibration",
        "correcting",
        "fits",
        "folding",
        "formats",
        "placing",
        "quantization",
        "recipe",
        "replacing",
        "schemes",
        "selection",
    },
    "resuming": {
        "calibration",
        "checkpoint",
        "factorization",
        "fits",
        "fitting_layers",
        "selection",
    },
    "fitting": {
        "_progress",
        "calibration",
        "fitting_layers",
        "fits",
        "folding",
        "nn",
        "pruning",
        "recipe",
        "replacing",
        "resuming",
        "selection",
    },
    "replacing": {
        "_progress",
        "correcting",
        "factorization",
        "folding",
        "nn",
        "packed_names",
        "placing",
        "pruning",
        "recipe",
        "selection",
        "sparse_choice",
    },
    "compression": {
        "calibration",
        "decisions",
        "factorization",
        "fits",
        "fitting",
        "fitting_layers",
        "fusion",
        "placing",
        "replacing",
        "resuming",
        "selection",
        "sparse_choice",
    },
    "reporting": {
        "_ops_packing",
        "bench",
        "factorization",
        "fits",
        "fusion",
        "nn",
        "packed_names",
        "selection",
    },
    "__init__": {
        "calibration",
        "checkpoint",
        "compression",
        "cpu",
        "distillation",
        "factorization",
        "formats",
        "interop",
        "kernels",
        "loading",
        "nn",
        "preview",
        "pruning",
        "quantization",
        "reporting",
        "schemes",
        "svd",
    },
}


def sources(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in suffixes)


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), re.MULTILINE)


def internal_imports(path: Path) -> set[str]:
    """First names below ``gossamer`` that a file imports, anywhere in it."""
    here = ("gossamer", *path.relative_to(PACKAGE).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level]) if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*module, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "gossamer" and len(name) > 1}
    return found


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_the_sources_are_there() -> None:
    assert len(sources(CSRC, ".cpp", ".h")) > 10
    assert "_C" in internal_imports(PACKAGE / "_ops.py")
    assert "formats" in internal_imports(PACKAGE / "nn" / "linear.py")


def test_nothing_under_csrc_includes_torch() -> None:
    for path in sources(CSRC, ".cpp", ".h"):
        for name in includes(path):
            assert not re.match(r"(torch|ATen|c10|caffe2)\b", name), f"{path}: {name}"


def test_only_bindings_include_python() -> None:
    seen = 0
    for path in sources(CSRC, ".cpp", ".h"):
        python = [name for name in includes(path) if re.match(r"pybind11|Python\.h|numpy", name)]
        seen += len(python)
        assert not python or "bindings" in path.parts, f"{path}: {python}"
    assert seen


def test_only_bindings_are_included_from_nowhere_else() -> None:
    for path in sources(CSRC, ".cpp", ".h"):
        if "bindings" not in path.parts:
            assert not any("bindings/" in name for name in includes(path)), path


def test_only_parallel_h_knows_openmp() -> None:
    for path in sources(CSRC, ".cpp", ".h"):
        text = path.read_text()
        knows = "omp.h" in includes(path) or re.search(r"#\s*pragma\s+omp", text)
        assert not knows or path.name == "parallel.h", path


def test_data_ptr_is_called_in_ops_only() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in sources(PACKAGE, ".py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "data_ptr"
    }
    assert "_ops.py" in users
    assert all(re.fullmatch(r"_ops(_\w+)?\.py", user) for user in users), users


@pytest.mark.parametrize("layer", ALLOWED)
def test_imports_run_one_way(layer: str) -> None:
    paths = [path for path in sources(PACKAGE, ".py") if layer_of(path) == layer]
    assert paths
    for path in paths:
        assert internal_imports(path) <= ALLOWED[layer] | {layer}, path


def test_no_technique_imports_another() -> None:
    for path in sources(PACKAGE, ".py"):
        if layer_of(path) in TECHNIQUES:
            others = set(TECHNIQUES) - {layer_of(path)}
            assert not internal_imports(path) & others, path


def test_torch_is_imported_before_the_extension() -> None:
    code = (
        "import sys\n"
        "class Spy:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'gossamer._C': print('torch' in sys.modules)\n"
        "sys.meta_path.insert(0, Spy())\n"
        "import gossamer\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["True"], result.stderr


def test_import_is_light() -> None:
    heavy = ("typer", "rich", "matplotlib", "transformers", "scipy", "safetensors", "hypothesis")
    code = (
        "import torch, sys; before = set(sys.modules); import gossamer\n"
        f"print(*[n for n in {heavy} if n in set(sys.modules) - before])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_no_package_bears_the_name_of_a_public_function() -> None:
    import gossamer as gs

    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    functions = {name for name in gs.__all__ if not hasattr(getattr(gs, name), "__path__")}
    assert not packages & functions
