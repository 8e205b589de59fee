"""Products with constant weights as 1x1 convolutions, their weights stored in the blocked layout of this CPU.

The runtime's quick kernels for MatMul and Gemm want the weights repacked, and it repacks them while it loads: into
memory of each process's own, at the price of a slow start. Its convolutions want them in blocks, too, but take those as
they lie in the file. So a product becomes ReorderInput -> Conv 1x1 -> ReorderOutput, rows as pixels and columns as
channels: as quick as the repacked one, loaded at once, and its pages shared by all who map the file.

Which ones can is `graph.products`; columns are padded to the block.

The layout of a weight [outer, inner] with blocks of b, as `block` finds it: [outer / b, inner, b].

Rejected: blocked activations from one product to the next (what stands between two of them, Gelu or a sum, is rarely
one that takes them); `Attention` operators, whose weights the runtime packs its own way.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lamella.graph.normalise import reads
from lamella.graph.products import Product, View, through

DOMAIN = "com.microsoft.nchwc"


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
    write = _Writer(View(proto, weights), size, path)
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

    def __init__(self, view: View, size: int, path: Path) -> None:
        self._view, self._size, self._path = view, size, path
        self._end = 0
        self._reordered: dict[tuple[str, tuple[int, ...]], str] = {}
        self.small: dict[str, TensorProto] = {}
        self.large: dict[str, np.ndarray] = {}

    def product(self, product: Product) -> Iterator[NodeProto]:
        there_and_back = through(product.lead)
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
