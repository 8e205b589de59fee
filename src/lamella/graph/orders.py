"""Which other orders a division has: what each unit needs, the sets that may run first, and the model in another order.

A graph's operators stand in one topological order, and slices are runs of it. Where branches run side by side other
orders are as good. A set of units that holds all that its members need is an *ideal*; whatever ran before a border is
one, in any order, and an order is a chain of ideals. Operators inside a unit stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from lamella.graph.model import Graph


def needs(graph: Graph, units: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """For each unit all units that must run before it, directly or not, as bits.

    Args:
        graph: the model.
        units: consecutive spans of operators, all of them.
    """
    of = [unit for unit, (first, last) in enumerate(units) for _ in range(first, last)]
    found: list[int] = []
    for unit, (first, last) in enumerate(units):
        makers = {graph.producer[name] for op in graph.operators[first:last] for name in op.inputs}
        mask = 0
        for before in {of[maker] for maker in makers if maker >= 0} - {unit}:
            mask |= 1 << before | found[before]
        found.append(mask)
    return tuple(found)


def one_order(needed: Sequence[int]) -> bool:
    """Whether every unit needs all before it, so that no other order exists."""
    return all(mask == (1 << unit) - 1 for unit, mask in enumerate(needed))


def ideals(needed: Sequence[int], of: Iterable[int], most: int) -> tuple[int, ...] | None:
    """Every set of the units `of` that holds what its members need among them, smallest first; None beyond `most`."""
    kept = tuple(of)
    among = sum(1 << unit for unit in kept)
    found, level = [0], [0]
    while level:
        after: dict[int, None] = {}
        for here in level:
            for unit in kept:
                if not here >> unit & 1 and not needed[unit] & among & ~here:
                    after[here | 1 << unit] = None
            if len(found) + len(after) > most:
                return None
        level = list(after)
        found += level
    return tuple(found)


def members(sets: Sequence[int], units: int) -> np.ndarray:
    """Sets as booleans, [sets, units]."""
    return np.array([[bool(one >> unit & 1) for unit in range(units)] for one in sets], bool).reshape(-1, units)


def reordered(graph: Graph, spans: Sequence[tuple[int, int]]) -> Graph:
    """The same model whose operators stand in another order: those of each span one after the other, all of them.

    Raises:
        ValueError: something would be read before it is made, or the spans are not all operators once.
    """
    order = [graph.operators[k] for first, last in spans for k in range(first, last)]
    if sorted(op.index for op in order) != list(range(len(graph.operators))):
        raise ValueError("the spans are not all operators once")
    made = set(graph.inputs)
    for op in order:
        if not made.issuperset(op.inputs):
            raise ValueError(f"{op.name} would run before what it reads")
        made.update(op.outputs)
    return replace(graph, operators=tuple(replace(op, index=k) for k, op in enumerate(order)))
