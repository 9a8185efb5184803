"""torch's own dense linear layer: float32, bfloat16, and float32 held to AVX2."""

from __future__ import annotations

import torch

from gossamer.bench.peers.peer import Array, Peer, PrepareInput, Run


def build(weight: Array, dtype: str) -> PrepareInput:
    """Make a ``torch.nn.Linear`` of ``dtype`` (see ``Peer.build``)."""
    torch_dtype = getattr(torch, dtype)
    out_features, in_features = weight.shape
    linear = torch.nn.Linear(in_features, out_features, bias=False, dtype=torch_dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))

    def prepare(x: Array) -> Run:
        tensor = torch.from_numpy(x).to(torch_dtype)
        return lambda: linear(tensor)

    return prepare


PEERS = (
    Peer("torch-fp32", build, "fp32", arguments={"dtype": "float32"}),
    Peer("torch-bf16", build, "bf16", arguments={"dtype": "bfloat16"}),
    Peer(
        "torch-fp32-avx2",
        build,
        "fp32",
        arguments={"dtype": "float32"},
        environment={"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        on_request=True,
    ),
)
