"""Run by an interpreter that has DeepSparse: multiplies one x by one weight, as often as asked.

    python -I deepsparse_engine.py fp32|int8 GIVEN.npz OUT.npy CORES PARENT

GIVEN holds ``weight`` (N, K) and ``x`` (M, K), OUT gets the product (M, N). Then "done" is printed;
every line read is a number of products to make, and is answered by "done". It ends with the process
PARENT. Nothing of gossamer is imported: the environment does not have it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Serve until there is nothing to read."""
    kind, given, out, cores, parent = sys.argv[1:]
    die_with(int(parent))
    answers = os.dup(1)
    os.dup2(2, 1)  # DeepSparse prints its name there
    data = np.load(given)
    x = data["x"]
    engine = compile_engine(make_model(data["weight"], x, kind), len(x), int(cores))
    np.save(out, engine.run([x], val_inp=False)[0])
    os.write(answers, b"done\n")
    for line in sys.stdin.buffer:
        for _ in range(int(line)):
            engine.run([x], val_inp=False)
        os.write(answers, b"done\n")


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent goes: a stopped process would outlive it."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def make_model(weight: Any, x: Any, kind: str) -> Any:
    """Build an ONNX model of x Wᵀ: float32, or int8 with one scale for W and one for x."""
    from onnx import TensorProto, helper, numpy_helper

    M, (N, K) = len(x), weight.shape
    nodes, constants = float_graph(weight) if kind == "fp32" else int8_graph(weight, x)
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [M, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [M, N])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def float_graph(weight: Any) -> tuple[list[Any], dict[str, Any]]:
    """Nodes and constants of the float32 product."""
    from onnx import helper

    product = helper.make_node("MatMul", ["x", "weight"], ["y"])
    return [product], {"weight": np.ascontiguousarray(weight.T)}


def int8_graph(weight: Any, x: Any) -> tuple[list[Any], dict[str, Any]]:
    """Nodes and constants of the integer product, in the form that DeepSparse recognizes."""
    from onnx import TensorProto, helper

    step = np.float32(np.abs(weight).max() / 127)
    x_step = np.float32(np.abs(x).max() / 127)
    constants = {
        "weight": np.ascontiguousarray(np.rint(weight.T / step).astype(np.int8)),
        "weight_zero": np.array(0, np.int8),
        "x_step": np.array(x_step),
        "x_zero": np.array(128, np.uint8),
        "step": np.array(x_step * step),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_step", "x_zero"], ["rounded"]),
        helper.make_node("MatMulInteger", ["rounded", "weight", "x_zero", "weight_zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["sums_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sums_float", "step"], ["y"]),
    ]
    return nodes, constants


def compile_engine(model: Any, rows: int, cores: int) -> Any:
    """Compile for ``rows`` rows of x on ``cores`` cores."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "model.onnx"))
        onnx.save(model, path)
        engine = importlib.import_module("deepsparse").Engine
        return engine(path, batch_size=rows, num_cores=cores)


if __name__ == "__main__":
    main()
