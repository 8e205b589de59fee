"""An embedding by rows: each shard answers for the ids of its own rows, and zero for the others."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from lamella.graph.shard.division import Divided, Part, Sum
from lamella.graph.shard.draft import refusal


def gather_rows(on: Divided, node: NodeProto) -> None:
    """A Gather from a constant table, divided by rows.

    An id that no shard holds reaches the table of every shard as it came, and is refused there as in the whole model.
    """
    dtype = on.weights[node.input[0]].dtype
    if dtype not in (np.float32, np.float64):
        raise refusal(node, f"looks rows up in a table of {dtype}, whose parts the runtime cannot add")
    bounds = on.even(node, on.size(node.input[0], 0))
    on.known[node.output[0]] = Sum()
    for shard in range(on.count):
        _own_rows(on, node, shard, Part(0, bounds))


def _own_rows(on: Divided, node: NodeProto, shard: int, part: Part) -> None:
    table, ids = node.input
    out = on.name(node.output[0], shard)
    whole, (first, last) = part.bounds[-1], part.ends(shard)
    int64 = np.dtype(np.int64)

    def do(kind: str, output: str, *inputs: str, **attributes: int) -> str:
        return on.add(shard, kind, inputs, f"{out}/{output}", **attributes)

    def within(label: str, value: str, size: int) -> str:
        """0 <= value < size."""
        below = do("Less", f"{label} below", value, on.scalar(size, int64))
        negative = do("Less", f"{label} negative", value, zero)
        return do("And", label, below, do("Not", f"{label} not negative", negative))

    zero = on.scalar(0, int64)
    given = do("Cast", "ids", on.name(ids, shard), to=TensorProto.INT64)
    negative = do("Less", "negative", given, zero)  # counts from the end
    row = do("Where", "row", negative, do("Add", "from end", given, on.scalar(whole, int64)), given)
    moved = do("Sub", "moved", row, on.scalar(first, int64))
    own = within("own", moved, last - first)
    others = do("Where", "others", within("valid", row, whole), zero, given)
    index = do("Where", "index", own, moved, others)
    rows = do("Gather", "rows", on.cut(table, 0, (first, last), shard), index, axis=0)
    column = [-1 if isinstance(d, str) else d for d in on.shapes[ids]]
    mask = do("Reshape", "mask", own, on.ints(*column, 1))
    on.add(shard, "Where", [mask, rows, on.scalar(0, on.weights[table].dtype)], out)
