"""Products of a slice on 8-bit integers: weights int8 per column, activations uint8 by the range of each request.

onnxruntime's own quantiser does it (`quantize_dynamic`), before its optimiser makes one operator of each product and
its scaling. What a product answers depends on its weights and its left side alone: so a slice answers as its units
would one by one, wherever it is cut, and what was judged of units holds of every slice of them.

Weights are int8: on the build machine (AVX-512 VNNI) products of 128 rows are twice as quick as with uint8, and 3.5
times as float32. A CPU without VNNI adds pairs of products in 16 bits, which may overflow: a package that was judged
here is to be judged anew there.

Rejected: convolutions (`ConvInteger` has no quick kernel, and static scales need calibration; decision 28); activations
with fixed scales, for the same reason; gathered rows of embeddings, which are read as bytes and not multiplied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from lamella.graph.model import Graph
from lamella.graph.optimise import split_weights
from lamella.graph.products import SMALL_BYTES
from lamella.graph.weights import write_weights

FLOAT_BYTES = 4
WEIGHTS = {"MatMul": (1, 1), "Gemm": (1, 1), "LSTM": (1, 2)}
"""Operators that the quantiser knows, and which of their inputs are weights."""
RANK = {"MatMul": 2, "Gemm": 2, "LSTM": 3}
OLDEST = 11
"""The operator set that has what the quantiser writes."""


def quantisable(graph: Graph, proto: ModelProto) -> tuple[str, ...]:
    """What the operators of a slice give that can run on 8-bit integers, one tensor for each, in order.

    Those with large constant float32 weights and a float32 left side; a Gemm only where it is a plain product and sum.

    Args:
        graph: the model.
        proto: its slice, weights as references.
    """
    if any(o.domain in ("", "ai.onnx") and o.version < OLDEST for o in proto.opset_import):
        return ()
    constants = {t.name: t for t in proto.graph.initializer}
    return tuple(_gives(n) for n in proto.graph.node if n.op_type in WEIGHTS and _fits(graph, n, constants))


def _fits(graph: Graph, node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    first, last = WEIGHTS[node.op_type]
    weights = [constants.get(name) for name in node.input[first : last + 1]]
    left = graph.tensors.get(node.input[0])
    if node.domain not in ("", "ai.onnx") or left is None or left.dtype != "float32":
        return False
    if any(w is None or w.data_type != TensorProto.FLOAT or len(w.dims) != RANK[node.op_type] for w in weights):
        return False
    size = sum(FLOAT_BYTES * _count(w) for w in weights if w)
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0 and not given.get("transA")
    return size >= SMALL_BYTES and (node.op_type != "Gemm" or plain)


def _count(tensor: TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count


def _gives(node: NodeProto) -> str:
    """A name for a node: of its first output that there is."""
    return str(next(name for name in node.output if name))


def quantise(path: Path, chosen: Collection[str]) -> Path:
    """Write a slice again with some of its products on 8-bit integers, beside it; the path.

    Args:
        path: an ONNX slice with its external data beside it.
        chosen: tensors that those products give: some of `quantisable`, at least one.
    """
    assert chosen
    proto, weights = split_weights(onnx.load(path, load_external_data=False), path.parent)
    own = path.with_name(f"{path.stem}-own.onnx")  # with weights of its own: onnx reads none through hard links
    proto.graph.initializer.extend(write_weights(own.with_suffix(".bin"), weights)[1])
    names = _named(proto.graph, frozenset(chosen))
    _own_weights(proto.graph)
    add_pre_process_metadata(proto)  # else the quantiser advises to optimise first, which would change what it is named
    own.write_bytes(proto.SerializeToString())
    made = path.with_name(f"{path.stem}-int8.onnx")
    for stale in (made, made.with_name(f"{made.name}.data")):
        stale.unlink(missing_ok=True)  # the quantiser appends
    quantize_dynamic(
        own,
        made,
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=names,
        use_external_data_format=True,
    )
    own.unlink()
    own.with_suffix(".bin").unlink()
    return made


def _named(graph: GraphProto, chosen: frozenset[str]) -> list[str]:
    """Name every node by what it gives; the names of the chosen ones as the quantiser will meet them."""
    names = []
    for node in graph.node:
        node.name = _gives(node)
        if node.name in chosen:
            names.append(f"{node.name}_MatMul" if node.op_type == "Gemm" else node.name)
    return names


def _own_weights(graph: GraphProto) -> None:
    """Give every Gemm a weight that no other node reads: the quantiser transposes it in place."""
    readers = Counter(name for node in graph.node for name in node.input)
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Gemm" and readers[node.input[1]] > 1 and node.input[1] in constants:
            copy = TensorProto()
            copy.CopyFrom(constants[node.input[1]])
            copy.name = node.input[1] = f"{node.input[1]}/of/{node.name}"
            graph.initializer.append(copy)
