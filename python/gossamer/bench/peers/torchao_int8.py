"""torchao's Int8DynamicActivationInt8Weight, which needs ``torch.compile`` to be fast."""

from __future__ import annotations

import torch

from gossamer.bench.peers.peer import Array, Peer, PrepareInput, Run


def build(weight: Array) -> PrepareInput:
    """Make a quantized and compiled linear layer (see ``Peer.build``)."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    out_features, in_features = weight.shape
    linear = torch.nn.Linear(in_features, out_features, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
    layer = torch.nn.Sequential(linear)  # quantize_ swaps children
    quantize_(layer, Int8DynamicActivationInt8WeightConfig())

    def prepare(x: Array) -> Run:
        torch.compiler.reset()  # every M is compiled for itself, not as a dynamic size
        compiled = torch.compile(layer)
        tensor = torch.from_numpy(x)
        return lambda: compiled(tensor)

    return prepare


PEERS = (
    Peer(
        "torchao-int8",
        build,
        "int8",
        requires={"torchao": "torchao"},
        # Compiler processes of its own would run beside whoever is being timed.
        environment={"TORCHINDUCTOR_COMPILE_THREADS": "1"},
    ),
)
