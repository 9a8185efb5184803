"""Competitors for ``gossamer bench linear``, one file each; a new one is a file and a line here."""

from __future__ import annotations

from gossamer.bench.peers import (
    gossamer_int8,
    onnxruntime_int8,
    openvino_int8,
    torch_dense,
    torch_dynamic_int8,
    torchao_int8,
)
from gossamer.bench.peers.peer import Peer

BASELINE = "torch-fp32"
GOSSAMER = "gossamer-int8"

PEERS: dict[str, Peer] = {
    peer.name: peer
    for module in (
        torch_dense,
        torch_dynamic_int8,
        onnxruntime_int8,
        openvino_int8,
        torchao_int8,
        gossamer_int8,
    )
    for peer in module.PEERS
}

__all__ = ["BASELINE", "GOSSAMER", "PEERS", "Peer"]
