"""ONNX Runtime's dynamic quantization: DynamicQuantizeLinear, then MatMulInteger."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer.bench.peers.peer import Array, Peer, PrepareInput, Run


def build(weight: Array) -> PrepareInput:
    """Make an ONNX Runtime session over one quantized MatMul (see ``Peer.build``)."""
    import onnx
    import onnxruntime
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder:
        dense, quantized = Path(folder, "dense.onnx"), Path(folder, "quantized.onnx")
        onnx.save(_dense_model(weight), dense)
        quantization.quantize_dynamic(
            dense, quantized, weight_type=quantization.QuantType.QInt8, per_channel=True
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            quantized.read_bytes(), options, providers=["CPUExecutionProvider"]
        )

    def prepare(x: Array) -> Run:
        return lambda: session.run(None, {"x": x})[0]

    return prepare


def _dense_model(weight: Array) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    out_features, in_features = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", out_features])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "weight")],
    )
    # Opset 17 and IR 8 are read by every ONNX Runtime since 1.12.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


PEERS = (
    Peer(
        "onnxruntime-int8", build, "int8", requires={"onnxruntime": "onnxruntime", "onnx": "onnx"}
    ),
)
