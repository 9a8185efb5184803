"""Intel's AutoRound kernels (the successor of BesTLA): int4 weights, int8 activations."""

from __future__ import annotations

import torch

from gossamer.bench.peers import int4_groups
from gossamer.bench.peers.peer import Array, Peer, PrepareInput, Run


def build(weight: Array, group_size: int) -> PrepareInput:
    """Repack one int4 weight for the kernels (see ``Peer.build``)."""
    import auto_round_kernel

    N, K = weight.shape
    values, scales = int4_groups.quantize(weight, group_size)
    # Weights are wanted as (K, N), and the types of products, weights and scales by name.
    kind = ("int8", "int4", "fp32", False)
    by_group = torch.from_numpy(scales).T.contiguous()
    packed = auto_round_kernel._repack_quantized_weight_core(
        torch.from_numpy(values).T.contiguous(),
        by_group,
        torch.zeros_like(by_group, dtype=torch.int8),
        group_size,
        *kind,
    )
    no_bias = torch.empty(0)

    def prepare(x: Array) -> Run:
        tensor = torch.from_numpy(x)
        return lambda: auto_round_kernel.woqgemm(tensor, packed, no_bias, N, K, group_size, *kind)

    return prepare


PEERS = tuple(
    Peer(
        f"autoround-int4-g{group_size}",
        build,
        "int8",
        weight_bits=int4_groups.weight_bits(group_size),
        requires={"auto_round_kernel": "auto-round-lib"},
        arguments={"group_size": group_size},
        on_request=True,
    )
    for group_size in (32, 64, 128)
)
