"""OpenVINO: int8 weights per output channel or int4 in groups; activations quantized as it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gossamer.bench.peers import int4_groups
from gossamer.bench.peers.peer import Array, Peer, PrepareInput, Run


def build_int8(weight: Array) -> PrepareInput:
    """Make a compiled OpenVINO model of one layer (see ``Peer.build``)."""
    from openvino import opset13

    scales = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    values = np.rint(weight / scales).astype(np.int8)
    stored = opset13.multiply(
        opset13.convert(opset13.constant(values), "f32"), opset13.constant(scales)
    )
    return _compile(stored, weight.shape[1])


def build_int4(weight: Array, group_size: int) -> PrepareInput:
    """Make a compiled OpenVINO model of one layer (see ``Peer.build``)."""
    import openvino
    from openvino import opset13

    N, K = weight.shape
    values, scales = int4_groups.quantize(weight, group_size)
    groups = K // group_size
    # A constant made from a tensor shares its memory, so the tensor must own it.
    tensor = openvino.Tensor(openvino.Type.i4, openvino.Shape([N, groups, group_size]))
    tensor.data.reshape(-1)[:] = int4_groups.pack(values).reshape(-1)
    grouped = opset13.multiply(
        opset13.convert(opset13.constant(tensor), "f32"),
        opset13.constant(scales.reshape(N, groups, 1)),
    )
    return _compile(opset13.reshape(grouped, opset13.constant(np.array([N, K])), False), K)


def _compile(weight: Any, K: int) -> PrepareInput:
    """Compile x Wᵀ for a ``weight`` that is a node (N, K)."""
    import openvino
    from openvino import opset13

    x = opset13.parameter([-1, K], openvino.Type.f32, name="x")
    y = opset13.matmul(x, weight, False, True)
    # The fastest settings we know of for float32 in and out.
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
    }
    compiled = openvino.Core().compile_model(openvino.Model([y], [x]), "CPU", settings)
    request = compiled.create_infer_request()

    def prepare(x: Array) -> Run:
        return lambda: request.infer({0: x}, share_inputs=True, share_outputs=True)[0]

    return prepare


PEERS = (
    Peer("openvino-int8", build_int8, "int8", requires={"openvino": "openvino"}),
    *(
        Peer(
            f"openvino-int4-g{group_size}",
            build_int4,
            "int8",
            weight_bits=int4_groups.weight_bits(group_size),
            requires={"openvino": "openvino"},
            arguments={"group_size": group_size},
            on_request=True,
        )
        for group_size in (32, 64, 128)
    ),
)
