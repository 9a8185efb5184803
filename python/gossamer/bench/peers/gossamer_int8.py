"""gossamer's int8 layer, with float32 or bfloat16 in and out."""

from __future__ import annotations

import torch

from gossamer.bench.peers.peer import Array, Peer, PrepareInput, Run


def build(weight: Array, dtype: str) -> PrepareInput:
    """Make a ``gossamer.nn.Linear`` fed with ``dtype`` (see ``Peer.build``)."""
    import gossamer as gs

    torch_dtype = getattr(torch, dtype)
    out_features, in_features = weight.shape
    dense = torch.nn.Linear(in_features, out_features, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(weight))
    # Not compress(): it takes a model, and this is one layer.
    layer = gs.nn.Linear.from_dense(dense, "int8")

    def prepare(x: Array) -> Run:
        tensor = torch.from_numpy(x).to(torch_dtype)
        return lambda: layer(tensor)

    return prepare


PEERS = (
    Peer("gossamer-int8", build, "int8", arguments={"dtype": "float32"}),
    Peer("gossamer-int8-bf16", build, "int8", arguments={"dtype": "bfloat16"}),
)
