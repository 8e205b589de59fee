"""From the user's ONNX file to a graph whose constants are weights and whose nodes all do work for the request.

Passes, in order: inline local functions; lift Constant nodes; sort; drop Identity; fold everything that depends on
constants alone (weights made by ConstantOfShape among it) by running it once in the runtime itself; drop dead nodes;
name every node. Each pass keeps the model's answers bit for bit. Rejected: the runtime's own `basic` level, because it
also fuses, and what is fused can no longer be cut; folding DequantizeLinear, because it would undo quantisation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lamella.errors import ModelError
from lamella.graph.weights import EXPORT_AGAIN, PLAINER, needs_plainer, read_tensor

KEEP = frozenset(
    "DequantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split()
)
"""Never folded: they carry quantisation, or chance."""

OPTIONAL_OUTPUTS = frozenset("Dropout MaxPool LSTM GRU RNN LayerNormalization BatchNormalization".split())
"""Kinds whose unread outputs can be left out, such as Dropout's mask."""

SOURCE_LINE = re.compile(
    r"(?:Status Message: |(?=/))\S+\.(?:cc|h):\d+ [^()]*\([^()]*\) (?:const )?|Load model from .*? failed: ?"
)
"""Where the runtime's own source raised an error, and our temporary file that it read."""

FOLD_LIMIT = 16 << 20
"""Expanding constants (Expand, Tile) are folded up to this many bytes; ConstantOfShape always is."""


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Graphs inside a node's attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every constant of a graph: its initialisers, and those inside its nodes, at any depth."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for sub in subgraphs(node):
            yield from tensors(sub)


def captured(node: NodeProto) -> list[str]:
    """Names that a node's subgraphs read from outside, at any depth."""
    names: dict[str, None] = {}

    def visit(graph: GraphProto, known: set[str]) -> None:
        known = known | {i.name for i in graph.input} | {t.name for t in graph.initializer}
        for inner in graph.node:
            names.update({n: None for n in inner.input if n and n not in known})
            for sub in subgraphs(inner):
                visit(sub, known)
            known |= set(inner.output)
        names.update({o.name: None for o in graph.output if o.name not in known})

    for sub in subgraphs(node):
        visit(sub, set())
    return list(names)


def constant_bytes(graph: GraphProto) -> int:
    """Bytes of the constants inside a subgraph, at any depth."""
    total: int = sum(t.ByteSize() for t in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            total += node.ByteSize()
        total += sum(constant_bytes(sub) for sub in subgraphs(node))
    return total


def reads(node: NodeProto) -> list[str]:
    """Everything a node reads: its inputs and what its subgraphs capture, each once."""
    return list(dict.fromkeys([*(n for n in node.input if n), *captured(node)]))


def normalise(model: ModelProto, weights: dict[str, np.ndarray]) -> ModelProto:
    """The normalised model without initialisers; constants end in `weights`, name -> array.

    Args:
        model: with initialisers already moved to `weights`; changed in place.
        weights: arrays of the model's constants, grown and pruned in place.

    Raises:
        ModelError: a node cannot be folded, or a name is read that nobody makes.
    """
    graph = model.graph
    _lift_constants(graph, weights)
    _sort(graph, weights)
    _drop_identity(graph)
    _fold(model, weights)
    lost = {o.name for o in graph.output} & set(weights)
    if lost:
        raise ModelError(f"output {sorted(lost)[0]!r} does not depend on any input", where="graph outputs")
    _drop_dead(graph, weights)
    names: set[str] = set()
    for i, node in enumerate(graph.node):
        if not node.name or node.name in names:
            node.name = f"{node.op_type}_{i}"
        names.add(node.name)
    del graph.value_info[:]
    return model


def _lift_constants(graph: GraphProto, weights: dict[str, np.ndarray]) -> None:
    kept = []
    for node in graph.node:
        value = _constant(node) if node.op_type == "Constant" and node.domain in ("", "ai.onnx") else None
        if value is None:
            kept.append(node)
        else:
            weights[node.output[0]] = value
    del graph.node[:]
    graph.node.extend(kept)


def _constant(node: NodeProto) -> np.ndarray | None:
    if not node.attribute or not node.output:
        lacks = "value" if node.output else "output"
        raise ModelError(
            f"a Constant node has no {lacks}",
            where=f"operator {node.name or ', '.join(node.output) or 'Constant'}",
            try_=EXPORT_AGAIN,
        )
    attribute = node.attribute[0]
    match attribute.name:
        case "value":
            attribute.t.name = attribute.t.name or node.output[0]
            return read_tensor(attribute.t, Path())  # the importer has taken external bytes in
        case "value_float" | "value_floats":
            return np.array(helper.get_attribute_value(attribute), dtype=np.float32)
        case "value_int" | "value_ints":
            return np.array(helper.get_attribute_value(attribute), dtype=np.int64)
        case _:  # strings and sparse values stay nodes
            return None


def _rename(nodes: Iterable[NodeProto], names: dict[str, str]) -> None:
    """Read `names[x]` wherever `x` is read, inside subgraphs too."""
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
        for sub in subgraphs(node):
            _rename(sub.node, names)
            for out in sub.output:
                out.name = names.get(out.name, out.name)


def _drop_identity(graph: GraphProto) -> None:
    outputs = {o.name for o in graph.output}
    names: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.output[0] not in outputs:
            names[node.output[0]] = names.get(node.input[0], node.input[0])
        else:
            _rename([node], names)
            kept.append(node)
    if names:
        del graph.node[:]
        graph.node.extend(kept)


def _sort(graph: GraphProto, weights: dict[str, np.ndarray]) -> None:
    """Topological order, the given one where it is already sorted."""
    known = {i.name for i in graph.input} | set(weights)
    waiting, done = list(graph.node), []
    while waiting:
        ready = []
        rest = []
        for node in waiting:
            if all(n in known for n in reads(node)):
                ready.append(node)
                known.update(node.output)
            else:
                rest.append(node)
        if not ready:
            node = rest[0]
            missing = next(n for n in reads(node) if n not in known)
            raise ModelError(
                f"node {node.name or node.op_type!r} reads {missing!r}, which nothing makes",
                where=f"operator {node.op_type}",
                try_="export the model again; `python -m onnx.checker` shows the same fault",
            )
        done += ready
        waiting = rest
    del graph.node[:]
    graph.node.extend(done)


def _fold(model: ModelProto, weights: dict[str, np.ndarray]) -> None:
    graph = model.graph
    constant = set(weights)
    folded: list[NodeProto] = []
    kept: list[NodeProto] = []
    for node in graph.node:
        foldable = node.op_type not in KEEP and not any(True for _ in subgraphs(node)) and node.input
        grows = node.op_type in ("Expand", "Tile", "Range")
        if foldable and all(n in constant for n in node.input if n) and not (grows and _size(node, weights)):
            folded.append(node)
            constant.update(node.output)
        else:
            kept.append(node)
    if not folded:
        return
    used = {n for node in kept for n in reads(node)} | {o.name for o in graph.output}
    wanted = [n for node in folded for n in node.output if n in used]
    if wanted:
        weights.update(_evaluate(model, folded, wanted, weights))
    del graph.node[:]
    graph.node.extend(kept)


def _size(node: NodeProto, weights: dict[str, np.ndarray]) -> bool:
    """Whether an expanding constant is too large to fold."""
    arrays = [weights[n] for n in node.input if n in weights]
    if node.op_type == "Expand" and len(arrays) == 2:
        return int(np.prod(arrays[1].astype(np.float64))) * arrays[0].itemsize > FOLD_LIMIT
    return sum(a.nbytes for a in arrays) > FOLD_LIMIT


def _evaluate(
    model: ModelProto, nodes: list[NodeProto], wanted: list[str], weights: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    made = {n for node in nodes for n in node.output}
    given = dict.fromkeys(n for node in nodes for n in node.input if n and n not in made)
    inside = [numpy_helper.from_array(weights[n], n) for n in given if weights[n].dtype.kind == "V"]  # bfloat16, int4
    feeds = {n: weights[n] for n in given if weights[n].dtype.kind != "V"}
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=n) for n in wanted]
    proto = helper.make_model(
        helper.make_graph(nodes, "fold", inputs, outputs, inside),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        foreign = next((o for o in session.get_outputs() if needs_plainer(o.type)), None)
        values = session.run(wanted, feeds) if foreign is None else []
    except Exception as error:  # the binding raises bare exceptions of many kinds
        raise ModelError(
            f"constants of the model cannot be computed: {short(error)}",
            where=f"operators {', '.join(dict.fromkeys(n.op_type for n in nodes))}",
            try_=EXPORT_AGAIN,
        ) from error
    if foreign is not None:
        raise ModelError(
            f"constant {foreign.name!r} would be computed as {foreign.type}, which lamella cannot hold",
            where=f"tensor {foreign.name!r}",
            try_=PLAINER,
        )
    return dict(zip(wanted, values, strict=True))


def short(error: Exception) -> str:
    """What the runtime says, without the place in its own source and the lines after the first."""
    text = next(iter(str(error).splitlines()), type(error).__name__).split(" : ")[-1]
    return SOURCE_LINE.sub("", text)[:300]


def _drop_dead(graph: GraphProto, weights: dict[str, np.ndarray]) -> None:
    used = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            kept.append(node)
            used.update(reads(node))
            if node.op_type in OPTIONAL_OUTPUTS:
                node.output[:] = [n if n in used else "" for n in node.output]
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for name in set(weights) - used:
        del weights[name]
