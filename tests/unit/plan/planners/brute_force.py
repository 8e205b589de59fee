"""Divisions without shards one by one, as a reference; and where dividing pays."""

from __future__ import annotations

from itertools import combinations, pairwise, product

from hypothesis import strategies as st

from lamella.plan.choice import Choice
from lamella.plan.planners.search import NEAR
from lamella.plan.pricing.predict import SliceModel
from tests.unit.plan.synthetic import Made

HEAVY_TAIL = (
    Made(weights_mb=20, time_ms=200, out_mb=0.1),
    Made(weights_mb=20, time_ms=200, out_mb=0.1),
    Made(weights_mb=900, time_ms=20),
)
"""Where dividing pays: nearly all the time before nearly all the weights."""
SLOS = st.sampled_from([None, 1.0, 30.0, 100.0, 400.0])


def total(model: SliceModel, chosen: tuple[Choice, ...]) -> tuple[float, float]:
    """Latency and cost of a chain of choices without shards, added up in the order of the chain."""
    latency, cost = model.entry_ms, 0.0
    for k, choice in enumerate(chosen):
        hop = model.hop(choice.first)[:2] if k else (0.0, 0.0)
        latency = latency + hop[0] + choice.run_ms
        cost = cost + hop[1] + choice.cost_usd
    return latency, cost


def every(model: SliceModel, marks: list[int], stages: range) -> list[tuple[float, float]]:
    """Latency and cost of every division at some of the marks, with every choice."""
    found = []
    inner = [m for m in marks[1:-1] if model.fits_payload(m)]
    for k in stages:
        for cuts in combinations(inner, k - 1):
            edges = [marks[0], *cuts, marks[-1]]
            ways = [model.choices(i, j) for i, j in pairwise(edges)]
            found += [total(model, chosen) for chosen in product(*ways)]
    return found


def best(points: list[tuple[float, float]], cap_ms: float, near: float = NEAR) -> tuple[float, float] | None:
    """Of those within a share of the least cost under the cap the one with the least cost x latency."""
    within = [p for p in points if p[0] <= cap_ms]
    least = min((p[1] for p in within), default=0.0)
    return min((p for p in within if p[1] <= least * (1 + near)), key=lambda p: (p[0] * p[1], p), default=None)
