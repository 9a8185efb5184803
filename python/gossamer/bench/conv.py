"""``gossamer bench conv``: one 2-d convolution, by gossamer and by torch.

Beside every time stand the error against float64 and the speed-up over torch FP32 in the
channels-last layout, all from one run. Rows that lose stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gossamer.bench import environment, harness
from gossamer.bench.conv_peers import BASELINE, ConvPeer, choose_peers
from gossamer.bench.harness import Contender, Progress, Timing
from gossamer.bench.peers.peer import Array
from gossamer.bench.results import Results, Row
from gossamer.bench.roof import Roof, measure_roof
from gossamer.bench.rows import figures, offset, relative_error


@dataclass(frozen=True)
class ConvLayer:
    """A convolution to time, "same" padding: channels in and out, square kernel and image."""

    name: str
    in_channels: int
    out_channels: int
    kernel_size: int
    size: int
    stride: int = 1
    groups: int = 1

    @property
    def operations(self) -> int:
        """Multiplications and additions for one image."""
        outputs = self.out_channels * (-(-self.size // self.stride)) ** 2
        return 2 * outputs * self.in_channels // self.groups * self.kernel_size**2

    def module(self, weight: Array) -> torch.nn.Conv2d:
        """The layer as torch has it, with ``weight`` [out, in / groups, kernel, kernel]."""
        convolution = torch.nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.kernel_size // 2,
            groups=self.groups,
            bias=False,
        )
        with torch.no_grad():
            convolution.weight.copy_(torch.from_numpy(weight))
        return convolution.eval()


# Sizes as they occur in residual networks, and a depthwise one as in mobile networks.
LAYERS = (
    ConvLayer("3x3 64-64 at 56x56", 64, 64, 3, 56),
    ConvLayer("1x1 256-256 at 28x28", 256, 256, 1, 28),
    ConvLayer("3x3 128-128 at 28x28", 128, 128, 3, 28),
    ConvLayer("depthwise 3x3 128 at 28x28", 128, 128, 3, 28, groups=128),
)


def run_conv(
    layers: Sequence[ConvLayer] = LAYERS,
    *,
    threads: int,
    batches: Sequence[int] = (1, 16),
    schemes: Sequence[str] = ("int8",),
    rounds: int = 9,
    seconds_per_round: float = 0.03,
    on_progress: Progress | None = None,
) -> Results:
    """Time ``layers`` and return a row for each (layer, batch, contender).

    Parameters
    ----------
    layers
        What to time.
    threads
        Threads of every contender.
    batches
        Numbers of images.
    schemes
        Names from ``gossamer.schemes.SCHEMES``, each as two contenders: with float32 and with
        bfloat16 in and out, both channels last.
    rounds, seconds_per_round, on_progress
        As in ``harness.measure``.

    Returns
    -------
    Results
        Rows of kind ``conv``: ms, spread, noisy, speedup over torch FP32 channels last, error,
        gops (billion operations per second), roof_share (of the peak, None where none is
        measured), samples_ms; all None where ``failure`` is given.

    Raises
    ------
    ValueError
        For an unknown scheme, or a batch that is not positive.
    """
    if not batches or min(batches) < 1:
        raise ValueError(f"run_conv: batches: got {list(batches)}, wanted positive integers")
    peers = choose_peers(schemes)
    steps = harness.steps(len(peers), len(batches), rounds)
    roof = measure_roof(threads)
    rows: list[Row] = []
    for number, layer in enumerate(layers):
        weight, inputs = make_data(layer, batches)
        cases = harness.measure(
            [_contender(peer, layer, weight) for peer in peers],
            inputs,
            threads=threads,
            rounds=rounds,
            seconds_per_round=seconds_per_round,
            on_progress=offset(on_progress, number * steps, len(layers) * steps),
        )
        for x, timings in zip(inputs, cases, strict=True):
            exact = convolve_exactly(layer, weight, x)
            baseline = next(timing for timing in timings if timing.name == BASELINE)
            rows += [
                _row(layer, peer, roof, exact, timing, baseline)
                for peer, timing in zip(peers, timings, strict=True)
            ]
    return Results(environment.describe(threads), rows)


def make_data(layer: ConvLayer, batches: Sequence[int]) -> tuple[Array, list[Array]]:
    """Gaussian weight [out, in / groups, k, k] and, for each batch, images [batch, in, s, s]."""
    random = np.random.default_rng(0)
    fan_in = layer.in_channels // layer.groups
    shape = (layer.out_channels, fan_in, layer.kernel_size, layer.kernel_size)
    weight = random.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
    image = (layer.in_channels, layer.size, layer.size)
    return weight, [random.standard_normal((batch, *image), dtype=np.float32) for batch in batches]


def convolve_exactly(layer: ConvLayer, weight: Array, x: Array) -> torch.Tensor:
    """Output [batch, out, s, s] in float64."""
    with torch.inference_mode():
        exact: torch.Tensor = layer.module(weight).double()(torch.from_numpy(x).double())
    return exact


def _contender(peer: ConvPeer, layer: ConvLayer, weight: Array) -> Contender:
    arguments = {"layer": layer, "weight": weight, **peer.arguments}
    return Contender(peer.name, peer.build, arguments)


def _row(
    layer: ConvLayer,
    peer: ConvPeer,
    roof: Roof,
    exact: torch.Tensor,
    timing: Timing,
    baseline: Timing,
) -> Row:
    batch = len(exact)
    row: Row = {
        "kind": "conv",
        "layer": layer.name,
        "batch": batch,
        "contender": timing.name,
        "failure": timing.failure,
    }
    if timing.failure is not None or timing.output is None:
        return row
    seconds = timing.median_ms / 1e3
    operations = batch * layer.operations
    return row | {
        **figures(timing, baseline),
        "error": relative_error(timing.output, exact),
        "gops": operations / seconds / 1e9,
        "roof_share": roof.computing(seconds, operations, peer.arithmetic, None),
    }
