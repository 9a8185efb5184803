"""torch's own int4 product on the CPU, which torchao's int4 layers call: bfloat16 in and out."""

from __future__ import annotations

import torch

from gossamer.bench.peers import int4_groups
from gossamer.bench.peers.peer import Array, Peer, PrepareInput, Run

SCALE_AND_ZERO_BITS = 32  # bfloat16 both


def build(weight: Array, group_size: int) -> PrepareInput:
    """Pack one int4 weight as ``aten`` wants it (see ``Peer.build``)."""
    values, scales = int4_groups.quantize(weight, group_size)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        torch.from_numpy(values).int() + 8,
        1,  # inner tiles along K: the CPU reads no other number
    )
    # (K / G, N, 2): scale, and the zero that is added after 8 was subtracted and the scale applied.
    scale = torch.from_numpy(scales).T
    scales_and_zeros = torch.stack([scale, torch.zeros_like(scale)], dim=2).bfloat16().contiguous()

    def prepare(x: Array) -> Run:
        tensor = torch.from_numpy(x).bfloat16()
        return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(
            tensor, packed, group_size, scales_and_zeros
        )

    return prepare


PEERS = tuple(
    Peer(
        f"torch-int4-g{group_size}",
        build,
        "bf16",
        weight_bits=int4_groups.weight_bits(group_size, SCALE_AND_ZERO_BITS),
        arguments={"group_size": group_size},
        on_request=True,
    )
    for group_size in (32, 64, 128)
)
