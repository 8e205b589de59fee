"""Seeded weights, and a graph under construction.

Every weight has its own random stream, seeded with the CRC-32 of "model/tensor". So a tensor's bytes do not depend on
the order of construction, on the other tensors, or on the day: one recipe and one numpy give one file. Rejected: one
stream per model (inserting a layer would change every weight after it) and `hash()` (salted per process).

A draft holds no values of weights, only how to draw them: they are drawn one after the other while the file is written,
so that a model of 1.4 GB takes the memory of its largest tensor. The file is byte for byte what protobuf would have
written. Rejected: external data (two files to keep together) and ModelProto (holds all values, and serialising doubles
them).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8
PRODUCER = "lamella.zoo"

# Tags of onnx.proto: field number and "length follows".
_GRAPH, _INITIALIZER, _RAW_DATA = b"\x3a", b"\x2a", b"\x4a"


def normal(model: str, tensor: str, shape: Sequence[int], *, std: float, mean: float = 0.0) -> np.ndarray:
    """float32 normal values of `shape`, the same for the same `model` and `tensor` every time."""
    rng = np.random.default_rng(zlib.crc32(f"{model}/{tensor}".encode()))
    values = rng.standard_normal(tuple(shape), dtype=np.float32)
    values *= np.float32(std)
    if mean:
        values += np.float32(mean)
    return values


@dataclass(frozen=True, slots=True)
class Seeded:
    """A weight whose values are drawn when they are written."""

    model: str
    name: str
    shape: tuple[int, ...]
    std: float
    mean: float
    log: bool = False
    """The values are those of the logarithm: all positive, around one where `mean` is zero."""

    def values(self) -> np.ndarray:
        """Its values, float32 of `shape`."""
        values = normal(self.model, self.name, self.shape, std=self.std, mean=self.mean)
        if self.log:
            np.exp(values, out=values)
        return values


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """A constant that is small, or is worked out while the graph is written."""

    name: str
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    def values(self) -> np.ndarray:
        """Its values."""
        return self.array


@dataclass(frozen=True, slots=True, eq=False)
class Blueprint:
    """A model whose weights are not drawn yet. `frame` is the model without them; they follow in this order."""

    frame: onnx.ModelProto
    weights: tuple[Seeded | Fixed, ...]

    @property
    def parameters(self) -> int:
        """How many numbers the seeded weights hold: what papers count, running statistics included."""
        return sum(math.prod(weight.shape) for weight in self.weights if isinstance(weight, Seeded))

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        before, after = self._parts()
        return len(before) + len(after) + sum(len(head) + size for _, head, size in self._heads())

    def stream(self) -> Iterator[bytes | memoryview]:
        """The file's bytes, at most one weight at a time."""
        before, after = self._parts()
        yield before
        for weight, head, size in self._heads():
            raw = np.ascontiguousarray(weight.values())
            assert raw.nbytes == size
            yield head
            yield raw.reshape(-1).view(np.uint8).data
        yield after

    def _parts(self) -> tuple[bytes, bytes]:
        """What comes before the weights, and what comes after them."""
        from onnx import GraphProto, ModelProto

        early, late = GraphProto(node=self.frame.graph.node, name=self.frame.graph.name), GraphProto()
        late.input.extend(self.frame.graph.input)
        late.output.extend(self.frame.graph.output)
        nodes, ends = early.SerializeToString(deterministic=True), late.SerializeToString(deterministic=True)
        length = len(nodes) + len(ends) + sum(len(head) + size for _, head, size in self._heads())
        top = ModelProto(ir_version=self.frame.ir_version, producer_name=self.frame.producer_name)
        opsets = ModelProto(opset_import=self.frame.opset_import)
        before = top.SerializeToString(deterministic=True) + _GRAPH + _varint(length) + nodes
        return before, ends + opsets.SerializeToString(deterministic=True)

    def _heads(self) -> Iterator[tuple[Seeded | Fixed, bytes, int]]:
        """Each weight with the bytes that go before its values, and the size of the values."""
        from onnx import TensorProto, helper

        for weight in self.weights:
            dtype = weight.array.dtype if isinstance(weight, Fixed) else np.dtype(np.float32)
            size = math.prod(weight.shape) * dtype.itemsize
            kind = helper.np_dtype_to_tensor_dtype(dtype)
            head = TensorProto(dims=weight.shape, data_type=kind, name=weight.name).SerializeToString()
            head += _RAW_DATA + _varint(size)
            yield weight, _INITIALIZER + _varint(len(head) + size) + head, size


def _varint(number: int) -> bytes:
    """Protobuf's variable-length integer: seven bits a byte, low ones first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


class Draft:
    """The nodes and initialisers of a model being written, in order. `finish` makes the model."""

    def __init__(self, name: str) -> None:
        """An empty graph called `name`; the name also seeds its weights."""
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[Seeded | Fixed] = []

    def node(self, op: str, *inputs: str, name: str, **attributes: Any) -> str:
        """The name of the only used output of a new node, which is the node's own name."""
        from onnx import helper

        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        """The name of a new initialiser with these `values`."""
        self._weights.append(Fixed(name, values))
        return name

    def weight(self, name: str, *shape: int, std: float, mean: float = 0.0, log: bool = False) -> str:
        """The name of a new initialiser of seeded normal values; with `log` their logarithm is normal."""
        self._weights.append(Seeded(self.name, name, shape, std, mean, log))
        return name

    def dense(self, name: str, data: str, width_in: int, width_out: int, *, std: float) -> str:
        """The output of MatMul + Add, the form onnxruntime's transformer fusions look for."""
        product = self.node("MatMul", data, self.weight(f"{name}.weight", width_in, width_out, std=std), name=name)
        return self.node("Add", product, self.weight(f"{name}.bias", width_out, std=0.02), name=f"{name}.out")

    def finish(
        self, inputs: dict[str, tuple[str, Sequence[int | str]]], output: str, shape: Sequence[int | str]
    ) -> Blueprint:
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
        return Blueprint(finished(graph, (), opset=OPSET), tuple(self._weights))


def finished(graph: onnx.GraphProto, initialisers: Sequence[onnx.TensorProto], *, opset: int) -> onnx.ModelProto:
    """The model of `graph` with these `initialisers`, which are copied once (make_graph and make_model: twice)."""
    from onnx import helper

    model = helper.make_model(
        graph, producer_name=PRODUCER, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", opset)]
    )
    model.graph.initializer.extend(initialisers)
    return model
