"""Divide by bands: each shard computes some rows of the span's outputs, from as many rows of its inputs as those need.

From a band of the outputs the walk goes backwards. A window (convolution, pooling) over rows [a, b) looks at
[a * stride - padding, (b - 1) * stride - padding + dilated kernel); what of that lies outside of the tensor is padding
that the shard keeps, so that paddings become asymmetric, and only where the tensor itself ends. A tensor that several
operators read is held in the hull of what they need, and each takes its rows out of it.

The arithmetic is that of Gillis (Yu et al. 2021): halos are computed again instead of exchanged. Rejected: grids of
tiles over height and width (half the halo at the same count, but slices of rows are cheaper to cut and join).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from onnx import NodeProto, helper

from lamella.errors import ShardRefused
from lamella.graph.shard.draft import (
    BROADCAST,
    ELEMENTWISE,
    Draft,
    Ends,
    Sharded,
    Task,
    attribute,
    check_repeatable,
    kind_of,
    refusal,
)
from lamella.units import dim_at

HEIGHT = 2
"""The axis of bands: the first after batch and channels."""

WINDOWS = frozenset(("Conv", "MaxPool", "AveragePool"))
PER_ROW = frozenset(("BatchNormalization", "LRN"))
"""Kinds that take each row by itself, and parameters per channel."""


@dataclass(frozen=True)
class Look:
    """What an operator needs for some rows of its output."""

    rows: tuple[Ends | None, ...]
    """Of each input; None for what is taken whole."""
    attributes: Mapping[str, Any]
    """That differ from the operator's own."""


def by_tiles(task: Task) -> Sharded:
    """Shards that each compute a band of rows of every output.

    Raises:
        ShardRefused: an operator looks at more than a window of rows, or an output has too few rows.
    """
    draft = Draft(task)
    for node in task.nodes:
        check_repeatable(node)
    bands = {name: _bands(draft, name) for name in task.outputs}
    parts: dict[str, list[str]] = {name: [] for name in task.outputs}
    for shard in range(task.shards):
        wanted = {name: (bounds[shard], bounds[shard + 1]) for name, bounds in bands.items()}
        needed = _needed(draft, wanted)
        for node in task.nodes:
            if node.output[0] in needed:
                _write(draft, node, shard, needed)
        for name, rows in wanted.items():
            parts[name].append(_rows(draft, name, HEIGHT, rows, shard, needed))
    return draft.finish([helper.make_node("Concat", p, [n], name=f"join {n}", axis=HEIGHT) for n, p in parts.items()])


def _bands(draft: Draft, output: str) -> tuple[int, ...]:
    shape = draft.shapes[output]
    if len(shape) <= HEIGHT:
        raise ShardRefused(f"{output!r} of shape {list(shape)} has no rows to divide")
    height, count = draft.size(output, HEIGHT), draft.count
    if height < count:
        raise ShardRefused(f"{output!r} has {height} rows to divide among {count} shards")
    return tuple(k * height // count for k in range(count + 1))


def _needed(draft: Draft, bands: Mapping[str, Ends]) -> dict[str, Ends]:
    """The rows that a shard has to hold of each tensor of the span."""
    needed = dict(bands)
    for node in reversed(draft.task.nodes):
        used = [n for n in node.output if n in needed]
        if not used:
            continue
        look = _look(draft, node, needed[used[0]])
        for name, rows in zip(node.input, look.rows, strict=True):
            if name in draft.inside:
                if rows is None:
                    raise refusal(node, f"takes the whole of {name!r}")
                held = needed.get(name, rows)
                needed[name] = min(held[0], rows[0]), max(held[1], rows[1])
    return needed


def _write(draft: Draft, node: NodeProto, shard: int, needed: Mapping[str, Ends]) -> None:
    """The operator in a shard, on the rows it needs for those it has to give."""
    look = _look(draft, node, needed[node.output[0]])
    rank = len(draft.shapes[node.output[0]])
    inputs = [
        name if rows is None else _rows(draft, name, HEIGHT - rank + len(draft.shapes[name]), rows, shard, needed)
        for name, rows in zip(node.input, look.rows, strict=True)
    ]
    draft.copy(shard, node, inputs, look.attributes)


def _rows(draft: Draft, tensor: str, axis: int, rows: Ends, shard: int, needed: Mapping[str, Ends]) -> str:
    """Rows of a tensor as a shard has them: as they are held, or cut out."""
    held = needed[tensor] if tensor in draft.inside else (0, draft.size(tensor, axis))
    return draft.name(tensor, shard) if held == rows else draft.cut(tensor, axis, rows, shard, held[0])


def _look(draft: Draft, node: NodeProto, rows: Ends) -> Look:
    """What an operator takes for these rows of its output."""
    kind, out = kind_of(node), draft.shapes[node.output[0]]
    if len([n for n in node.output if n]) > 1:
        raise refusal(node, "gives more than one tensor")
    if len(out) <= HEIGHT:
        raise refusal(node, f"gives shape {list(out)}, which has no rows")
    beside = (None,) * (len(node.input) - 1)
    if kind in WINDOWS:
        ends, pads = Window.of(draft, node).look(node, rows)
        return Look((ends, *beside), {"pads": pads, "auto_pad": None})
    if kind in PER_ROW:
        return Look((rows, *beside), {})
    if kind in ELEMENTWISE and all(prod(dim_at(d, 1) for d in draft.shapes[n]) <= 1 for n in node.input[1:] if n):
        return Look((rows, *beside), {})
    if kind in BROADCAST or (kind == "Concat" and attribute(node, "axis", 0) % len(out) != HEIGHT):
        return Look(tuple(_broadcast_rows(draft, node, n, rows) for n in node.input), {})
    raise refusal(node, "has no rule that finds the rows it looks at")


def _broadcast_rows(draft: Draft, node: NodeProto, name: str, rows: Ends) -> Ends | None:
    """Rows of one of several inputs that are broadcast to the same shape."""
    axis = HEIGHT - len(draft.shapes[node.output[0]]) + len(draft.shapes[name])
    if name in draft.inside and axis != HEIGHT:
        raise refusal(node, f"takes {name!r} with fewer axes than it gives")
    if axis < 0:
        return None
    if draft.size(name, axis) == 1 != draft.size(node.output[0], HEIGHT):
        return (0, 1)
    return rows


@dataclass(frozen=True)
class Window:
    """A sliding window along the height."""

    height: int
    """Rows of the input."""
    kernel: int
    """Rows it reaches over, dilation included."""
    stride: int
    pads: tuple[int, ...]
    """The whole operator's: before each spatial axis, then behind each."""

    @staticmethod
    def of(draft: Draft, node: NodeProto) -> Window:
        """The window of a convolution or pooling."""
        data = node.input[0]
        axes = range(HEIGHT, len(draft.shapes[data]))
        own = [draft.size(node.input[1], a) for a in axes] if node.op_type == "Conv" else None
        strides, dilations = _per_axis(node, "strides", axes), _per_axis(node, "dilations", axes)
        kernel = [d * (k - 1) + 1 for k, d in zip(_per_axis(node, "kernel_shape", axes, own), dilations, strict=True)]
        pads = _pads(node, [draft.size(data, a) for a in axes], kernel, strides)
        return Window(draft.size(data, HEIGHT), kernel[0], strides[0], pads)

    def look(self, node: NodeProto, rows: Ends) -> tuple[Ends, list[int]]:
        """Rows of the input, and the paddings that remain.

        Where ceil_mode lets the last window reach beyond the padding, it does so in the shard as well.
        """
        below = len(self.pads) // 2
        first = rows[0] * self.stride - self.pads[0]
        last = (rows[1] - 1) * self.stride - self.pads[0] + self.kernel
        ends = max(0, first), min(self.height, last)
        if ends[0] >= ends[1]:
            raise refusal(node, f"computes rows {rows[0]} to {rows[1]} from padding alone")
        pads = list(self.pads)
        pads[0], pads[below] = max(0, -first), min(max(0, last - self.height), self.pads[below])
        return ends, pads


def _per_axis(node: NodeProto, name: str, axes: Sequence[int], default: Sequence[int] | None = None) -> list[int]:
    return list(attribute(node, name, default or [1] * len(axes)))


def _pads(node: NodeProto, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    auto = attribute(node, "auto_pad", b"NOTSET").decode()
    if auto in ("NOTSET", ""):
        return tuple(attribute(node, "pads", [0] * (2 * len(sizes))))
    if auto == "VALID":
        return (0,) * (2 * len(sizes))
    total = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    return (*less, *more) if auto == "SAME_UPPER" else (*more, *less)
