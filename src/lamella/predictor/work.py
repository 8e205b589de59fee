"""What a node has to do, in the few numbers its time depends on.

Nodes that run the same kernel are of one kind. A kind has *terms*, quantities that time grows with in proportion
(multiply-accumulates, megabytes of weights, megabytes moved, one for being called): a roofline whose slopes are fitted.
It has *dimensions*, too, whose logarithms say which measured nodes are its neighbours: kernels are less efficient on
few rows or narrow channels, by how much is read off those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lamella.graph.flops import flops
from lamella.graph.model import GATHERS
from lamella.predictor.optimised import Node, Operand
from lamella.units import MB

ANY = "any"
"""Stands for kinds that were not measured; its terms are `Work.common`."""
Terms = tuple[tuple[str, float], ...]
CACHED_MB = 8.0
"""What a step reads again beyond this comes from memory, not from a cache: of 4, 8, 12 and 16 MB on a 32 MB cache this
fits networks left out best."""


class Work(NamedTuple):
    """One node's."""

    kind: str
    terms: Terms
    dimensions: tuple[float, ...]
    gmac: float
    weight_mb: float
    moved_mb: float
    """Activations, read and written."""

    @property
    def common(self) -> Terms:
        """Terms that every kind has."""
        return (("call", 1.0), ("gmac", self.gmac), ("weight_mb", self.weight_mb), ("moved_mb", self.moved_mb))


FAMILIES: dict[str, str] = {
    op: family
    for family, ops in {
        "view": "Reshape Flatten Squeeze Unsqueeze Identity Dropout",
        "arithmetic": "Add Sub Mul Div Neg Abs Max Min Sum Mean And Or Not Equal Greater Less Where Cast",
        "activation": "Relu LeakyRelu PRelu Clip HardSigmoid HardSwish ThresholdedRelu",
        "transcendental": "Sigmoid Tanh Exp Log Sqrt Pow Erf Gelu BiasGelu FastGelu QuickGelu Elu Selu Softplus Mish "
        "Reciprocal Sin Cos",
        "transpose": "Transpose ReorderInput ReorderOutput",
        "move": "Concat Slice Split Pad Expand Tile",
        "resize": "Resize Upsample",
        "gather": " ".join(sorted(GATHERS)),
        "softmax": "Softmax LogSoftmax",
        "layer norm": "LayerNormalization SkipLayerNormalization SimplifiedLayerNormalization "
        "SkipSimplifiedLayerNormalization",
        "norm": "BatchNormalization InstanceNormalization GroupNormalization LRN",
        "reduce": "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL2 ArgMax ArgMin TopK CumSum",
        "pool": "MaxPool AveragePool",
        "global pool": "GlobalAveragePool GlobalMaxPool",
    }.items()
    for op in ops.split()
}
"""Kinds of the operators without weights to multiply with."""
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CONVOLUTIONS = frozenset({"Conv", "FusedConv", "ConvTranspose"})
PRODUCTS = frozenset({"MatMul", "Gemm", "FusedGemm", "FusedMatMul"})


def work_of(node: Node) -> Work:
    """What a node has to do."""
    if node.kind in CONVOLUTIONS and len(node.inputs[1].shape) > 2:
        return _convolution(node)
    if node.kind in PRODUCTS and node.inputs[0].shape:
        return _product(node)
    if node.kind in GATES and len(node.inputs[0].shape) == 3:
        return _recurrent(node)
    return _plain(node)


def _mb(operands: tuple[Operand, ...], *, constant: bool) -> float:
    return sum(o.bytes for o in operands if o.constant == constant) / MB


def _moved(node: Node) -> tuple[float, float, float]:
    """MB of constants, of activations read, and written."""
    read = _mb(node.inputs, constant=False)
    weights = 0.0 if node.kind in GATHERS else _mb(node.inputs, constant=True)
    return weights, read, _mb(node.outputs, constant=False)


def _convolution(node: Node) -> Work:
    weights, read, written = _moved(node)
    kernel, out = node.inputs[1].shape, node.outputs[0].shape
    over = node.inputs[0].shape if node.kind == "ConvTranspose" else out
    gmac = math.prod(over) * math.prod(kernel[1:]) / 1e9
    area, group = math.prod(kernel[2:]), int(node.attributes.get("group", 1))
    pixels = math.prod(out[2:]) * out[0]
    terms = (("call", 1.0), ("gmac", gmac), ("weight_mb", weights), ("read_mb", read), ("written_mb", written))
    kind = _convolution_kind(node, kernel[1], area, group)
    return Work(kind, terms, (kernel[1], out[1], area, pixels), gmac, weights, read + written)


def _convolution_kind(node: Node, depth: int, area: int, group: int) -> str:
    """By which of the runtime's kernels computes it."""
    if node.kind == "ConvTranspose":
        return "transposed convolution"
    if not node.blocked:
        return "plain convolution" if group == 1 else "plain grouped convolution"
    if group > 1:
        return "depthwise convolution" if depth == 1 else "grouped convolution"
    if node.inputs[0].shape[1] < 8:
        return "first convolution"
    return "pointwise convolution" if area == 1 else "convolution"


def _product(node: Node) -> Work:
    weights, read, written = _moved(node)
    left, out = node.inputs[0].shape, node.outputs[0].shape or (1,)
    turned = bool(node.attributes.get("transA"))
    inner, outer = left[-2 if turned and len(left) > 1 else -1], out[-1]
    rows = math.prod(out[:-1])
    gmac = rows * inner * outer / 1e9
    constant = node.inputs[1].constant or node.inputs[0].constant
    many = 1 if constant else math.prod(out[:-2])
    kind = "product" if constant else "product of activations"
    if constant and rows == 1:
        kind = "product of one row"
    terms: Terms = (("call", 1.0), ("gmac", gmac), ("weight_mb", weights), ("read_mb", read), ("written_mb", written))
    if not constant:
        terms = (*terms, ("products", float(many)))
    return Work(kind, terms, (many, rows / many, inner, outer), gmac, weights, read + written)


def _recurrent(node: Node) -> Work:
    """Weights of the recurrence are read at every step, from where they fit; those of the input once."""
    weights, read, written = _moved(node)
    steps, batch, width = node.inputs[0].shape
    directions, _, hidden = node.inputs[2].shape
    gates = GATES[node.kind]
    again = gates * hidden * hidden * 4 / MB
    turns = steps * directions
    into = turns * batch * gates * hidden * width / 1e9
    back = turns * batch * gates * hidden * hidden / 1e9
    terms = (
        ("steps", float(turns)),
        ("input_gmac", into),
        ("step_cached_mb", turns * min(again, CACHED_MB)),
        ("step_memory_mb", turns * max(again - CACHED_MB, 0.0)),
        ("weight_mb", weights),
    )
    return Work(node.kind.lower(), terms, (steps, width, hidden, batch), into + back, weights, read + written)


def _plain(node: Node) -> Work:
    weights, read, written = _moved(node)
    ins: list[Sequence[int]] = [o.shape for o in node.inputs]
    outs: list[Sequence[int]] = [o.shape for o in node.outputs]
    out = outs[0] if outs else ()
    window = math.prod(node.attributes.get("kernel_shape") or (1,))
    gmac = math.prod(out) * window / 1e9 if node.kind in ("MaxPool", "AveragePool") else 0.0
    gmac = gmac or flops(node.kind, ins, outs, node.attributes) / 2e9
    elements = math.prod(max((*ins[:1], out), key=math.prod)) / 1e6
    terms: Terms = (("call", 1.0), ("elements_m", elements), ("read_mb", read + weights), ("written_mb", written))
    if window > 1:
        terms = (*terms, ("gmac", gmac))
    if node.kind in GATHERS and len(ins) > 1:
        terms = (("call", 1.0), ("rows", float(math.prod(ins[1]))), ("written_mb", written))
    last = out[-1] if out else 1
    return Work(_family(node), terms, (elements * 1e6, last), gmac, weights, read + written)


def _family(node: Node) -> str:
    if node.kind in ("BiasGelu", "Gelu", "FastGelu", "Erf"):
        return "gelu"
    return FAMILIES.get(node.kind, ANY)
