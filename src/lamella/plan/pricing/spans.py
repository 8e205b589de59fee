"""What every run of units holds and what crosses its ends, all of them at once.

`Graph` answers for one run of operators by going over them; a chain of a thousand units has half a million runs. Here
each begin takes one sweep over arrays, and moving it on changes little. The reference in the tests is `Graph` itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lamella.graph.model import Graph


class Spans(NamedTuple):
    """Runs of units `first` to `last - 1`, for every `last` above `first` in order; bytes."""

    weights: np.ndarray
    """Distinct weights, constants in subgraphs included."""
    into: np.ndarray
    """Activations that a run takes."""
    out: np.ndarray
    """Activations that it gives."""
    live: np.ndarray
    """Peak of live activations, those two included."""


class _Life(NamedTuple):
    """An activation: bytes, the operators that make it and read it last, its units; -1 for the request's."""

    bytes: int
    made: int
    used: int
    made_unit: int
    units: tuple[int, ...]
    """That read it, ascending."""
    kept: bool
    """Whether it is an output of the model."""

    @property
    def last_unit(self) -> int:
        return self.units[-1] if self.units else self.made_unit


def spans(graph: Graph, units: Sequence[tuple[int, int]], batch: int) -> Iterator[Spans]:
    """Every run of units, one begin after the other.

    Args:
        graph: the model.
        units: consecutive spans of operators, all of them.
        batch: rows.
    """
    lives = _lives(graph, units, batch)
    by_unit: dict[int, list[_Life]] = defaultdict(list)
    for life in lives:
        by_unit[life.made_unit].append(life)
    made, ended = np.zeros(len(units)), np.zeros(len(units))
    for life in lives:
        if life.made_unit >= 0:
            made[life.made_unit] += life.bytes
            ended[life.last_unit] += 0 if life.kept else life.bytes
    inside = _inside(lives, len(units), len(graph.operators))
    crossing = by_unit[-1]
    for first, weights in enumerate(_weights(graph, units)):
        crossing = [life for life in crossing if life.last_unit >= first and life.units]
        wanted = np.zeros(len(units) - first)
        for life in crossing:
            wanted[next(u for u in life.units if u >= first) - first] += life.bytes
        into, out = np.cumsum(wanted), np.cumsum(made[first:] - ended[first:])
        yield Spans(weights, into, out, into + out + inside[first + 1 :, units[first][0] :].max(axis=1))
        for life in by_unit[first]:  # for the later runs it is made outside
            if not life.kept:
                ended[life.last_unit] -= life.bytes
                inside[life.last_unit + 1 :, life.made : life.used + 1] -= life.bytes
        crossing += by_unit[first]


def _lives(graph: Graph, units: Sequence[tuple[int, int]], batch: int) -> list[_Life]:
    unit_of = [unit for unit, (first, last) in enumerate(units) for _ in range(first, last)]
    readers: dict[str, dict[int, None]] = defaultdict(dict)
    for op in graph.operators:
        for name in op.inputs:
            readers[name][unit_of[op.index]] = None
    kept = set(graph.outputs)
    return [
        _Life(
            graph.tensors[name].bytes_at(batch),
            op,
            graph.last_use[name],
            unit_of[op] if op >= 0 else -1,
            tuple(readers[name]),
            name in kept,
        )
        for name, op in graph.producer.items()
    ]


def _inside(lives: Sequence[_Life], units: int, operators: int) -> np.ndarray:
    """Of runs from the first unit to before each: bytes at each operator that neither come in nor leave. [last, op]."""
    change = np.zeros((units + 1, operators + 1))
    for life in lives:
        if life.made_unit >= 0 and not life.kept:
            change[life.last_unit + 1, life.made] += life.bytes
            change[life.last_unit + 1, life.used + 1] -= life.bytes
    found: np.ndarray = np.cumsum(np.cumsum(change, axis=1), axis=0)[:, :operators]
    return found


def _weights(graph: Graph, units: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Distinct weights of the runs from each begin: each counts where it is read first."""
    readers: dict[str, list[int]] = defaultdict(list)
    inner = np.zeros(len(units))
    for unit, (first, last) in enumerate(units):
        inner[unit] = sum(op.inner_bytes for op in graph.operators[first:last])
        for name in {w for op in graph.operators[first:last] for w in op.weights}:
            readers[name].append(unit)
    fresh = inner.copy()
    after: dict[int, list[tuple[int, int]]] = defaultdict(list)  # by unit, who reads its weights next
    for name, read in readers.items():
        size = graph.weights[name].bytes
        fresh[read[0]] += size
        for here, following in pairwise(read):
            after[here].append((following, size))
    for first in range(len(units)):
        yield np.cumsum(fresh[first:])
        for following, size in after[first]:
            fresh[following] += size
