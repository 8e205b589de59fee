"""Seeded weights, and a graph under construction.

Every weight has its own random stream, seeded with the CRC-32 of "model/tensor". So a tensor's bytes do not depend on
the order of construction, on the other tensors, or on the day: one recipe and one numpy give one file. Rejected: one
stream per model (inserting a layer would change every weight after it) and `hash()` (salted per process).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8
PRODUCER = "lamella.zoo"


def normal(model: str, tensor: str, shape: Sequence[int], *, std: float, mean: float = 0.0) -> np.ndarray:
    """float32 normal values of `shape`, the same for the same `model` and `tensor` every time."""
    rng = np.random.default_rng(zlib.crc32(f"{model}/{tensor}".encode()))
    values = rng.standard_normal(tuple(shape), dtype=np.float32)
    values *= np.float32(std)
    if mean:
        values += np.float32(mean)
    return values


class Draft:
    """The nodes and initialisers of a model being written, in order. `finish` makes the model."""

    def __init__(self, name: str) -> None:
        """An empty graph called `name`; the name also seeds its weights."""
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._initialisers: list[onnx.TensorProto] = []

    def node(self, op: str, *inputs: str, name: str, **attributes: Any) -> str:
        """The name of the only used output of a new node, which is the node's own name."""
        from onnx import helper

        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        """The name of a new initialiser with these `values`."""
        from onnx import numpy_helper

        self._initialisers.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, name: str, *shape: int, std: float, mean: float = 0.0) -> str:
        """The name of a new initialiser of seeded normal values."""
        return self.constant(name, normal(self.name, name, shape, std=std, mean=mean))

    def dense(self, name: str, data: str, width_in: int, width_out: int, *, std: float) -> str:
        """The output of MatMul + Add, the form onnxruntime's transformer fusions look for."""
        product = self.node("MatMul", data, self.weight(f"{name}.weight", width_in, width_out, std=std), name=name)
        return self.node("Add", product, self.weight(f"{name}.bias", width_out, std=0.02), name=f"{name}.out")

    def finish(
        self, inputs: dict[str, tuple[str, Sequence[int | str]]], output: str, shape: Sequence[int | str]
    ) -> onnx.ModelProto:
        """The model: `inputs` as name -> (numpy dtype, shape); `output` is float32 of `shape`."""
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            self._nodes,
            self.name,
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(dims))
                for name, (dtype, dims) in inputs.items()
            ],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(shape))],
        )
        return finished(graph, self._initialisers, opset=OPSET)


def finished(graph: onnx.GraphProto, initialisers: Sequence[onnx.TensorProto], *, opset: int) -> onnx.ModelProto:
    """The model of `graph` with these `initialisers`, which are copied once (make_graph and make_model: twice)."""
    from onnx import helper

    model = helper.make_model(
        graph, producer_name=PRODUCER, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", opset)]
    )
    model.graph.initializer.extend(initialisers)
    return model
