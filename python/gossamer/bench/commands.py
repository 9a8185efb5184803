"""``gossamer bench``: ``linear``, ``conv``, ``model``, ``accuracy``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from gossamer.bench import terminal
from gossamer.bench.results import Results, Row
from gossamer.bench.terminal import print_table, progress

app = typer.Typer(
    help="Time gossamer against dense layers and other libraries.", no_args_is_help=True
)

Threads = Annotated[
    int | None,
    typer.Option(help="Threads of every contender (if not given, as many as torch has).", min=1),
]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Also write JSON lines here.")]
Rounds = Annotated[int, typer.Option(help="Samples of every figure.", min=1)]
Schemes = Annotated[str, typer.Option(help="gossamer with these schemes, e.g. int8,int4,nf4.")]
Windows = Annotated[int, typer.Option(help="Windows of 512 tokens for perplexity.", min=1)]


@app.command("linear")
def bench_linear(
    shapes: Annotated[str, typer.Option(help="Layers, N x K.")] = "4096x4096,3072x768",
    m: Annotated[str, typer.Option("--m", help="Numbers of rows (tokens).")] = "1,16,256",
    cases: Annotated[
        Path | None, typer.Option(help="Layers from a TOML file instead.", dir_okay=False)
    ] = None,
    threads: Threads = None,
    schemes: Schemes = "",
    isa: Annotated[
        str, typer.Option(help="Also gossamer held to these, e.g. avx2,avx512vnni.")
    ] = "",
    peers: Annotated[
        str,
        typer.Option(help="Only these contenders, besides torch-fp32, e.g. torch-bf16,*-int4-g32."),
    ] = "",
    rounds: Rounds = 9,
    json_path: JsonPath = None,
    self_check: Annotated[
        bool, typer.Option(help="Time a contender against itself instead.")
    ] = False,
) -> None:
    """Time one linear layer: error and share of the roof beside every speed.

    Speed-ups are over torch-fp32. Contenders: torch-fp32, torch-bf16, torch-dynamic-x86,
    torch-dynamic-onednn, onnxruntime-int8, openvino-int8, torchao-int8, gossamer-int8,
    gossamer-int8-bf16, which has bfloat16 in and out. On request: gossamer-SCHEME and
    gossamer-SCHEME-bf16 for every scheme (--schemes names both); torch-fp32-avx2, which is held to
    AVX2; and int4 in groups of G = 32, 64 or 128: torch-int4-gG, onnxruntime-int4-gG,
    openvino-int4-gG, autoround-int4-gG.
    """
    from gossamer.bench import harness, linear, results

    count = threads or torch.get_num_threads()
    if self_check:
        with progress() as on_progress:
            check = harness.check_harness(threads=count, rounds=rounds, on_progress=on_progress)
        terminal.console.print(
            f"A/A ratio {check.ratio:.3f}, 95 % within {check.low:.3f}-{check.high:.3f}"
        )
        return
    layers = linear.read_layers(cases) if cases else linear.parse_shapes(shapes, m)
    with progress() as on_progress:
        measured = linear.run_linear(
            layers,
            threads=count,
            peers=_split(peers),
            schemes=_split(schemes),
            isas=_split(isa),
            rounds=rounds,
            on_progress=on_progress,
        )
    _print_layers(measured, "linear")
    if json_path:
        results.write(json_path, measured)


@app.command("conv")
def bench_conv(
    batch: Annotated[str, typer.Option(help="Numbers of images.")] = "1,16",
    threads: Threads = None,
    schemes: Schemes = "int8",
    rounds: Rounds = 9,
    json_path: JsonPath = None,
) -> None:
    """Time 2-d convolutions, one of them depthwise: error beside every speed.

    Speed-ups are over torch-fp32-channels-last. Other contenders: torch-fp32 (NCHW),
    torch-bf16-channels-last, torch-static-int8-x86 and torch-static-int8-onednn (uint8 in and out),
    and gossamer in each scheme with float32 and with bfloat16 in and out, channels last.
    """
    from gossamer.bench import conv, results

    batches = _split(batch)
    if not all(text.isdigit() for text in batches):
        raise ValueError(f"bench conv: --batch: got {batch!r}, wanted numbers such as 1,16")
    with progress() as on_progress:
        measured = conv.run_conv(
            threads=threads or torch.get_num_threads(),
            batches=[int(text) for text in batches],
            schemes=_split(schemes),
            rounds=rounds,
            on_progress=on_progress,
        )
    _print_layers(measured, "conv")
    if json_path:
        results.write(json_path, measured)


@app.command("model")
def bench_model(
    model: Annotated[str, typer.Argument(help="minilm or smollm2.")] = "minilm",
    threads: Threads = None,
    schemes: Schemes = "int8",
    unfused: Annotated[
        bool, typer.Option(help="Also compressed without fusing layers: as long again.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option(help="Also dense bf16 under torch.compile: a minute more.")
    ] = False,
    rounds: Rounds = 9,
    windows: Windows = 48,
    json_path: JsonPath = None,
) -> None:
    """Compress a real model: size, quality and latency against dense FP32 and bf16."""
    from gossamer.bench.model import narrow_tables, run_model_benchmark
    from gossamer.bench.variants import usual_names

    with progress() as on_progress:
        rows = run_model_benchmark(
            model,
            threads or torch.get_num_threads(),
            json_path,
            variants=usual_names(_split(schemes), compiled=compiled, unfused=unfused),
            rounds=rounds,
            windows=windows,
            on_progress=on_progress,
        )
    for title, header, lines in narrow_tables(rows):
        print_table(f"{model}: {title}", header, lines)


@app.command("accuracy")
def bench_accuracy(
    schemes: Annotated[
        str, typer.Option(help="These schemes, e.g. int4,nf4; if not given, a dozen.")
    ] = "",
    models: Annotated[
        str, typer.Option(help="Real models to look at and to judge; none for drawn weights only.")
    ] = "minilm,smollm2",
    threads: Threads = None,
    windows: Windows = 48,
    json_path: JsonPath = None,
) -> None:
    """Measure what each scheme costs: errors of layers beside theory, quality of models."""
    from gossamer.bench import accuracy, results

    with progress() as on_progress:
        measured = accuracy.run_accuracy(
            _split(schemes),
            threads=threads or torch.get_num_threads(),
            subjects=[] if models == "none" else _split(models),
            windows=windows,
            on_progress=on_progress,
        )
    print_table("errors: of the stored weight / of the layer", *accuracy.error_table(measured.rows))
    if any(row["kind"] == "quality" for row in measured.rows):
        print_table("quality", *accuracy.quality_table(measured.rows))
    if json_path:
        results.write(json_path, measured)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _print_layers(measured: Results, kind: str) -> None:
    """One table for every layer and number of rows or images."""
    env = measured.environment
    facts = f"{env['cpu']}, {env['threads']} threads, {env['isa']}, torch {env['torch']}"
    terminal.console.print(facts)
    tables: dict[str, list[Row]] = {}
    for row in measured.rows:
        if row["kind"] == kind:
            tables.setdefault(_title(row), []).append(row)
    for title, rows in tables.items():
        _print_layer(title, rows)


def _title(row: Row) -> str:
    if row["kind"] == "conv":
        return f"{row['layer']}, batch {row['batch']}"
    return f"{row['layer']} N={row['N']} K={row['K']} M={row['M']}".strip()


def _print_layer(title: str, rows: Sequence[Row]) -> None:
    header = ["contender", "ms", "spread", "speed-up", "error", "GOP/s", "of the roof"]
    lines = [_layer_cells(row) for row in rows if not row["failure"]]
    absent = [f"{row['contender']}: {row['failure']}" for row in rows if row["failure"]]
    print_table(title, header, lines, "\n".join(absent))


def _layer_cells(row: Row) -> list[str]:
    share = row["roof_share"]
    return [
        row["contender"],
        f"{row['ms']:.4g}",
        f"{row['spread']:.0%}" + (" noisy" if row["noisy"] else ""),
        f"{row['speedup']:.2f}x",
        f"{row['error']:.1e}",
        f"{row['gops']:.0f}",
        "-" if share is None else f"{share:.0%} {row.get('roof', '')}".strip(),
    ]
