"""Competitors for ``gossamer bench linear``, one file each; a new one is a file and a line here."""

from __future__ import annotations

from gossamer.bench.peers import (
    autoround_int4,
    gossamer_linear,
    onnxruntime_int4,
    onnxruntime_int8,
    openvino_linear,
    torch_dense,
    torch_dynamic_int8,
    torch_int4,
    torchao_int8,
)
from gossamer.bench.peers.peer import Peer

BASELINE = "torch-fp32"

PEERS: dict[str, Peer] = {
    peer.name: peer
    for module in (
        torch_dense,
        torch_dynamic_int8,
        onnxruntime_int8,
        openvino_linear,
        torchao_int8,
        torch_int4,
        onnxruntime_int4,
        autoround_int4,
        gossamer_linear,
    )
    for peer in module.PEERS
}

__all__ = ["BASELINE", "PEERS", "Peer"]
