"""``gossamer bench``: ``linear``, ``sparse``, ``conv``, ``model``, ``accuracy`` and the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer

from gossamer.bench import lowrank_commands, quality_commands, terminal
from gossamer.bench.results import Results, Row
from gossamer.bench.terminal import print_table, progress

app = typer.Typer(
    help="Time gossamer against dense layers and other libraries.", no_args_is_help=True
)

Number = TypeVar("Number", int, float)
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


@app.command("sparse")
def bench_sparse(
    cases: Annotated[
        Path | None, typer.Option(help="Cases from a TOML file.", dir_okay=False, exists=True)
    ] = None,
    only: Annotated[str, typer.Option(help="Of the file, cases whose names match.")] = "*",
    shapes: Annotated[str, typer.Option(help="Layers, N x K.")] = "4096x4096",
    m: Annotated[str, typer.Option("--m", help="Numbers of rows (tokens).")] = "1,16,256",
    sparsity: Annotated[str, typer.Option(help="Shares of zeros.")] = "0,0.5,0.7,0.8,0.9,0.95",
    mask: Annotated[
        str, typer.Option(help="uniform, uneven-rows, dense-rows, n:m, RxC (block).")
    ] = "uniform",
    contenders: Annotated[
        str, typer.Option(help="Formats and peers; the dense layers join by themselves.")
    ] = "sparse-int8,sparse-int4,sparse-bf16,sparse-fp32,torch-csr",
    isa: Annotated[str, typer.Option(help="Hold gossamer to it; avx2: torch too.")] = "",
    cold: Annotated[
        float, typer.Option(help="Go round that many GiB of layers, 0: a warm one.", min=0)
    ] = 0.0,
    deepsparse: Annotated[
        str | None,
        typer.Option(help="A Python that has DeepSparse.", envvar="GOSSAMER_DEEPSPARSE"),
    ] = None,
    threads: Threads = None,
    rounds: Rounds = 9,
    json_path: JsonPath = None,
    resume: Annotated[
        bool, typer.Option(help="Leave out cases that the --json file already holds.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG of the break-even curves.")] = None,
) -> None:
    """Time layers with zeros in their weight: sparsity x M x format, against dense and peers.

    Speed-ups are over the dense layer of the same value type: int8, int4 and bf16 of ours, and
    torch-fp32. Contenders: sparse-int8, sparse-int4, sparse-bf16, sparse-fp32; these with
    "compressed-" before them, as compress() decides, which may keep the layer dense, or with
    "/gemv", "/expand" or "/spmm" after them, which forces how they multiply; torch-csr
    (int32 indices), torch-bf16, any scheme; deepsparse-fp32 and deepsparse-int8, where --deepsparse
    says which Python has it. The --json file is written after every case.
    """
    from gossamer.bench import results, sparse, sparse_cases
    from gossamer.bench.sparse_tables import goal_line, judge, tables

    if cases:
        chosen = sparse_cases.read_cases(cases, only)
    else:
        chosen = [
            sparse_cases.Case(
                "sweep",
                sparse_cases.parse_shapes(_split(shapes)),
                tuple(_numbers("--m", m, int)),
                tuple(_numbers("--sparsity", sparsity, float)),
                tuple(_split(contenders)),
                masks=tuple(_split(mask)),
                isa=isa,
                cold_gib=cold,
            )
        ]
    if resume and json_path is None:
        raise ValueError("bench sparse: --resume wants --json, the file to go on with")
    held = json_path if resume and json_path and json_path.exists() else None
    count = threads or torch.get_num_threads()
    with progress() as on_progress:
        measured = sparse.run_sparse(
            chosen,
            sparse.Settings(count, rounds, deepsparse_python=deepsparse),
            before=results.read(held) if held else None,
            on_case=partial(results.write, json_path) if json_path else None,
            on_progress=on_progress,
        )
    _print_facts(measured)
    for table in tables(measured.rows):
        print_table(table.title, table.header, table.lines, table.below)
    for case in chosen:
        for verdict in judge(case, measured):
            terminal.console.print(goal_line(verdict), highlight=False, soft_wrap=True)
    if plot:
        from gossamer.bench.sparse_plot import plot_break_even

        plot_break_even(plot, measured.rows)


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
    pruned: Annotated[
        str, typer.Option(help="Also with that many percent of zeros: 50, 80 or both.")
    ] = "",
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
            variants=usual_names(
                _split(schemes),
                compiled=compiled,
                unfused=unfused,
                percents=_numbers("--pruned", pruned, int),
            ),
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


app.command("svd")(lowrank_commands.bench_svd)
app.command("lowrank")(lowrank_commands.bench_lowrank)
app.command("quality-lowrank")(lowrank_commands.bench_quality_lowrank)
app.command("quality")(quality_commands.bench_quality)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in _split(text)]
    except ValueError as error:
        raise ValueError(f"bench sparse: {option}: got {text!r}, wanted numbers") from error


def _print_layers(measured: Results, kind: str) -> None:
    """One table for every layer and number of rows or images."""
    _print_facts(measured)
    tables: dict[str, list[Row]] = {}
    for row in measured.rows:
        if row["kind"] == kind:
            tables.setdefault(_title(row), []).append(row)
    for title, rows in tables.items():
        _print_layer(title, rows)


def _print_facts(measured: Results) -> None:
    env = measured.environment
    facts = f"{env['cpu']}, {env['threads']} threads, {env['isa']}, torch {env['torch']}"
    terminal.console.print(facts)


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
