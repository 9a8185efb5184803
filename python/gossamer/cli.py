"""The ``gossamer`` command: ``info``, ``bench``, ``compress``."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch

import gossamer as gs

try:
    import typer

    from gossamer.bench import commands, terminal
    from gossamer.packed_names import sparse_layers
except ImportError as error:
    raise SystemExit(
        f"gossamer: the command line needs {error.name}: pip install 'gossamer[cli]'"
    ) from error

app = typer.Typer(
    help="Light torch models that really run faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(commands.app, name="bench")


def main() -> None:
    """Run the command line; what a user can cause is told in one line, without a traceback."""
    try:
        app()
    except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the command with ``message`` on standard error."""
    terminal.error_console.print(f"error: {message}", style="red", markup=False, highlight=False)
    raise SystemExit(1)


@app.command()
def info(
    roofline: Annotated[
        bool, typer.Option(help="Also measure peaks and bandwidth: a few seconds.")
    ] = False,
) -> None:
    """Show the processor, the instruction sets found and the one in use."""
    terminal.console.print(gs.cpu.show(), markup=False, highlight=False)
    if roofline:
        with terminal.console.status("measuring"):
            measured = gs.cpu.roofline()
        terminal.console.print(str(measured), markup=False, highlight=False)


@app.command()
def compress(
    model_dir: Annotated[Path, typer.Argument(help="A transformers model folder.")],
    out_dir: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    scheme: Annotated[
        str, typer.Option(help="How weights are stored: int8, int4, sparse-int8, nf4, fp8, ...")
    ] = "int8",
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale, such as 32, 64 or 128.")
    ] = None,
    targets: Annotated[
        list[str] | None, typer.Option(help="Only these modules: globs or re:...")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Not these modules.")] = None,
    prune: Annotated[
        float | None, typer.Option(help="First set this share of the weights to zero, 0 to 1.")
    ] = None,
    scope: Annotated[
        str, typer.Option(help="Where --prune looks for the smallest: global, layer or row.")
    ] = "global",
    pattern: Annotated[
        str | None, typer.Option(help="Prune in a pattern: 2:4 (without --prune), 1x4, 16x1, ...")
    ] = None,
    low_rank: Annotated[
        int | None, typer.Option(help="Correct linear layers by factors of this rank, such as 32.")
    ] = None,
) -> None:
    r"""Compress a transformers model and save it: safetensors and a JSON manifest, no pickle.

    To load it again:

        out = Path("OUT_DIR"); manifest = json.loads((out / "gossamer.json").read_text())
        config = transformers.AutoConfig.from_pretrained(out)
        model = getattr(transformers, manifest["architecture"])(config).eval()
        rank, group_size = manifest["low_rank"], manifest["group_size"]
        correction = [gs.LowRankCorrection(rank)] if rank else []
        if manifest["sparse"]:
            sparse = gs.Quantize(manifest["sparse_scheme"], group_size)
            gs.compress(model, [sparse, *correction], targets=manifest["sparse"])
        recipe = [gs.Quantize(manifest["scheme"], group_size), *correction]
        gs.compress(model, recipe, targets=manifest["targets"], ignore=manifest["ignore"])
        safetensors.torch.load_model(model, out / "model.safetensors")
    """
    quantize = gs.Quantize(scheme, group_size=group_size)
    pruned = prune is not None or pattern is not None
    steps = [gs.Prune(prune, scope, pattern)] if pruned else []
    correction = [gs.LowRankCorrection(low_rank)] if low_rank is not None else []
    if not (model_dir / "config.json").is_file():
        fail(f"compress: {model_dir}: no config.json there; a transformers model folder is wanted")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        fail(f"compress: {out_dir} is not empty; a new folder is wanted")
    with terminal.console.status(f"loading {model_dir.name}"):
        model = _load_model(model_dir)
    with terminal.console.status("compressing"):
        gs.compress(model, [*steps, quantize, *correction], targets=targets, ignore=ignore)
    terminal.console.print(str(gs.report(model)), markup=False, highlight=False, soft_wrap=True)
    with terminal.console.status(f"saving {out_dir.name}"):
        manifest = {
            "scheme": scheme,
            "group_size": group_size,
            "low_rank": low_rank,
            "targets": targets,
            "ignore": ignore,
        }
        sparse = sparse_layers(model)
        sparse_scheme = f"sparse-{scheme.removeprefix('sparse-')}" if sparse else None
        manifest |= {"sparse_scheme": sparse_scheme, "sparse": sparse}
        _save_model(model, model_dir, out_dir, manifest)


def _load_model(folder: Path) -> torch.nn.Module:
    """Load ``folder`` as the class that its config names."""
    transformers = _require("transformers", "hf")
    architectures = transformers.AutoConfig.from_pretrained(folder).architectures or ["AutoModel"]
    model_class = getattr(transformers, architectures[0], None)
    if model_class is None:
        raise ValueError(f"compress: {folder}: transformers has no class {architectures[0]}")
    model: torch.nn.Module = model_class.from_pretrained(folder)
    return model.eval()


def _save_model(
    model: torch.nn.Module, source: Path, out_dir: Path, recipe: dict[str, Any]
) -> None:
    """Weights, manifest and the small files of ``source``; the folder appears when complete."""
    import safetensors.torch

    partial = out_dir.with_name(f".{out_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".txt", ".model") and ".index." not in file.name:
            shutil.copy(file, partial)
    # save_model keeps tied tensors once and load_model ties them again.
    safetensors.torch.save_model(model, str(partial / "model.safetensors"))
    manifest = {
        "gossamer": gs.__version__,
        "architecture": type(model).__name__,
        **recipe,
    }
    (partial / "gossamer.json").write_text(json.dumps(manifest, indent=1) + "\n")
    if out_dir.exists():
        out_dir.rmdir()
    partial.replace(out_dir)


def _require(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"{module} is not installed: pip install 'gossamer[{extra}]'") from error
