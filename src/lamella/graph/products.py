"""Which products of an optimised graph can run as blocked convolutions (`graph.blocked`), and why others cannot.

Taken: MatMul, Gemm, FusedMatMul, FusedGemm of two-dimensional float32 weights, either way round, with `alpha`, `beta`,
a constant bias (an Add behind it as well) and Relu, Sigmoid, Tanh, LeakyRelu or HardSigmoid. Not taken, and said so:
rows of a length that is no multiple of the block (padding them would take a copy of the input), a transposed left side,
a bias that is computed, other types, small weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from lamella.graph.normalise import reads
from lamella.units import Dim

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


class View:
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
    view, found, left = View(proto, weights), [], Counter[str]()
    for k, node in enumerate(view.nodes):
        if node.op_type not in PRODUCTS or len(node.input) < 2 or node.input[1] not in weights:
            continue
        product = _product(view, k, node, shapes, size)
        if isinstance(product, Product):
            found.append(_with_activation(view, _with_sum(view, product)))
        else:
            left[product] += 1
    return found, left


def _product(view: View, k: int, node: NodeProto, shapes: Mapping[str, tuple[Dim, ...]], size: int) -> Product | str:
    """The product of one operator, nothing folded in yet; or why it cannot run blocked."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    weight = view.weights[node.input[1]]
    shape = shapes.get(node.input[0])
    if weight.nbytes < SMALL_BYTES:
        return "small"
    if weight.dtype != np.float32 or weight.ndim != 2:
        return "weights are no float32 matrix"
    if shape is None or len(shape) < 2 or not through(shape[:-1]):
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


def _fits(view: View, name: str, outer: int) -> bool:
    """Whether a constant is one row, the same for all rows of the product."""
    array = view.constant(name)
    return array is not None and array.size in (1, outer) and (array.size == 1 or array.shape[-1] == outer)


def _with_sum(view: View, product: Product) -> Product:
    """The Add of a constant row behind it folded in."""
    k = view.next(product.gives)
    if product.bias or product.activation or k < 0 or view.nodes[k].op_type != "Add":
        return product
    other = next((n for n in view.nodes[k].input if n != product.gives), "")
    array = view.constant(other)
    if array is None or not _fits(view, other, product.outer) or array.ndim > len(product.lead) + 1:
        return product
    return replace(product, nodes=(*product.nodes, k), gives=view.nodes[k].output[0], bias=other)


def _with_activation(view: View, product: Product) -> Product:
    """The activation behind it folded in."""
    k = view.next(product.gives)
    if product.activation or k < 0 or view.nodes[k].op_type not in FOLDED or view.nodes[k].domain:
        return product
    gives, kind = view.nodes[k].output[0], view.nodes[k].op_type
    return replace(product, nodes=(*product.nodes, k), gives=gives, activation=kind)


def through(lead: Sequence[Dim]) -> tuple[list[int], list[int]] | None:
    """The shapes, less the last dimension, that take rows to pixels and back; empty ones where the four serve as is.

    All rows become one line of pixels where at most one dimension is free; what is free becomes -1 on the way back.
    With two free ones the first is kept apart as the convolution's batch.
    """
    if any(d == 0 for d in lead):
        return None
    if sum(isinstance(d, str) for d in lead) <= 1:
        return [1, 1, -1], [-1 if isinstance(d, str) else d for d in lead]
    return {2: ([0, 1, -1], [0, -1]), 3: ([], [])}.get(len(lead))
