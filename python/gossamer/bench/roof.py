"""The roof over a layer: how fast this machine multiplies, and reads such a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gossamer.bench.peers.peer import Arithmetic

SECONDS = 0.2
SMALLEST_READ_BYTES = 4096

# The instructions that can carry each arithmetic, best first.
INSTRUCTIONS: Mapping[Arithmetic, tuple[str, ...]] = {
    "fp32": ("fma-f32",),
    # Where there is no bfloat16 instruction, products are made in float32.
    "bf16": ("amx-bf16", "avx512-bf16", "fma-f32"),
    "int8": ("amx-int8", "vnni-int8"),
}
# What a gossamer held to an ISA has; one that is not listed multiplies without such instructions.
INSTRUCTIONS_OF_ISA: Mapping[str, Mapping[Arithmetic, str]] = {
    "amx": {"int8": "amx-int8", "bf16": "amx-bf16"},
    "avx512bf16": {"int8": "vnni-int8", "bf16": "avx512-bf16"},
    "avx512vbmi2": {"int8": "vnni-int8"},
    "avx512vnni": {"int8": "vnni-int8"},
    "avxvnni": {"int8": "vnni-int8"},
}


@dataclass(frozen=True)
class Roof:
    """Operations per second by instruction; bytes per second by the size read, in bytes."""

    operations: Mapping[str, float]
    bandwidth: Mapping[int, float] = field(default_factory=dict)

    def share(
        self,
        seconds: float,
        operations: int,
        weight_bytes: int,
        arithmetic: Arithmetic,
        isa: str | None,
    ) -> tuple[float, str]:
        """Share of the roof that binds, and which one that is: ``compute`` or ``bandwidth``.

        A linear layer computes its ``operations`` and reads its weight once; the larger of the two
        shares binds.
        """
        reading = weight_bytes / seconds / self.bandwidth[weight_bytes]
        computing = self.computing(seconds, operations, arithmetic, isa) or 0.0
        return max((reading, "bandwidth"), (computing, "compute"))

    def computing(
        self, seconds: float, operations: int, arithmetic: Arithmetic, isa: str | None
    ) -> float | None:
        """Share of the peak of ``arithmetic``; None where no peak of it was measured."""
        names = INSTRUCTIONS[arithmetic]
        if isa is not None:
            names = tuple(filter(None, [INSTRUCTIONS_OF_ISA.get(isa, {}).get(arithmetic)]))
        peak = next((self.operations[name] for name in names if name in self.operations), None)
        return operations / seconds / peak if peak else None


def measure_roof(threads: int, sizes: Iterable[int] = ()) -> Roof:
    """Measure the peaks, and the bandwidth of reading each of ``sizes`` bytes: 0.2 s each."""
    from gossamer import _C

    operations = {name: _C.peak_ops(name, threads, SECONDS) for name in _C.peak_instructions()}
    bandwidth = {
        size: _C.read_bandwidth(max(size, SMALLEST_READ_BYTES), threads, SECONDS)
        for size in sorted(set(sizes))
    }
    return Roof(operations, bandwidth)
