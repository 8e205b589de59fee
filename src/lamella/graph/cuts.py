"""Where a graph can be divided: every legal cut, and the smaller set worth planning over.

A cut at position k stands between operators k-1 and k of the topological order. It is crossed by every tensor made
before k and read at or after k. Rejected: single-tensor cuts only (the literature's rule), because a transformer whose
mask feeds every layer then has none. A cut is illegal only where a crossing tensor cannot travel: its shape depends on
the data, or it is not a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamella.graph.model import Graph

ELEMENTWISE = frozenset(
    "Relu LeakyRelu PRelu Sigmoid Tanh Elu Selu Softplus HardSigmoid HardSwish Clip Erf Gelu QuickGelu Mish Dropout "
    "Identity BatchNormalization Neg Abs Sqrt Exp Log Pow Add Sub Mul Div Cast Not Reshape Flatten Squeeze Unsqueeze "
    "Transpose LRN LayerNormalization Softmax LogSoftmax InstanceNormalization QuantizeLinear DequantizeLinear".split()
)
"""Operators that a planner folds into their producer: they move or touch each element once."""


IDLE = 1e-3
"""A cut that leaves less than this share of the model's load on one side saves nothing."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A legal place to divide. `tensors` carry the model's state, `side` are request constants beside it."""

    position: int
    tensors: tuple[str, ...]
    side: tuple[str, ...]
    bytes: int
    """What crosses at batch 1, side inputs included."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A position where the graph cannot be divided, and why."""

    position: int
    reason: str


def legal_cuts(graph: Graph) -> tuple[list[Cut], list[Refusal]]:
    """Every position with what crosses it: the legal cuts, and the refused ones with reasons."""
    cuts: list[Cut] = []
    refused: list[Refusal] = []
    live: dict[str, None] = {name: None for name in graph.inputs if graph.last_use[name] >= 0}
    last = graph.last_use
    for op in graph.operators[:-1]:
        for name in (*op.inputs, *op.outputs):
            if last[name] <= op.index:
                live.pop(name, None)
        live.update({name: None for name in op.outputs if last[name] > op.index})
        position = op.index + 1
        tensors = [graph.tensors[name] for name in live]
        bad = [t for t in tensors if t.dynamic or not t.portable]
        if bad:
            why = "its shape depends on the data" if bad[0].dynamic else "it is not a plain tensor"
            refused.append(Refusal(position, f"{bad[0].name!r} would cross, and {why}"))
            continue
        side = tuple(n for n in live if n in graph.request_constants)
        main = tuple(n for n in live if n not in graph.request_constants)
        cuts.append(Cut(position, main, side, sum(t.bytes_at() for t in tensors)))
    return cuts, refused


def plan_cuts(graph: Graph, limit: int = 48) -> list[Cut]:
    """The cuts a planner considers: element-wise operators folded into producers, branches collapsed.

    A branch (residual, inception, attention) is collapsed by keeping the cuts that a single tensor crosses; only where
    a stretch between two of them holds more than a sixth of the model's load are cuts of two, three, ... tensors
    admitted. At most `limit` cuts are kept, the lightest in each stretch of equal load, so that huge graphs stay
    plannable.
    """
    load = _load(graph)
    cuts = [c for c in legal_cuts(graph)[0] if c.tensors and IDLE < load[c.position] < 1 - IDLE]
    useful = [c for i, c in enumerate(cuts) if not _folds(graph, c, cuts[i + 1] if i + 1 < len(cuts) else None)]
    return _thin(_collapse(useful, load, 0.0, 1.0, 1), load, limit)


def _folds(graph: Graph, cut: Cut, after: Cut | None) -> bool:
    """Whether the operator behind the cut belongs to its producer: cheap, and cutting after it carries no more."""
    op = graph.operators[cut.position]
    cheap = op.kind in ELEMENTWISE or not op.weights
    if cheap and cut.position == len(graph.operators) - 1:
        return True
    return cheap and after is not None and after.position == cut.position + 1 and after.bytes <= cut.bytes


def _load(graph: Graph) -> list[float]:
    """For each position the share of the model's load before it: half by FLOPs, half by weight bytes."""
    flops = sum(op.flops for op in graph.operators) or 1
    weights = graph.weight_bytes(0, len(graph.operators)) or 1
    seen, share, load = set[str](), 0.0, [0.0]
    for op in graph.operators:
        new = [w for w in op.weights if w not in seen]
        seen.update(new)
        held = op.inner_bytes + sum(graph.weights[w].bytes for w in new)
        share += 0.5 * op.flops / flops + 0.5 * held / weights
        load.append(share)
    return load


def _collapse(cuts: list[Cut], load: list[float], start: float, end: float, width: int) -> list[Cut]:
    """Cuts at most `width` tensors wide; wider ones only inside stretches that carry more than a sixth of the load."""
    if not cuts or (end - start <= 1 / 6 and width > 1):
        return []
    narrow = [c for c in cuts if len(c.tensors) <= width]
    edges = [start, *(load[c.position] for c in narrow), end]
    kept: list[Cut] = []
    for i in range(len(narrow) + 1):
        low = narrow[i - 1].position if i else -1
        high = narrow[i].position if i < len(narrow) else len(load)
        inside = [c for c in cuts if low < c.position < high]
        kept += _collapse(inside, load, edges[i], edges[i + 1], width + 1)
        kept += narrow[i : i + 1]
    return kept


def _thin(cuts: list[Cut], load: list[float], limit: int) -> list[Cut]:
    """At most `limit` cuts: the lightest in each of `limit` stretches of equal load."""
    if len(cuts) <= limit:
        return cuts
    best: dict[int, Cut] = {}
    for cut in cuts:
        stretch = min(int(load[cut.position] * limit), limit - 1)
        if stretch not in best or cut.bytes < best[stretch].bytes:
            best[stretch] = cut
    return sorted(best.values(), key=lambda c: c.position)
