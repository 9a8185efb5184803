"""``gossamer bench linear``: one linear layer, y = x Wᵀ, by gossamer and by everyone else.

Beside every time stand the error against float64, the speed-up over torch FP32 and the share of
the roof, all from one run. Rows that lose stay.
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer.bench import environment, harness
from gossamer.bench.harness import Contender, Progress, Timing
from gossamer.bench.peers import BASELINE, PEERS, Peer, gossamer_linear
from gossamer.bench.peers.peer import Array
from gossamer.bench.results import Results, Row
from gossamer.bench.roof import Roof, measure_roof
from gossamer.bench.rows import figures, offset, relative_error


@dataclass(frozen=True)
class Layer:
    """A linear layer to time: N out_features, K in_features, and the numbers of rows M.

    ``peers``, when given, replaces the usual ones: names, or globs such as "*-int4-*".
    ``schemes`` adds gossamer with each of them; ``isas`` adds gossamer held to each of them, in
    every scheme, or int8 where none is given.
    """

    N: int
    K: int
    M: tuple[int, ...]
    name: str = ""
    source: str = ""
    isas: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = (self.N, self.K, *self.M)
        if not self.M or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(f"Layer: N, K, M: positive integers are wanted, got {sizes}")


@dataclass(frozen=True)
class Entrant:
    """A peer that is to run, held to ``isa`` if that is given; or ``absent``, for that reason.

    ``weight_bytes`` is what its weight takes, known once it is to run.
    """

    peer: Peer
    isa: str | None = None
    absent: str | None = None
    weight_bytes: int = 0


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
    schemes: Sequence[str] = (),
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
        Names from ``gossamer.bench.peers.PEERS``, or globs; empty for the usual ones. torch FP32
        always runs: speed-ups refer to it.
    schemes
        Names from ``gossamer.schemes.SCHEMES``, each as two more contenders: with float32 and with
        bfloat16 in and out. Empty for those of the layer.
    isas
        Instruction sets that gossamer is held to, each as one more contender for every scheme.
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
        For an unknown peer, scheme or ISA.
    """
    plans = [(layer, choose_entrants(layer, peers, schemes, isas)) for layer in layers]
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
            on_progress=offset(on_progress, sum(step_counts[:number]), sum(step_counts)),
        )
    return Results(environment.describe(threads), rows)


def choose_entrants(
    layer: Layer, peers: Sequence[str], schemes: Sequence[str], isas: Sequence[str]
) -> list[Entrant]:
    """Who runs on ``layer``: the baseline, the peers and schemes asked for, gossamer held to ISAs.

    Raises
    ------
    ValueError
        For an unknown peer, scheme or ISA.
    """
    chosen = list(dict.fromkeys(schemes or layer.schemes))
    try:
        ours = gossamer_linear.names(chosen)
    except ValueError as error:
        raise ValueError(f"run_linear: schemes: {error}") from error
    names = dict.fromkeys([BASELINE, *_peer_names(peers or layer.peers), *ours])
    entrants = [Entrant(PEERS[name], absent=PEERS[name].missing()) for name in names]
    for isa in dict.fromkeys([*isas, *layer.isas]):
        entrants += [_held(scheme, isa) for scheme in chosen or gossamer_linear.USUAL]
    return entrants


def _peer_names(patterns: Sequence[str]) -> list[str]:
    if not patterns:
        return [name for name, peer in PEERS.items() if not peer.on_request]
    found = {pattern: _matching(pattern) for pattern in patterns}
    if unknown := [pattern for pattern, names in found.items() if not names]:
        raise ValueError(f"run_linear: {unknown} is no peer; there are {', '.join(PEERS)}")
    return [name for names in found.values() for name in names]


def _matching(pattern: str) -> list[str]:
    """Peers that a name or glob means; gossamer's own must be named: schemes choose them."""
    own = pattern.startswith("gossamer")
    return [
        name for name in fnmatch.filter(PEERS, pattern) if own or not name.startswith("gossamer")
    ]


def _held(scheme: str, isa: str) -> Entrant:
    from gossamer import _C

    if isa not in _C.isa_names():
        known = ", ".join(_C.isa_names())
        raise ValueError(f"run_linear: {isa!r} is no ISA; there are {known}")
    peer = PEERS[gossamer_linear.names([scheme])[0]]
    absent = None if isa in _C.isa_available() else "not available on this processor"
    held = replace(peer, name=f"{peer.name}@{isa}", environment={"GOSSAMER_ISA": isa})
    return Entrant(held, isa, absent)


def make_data(layer: Layer) -> tuple[Array, list[Array]]:
    """Gaussian weight (N, K) and, for each M, input (M, K), float32, the same at every call."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((layer.N, layer.K), dtype=np.float32) * np.float32(0.02)
    return weight, [random.standard_normal((M, layer.K), dtype=np.float32) for M in layer.M]


def multiply_exactly(x: Array, weight: Array) -> torch.Tensor:
    """Multiply x Wᵀ in float64."""
    return torch.from_numpy(x).double() @ torch.from_numpy(weight).double().T


def _run_layer(
    layer: Layer,
    entrants: Sequence[Entrant],
    *,
    threads: int,
    rounds: int,
    seconds_per_round: float,
    on_progress: Progress | None,
) -> list[Row]:
    present = [
        replace(entrant, weight_bytes=entrant.peer.weight_bytes(layer.N, layer.K))
        for entrant in entrants
        if not entrant.absent
    ]
    roof = measure_roof(threads, [entrant.weight_bytes for entrant in present])
    weight, inputs = make_data(layer)
    cases = harness.measure(
        [_contender(entrant.peer, weight) for entrant in present],
        inputs,
        threads=threads,
        rounds=rounds,
        seconds_per_round=seconds_per_round,
        on_progress=on_progress,
    )
    rows = [_roof_row(layer, roof)]
    for x, timings in zip(inputs, cases, strict=True):
        exact = multiply_exactly(x, weight)
        measured = {
            entrant.peer.name: _row(layer, entrant, roof, exact, timing, timings[0])
            for entrant, timing in zip(present, timings, strict=True)
        }
        rows += [
            measured.get(entrant.peer.name)
            or _head(layer, len(x), entrant.peer.name, entrant.absent)
            for entrant in entrants
        ]
    return rows


def _contender(peer: Peer, weight: Array) -> Contender:
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


def _row(
    layer: Layer,
    entrant: Entrant,
    roof: Roof,
    exact: torch.Tensor,
    timing: Timing,
    baseline: Timing,
) -> Row:
    row = _head(layer, len(exact), timing.name, timing.failure)
    if timing.failure is not None or timing.output is None:
        return row
    seconds = timing.median_ms / 1e3
    operations = 2 * exact.numel() * layer.K
    share, binding = roof.share(
        seconds, operations, entrant.weight_bytes, entrant.peer.arithmetic, entrant.isa
    )
    return row | {
        **figures(timing, baseline),
        "error": relative_error(timing.output, exact),
        "gops": operations / seconds / 1e9,
        "roof_share": share,
        "roof": binding,
    }


def _head(layer: Layer, M: int, contender: str, failure: str | None) -> Row:
    return {
        "kind": "linear",
        "layer": layer.name,
        "source": layer.source,
        "N": layer.N,
        "K": layer.K,
        "M": M,
        "contender": contender,
        "failure": failure,
    }
