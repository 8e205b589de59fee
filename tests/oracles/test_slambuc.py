"""The search for routes against SLAMBUC, which others wrote to group functions into blocks: `make test-oracles`.

Its questions are ours with one size of memory, no codecs and no shards. Of a chain with rate 1 a block's memory is the
sum of its nodes'. Its `path` family bills a block's run by whole units and adds a delay between blocks; its
`serial` family bills, and waits for, what a block fetches and stores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slambuc.alg.chain.path.dp import chain_partitioning
from slambuc.alg.chain.serial.ilp import chain_cfg_partitioning

from benchmarks.planner_instances import routes
from lamella.plan.planners.milp import Arcs
from lamella.plan.planners.route import Route

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pulp's own coming version
NODES = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(0, 15)), min_size=2, max_size=9
)  # run, memory, bytes in ms
MOST_MB = st.integers(15, 90)
SHARE = st.floats(0.0, 1.2)


def blocks(nodes: list[tuple[int, int, int]], most_mb: int) -> list[tuple[int, int, int]]:
    """First, last and run of every block that memory holds."""
    found = []
    for first, last in combinations(range(len(nodes) + 1), 2):
        if sum(memory for _, memory, _ in nodes[first:last]) <= most_mb:
            found.append((first, last, sum(run for run, _, _ in nodes[first:last])))
    return found


def as_arcs(nodes: list[tuple[int, int, int]], rows: Sequence[tuple[int, int, float, float]]) -> Arcs:
    """Rows of first, last, cost and time."""
    first, last, usd, ms = (np.array(x) for x in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 4
    return Arcs(len(nodes) + 1, first.astype(int), last.astype(int), usd.astype(float), ms.astype(float))


def bounded(arcs: Arcs, share: float) -> tuple[int, Route | None]:
    """A latency between the quickest route's and the cheapest one's, in whole ms, and the cheapest route within."""
    ours = routes(arcs)
    quick, cheap = ours.fastest(), ours.cheapest().routes
    if quick is None:
        return 10**6, None
    bound = math.floor(quick.latency_ms + share * (cheap[0].latency_ms - quick.latency_ms))
    found = ours.cheapest(bound).routes
    return bound, found[0] if found else None


def marks(arcs: Arcs, route: Route) -> list[int]:
    """The first node of each block."""
    return [int(arcs.tail[k]) for k in route.arcs]


@settings(max_examples=200, deadline=None)
@given(NODES, MOST_MB, SHARE, st.sampled_from([1, 10, 100]), st.integers(1, 30))
def test_blocks_billed_by_whole_units(
    nodes: list[tuple[int, int, int]], most_mb: int, share: float, unit: int, delay: int
) -> None:
    rows = [(a, b, math.ceil(run / unit) * unit, run + delay * (a > 0)) for a, b, run in blocks(nodes, most_mb)]
    arcs = as_arcs(nodes, rows)
    bound, ours = bounded(arcs, share)
    runs, memory = [n[0] for n in nodes], [n[1] for n in nodes]
    found, cost, latency = chain_partitioning(
        runs, memory, [1] * len(nodes), M=most_mb, L=bound, delay=delay, unit=unit
    )
    assert bool(found) == bool(ours)
    if ours:
        assert ours.usd == pytest.approx(cost)
        assert latency <= bound
        again = {(a, b): usd for a, b, usd, _ in rows}
        assert sum(again[pair] for pair in pairwise([*marks(arcs, ours), len(nodes)])) == cost


@settings(max_examples=40, deadline=None)
@given(NODES, MOST_MB, SHARE, st.integers(1, 30))
def test_blocks_that_fetch_and_store(nodes: list[tuple[int, int, int]], most_mb: int, share: float, delay: int) -> None:
    data = [n[2] for n in nodes]
    hop = [*data, 0]
    rows = [
        (a, b, run + hop[a] + hop[b], run + hop[a] + hop[b] + delay * (a > 0)) for a, b, run in blocks(nodes, most_mb)
    ]
    arcs = as_arcs(nodes, rows)
    bound, ours = bounded(arcs, share)
    runs, memory = [n[0] for n in nodes], [n[1] for n in nodes]
    found, cost, latency = chain_cfg_partitioning(
        runs, memory, [1] * len(nodes), data, M=most_mb, L=bound, delay=delay, solver=pulp.PULP_CBC_CMD(msg=False)
    )
    assert bool(found) == bool(ours)
    if ours:
        assert ours.usd == pytest.approx(cost)
        assert latency <= bound
