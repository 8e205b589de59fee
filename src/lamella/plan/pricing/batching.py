"""How many rows that come one by one should share a run.

Larger batches read the weights once for more rows, and the first row waits for the last. Requests come as a Poisson
process, so that a batch of b is full after an Erlang time of b - 1 distances; the bound on latency is held with that
wait at the percentile that is asked for, which is more than the percentile of wait and run together, never less. A row
that comes alone waits for others; a timeout that ends the wait is the gateway's to have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lamella.errors import ConfigError
from lamella.graph.model import Graph
from lamella.plan.laws import payloads
from lamella.plan.request import Request
from lamella.platforms import Platform

MOST_ROWS = 64
"""Batches beyond are not looked at."""


def wait_ms(batch: int, request: Request) -> float:
    """How long the first of so many rows waits for the last, ms: at the percentile, or on average without one."""
    if request.rate_per_s is None or request.max_batch == 1 or batch == 1:
        return 0.0
    if request.percentile is None:
        return (batch - 1) / request.rate_per_s * 1000
    return _erlang(batch - 1, request.percentile / 100) / request.rate_per_s * 1000


def runs_per_s(batch: int, request: Request) -> float | None:
    """How often functions run: with every request, or where rows share runs, with every full batch."""
    if request.rate_per_s is None or request.max_batch == 1:
        return request.rate_per_s
    return request.rate_per_s / batch


def _erlang(arrivals: int, share: float) -> float:
    """The time, in mean distances, within which so many arrivals have come with a probability, by bisection."""

    def come(time: float) -> float:
        """Probability that they have: that no fewer than so many come in a time."""
        term, fewer = math.exp(-time), 0.0
        for k in range(arrivals):
            fewer += term
            term *= time / (k + 1)
        return 1 - fewer

    low, high = 0.0, float(arrivals)
    while come(high) < share:
        low, high = high, high * 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if come(middle) >= share else (middle, high)
    return high


def batches(graph: Graph, platform: Platform, request: Request) -> Iterator[int]:
    """Powers of two and what lies in the middle between two, up to what is asked for and what the platform takes.

    What is tried for fewer rows is tried for more, too, so that allowing more never makes a plan dearer (law 8).

    Raises:
        ConfigError: requests of more than one row cannot be made, or nobody said how they come or how long they may.
    """
    if request.rate_per_s is None or request.slo_ms is None:
        raise ConfigError(
            f"--max-batch {request.max_batch}: rows wait for each other, as long as --slo-ms and --rate-per-s let them",
            try_="--slo-ms 500 --rate-per-s 100",
        )
    if not graph.batchable:
        raise ConfigError(f"--max-batch {request.max_batch} needs a free batch axis, {graph.name} has none")
    powers = [2**k for k in range(request.max_batch.bit_length())]
    for batch in sorted({*powers, *(3 * p // 2 for p in powers[1:])}):
        if batch <= request.max_batch and not payloads(graph, batch, platform):
            yield batch
