"""`divide` against brute force over every division and every choice, in exact arithmetic (whole numbers)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, product
from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lamella.plan.choice import Choice, Join
from lamella.plan.planners.pareto import undominated
from lamella.plan.planners.search import NEAR, Front, Step, cheapest, divide
from tests.unit.plan.synthetic import choice

Point = tuple[float, float]
"""Latency, cost."""


class Case(NamedTuple):
    """A search problem: ways by (begin, end), hops by position; some ways leave parts to be joined."""

    positions: list[int]
    ways: dict[tuple[int, int], list[Choice]]
    hops: dict[int, Point]
    entry_ms: float
    max_stages: int

    def divided(self, cap_ms: float, cap_usd: float = math.inf) -> dict[int, Front]:
        return divide(
            self.positions,
            lambda i, j: self.ways[i, j],
            self.step,
            entry_ms=self.entry_ms,
            max_stages=self.max_stages,
            cap_ms=cap_ms,
            cap_usd=cap_usd,
        )

    def step(self, join: Join | None, way: Choice | None) -> Step | None:
        """Parts are joined by a single function in its own time, refused by one that starts too dear; else apart."""
        hop = self.hops.get(way.first, (0.0, 0.0)) if way else (0.0, 0.0)
        run = (way.run_ms, way.cost_usd) if way else (0.0, 0.0)
        if not join:
            return Step(1, *hop, *run)
        if way and not way.join:
            return None if way.cost_usd == 6 else Step(1, *hop, run[0] + join.ms, run[1] + join.mb)
        return Step(2 if way else 1, hop[0] + 1, hop[1], run[0] + 2 * join.ms, run[1] + 3 * join.mb)

    def every(self) -> Iterator[tuple[int, Point]]:
        """Stages, latency and cost of every division with every choice."""
        inner = self.positions[1:-1]
        for slices in range(1, self.max_stages + 1):
            for marks in combinations(inner, slices - 1):
                for chosen in product(*(self.ways[s] for s in pairwise([0, *marks, self.positions[-1]]))):
                    made = self.total(chosen)
                    if made and made[0] <= self.max_stages:
                        yield made

    def total(self, chosen: Sequence[Choice]) -> tuple[int, Point] | None:
        """Stages, latency and cost of a chain."""
        stages, latency, cost = 0, self.entry_ms, 0.0
        joins = [None, *(c.join for c in chosen)]
        ends = [*chosen, None] if joins[-1] else chosen
        for join, way in zip(joins, ends, strict=False):
            step = self.step(join, way)
            if step is None:
                return None
            stages += step.stages
            latency, cost = latency + step.hop_ms + step.run_ms, cost + step.hop_usd + step.run_usd
        return stages, (latency, cost)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few different numbers, so that ties, free hops and slices nothing can run are common."""
    n = draw(st.integers(1, 7))
    stride = draw(st.integers(1, 3))
    positions = [i * stride for i in range(n + 1)]
    few = st.integers(0, 6).map(float)
    joins = st.sampled_from([None, None, (0.0, 1.0), (2.0, 0.0), (1.0, 1.0)])
    ways = {}
    for begin, end in combinations(positions, 2):
        points = draw(st.lists(st.tuples(few, few, joins), max_size=2 if n > 4 else 3))
        ways[begin, end] = [
            replace(choice(begin, end, t, c), join=Join(begin, end, *join) if join else None) for t, c, join in points
        ]
    hops = {p: draw(st.tuples(st.integers(0, 2).map(float), st.integers(0, 1).map(float))) for p in positions[1:-1]}
    return Case(positions, ways, hops, draw(st.sampled_from([0.0, 1.0])), draw(st.integers(1, 8)))


def pareto(points: list[Point]) -> list[Point]:
    """Points that no other is at least as good as in both, each once, by latency."""
    distinct = sorted(set(points))
    return [p for p in distinct if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in distinct)]


@given(cases(), st.data())
def test_the_search_finds_the_pareto_front_of_every_number_of_stages(case: Case, data: st.DataObject) -> None:
    every = list(case.every())
    boundaries = [latency for _, (latency, _) in every]
    cap = data.draw(st.sampled_from([*boundaries, math.inf, 5.0]))
    cap_usd = data.draw(st.sampled_from([*(cost for _, (_, cost) in every), math.inf, 5.0]))
    wanted: dict[int, list[Point]] = {}
    for stages, point in every:
        if point[0] <= cap and point[1] <= cap_usd:
            wanted.setdefault(stages, []).append(point)
    found = case.divided(cap, cap_usd)
    assert {k: [(x.latency_ms, x.cost_usd) for x in f.labels] for k, f in found.items()} == {
        k: pareto(points) for k, points in wanted.items()
    }


@given(cases(), st.data())
def test_the_least_cost_within_a_cap_is_that_of_brute_force(case: Case, data: st.DataObject) -> None:
    every = [p for _, p in case.every()]
    cap = data.draw(st.sampled_from([*(p[0] for p in every), float("inf"), 3.0]))
    within = [p for p in every if p[0] <= cap]
    label = cheapest(x for f in case.divided(cap).values() for x in f.labels)
    if not within:
        assert label is None
        return
    least = min(cost for _, cost in within)
    near = [p for p in within if p[1] <= least * (1 + NEAR)]
    assert label is not None
    assert (label.latency_ms, label.cost_usd) == min(near, key=lambda p: (p[0] * p[1], p))


@given(cases())
def test_a_labels_chain_covers_all_units_and_adds_up_to_it(case: Case) -> None:
    for stages, front in case.divided(float("inf")).items():
        for label in front.labels:
            chain = label.chain()
            assert [c.first for c in chain] == [0, *(c.last for c in chain[:-1])]
            assert chain[-1].last == case.positions[-1]
            assert case.total(chain) == (stages, (label.latency_ms, label.cost_usd))


@given(cases(), st.floats(0, 40), st.floats(0, 40))
def test_law_8_the_least_cost_never_rises_when_the_cap_is_loosened(case: Case, a: float, b: float) -> None:
    tight, loose = ([x.cost_usd for f in case.divided(cap).values() for x in f.labels] for cap in sorted((a, b)))
    if tight:
        assert min(loose) <= min(tight)


@given(cases())
def test_law_8_the_least_cost_never_rises_when_one_more_stage_is_allowed(case: Case) -> None:
    fewer = [x.cost_usd for f in case.divided(20).values() for x in f.labels]
    more = [x.cost_usd for f in case._replace(max_stages=case.max_stages + 1).divided(20).values() for x in f.labels]
    if fewer:
        assert min(more) <= min(fewer)


def test_a_plan_exactly_at_the_cap_is_within_it() -> None:
    case = Case([0, 1], {(0, 1): [choice(0, 1, 9.0, 1.0)]}, {}, 1.0, 1)
    assert list(case.divided(10.0)) == [1]
    assert case.divided(9.999) == {}


POINTS = st.lists(st.tuples(st.integers(0, 8).map(float), st.integers(0, 8).map(float)), max_size=30)


@given(POINTS)
def test_of_all_points_exactly_those_are_kept_that_no_other_beats(points: list[Point]) -> None:
    array = np.array(points, float).reshape(-1, 2)
    assert [points[k] for k in undominated(array[:, 1], array[:, 0])] == pareto(points)


class Priced(NamedTuple):
    latency_ms: float
    cost_usd: float


def test_of_about_equally_cheap_plans_the_one_whose_latency_is_worth_its_cost() -> None:
    plans = [Priced(10.0, 100.0), Priced(9.9, 100.9), Priced(9.0, 100.8), Priced(1.0, 101.1)]
    assert cheapest(plans) == (9.0, 100.8)
    assert cheapest(plans[:2]) == (9.9, 100.9)
    assert cheapest([Priced(10.0, 100.0), Priced(9.95, 100.9)]) == (10.0, 100.0)
    assert cheapest(plans, 0.05) == (1.0, 101.1)


def test_nothing_feasible_is_none() -> None:
    assert cheapest([]) is None
