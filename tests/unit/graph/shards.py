"""Run a model with divided spans, each shard and each join as a function of its own: the oracle for shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from lamella.graph.divide import ShardedGraph, ShardSpan, shard
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from tests.unit.graph.compose import Tensors, answer, worst_share

TOLERANCE = 1e-5
"""Of the output's range: what is summed in another order differs in the last bits."""


def cuts(sharded: ShardedGraph) -> list[int]:
    """Where a divided graph falls into functions."""
    ends = {end for placed in sharded.spans for piece in (*placed.shards, placed.join) for end in piece}
    return sorted(ends - {0, len(sharded.graph.operators)})


def answers(
    graph: Graph, spans: Sequence[ShardSpan], feeds: Mapping[str, np.ndarray], directory: Path
) -> tuple[Tensors, Tensors]:
    """What the whole unoptimised model answers, and what the shards do, one after the other."""
    sharded = shard(graph, spans)
    check_layout(sharded)
    whole = answer(Extractor(graph), [], feeds, directory / "whole")
    return whole, answer(Extractor(sharded.graph), cuts(sharded), feeds, directory / "shards")


def check_layout(sharded: ShardedGraph) -> None:
    """The shards of a span lie one after another, its join behind them; none takes anything from another."""
    graph = sharded.graph
    for placed in sharded.spans:
        pieces = (*placed.shards, placed.join)
        assert len(placed.shards) == placed.span.shards
        assert all(first < last for first, last in pieces)
        assert all(one[1] == two[0] for one, two in pairwise(pieces))
        for first, last in placed.shards:
            takes, gives = graph.border(first, last)
            assert all(graph.producer[n] < placed.shards[0][0] for n in takes)
            assert all(graph.last_use[n] < placed.join[1] for n in gives)
    known = set(graph.weights)
    assert known == {w for op in graph.operators for w in op.weights}


def difference(graph: Graph, span: ShardSpan, feeds: Mapping[str, np.ndarray], directory: Path) -> float:
    """The largest difference that dividing a span makes, as a share of the output's range."""
    whole, parts = answers(graph, [span], feeds, directory)
    for name, array in whole.items():
        assert parts[name].shape == array.shape
        assert parts[name].dtype == array.dtype
    return worst_share(parts, whole)
