"""``gossamer bench quality``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from gossamer.bench import results, terminal
from gossamer.bench.lowrank_commands import JsonPath, Threads


def bench_quality(
    models: Annotated[
        str, typer.Option(help="smollm2, minilm, byte-lm, digits-cnn, or several.")
    ] = "smollm2",
    only: Annotated[
        list[str] | None,
        typer.Option(help='Methods by full name, such as "int4-g64: *"; may be repeated.'),
    ] = None,
    threads: Threads = None,
    windows: Annotated[int, typer.Option(help="Windows of 512 tokens to judge by.", min=1)] = 48,
    calibration: Annotated[
        int, typer.Option(help="Windows of 512 tokens to calibrate with.", min=1)
    ] = 128,
    json_path: JsonPath = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw quality against bytes into this PNG file.")
    ] = None,
) -> None:
    """Compress models by every method, ours and those of installed libraries, and judge them.

    Rows that the --json file holds for the same settings are not computed again.
    """
    from gossamer.bench import methods_quality, methods_tables

    settings = methods_quality.QualitySettings(
        threads or torch.get_num_threads(),
        windows,
        calibration,
        tuple(name.strip() for name in models.split(",") if name.strip()),
        tuple(only or ()),
    )
    with terminal.progress() as on_progress:
        measured = methods_quality.run_quality(
            settings,
            before=results.read(json_path) if json_path and json_path.exists() else None,
            on_row=partial(results.write, json_path) if json_path else None,
            on_progress=on_progress,
        )
    for table in methods_tables.tables(measured.rows):
        terminal.print_table(table.title, table.header, table.lines)
    if plot:
        methods_tables.plot_front(plot, measured.rows, settings.subjects[0])
