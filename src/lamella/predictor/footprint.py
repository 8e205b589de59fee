"""What a function of some nodes holds, in the quantities its memory and its load grow with."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from lamella.graph.model import GATHERS
from lamella.predictor.optimised import Node, Operand
from lamella.predictor.work import GATES, PRODUCTS
from lamella.units import MB


class Footprint(msgspec.Struct, frozen=True):
    """MB, and how many nodes."""

    nodes: float
    mapped_mb: float
    """Weights that are read in full."""
    tables_mb: float
    """Weights of which rows are gathered."""
    packed_mb: float
    """Weights that a session which prepacks copies: those of products and recurrences."""
    border_mb: float
    """What is taken and given."""
    live_mb: float
    """Peak of live tensors, border included."""
    largest_mb: float
    """Inputs and outputs of the largest node."""

    def terms(self) -> dict[str, float]:
        """By name, with one for being there, and the weights that are not packed."""
        return {
            "session": 1.0,
            "nodes": self.nodes,
            "kept_mb": max(0.0, self.mapped_mb - self.packed_mb),
            "packed_mb": self.packed_mb,
            "tables_mb": self.tables_mb,
            "border_mb": self.border_mb,
            "live_mb": self.live_mb,
            "largest_mb": self.largest_mb,
        }


def footprint(nodes: Sequence[Node], takes: Collection[str], gives: Collection[str]) -> Footprint:
    """Of nodes that run as one function, which takes and gives these tensors."""
    weights, tables = dict[str, int](), dict[str, int]()
    packed = dict[str, int]()
    for node in nodes:
        for place, operand in enumerate(node.inputs):
            if operand.constant:
                held = tables if node.kind in GATHERS and place == 0 else weights
                held[operand.name] = operand.bytes
                if node.kind in PRODUCTS | frozenset(GATES) and place in (1, 2) and len(operand.shape) > 1:
                    packed[operand.name] = operand.bytes
    border = {o.name: o.bytes for n in nodes for o in (*n.inputs, *n.outputs) if o.name in {*takes, *gives}}
    around = [sum(o.bytes for o in (*n.inputs, *n.outputs) if not o.constant) for n in nodes]
    return Footprint(
        nodes=float(len(nodes)),
        mapped_mb=sum(weights.values()) / MB,
        tables_mb=sum(size for name, size in tables.items() if name not in weights) / MB,
        packed_mb=sum(packed.values()) / MB,
        border_mb=sum(border.values()) / MB,
        live_mb=_peak(nodes, border) / MB,
        largest_mb=max(around, default=0) / MB,
    )


def _peak(nodes: Sequence[Node], border: dict[str, int]) -> int:
    """Most bytes live at a time; the border lives throughout."""
    last = {o.name: k for k, node in enumerate(nodes) for o in (*node.outputs, *node.inputs)}
    peak = live = sum(border.values())
    for k, node in enumerate(nodes):
        live += sum(_inner(o, border) for o in node.outputs)
        peak = max(peak, live)
        ended = {o.name: o for o in (*node.inputs, *node.outputs) if last[o.name] == k}
        live -= sum(_inner(o, border) for o in ended.values())
    return peak


def _inner(operand: Operand, border: dict[str, int]) -> int:
    return 0 if operand.constant or operand.name in border else operand.bytes
