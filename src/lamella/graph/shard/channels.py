"""Divide by weights: find where a division can start, follow it to the end of the span, join what is left."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm

from onnx import NodeProto, helper

from lamella.errors import ShardRefused
from lamella.graph.shard.division import Divided, Misaligned, Part, Sum
from lamella.graph.shard.draft import Sharded, Task, attribute, check_repeatable, kind_of, refusal
from lamella.graph.shard.rows import gather_rows
from lamella.graph.shard.rules import follow, grouped_conv


def by_weights(task: Task, *, rows: bool) -> Sharded:
    """Shards that each hold a share of the weights; embeddings divided by `rows` or, like the rest, by columns.

    Raises:
        ShardRefused: an operator cannot follow the division, or nothing is divided.
    """
    granule = 1
    while True:
        try:
            return _attempt(Divided(task, granule), rows=rows)
        except Misaligned as found:
            if granule % found.granule == 0:
                raise
            granule = lcm(granule, found.granule)


def _attempt(on: Divided, *, rows: bool) -> Sharded:
    started = False
    for node in on.task.nodes:
        check_repeatable(node)
        if any(on.division(n) for n in node.input if n):
            follow(on, node)
        elif _start(on, node, rows=rows):
            started |= not rows or kind_of(node) == "Gather"
        else:
            on.same(node, None)
    if not started:
        what = "looks rows up in a table large enough" if rows else "has weights of its own that a rule can cut"
        raise ShardRefused(f"nothing to divide: no operator {what}")
    whole = [n for n in on.inside if on.division(n) is None]
    return on.finish([_join(on, name) for name in on.task.outputs], whole)


def _join(on: Divided, name: str) -> NodeProto:
    parts = [on.name(name, s) for s in range(on.count)]
    match on.division(name):
        case Part(axis, _):
            return helper.make_node("Concat", parts, [name], name=f"join {name}", axis=axis)
        case Sum():
            return helper.make_node("Sum", parts, [name], name=f"join {name}")
        case None:
            return helper.make_node("Identity", parts[:1], [name], name=f"join {name}")


def _start(on: Divided, node: NodeProto, *, rows: bool) -> bool:
    """Start a division at an operator whose inputs are whole, where it has weights to divide; whether it does."""
    constant = [n in on.weights for n in node.input]
    ranks = [len(on.shapes[n]) if n else 0 for n in node.input]
    last = len(on.shapes[node.output[0]]) - 1
    match kind_of(node):
        case "Gemm" if constant[1]:
            columns = 0 if attribute(node, "transB", 0) else 1
            _with_weights(on, node, {1: columns, 2: -1}, 1)
        case "MatMul" if constant[1] and ranks[1] >= 2:
            _with_weights(on, node, {1: ranks[1] - 1}, last)
        case "Conv" if constant[1] and attribute(node, "group", 1) == 1:
            _with_weights(on, node, {1: 0, 2: 0}, 1)
        case "Conv" if constant[1]:
            grouped_conv(on, node, on.even(node, attribute(node, "group", 1)))
        case "Gather" if constant[0] and ranks[0] == 2 and attribute(node, "axis", 0) in (0, -2):
            if not rows:
                _with_weights(on, node, {0: 1}, last)
            elif on.size(node.input[0], 0) >= on.count:
                gather_rows(on, node)
            else:  # a table of token types, say, is not worth it
                return False
        case "LSTM" | "GRU" | "RNN" if _both_ways(node) and all(constant[1:3]):
            _directions(on, node)
        case _:
            return False
    return True


def _both_ways(node: NodeProto) -> bool:
    """Whether a recurrent layer runs in both directions, each of which is computed apart from the other.

    The columns of one direction cannot be divided: every step needs the whole state of the step before.
    """
    plain = attribute(node, "layout", 0) == 0 and not any(a.name.startswith("activation_") for a in node.attribute)
    return plain and attribute(node, "direction", b"forward") == b"bidirectional"


def _directions(on: Divided, node: NodeProto) -> None:
    """One direction per shard: what has an axis of directions, weights and states, is cut there."""
    part = Part(1, on.even(node, 2))
    first = Part(0, part.bounds)
    per_direction = {1, 2, 3, 5, 6, 7}  # all but the input and its lengths
    activations = list(attribute(node, "activations", []))

    def taken(position: int, name: str, shard: int) -> str:
        if name and position in per_direction:
            return on.cut(name, 0, first.ends(shard), shard)
        return on.name(name, shard) if name else ""

    def attributes(shard: int) -> Mapping[str, object]:
        half = len(activations) // 2
        own = activations[half * shard : half * (shard + 1)]
        return {"direction": ("forward", "reverse")[shard], "activations": own or None}

    on.emit(node, lambda s: [taken(i, n, s) for i, n in enumerate(node.input)], first, attributes)
    if node.output[0]:
        on.known[node.output[0]] = part  # [steps, directions, batch, width]; the last states begin with directions


def _with_weights(on: Divided, node: NodeProto, axes: Mapping[int, int], out: int) -> None:
    """The node with a range of the constants at these inputs, along these axes; its output is divided along `out`."""
    first = min(axes)
    part = Part(out, on.even(node, on.size(node.input[first], axes[first])))

    def taken(position: int, name: str, shard: int) -> str:
        if not name or position not in axes:
            return on.name(name, shard) if name else ""
        if name not in on.weights:
            raise refusal(node, f"computes its input {position}, which would have to be divided")
        shape = on.shapes[name]
        axis = axes[position] % len(shape) if shape else 0
        broadcast = not shape or shape[axis] == 1
        return name if broadcast else on.cut(name, axis, part.ends(shard), shard)

    on.emit(node, lambda s: [taken(i, n, s) for i, n in enumerate(node.input)], part)
