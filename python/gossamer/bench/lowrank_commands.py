"""``gossamer bench svd``, ``lowrank`` and ``quality-lowrank``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from gossamer.bench import results, terminal
from gossamer.bench.interleaved import Settings
from gossamer.bench.results import Results
from gossamer.bench.sparse_tables import Table

Cases = Annotated[
    Path, typer.Option(help="Cases from this TOML file.", dir_okay=False, exists=True)
]
Only = Annotated[str, typer.Option(help="Of the file, cases whose names match this glob.")]
Threads = Annotated[
    int | None, typer.Option(help="Threads (if not given, as many as torch has).", min=1)
]
Rounds = Annotated[int, typer.Option(help="Samples of every figure.", min=1)]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Also write JSON lines here.")]
Resume = Annotated[bool, typer.Option(help="Leave out cases that the --json file already holds.")]


def bench_svd(
    cases: Cases = Path("bench/svd_cases.toml"),
    only: Only = "*",
    threads: Threads = None,
    rounds: Rounds = 9,
    json_path: JsonPath = None,
    resume: Resume = False,
) -> None:
    """Time truncated SVD against torch, sklearn and LAPACK at equal measured error.

    The matrices have known singular values, so the smallest error that a rank allows is known; the
    excess over it stands beside every time. Peers whose error is no worse than what the case wants,
    or than ours, count as of equal error, and the fastest of them is what ours is compared with.
    """
    from gossamer.bench import svd, svd_cases, svd_tables

    chosen = svd_cases.read_svd_cases(cases, only)
    before = _before("svd", json_path, resume)
    with terminal.progress() as on_progress:
        measured = svd.run_svd(
            chosen,
            Settings(threads or torch.get_num_threads(), rounds),
            before=before,
            on_case=_writer(json_path),
            on_progress=on_progress,
        )
    _show_tables([*svd_tables.tables(measured.rows), svd_tables.summary(measured.rows)])
    _show_goals(line for case in chosen for line in svd_tables.goal_lines(case, measured.rows))


def bench_lowrank(
    cases: Cases = Path("bench/lowrank_cases.toml"),
    only: Only = "*",
    threads: Threads = None,
    rounds: Rounds = 9,
    json_path: JsonPath = None,
    resume: Resume = False,
) -> None:
    """Time low-rank layers, layers with a low-rank correction, and the fits of corrections.

    Speed-ups are over the first contender of a case; the error is that against the float64 product
    with the dense weight.
    """
    from gossamer.bench import lowrank, lowrank_cases, lowrank_tables

    chosen = lowrank_cases.read_lowrank_cases(cases, only)
    before = _before("lowrank", json_path, resume)
    with terminal.progress() as on_progress:
        measured = lowrank.run_lowrank(
            chosen,
            Settings(threads or torch.get_num_threads(), rounds),
            before=before,
            on_case=_writer(json_path),
            on_progress=on_progress,
        )
    _show_tables(lowrank_tables.tables(measured.rows))
    _show_goals(line for case in chosen for line in lowrank_tables.goal_lines(case, measured.rows))


def bench_quality_lowrank(
    models: Annotated[str, typer.Option(help="smollm2, minilm or both.")] = "smollm2,minilm",
    threads: Threads = None,
    windows: Annotated[int, typer.Option(help="Windows of 512 tokens for perplexity.", min=1)] = 16,
    calibration: Annotated[
        int, typer.Option(help="Windows of 512 tokens to calibrate with.", min=1)
    ] = 32,
    seed: Annotated[int, typer.Option(help="Which calibration windows are drawn.")] = 0,
    json_path: JsonPath = None,
) -> None:
    """Judge real models with low-rank corrections and factorized, data-free and activation-aware.

    Rows that the --json file holds for the same settings are not computed again.
    """
    from gossamer.bench import lowrank_quality, lowrank_quality_tables

    settings = lowrank_quality.QualitySettings(
        threads or torch.get_num_threads(),
        windows,
        calibration,
        seed,
        tuple(name.strip() for name in models.split(",") if name.strip()),
    )
    with terminal.progress() as on_progress:
        measured = lowrank_quality.run_quality(
            settings,
            before=results.read(json_path) if json_path and json_path.exists() else None,
            on_row=_writer(json_path),
            on_progress=on_progress,
        )
    header, lines = lowrank_quality_tables.table(measured.rows)
    terminal.print_table("quality", header, lines, lowrank_quality_tables.below(measured.rows))


def _before(command: str, json_path: Path | None, resume: bool) -> Results | None:
    if resume and json_path is None:
        raise ValueError(f"bench {command}: --resume wants --json, the file to go on with")
    return results.read(json_path) if resume and json_path and json_path.exists() else None


def _writer(json_path: Path | None) -> partial[None] | None:
    return partial(results.write, json_path) if json_path else None


def _show_tables(tables: Sequence[Table]) -> None:
    for table in tables:
        terminal.print_table(table.title, table.header, table.lines, table.below)


def _show_goals(lines: Iterable[str]) -> None:
    for line in lines:
        terminal.console.print(line, highlight=False, soft_wrap=True)
