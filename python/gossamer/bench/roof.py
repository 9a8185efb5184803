"""The roof over a linear layer: how fast this machine multiplies, and reads such a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gossamer.bench.peers.peer import WEIGHT_BYTES, Arithmetic

SECONDS = 0.2
SMALLEST_READ_BYTES = 4096

# The instructions that can carry each arithmetic, best first. None is measured for bf16.
INSTRUCTIONS: Mapping[Arithmetic, tuple[str, ...]] = {
    "fp32": ("fma-f32",),
    "bf16": (),
    "int8": ("amx-int8", "vnni-int8"),
}
# What a gossamer held to an ISA has; one that is not listed multiplies without such instructions.
INSTRUCTION_OF_ISA = {"amx": "amx-int8", "avx512vnni": "vnni-int8", "avxvnni": "vnni-int8"}


@dataclass(frozen=True)
class Roof:
    """Operations per second by instruction; bytes per second by the size read, in bytes."""

    operations: Mapping[str, float]
    bandwidth: Mapping[int, float]

    def share(
        self, seconds: float, M: int, weight_size: int, arithmetic: Arithmetic, isa: str | None
    ) -> tuple[float, str]:
        """Share of the roof that binds, and which one that is: ``compute`` or ``bandwidth``.

        The layer multiplies ``2 M weight_size`` operations and reads its weight once; the larger
        of the two shares binds.
        """
        size_bytes = weight_size * WEIGHT_BYTES[arithmetic]
        reading = size_bytes / seconds / self.bandwidth[size_bytes]
        peak = self._peak(arithmetic, isa)
        computing = 2 * M * weight_size / seconds / peak if peak else 0.0
        return max((reading, "bandwidth"), (computing, "compute"))

    def _peak(self, arithmetic: Arithmetic, isa: str | None) -> float | None:
        if isa is not None:
            return self.operations.get(INSTRUCTION_OF_ISA.get(isa, ""))
        known = (self.operations.get(name) for name in INSTRUCTIONS[arithmetic])
        return next((peak for peak in known if peak is not None), None)


def measure_roof(weight_size: int, threads: int) -> Roof:
    """Measure, for about a second, the roof over a weight of ``weight_size`` elements."""
    from gossamer import _C

    operations = {name: _C.peak_ops(name, threads, SECONDS) for name in _C.peak_instructions()}
    sizes = sorted(weight_size * width for width in WEIGHT_BYTES.values())
    bandwidth = {
        size: _C.read_bandwidth(max(size, SMALLEST_READ_BYTES), threads, SECONDS) for size in sizes
    }
    return Roof(operations, bandwidth)
