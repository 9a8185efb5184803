"""``torch.ao.quantization.quantize_dynamic`` with its two engines for x86: FBGEMM and oneDNN."""

from __future__ import annotations

import torch

from gossamer.bench.peers.peer import Array, Peer, PrepareInput, Run


def build(weight: Array, engine: str) -> PrepareInput:
    """Make a dynamically quantized linear layer on ``engine`` (see ``Peer.build``)."""
    from torch.ao import quantization

    # The engine is read when packing and again at every call, and this process has but one use.
    torch.backends.quantized.engine = engine
    out_features, in_features = weight.shape
    linear = torch.nn.Linear(in_features, out_features, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
    layer = quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
        torch.nn.Sequential(linear),
        {torch.nn.Linear: quantization.per_channel_dynamic_qconfig},
        dtype=torch.qint8,
    )

    def prepare(x: Array) -> Run:
        tensor = torch.from_numpy(x)
        return lambda: layer(tensor)

    return prepare


PEERS = (
    Peer("torch-dynamic-x86", build, "int8", arguments={"engine": "x86"}),
    Peer("torch-dynamic-onednn", build, "int8", arguments={"engine": "onednn"}),
)
