"""ONNX Runtime's 4-bit weights: MatMulNBits with int8 activations (accuracy level 4)."""

from __future__ import annotations

from typing import Any

import torch

from gossamer.bench.peers import int4_groups
from gossamer.bench.peers.peer import Array, Peer, PrepareInput, Run

INT8_ACTIVATIONS = 4  # the accuracy_level of the operator, its fastest


def build(weight: Array, group_size: int) -> PrepareInput:
    """Make an ONNX Runtime session over one MatMulNBits (see ``Peer.build``)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        _model(weight, group_size).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def prepare(x: Array) -> Run:
        return lambda: session.run(None, {"x": x})[0]

    return prepare


def _model(weight: Array, group_size: int) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    N, K = weight.shape
    values, scales = int4_groups.quantize(weight, group_size)
    packed = int4_groups.pack(values + 8)  # without zero points the operator subtracts 8
    node = helper.make_node(
        "MatMulNBits",
        ["x", "values", "scales"],
        ["y"],
        domain="com.microsoft",
        K=K,
        N=N,
        bits=4,
        block_size=group_size,
        accuracy_level=INT8_ACTIVATIONS,
    )
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", N])],
        [
            numpy_helper.from_array(packed.reshape(N, K // group_size, group_size // 2), "values"),
            numpy_helper.from_array(scales.reshape(-1), "scales"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


PEERS = tuple(
    Peer(
        f"onnxruntime-int4-g{group_size}",
        build,
        "int8",
        weight_bits=int4_groups.weight_bits(group_size),
        requires={"onnxruntime": "onnxruntime", "onnx": "onnx"},
        arguments={"group_size": group_size},
        on_request=True,
    )
    for group_size in (32, 64, 128)
)
