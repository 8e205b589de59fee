"""Products with constant weights as 1x1 convolutions, their weights stored in the blocked layout of this CPU.

The runtime's quick kernels for MatMul and Gemm want the weights repacked, and it repacks them while it loads: into
memory of each process's own, at the price of a slow start. Its convolutions want them in blocks, too, but take those as
they lie in the file. So a product becomes ReorderInput -> Conv 1x1 -> ReorderOutput, rows as pixels and columns as
channels: as quick as the repacked one, loaded at once, and its pages shared by all who map the file.

Taken: MatMul, Gemm, FusedMatMul, FusedGemm of two-dimensional float32 weights, either way round, with `alpha`, `beta`,
a constant bias (an Add behind it as well) and Relu, Sigmoid, Tanh, LeakyRelu or HardSigmoid. Columns are padded to the
block. Not taken, and said so: rows of a length that is no multiple of the block (padding them would take a copy of the
input), a transposed left side, a bias that is computed, other types, small weights.

The layout of a weight [outer, inner] with blocks of b, as `block` finds it: [outer / b, inner, b].

Rejected: blocked activations from one product to the next (what stands between two of them, Gelu or a sum, is rarely
one that takes them); `Attention` operators, whose weights the runtime packs its own way.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lamella.graph.normalise import reads
from lamella.units import Dim

DOMAIN = "com.microsoft.nchwc"
PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm"})
ACTIVATIONS: dict[str, tuple[tuple[str, float], ...]] = {
    "": (),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": (("activation_alpha", 0.01),),
    "HardSigmoid": (("activation_alpha", 0.2), ("activation_beta", 0.5)),
}
"""What the blocked convolution can end with, and the attributes of FusedGemm (with defaults) it takes over."""
SMALL_BYTES = 1 << 16
"""Weights below that are left alone: to repack them takes microseconds and a page or two."""
FOLDED = frozenset({"Relu", "Sigmoid", "Tanh"})
"""Operators behind a product that become its activation."""


@cache
def block() -> int:
    """Channels per block on this CPU with this runtime; 0 where it has no blocked layout.

    The runtime is asked: it optimises a convolution whose weights are numbered, and what it makes of them is looked at.
    """
    side = 64
    weight = np.arange(side * side, dtype=np.float32).reshape(side, side)
    with tempfile.TemporaryDirectory() as directory:
        dumped = _optimised_convolution(weight, Path(directory) / "optimised.onnx")
    found = [numpy_helper.to_array(t).reshape(-1) for t in dumped.initializer if len(t.dims) == 4]
    if len(found) != 1 or not any(node.domain == DOMAIN and node.op_type == "Conv" for node in dumped.node):
        return 0
    size = int(np.argmax(np.diff(found[0]) != side)) + 1
    return size if side % size == 0 and np.array_equal(packed(weight, size).reshape(-1), found[0]) else 0


def _optimised_convolution(weight: np.ndarray, path: Path) -> GraphProto:
    outer, inner = weight.shape
    shapes = [("x", [1, inner, 4, 4]), ("y", [1, outer, 4, 4])]
    takes, gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])],
            "probe",
            [takes],
            [gives],
            [numpy_helper.from_array(weight.reshape(outer, inner, 1, 1), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.optimized_model_filepath = os.fspath(path)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path).graph


def packed(weight: np.ndarray, size: int) -> np.ndarray:
    """A weight [outer, inner] in blocks of `size`, as the convolution's [outer, inner, 1, 1]; outer padded with 0."""
    outer, inner = weight.shape
    whole = -(-outer // size) * size
    if whole != outer:
        weight = np.concatenate([weight, np.zeros((whole - outer, inner), weight.dtype)])
    return np.ascontiguousarray(weight.reshape(-1, size, inner).transpose(0, 2, 1)).reshape(whole, inner, 1, 1)


@dataclass(frozen=True, slots=True)
class Product:
    """A product that can run blocked: `gives` = activation(`takes` x weight + bias)."""

    nodes: tuple[int, ...]
    """Places of the operators it stands for: itself, and what is folded in."""
    takes: str
    gives: str
    weight: str
    lead: tuple[Dim, ...]
    """Dimensions of the left side but the last; their product is the number of rows."""
    inner: int
    outer: int
    transposed: bool
    """The weight lies as [outer, inner]."""
    alpha: float = 1.0
    bias: str = ""
    beta: float = 1.0
    activation: str = ""
    parameters: tuple[float, ...] = ()


class _View:
    """A graph as the search looks at it."""

    def __init__(self, proto: ModelProto, weights: Mapping[str, np.ndarray]) -> None:
        self.nodes = proto.graph.node
        self.weights = weights
        self.small = {t.name: t for t in proto.graph.initializer}
        self.readers: dict[str, list[int]] = {}
        for k, node in enumerate(self.nodes):
            for name in reads(node):
                self.readers.setdefault(name, []).append(k)
        for value in proto.graph.output:
            self.readers.setdefault(value.name, []).append(-1)

    def constant(self, name: str) -> np.ndarray | None:
        """A float32 constant."""
        array = self.weights.get(name)
        if array is None and name in self.small:
            array = numpy_helper.to_array(self.small[name])
        return array if array is not None and array.dtype == np.float32 else None

    def next(self, name: str) -> int:
        """The operator that alone reads a tensor; -1 where there is none."""
        found = self.readers.get(name, [])
        return found[0] if len(found) == 1 else -1


def products(
    proto: ModelProto, weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[Dim, ...]], size: int
) -> tuple[list[Product], Counter[str]]:
    """Those that can run in blocks of `size`, and how many products with constant weights cannot, by reason.

    Args:
        proto: an optimised graph without its large constants.
        weights: those constants.
        shapes: of its tensors; a product whose left side is not among them is left alone.
        size: what `block` found.
    """
    view, found, left = _View(proto, weights), [], Counter[str]()
    for k, node in enumerate(view.nodes):
        if node.op_type not in PRODUCTS or len(node.input) < 2 or node.input[1] not in weights:
            continue
        product = _product(view, k, node, shapes, size)
        if isinstance(product, Product):
            found.append(_with_activation(view, _with_sum(view, product)))
        else:
            left[product] += 1
    return found, left


def _product(view: _View, k: int, node: NodeProto, shapes: Mapping[str, tuple[Dim, ...]], size: int) -> Product | str:
    """The product of one operator, nothing folded in yet; or why it cannot run blocked."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    weight = view.weights[node.input[1]]
    shape = shapes.get(node.input[0])
    if weight.nbytes < SMALL_BYTES:
        return "small"
    if weight.dtype != np.float32 or weight.ndim != 2:
        return "weights are no float32 matrix"
    if shape is None or len(shape) < 2 or not _through(shape[:-1]):
        return "shape not known"
    if any(given.get(name) for name in ("transA", "transBatchA", "transBatchB")):
        return "left side transposed"
    transposed = bool(given.get("transB"))
    outer, inner = weight.shape if transposed else weight.shape[::-1]
    if not size:
        return "no blocked layout on this CPU"
    if inner % size or outer < size:
        return "no multiple of the block"
    activation = _text(given.get("activation", ""))
    if activation not in ACTIVATIONS:
        return f"ends with {activation}"
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and not _fits(view, bias, outer):
        return "bias is no constant row"
    return Product(
        nodes=(k,),
        takes=node.input[0],
        gives=node.output[0],
        weight=node.input[1],
        lead=shape[:-1],
        inner=inner,
        outer=outer,
        transposed=transposed,
        alpha=float(given.get("alpha", 1.0)),
        bias=bias,
        beta=float(given.get("beta", 1.0)),
        activation=activation,
        parameters=tuple(float(given.get(name, usual)) for name, usual in ACTIVATIONS[activation]),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _fits(view: _View, name: str, outer: int) -> bool:
    """Whether a constant is one row, the same for all rows of the product."""
    array = view.constant(name)
    return array is not None and array.size in (1, outer) and (array.size == 1 or array.shape[-1] == outer)


def _with_sum(view: _View, product: Product) -> Product:
    """The Add of a constant row behind it folded in."""
    k = view.next(product.gives)
    if product.bias or product.activation or k < 0 or view.nodes[k].op_type != "Add":
        return product
    other = next((n for n in view.nodes[k].input if n != product.gives), "")
    array = view.constant(other)
    if array is None or not _fits(view, other, product.outer) or array.ndim > len(product.lead) + 1:
        return product
    return replace(product, nodes=(*product.nodes, k), gives=view.nodes[k].output[0], bias=other)


def _with_activation(view: _View, product: Product) -> Product:
    """The activation behind it folded in."""
    k = view.next(product.gives)
    if product.activation or k < 0 or view.nodes[k].op_type not in FOLDED or view.nodes[k].domain:
        return product
    gives, kind = view.nodes[k].output[0], view.nodes[k].op_type
    return replace(product, nodes=(*product.nodes, k), gives=gives, activation=kind)


def _through(lead: Sequence[Dim]) -> tuple[list[int], list[int]] | None:
    """The shapes, less the last dimension, that take rows to pixels and back; empty ones where the four serve as is.

    All rows become one line of pixels where at most one dimension is free; what is free becomes -1 on the way back.
    With two free ones the first is kept apart as the convolution's batch.
    """
    if any(d == 0 for d in lead):
        return None
    if sum(isinstance(d, str) for d in lead) <= 1:
        return [1, 1, -1], [-1 if isinstance(d, str) else d for d in lead]
    return {2: ([0, 1, -1], [0, -1]), 3: ([], [])}.get(len(lead))


def rewrite(
    proto: ModelProto, weights: Mapping[str, np.ndarray], chosen: Sequence[Product], size: int, path: Path
) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """The graph with `chosen` run blocked, and its large constants; what nothing reads any more is gone.

    Args:
        proto: the graph in which they were found; it stays as it is.
        weights: its large constants.
        chosen: some of its `products`.
        size: what `block` found.
        path: a file for the blocked weights, which come back as maps of it: a model's weights are not held twice.
    """
    made = ModelProto()
    made.CopyFrom(proto)
    write = _Writer(_View(proto, weights), size, path)
    at, folded = {p.nodes[-1]: p for p in chosen}, {k for p in chosen for k in p.nodes}
    del made.graph.node[:]
    for k, node in enumerate(proto.graph.node):
        if k in at:
            made.graph.node.extend(write.product(at[k]))
        elif k not in folded:
            made.graph.node.append(node)
    made.graph.initializer.extend(write.small.values())
    used = {n for node in made.graph.node for n in reads(node)} | {v.name for v in made.graph.output}
    kept = [t for t in made.graph.initializer if t.name in used]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    if chosen and DOMAIN not in {o.domain for o in made.opset_import}:
        made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return made, {name: array for name, array in {**weights, **write.large}.items() if name in used}


class _Writer:
    """Makes the operators of products, and the constants they read."""

    def __init__(self, view: _View, size: int, path: Path) -> None:
        self._view, self._size, self._path = view, size, path
        self._end = 0
        self._reordered: dict[tuple[str, tuple[int, ...]], str] = {}
        self.small: dict[str, TensorProto] = {}
        self.large: dict[str, np.ndarray] = {}

    def product(self, product: Product) -> Iterator[NodeProto]:
        there_and_back = _through(product.lead)
        assert there_and_back is not None
        there, back = there_and_back
        name = f"{product.gives}/blocked"
        blocked = yield from self._taken(product, there)
        weights = [self._weight(product), *([self._bias(product)] if product.bias else [])]
        attributes: dict[str, Any] = {"kernel_shape": [1, 1], "auto_pad": "NOTSET", "group": 1}
        if product.activation:
            attributes["activation"] = product.activation
        if product.parameters:
            attributes["activation_params"] = product.parameters
        yield helper.make_node("Conv", [blocked, *weights], [name], name, domain=DOMAIN, **attributes)
        given = f"{name}/rows" if back else product.gives
        yield helper.make_node(
            "ReorderOutput", [name], [given], f"{name}/out", domain=DOMAIN, channels_last=1, channels=product.outer
        )
        if back:
            shape = self._shape([*back, product.outer])
            yield helper.make_node("Reshape", [given, shape], [product.gives], f"{name}/back")

    def _taken(self, product: Product, there: list[int]) -> Generator[NodeProto, None, str]:
        """The left side in blocks, made once for all products that take it; its name comes back."""
        key = product.takes, tuple(there)
        if key not in self._reordered:
            name = self._reordered[key] = f"{product.takes}/in-{len(there)}-blocks"
            source = product.takes
            if there:
                source = f"{name}/rows"
                shape = self._shape([*there, product.inner])
                yield helper.make_node("Reshape", [product.takes, shape], [source], f"{name}/there")
            yield helper.make_node("ReorderInput", [source], [name], f"{name}/in", domain=DOMAIN, channels_last=1)
        return self._reordered[key]

    def _shape(self, dims: list[int]) -> str:
        name = "blocked/shape/" + "x".join(map(str, dims))
        self.small[name] = numpy_helper.from_array(np.array(dims, np.int64), name)
        return name

    def _weight(self, product: Product) -> str:
        name = f"{product.weight}/blocked-{self._size}{'-t' if product.transposed else ''}-{product.alpha!r}"
        if name not in self.large:
            weight = self._view.weights[product.weight]
            weight = weight if product.transposed else weight.T
            scaled = weight if product.alpha == 1.0 else weight * np.float32(product.alpha)
            self.large[name] = self._kept(packed(scaled, self._size))
        return name

    def _kept(self, array: np.ndarray) -> np.ndarray:
        """The same numbers as a map of the file."""
        with self._path.open("ab") as file:
            file.write(array.data)
        start, self._end = self._end, self._end + array.nbytes
        return np.memmap(self._path, array.dtype, "r", start, array.shape)

    def _bias(self, product: Product) -> str:
        name = f"{product.bias}/{product.gives}/row"
        array = self._view.constant(product.bias)
        assert array is not None
        row = np.zeros(-(-product.outer // self._size) * self._size, np.float32)
        row[: product.outer] = array.reshape(-1) * np.float32(product.beta)
        self.small[name] = numpy_helper.from_array(row, name)
        return name
