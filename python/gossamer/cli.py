"""The ``gossamer`` command: ``info``, ``bench linear``, ``bench model``, ``compress``."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch

try:
    import rich.console
    import rich.progress
    import rich.table
    import typer
except ImportError as error:
    raise SystemExit(
        f"gossamer: the command line needs {error.name}: pip install 'gossamer[cli]'"
    ) from error

import gossamer as gs
from gossamer.bench.results import Results, Row

app = typer.Typer(
    help="Light torch models that really run faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(
    help="Time gossamer against dense layers and other libraries.", no_args_is_help=True
)
app.add_typer(bench, name="bench")

console = rich.console.Console()
error_console = rich.console.Console(stderr=True)

Threads = Annotated[
    int | None,
    typer.Option(help="Threads of every contender (if not given, as many as torch has).", min=1),
]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Also write JSON lines here.")]


def main() -> None:
    """Run the command line; what a user can cause is told in one line, without a traceback."""
    try:
        app()
    except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the command with ``message`` on standard error."""
    error_console.print(f"error: {message}", style="red", markup=False, highlight=False)
    raise SystemExit(1)


@app.command()
def info(
    roofline: Annotated[
        bool, typer.Option(help="Also measure peaks and bandwidth: a few seconds.")
    ] = False,
) -> None:
    """Show the processor, the instruction sets found and the one in use."""
    console.print(gs.cpu.show(), markup=False, highlight=False)
    if roofline:
        with console.status("measuring"):
            measured = gs.cpu.roofline()
        console.print(str(measured), markup=False, highlight=False)


@bench.command("linear")
def bench_linear(
    shapes: Annotated[str, typer.Option(help="Layers, N x K.")] = "4096x4096,3072x768",
    m: Annotated[str, typer.Option("--m", help="Numbers of rows (tokens).")] = "1,16,256",
    cases: Annotated[
        Path | None, typer.Option(help="Layers from a TOML file instead.", dir_okay=False)
    ] = None,
    threads: Threads = None,
    isa: Annotated[
        str, typer.Option(help="Also gossamer held to these, e.g. avx2,avx512vnni.")
    ] = "",
    peers: Annotated[
        str, typer.Option(help="Only these contenders, besides torch-fp32, e.g. gossamer-int8.")
    ] = "",
    rounds: Annotated[int, typer.Option(help="Samples of every figure.", min=1)] = 9,
    json_path: JsonPath = None,
    self_check: Annotated[
        bool, typer.Option(help="Time a contender against itself instead.")
    ] = False,
) -> None:
    """Time one linear layer: error and share of the roof beside every speed.

    Speed-ups are over torch-fp32. Contenders: torch-fp32, torch-bf16, torch-dynamic-x86,
    torch-dynamic-onednn, onnxruntime-int8, openvino-int8, torchao-int8, gossamer-int8,
    gossamer-int8-bf16; and on request torch-fp32-avx2, which is held to AVX2.
    """
    from gossamer.bench import harness, linear, results

    count = threads or torch.get_num_threads()
    if self_check:
        with _progress() as on_progress:
            check = harness.check_harness(threads=count, rounds=rounds, on_progress=on_progress)
        console.print(f"A/A ratio {check.ratio:.3f}, 95 % within {check.low:.3f}-{check.high:.3f}")
        return
    layers = linear.read_layers(cases) if cases else linear.parse_shapes(shapes, m)
    with _progress() as on_progress:
        measured = linear.run_linear(
            layers,
            threads=count,
            peers=_split(peers),
            isas=_split(isa),
            rounds=rounds,
            on_progress=on_progress,
        )
    _print_linear(measured)
    if json_path:
        results.write(json_path, measured)


@bench.command("model")
def bench_model(
    model: Annotated[str, typer.Argument(help="minilm or smollm2.")] = "minilm",
    threads: Threads = None,
    compiled: Annotated[
        bool, typer.Option(help="Also dense bf16 under torch.compile: a minute more.")
    ] = False,
    json_path: JsonPath = None,
) -> None:
    """Compress a real model: size, quality and latency against dense FP32 and bf16."""
    from gossamer.bench.model import narrow_tables, run_model_benchmark

    with _progress() as on_progress:
        rows = run_model_benchmark(
            model,
            threads or torch.get_num_threads(),
            json_path,
            compiled=compiled,
            on_progress=on_progress,
        )
    for title, header, lines in narrow_tables(rows):
        shown = rich.table.Table(title=f"{model}: {title}", title_justify="left")
        for number, heading in enumerate(header):
            shown.add_column(heading, justify="right" if number else "left", no_wrap=not number)
        for line in lines:
            shown.add_row(*line)
        console.print(shown)


@app.command()
def compress(
    model_dir: Annotated[Path, typer.Argument(help="A transformers model folder.")],
    out_dir: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    scheme: Annotated[str, typer.Option(help="How weights are stored.")] = "int8",
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale: 32, 64 or 128.")
    ] = None,
    targets: Annotated[
        list[str] | None, typer.Option(help="Only these modules: globs or re:...")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Not these modules.")] = None,
) -> None:
    r"""Compress a transformers model and save it: safetensors and a JSON manifest, no pickle.

    To load it again:

        out = Path("OUT_DIR"); manifest = json.loads((out / "gossamer.json").read_text())
        config = transformers.AutoConfig.from_pretrained(out)
        model = getattr(transformers, manifest["architecture"])(config).eval()
        recipe = gs.Quantize(manifest["scheme"], group_size=manifest["group_size"])
        gs.compress(model, recipe, targets=manifest["layers"])
        safetensors.torch.load_model(model, out / "model.safetensors")
    """
    if not (model_dir / "config.json").is_file():
        fail(f"compress: {model_dir}: no config.json there; a transformers model folder is wanted")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        fail(f"compress: {out_dir} is not empty; a new folder is wanted")
    with console.status(f"loading {model_dir.name}"):
        model = _load_model(model_dir)
    with console.status("compressing"):
        gs.compress(
            model, gs.Quantize(scheme, group_size=group_size), targets=targets, ignore=ignore
        )
    console.print(str(gs.report(model)), markup=False, highlight=False, soft_wrap=True)
    with console.status(f"saving {out_dir.name}"):
        _save_model(model, model_dir, out_dir, scheme, group_size)


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
    model: torch.nn.Module, source: Path, out_dir: Path, scheme: str, group_size: int | None
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
        "scheme": scheme,
        "group_size": group_size,
        "layers": [n for n, module in model.named_modules() if isinstance(module, gs.nn.Linear)],
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


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=error_console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def on_progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield on_progress


def _print_linear(measured: Results) -> None:
    """One table for every layer and M."""
    env = measured.environment
    console.print(f"{env['cpu']}, {env['threads']} threads, {env['isa']}, torch {env['torch']}")
    tables: dict[tuple[str, int, int, int], list[Row]] = {}
    for row in measured.rows:
        if row["kind"] == "linear":
            key = (row["layer"], row["N"], row["K"], row["M"])
            tables.setdefault(key, []).append(row)
    for (name, N, K, M), rows in tables.items():
        console.print(_linear_table(f"{name} N={N} K={K} M={M}".strip(), rows))


def _linear_table(title: str, rows: Sequence[Row]) -> rich.table.Table:
    absent = [f"{row['contender']}: {row['failure']}" for row in rows if row["failure"]]
    table = rich.table.Table(
        title=title, title_justify="left", caption="\n".join(absent), caption_justify="left"
    )
    table.add_column("contender")
    for heading in ("ms", "spread", "speed-up", "error", "GOP/s", "of the roof"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row["failure"]:
            continue
        table.add_row(
            row["contender"],
            f"{row['ms']:.4g}",
            f"{row['spread']:.0%}" + (" noisy" if row["noisy"] else ""),
            f"{row['speedup']:.2f}x",
            f"{row['error']:.1e}",
            f"{row['gops']:.0f}",
            f"{row['roof_share']:.0%} {row['roof']}",
        )
    return table
