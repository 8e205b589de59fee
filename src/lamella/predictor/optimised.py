"""Operators as they run: the nodes of an optimised graph, with every shape known.

What is measured and what is predicted are described by the same words because both go through here. The offline
optimiser decides which kernels run (a normalisation folded into a convolution, an activation fused, the blocked layout
of activations), so a model is asked about after it, and nothing has to be guessed of fusions. Optimising is not
running: no request is made, and no operator but constant folding is computed. The runtime writes down no shapes for
its blocked convolutions and what follows them; they are worked out here.

Not handled: shapes that depend on data. Such a tensor counts as one element.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from lamella.profile.layouts import UNKNOWN
from lamella.units import Dim, dim_at

Shape = tuple[int, ...]
BLOCKED_DOMAIN = "com.microsoft.nchwc"
FLOAT = TensorProto.FLOAT
WINDOWS = {"Conv": "conv", "MaxPool": "pool", "AveragePool": "pool"}


class Operand(NamedTuple):
    """A tensor that a node reads or writes."""

    name: str
    shape: Shape
    bytes: int
    constant: bool


class Node(NamedTuple):
    """One node of an optimised graph."""

    kind: str
    blocked: bool
    """Whether activations lie in the blocks of the CPU's vectors."""
    inputs: tuple[Operand, ...]
    """As the operator counts them; of those left out the shape is ()."""
    outputs: tuple[Operand, ...]
    attributes: dict[str, Any]


def nodes_of(
    proto: ModelProto, weights: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[Dim]], batch: int
) -> list[Node]:
    """The nodes in order.

    Args:
        proto: what the runtime's optimiser made of some operators.
        weights: its large constants.
        shapes: what is known of its activations (`profile.layouts.shapes_of`).
        batch: for free dimensions.
    """
    constants = {t.name: (tuple(t.dims), _size(t.data_type)) for t in proto.graph.initializer}
    constants |= {n: (a.shape, a.dtype.itemsize) for n, a in weights.items()}
    known: dict[str, Shape] = {
        name: tuple(dim_at(d, batch) for d in shape) for name, shape in shapes.items() if UNKNOWN not in shape
    }
    known |= {name: shape for name, (shape, _) in constants.items()}
    sizes = {v.name: _size(v.type.tensor_type.elem_type) for v in (*proto.graph.input, *proto.graph.value_info)}

    def operand(name: str) -> Operand:
        shape, size = known.get(name, ()), constants[name][1] if name in constants else sizes.get(name, 4)
        return Operand(name, shape, math.prod(shape) * size if name else 0, name in constants)

    small = {t.name: t for t in proto.graph.initializer}
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
    found = []
    for node in proto.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for place, name in enumerate(node.output):
            if name and name not in known:
                standard = node.domain in ("", "ai.onnx")
                told = _inferred(node, known, small, opset) if standard else {}
                known[name] = told.get(name) or (_follows(node, attributes, known) if place == 0 else ())
        blocked = node.domain == BLOCKED_DOMAIN
        sides = [tuple(operand(n) for n in names) for names in (node.input, node.output)]
        found.append(Node(node.op_type, blocked, sides[0], sides[1], attributes))
    return found


def _inferred(
    node: NodeProto, known: Mapping[str, Shape], small: Mapping[str, TensorProto], opset: int
) -> dict[str, Shape]:
    """The shapes of a standard operator's outputs, as ONNX infers them; none where it cannot."""
    names = [n for n in node.input if n]
    types = {n: helper.make_tensor_type_proto(small[n].data_type if n in small else FLOAT, known[n]) for n in names}
    try:
        made = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, opset),
            node,
            types,
            {n: small[n] for n in names if n in small},
            opset_imports=[helper.make_opsetid("", opset)],
        )
    except (onnx.shape_inference.InferenceError, KeyError):  # types that we do not follow, shapes nobody wrote down
        return {}
    dims = {n: t.tensor_type.shape.dim for n, t in made.items() if t.tensor_type.HasField("shape")}
    return {n: tuple(d.dim_value for d in shape) for n, shape in dims.items() if all(d.dim_value for d in shape)}


def _size(elem_type: int) -> int:
    """Bytes of an element."""
    try:
        return int(helper.tensor_dtype_to_np_dtype(elem_type).itemsize)
    except (KeyError, TypeError):  # a tensor of unsaid type
        return 4


def _follows(node: NodeProto, attributes: Mapping[str, Any], known: Mapping[str, Shape]) -> Shape:
    """The shape of a node's output from those of its inputs: of blocked nodes, and what may stand between them."""
    ins = [known.get(n, ()) for n in node.input if n]
    match node.op_type:
        case "Conv" | "MaxPool" | "AveragePool" if ins and len(ins[0]) > 2:
            return _window(node, attributes, ins)
        case "GlobalAveragePool" | "GlobalMaxPool":
            return (*ins[0][:2], *(1 for _ in ins[0][2:]))
        case "ReorderOutput":
            batch, _, *rest = ins[0]
            channels = int(attributes["channels"])
            return (batch, *rest, channels) if attributes.get("channels_last") else (batch, channels, *rest)
        case "FusedMatMul" if len(ins) == 2 and min(map(len, ins)) > 1:
            rows = ins[0][-1 if attributes.get("transA") else -2]
            outer = ins[1][-2 if attributes.get("transB") else -1]
            return (*max((s[:-2] for s in ins), key=math.prod), rows, outer)
        case "Upsample" if attributes.get("scales"):
            return tuple(d * int(s) for d, s in zip(ins[0], attributes["scales"], strict=True))
        case "Concat" if ins and all(len(s) == len(ins[0]) for s in ins):
            axis = int(attributes["axis"]) % len(ins[0])
            return tuple(sum(s[k] for s in ins) if k == axis else d for k, d in enumerate(ins[0]))
    return max(ins, key=math.prod, default=())


def _window(node: NodeProto, attributes: Mapping[str, Any], ins: Sequence[Shape]) -> Shape:
    """The output of what slides a window over [N, C, ...]."""
    batch, channels, *space = ins[0]
    kernel = tuple(attributes.get("kernel_shape") or ins[1][2:])
    strides = attributes.get("strides") or [1] * len(space)
    spread = attributes.get("dilations") or [1] * len(space)
    pads = attributes.get("pads") or [0] * 2 * len(space)
    same = bytes(attributes.get("auto_pad", b"")).startswith(b"SAME")
    rounded = math.ceil if attributes.get("ceil_mode") else math.floor
    out = []
    for k, size in enumerate(space):
        room = size + pads[k] + pads[k + len(space)] - spread[k] * (kernel[k] - 1) - 1
        out.append(math.ceil(size / strides[k]) if same else rounded(room / strides[k]) + 1)
    return (batch, ins[1][0] if WINDOWS[node.op_type] == "conv" else channels, *out)
