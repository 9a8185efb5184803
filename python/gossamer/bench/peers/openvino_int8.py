"""OpenVINO with int8 weights per output channel and its dynamic quantization of activations."""

from __future__ import annotations

import numpy as np
import torch

from gossamer.bench.peers.peer import Array, Peer, PrepareInput, Run


def build(weight: Array) -> PrepareInput:
    """Make a compiled OpenVINO model of one layer (see ``Peer.build``)."""
    import openvino
    from openvino import opset13

    scales = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    values = np.rint(weight / scales).astype(np.int8)
    x = opset13.parameter([-1, weight.shape[1]], openvino.Type.f32, name="x")
    stored = opset13.multiply(
        opset13.convert(opset13.constant(values), "f32"), opset13.constant(scales)
    )
    y = opset13.matmul(x, stored, False, True)
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


PEERS = (Peer("openvino-int8", build, "int8", requires=("openvino",)),)
