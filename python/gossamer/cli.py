"""The ``gossamer`` command: ``info``, ``bench``, ``compress``, ``report``."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch

import gossamer as gs
from gossamer.checkpoint import save
from gossamer.loading import load
from gossamer.recipe_files import TextCalibration, load_recipe

try:
    import typer

    from gossamer.bench import commands, terminal
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
    out_dir: Annotated[
        Path | None, typer.Argument(help="Folder to write, new or empty; not with --dry-run.")
    ] = None,
    scheme: Annotated[
        str, typer.Option(help="How weights are stored: int8, int4, sparse-int8, nf4, fp8, ...")
    ] = "int8",
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale, such as 32, 64 or 128.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="How they are rounded: rtn, hqq, gptq, autoround, awq,gptq, ...")
    ] = "rtn",
    recipe: Annotated[
        str | None,
        typer.Option(help="Instead of all that: fast, balanced, smallest, or a YAML file."),
    ] = None,
    targets: Annotated[
        list[str] | None, typer.Option(help="Only these modules: globs or re:...")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Not these modules.")] = None,
    prune: Annotated[
        float | None, typer.Option(help="First set this share of the weights to zero, 0 to 1.")
    ] = None,
    prune_method: Annotated[
        str, typer.Option(help="Which: magnitude, wanda or sparsegpt.")
    ] = "magnitude",
    scope: Annotated[
        str | None, typer.Option(help="Where --prune looks for them: global, layer or row.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Prune in a pattern: 2:4 (without --prune), 1x4, 16x1, ...")
    ] = None,
    low_rank: Annotated[
        int | None, typer.Option(help="Correct linear layers by factors of this rank, such as 32.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A text file in UTF-8, to calibrate with.")
    ] = None,
    windows: Annotated[int | None, typer.Option(help="Pieces of it, if not given 128.")] = None,
    tokens: Annotated[int | None, typer.Option(help="In each piece, if not given 512.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder to keep finished blocks in, and to go on from.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be done.")] = False,
) -> None:
    r"""Compress a transformers model and save it: safetensors and a JSON manifest, no pickle.

    To load it again: model = gs.load("OUT_DIR")
    """
    steps: Any = recipe
    if recipe is None:
        rounding = tuple(name.strip() for name in method.split(","))
        pruned = prune is not None or pattern is not None
        steps = [gs.Prune(prune, scope, pattern, prune_method)] if pruned else []
        steps.append(gs.Quantize(scheme, group_size=group_size, method=rounding))
        steps += [gs.LowRankCorrection(low_rank)] if low_rank is not None else []
    if not (model_dir / "config.json").is_file():
        fail(f"compress: {model_dir}: no config.json there; a transformers model folder is wanted")
    if not dry_run and out_dir is None:
        fail("compress: OUT_DIR is missing: the folder to write")
    if out_dir and out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        fail(f"compress: {out_dir} is not empty; a new folder is wanted")
    calibration = _text_calibration(recipe, text, windows, tokens)
    with terminal.console.status(f"loading {model_dir.name}"):
        model = _load_model(model_dir)
    if dry_run or out_dir is None:
        found = gs.preview(model, steps, targets, ignore)
        terminal.console.print(str(found), markup=False, highlight=False, soft_wrap=True)
        return
    gs.compress(
        model,
        steps,
        targets,
        ignore,
        calibration=_batches(model_dir, calibration),
        resume=resume,
    )
    terminal.console.print(str(gs.report(model)), markup=False, highlight=False, soft_wrap=True)
    with terminal.console.status(f"saving {out_dir.name}"):
        save(model, out_dir, source=model_dir)


def _text_calibration(
    recipe: str | None, text: Path | None, windows: int | None, tokens: int | None
) -> TextCalibration:
    """What the recipe says of it, where the options say nothing."""
    found = (load_recipe(recipe).calibration if recipe else None) or TextCalibration()
    given: dict[str, Any] = {"text": text and str(text), "windows": windows, "tokens": tokens}
    return replace(found, **{name: value for name, value in given.items() if value is not None})


def _batches(model_dir: Path, calibration: TextCalibration) -> list[torch.Tensor] | None:
    """Windows of the text, if there is one."""
    if calibration.text is None:
        return None
    transformers = _require("transformers", "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    return gs.text_batches(
        Path(calibration.text),
        tokenizer,
        windows=calibration.windows,
        tokens=calibration.tokens,
        seed=calibration.seed,
    )


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(help="What compress wrote, or GPTQ, AWQ, compressed-tensors, GGUF.")
    ],
) -> None:
    """Check that a saved model loads, and list its layers: format, bytes, error."""
    with terminal.console.status(f"loading {folder.name}"):
        model = load(folder)
    terminal.console.print(str(gs.report(model)), markup=False, highlight=False, soft_wrap=True)


def _load_model(folder: Path) -> torch.nn.Module:
    """Load ``folder`` as the class that its config names."""
    transformers = _require("transformers", "hf")
    architectures = transformers.AutoConfig.from_pretrained(folder).architectures or ["AutoModel"]
    model_class = getattr(transformers, architectures[0], None)
    if model_class is None:
        raise ValueError(f"compress: {folder}: transformers has no class {architectures[0]}")
    model: torch.nn.Module = model_class.from_pretrained(folder)
    return model.eval()


def _require(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"{module} is not installed: pip install 'gossamer[{extra}]'") from error
