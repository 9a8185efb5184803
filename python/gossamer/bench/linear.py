"""``gossamer bench linear``: one linear layer, y = x Wᵀ, by gossamer and by everyone else.

Beside every time stand the error against float64, the speed-up over torch FP32 and the share of
the roof, all from one run. Rows that lose stay.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer.bench import environment, harness
from gossamer.bench.harness import Contender, Progress, Timing
from gossamer.bench.peers import BASELINE, GOSSAMER, PEERS, Peer
from gossamer.bench.peers.peer import Array
from gossamer.bench.results import Results, Row
from gossamer.bench.roof import Roof, measure_roof


@dataclass(frozen=True)
class Layer:
    """A linear layer to time: N out_features, K in_features, and the numbers of rows M.

    ``isas`` adds gossamer held to each of them; ``peers``, when given, replaces the usual ones.
    """

    N: int
    K: int
    M: tuple[int, ...]
    name: str = ""
    source: str = ""
    isas: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = (self.N, self.K, *self.M)
        if not self.M or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(f"Layer: N, K, M: positive integers are wanted, got {sizes}")


@dataclass(frozen=True)
class Entrant:
    """A peer that is to run, held to ``isa`` if that is given; or ``absent``, for that reason."""

    peer: Peer
    isa: str | None = None
    absent: str | None = None


def parse_shapes(shapes: str, m: str) -> list[Layer]:
    """Layers from texts such as ``"4096x4096,3072x768"`` (N x K) and ``"1,16,256"``.

    Raises
    ------
    ValueError
        For a text of another form.

    Examples
    --------
    >>> parse_shapes("3072x768", "1,16")[0].K
    768
    """
    try:
        rows = tuple(int(text) for text in m.split(","))
        sizes = [tuple(int(size) for size in text.split("x")) for text in shapes.split(",")]
        return [Layer(N, K, rows) for N, K in sizes]
    except ValueError as error:
        wanted = "shapes NxK,NxK,... and rows M,M,... are wanted"
        raise ValueError(f"parse_shapes: {shapes!r}, {m!r}: {wanted} ({error})") from error


def read_layers(path: str | Path) -> list[Layer]:
    """Layers of a TOML file: a ``[[layer]]`` table for each, its keys the fields of ``Layer``.

    Raises
    ------
    ValueError
        When there is none, or one has an unknown key or lacks N, K or M.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    layers = []
    for table in tomllib.loads(Path(path).read_text()).get("layer", []):
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in table.items()
        }
        try:
            layers.append(Layer(**values))
        except (TypeError, ValueError) as error:
            raise ValueError(f"read_layers: {path}: {table}: {error}") from error
    if not layers:
        raise ValueError(f"read_layers: {path}: a [[layer]] is wanted, there is none")
    return layers


def run_linear(
    layers: Sequence[Layer],
    *,
    threads: int,
    peers: Sequence[str] = (),
    isas: Sequence[str] = (),
    rounds: int = 9,
    seconds_per_round: float = 0.03,
    on_progress: Progress | None = None,
) -> Results:
    """Time ``layers`` and return a row for each (layer, M, contender).

    Parameters
    ----------
    layers
        What to time.
    threads
        Threads of every contender.
    peers
        Names from ``gossamer.bench.peers.PEERS``; empty for the usual ones. torch FP32 always
        runs: speed-ups refer to it.
    isas
        Instruction sets that gossamer is held to, each as one more contender.
    rounds, seconds_per_round, on_progress
        As in ``harness.measure``.

    Returns
    -------
    Results
        For each layer a row of kind ``roof``, and rows of kind ``linear``: ms, spread, noisy,
        speedup, error, gops (billion operations per second), roof_share, roof, samples_ms; all
        None where ``failure`` is given.

    Raises
    ------
    ValueError
        For an unknown peer or ISA.
    """
    plans = [(layer, choose_entrants(layer, peers, isas)) for layer in layers]
    step_counts = [
        harness.steps(sum(not entrant.absent for entrant in entrants), len(layer.M), rounds)
        for layer, entrants in plans
    ]
    rows: list[Row] = []
    for number, (layer, entrants) in enumerate(plans):
        rows += _run_layer(
            layer,
            entrants,
            threads=threads,
            rounds=rounds,
            seconds_per_round=seconds_per_round,
            on_progress=_offset(on_progress, sum(step_counts[:number]), sum(step_counts)),
        )
    return Results(environment.describe(threads), rows)


def choose_entrants(layer: Layer, peers: Sequence[str], isas: Sequence[str]) -> list[Entrant]:
    """Who runs on ``layer``: the baseline, the peers asked for, gossamer held to each ISA.

    Raises
    ------
    ValueError
        For an unknown peer or ISA.
    """
    from gossamer import _C

    usual = [name for name, peer in PEERS.items() if not peer.on_request]
    names = list(dict.fromkeys([BASELINE, *(peers or layer.peers or usual)]))
    held = list(dict.fromkeys([*isas, *layer.isas]))
    for kind, given, known in (("peer", names, list(PEERS)), ("ISA", held, _C.isa_names())):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"run_linear: {unknown} is no {kind}; there are {', '.join(known)}")
    entrants = [Entrant(PEERS[name], absent=PEERS[name].missing()) for name in names]
    for isa in held:
        peer = replace(PEERS[GOSSAMER], name=f"{GOSSAMER}@{isa}", environment={"GOSSAMER_ISA": isa})
        absent = None if isa in _C.isa_available() else "not available on this processor"
        entrants.append(Entrant(peer, isa, absent))
    return entrants


def make_data(layer: Layer) -> tuple[Array, list[Array]]:
    """Gaussian weight (N, K) and, for each M, input (M, K), float32, the same at every call."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((layer.N, layer.K), dtype=np.float32) * np.float32(0.02)
    return weight, [random.standard_normal((M, layer.K), dtype=np.float32) for M in layer.M]


def multiply_exactly(x: Array, weight: Array) -> torch.Tensor:
    """Multiply x Wᵀ in float64."""
    return torch.from_numpy(x).double() @ torch.from_numpy(weight).double().T


def relative_error(output: Array, exact: torch.Tensor) -> float:
    """Frobenius norm of the error over that of the exact product.

    Raises
    ------
    ValueError
        When the shapes differ.
    """
    if output.shape != tuple(exact.shape):
        wanted = tuple(exact.shape)
        raise ValueError(f"relative_error: output: shape {output.shape}, wanted {wanted}")
    return float((torch.from_numpy(output).double() - exact).norm() / exact.norm())


def _offset(on_progress: Progress | None, before: int, total: int) -> Progress | None:
    """``on_progress`` for one layer among several."""
    if on_progress is None:
        return None
    return lambda done, _, text: on_progress(before + done, total, text)


def _run_layer(
    layer: Layer,
    entrants: Sequence[Entrant],
    *,
    threads: int,
    rounds: int,
    seconds_per_round: float,
    on_progress: Progress | None,
) -> list[Row]:
    roof = measure_roof(layer.N * layer.K, threads)
    weight, inputs = make_data(layer)
    cases = harness.measure(
        [_contender(entrant, weight) for entrant in entrants if not entrant.absent],
        inputs,
        threads=threads,
        rounds=rounds,
        seconds_per_round=seconds_per_round,
        on_progress=on_progress,
    )
    rows = [_roof_row(layer, roof)]
    for x, timings in zip(inputs, cases, strict=True):
        rows += _case_rows(layer, entrants, roof, multiply_exactly(x, weight), timings)
    return rows


def _contender(entrant: Entrant, weight: Array) -> Contender:
    peer = entrant.peer
    return Contender(peer.name, peer.build, {"weight": weight, **peer.arguments}, peer.environment)


def _roof_row(layer: Layer, roof: Roof) -> Row:
    return {
        "kind": "roof",
        "layer": layer.name,
        "N": layer.N,
        "K": layer.K,
        "gops": {name: peak / 1e9 for name, peak in roof.operations.items()},
        "gb_per_second": {str(size): rate / 1e9 for size, rate in roof.bandwidth.items()},
    }


def _case_rows(
    layer: Layer,
    entrants: Sequence[Entrant],
    roof: Roof,
    exact: torch.Tensor,
    timings: Sequence[Timing],
) -> list[Row]:
    by_name = {timing.name: timing for timing in timings}
    baseline = by_name[BASELINE]
    rows = []
    for entrant in entrants:
        timing = by_name.get(entrant.peer.name)
        if timing is None:
            timing = Timing(entrant.peer.name, timings[0].case, failure=entrant.absent)
        rows.append(_row(layer, entrant, roof, exact, timing, baseline))
    return rows


def _row(
    layer: Layer,
    entrant: Entrant,
    roof: Roof,
    exact: torch.Tensor,
    timing: Timing,
    baseline: Timing,
) -> Row:
    M = exact.shape[0]
    row: Row = {
        "kind": "linear",
        "layer": layer.name,
        "source": layer.source,
        "N": layer.N,
        "K": layer.K,
        "M": M,
        "contender": timing.name,
        "failure": timing.failure,
    }
    if timing.failure is not None or timing.output is None:
        return row
    seconds = timing.median_ms / 1e3
    share, binding = roof.share(seconds, M, layer.N * layer.K, entrant.peer.arithmetic, entrant.isa)
    return row | {
        "ms": timing.median_ms,
        "spread": timing.spread,
        "noisy": timing.noisy,
        "speedup": baseline.median_ms / timing.median_ms,
        "error": relative_error(timing.output, exact),
        "gops": 2 * M * layer.N * layer.K / seconds / 1e9,
        "roof_share": share,
        "roof": binding,
        "samples_ms": timing.samples_ms,
    }
