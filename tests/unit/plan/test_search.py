"""`divide` against brute force over every division and every choice, in exact arithmetic (whole numbers)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, product
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.plan.predict import Choice
from lamella.plan.search import NEAR, Front, Label, cheapest, divide
from tests.unit.plan.synthetic import choice

Point = tuple[float, float]
"""Latency, cost."""


class Case(NamedTuple):
    """A search problem: ways by (begin, end), hops by position."""

    positions: list[int]
    ways: dict[tuple[int, int], list[Choice]]
    hops: dict[int, Point]
    entry_ms: float
    max_stages: int

    def divided(self, cap_ms: float) -> dict[int, Front]:
        return divide(
            self.positions,
            lambda i, j: self.ways[i, j],
            lambda i: self.hops[i],
            entry_ms=self.entry_ms,
            cap_ms=cap_ms,
            max_stages=self.max_stages,
        )

    def every(self) -> Iterator[tuple[int, Point]]:
        """Stages, latency and cost of every division with every choice."""
        inner = self.positions[1:-1]
        for stages in range(1, self.max_stages + 1):
            for marks in combinations(inner, stages - 1):
                edges = [0, *marks, self.positions[-1]]
                spans = list(pairwise(edges))
                for chosen in product(*(self.ways[s] for s in spans)):
                    latency = self.entry_ms + sum(c.run_ms for c in chosen) + sum(self.hops[m][0] for m in marks)
                    yield stages, (latency, sum(c.cost_usd for c in chosen) + sum(self.hops[m][1] for m in marks))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few different numbers, so that ties, free hops and slices nothing can run are common."""
    n = draw(st.integers(1, 7))
    stride = draw(st.integers(1, 3))
    positions = [i * stride for i in range(n + 1)]
    few = st.integers(0, 6).map(float)
    ways = {}
    for begin, end in combinations(positions, 2):
        points = draw(st.lists(st.tuples(few, few), max_size=2 if n > 4 else 3))
        ways[begin, end] = [choice(begin, end, t, c) for t, c in points]
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
    cap = data.draw(st.sampled_from([*boundaries, float("inf"), 5.0]))
    wanted: dict[int, list[Point]] = {}
    for stages, point in every:
        if point[0] <= cap:
            wanted.setdefault(stages, []).append(point)
    found = case.divided(cap)
    assert {k: [(x.latency_ms, x.cost_usd) for x in f.labels] for k, f in found.items()} == {
        k: pareto(points) for k, points in wanted.items()
    }


@given(cases(), st.data())
def test_the_least_cost_within_a_cap_is_that_of_brute_force(case: Case, data: st.DataObject) -> None:
    every = [p for _, p in case.every()]
    cap = data.draw(st.sampled_from([*(p[0] for p in every), float("inf"), 3.0]))
    within = [p for p in every if p[0] <= cap]
    label = cheapest(case.divided(cap))
    if not within:
        assert label is None
        return
    least = min(cost for _, cost in within)
    near = [p for p in within if p[1] <= least * (1 + NEAR)]
    assert label is not None
    assert (label.latency_ms, label.cost_usd) == min(near)


@given(cases())
def test_a_labels_chain_covers_all_units_and_adds_up_to_it(case: Case) -> None:
    for stages, front in case.divided(float("inf")).items():
        for label in front.labels:
            chain = label.chain()
            assert len(chain) == stages
            assert [c.first for c in chain] == [0, *(c.last for c in chain[:-1])]
            assert chain[-1].last == case.positions[-1]
            hops = [case.hops[c.first] for c in chain[1:]]
            latency = case.entry_ms + sum(c.run_ms for c in chain) + sum(h[0] for h in hops)
            assert (label.latency_ms, label.cost_usd) == (
                latency,
                sum(c.cost_usd for c in chain) + sum(h[1] for h in hops),
            )


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
    assert cheapest(case.divided(10.0)) is not None
    assert cheapest(case.divided(9.999)) is None


POINTS = st.lists(st.tuples(st.integers(0, 8).map(float), st.integers(0, 8).map(float)), max_size=30)


@given(POINTS)
def test_a_front_keeps_exactly_the_labels_that_no_other_beats(points: list[Point]) -> None:
    front = Front()
    for point in points:
        front.add(Label(*point, None, None))
    assert [(x.latency_ms, x.cost_usd) for x in front.labels] == pareto(points)


@given(POINTS)
def test_a_front_tells_whether_a_label_was_kept(points: list[Point]) -> None:
    front = Front()
    for i, point in enumerate(points):
        beaten = any(q[0] <= point[0] and q[1] <= point[1] for q in points[:i])
        assert front.add(Label(*point, None, None)) is not beaten


def test_of_equally_cheap_plans_the_fastest_is_taken() -> None:
    front = Front()
    for point in ((10.0, 100.0), (5.0, 100.9), (1.0, 101.1)):
        front.add(Label(*point, None, None))
    label = cheapest({1: front})
    assert label is not None
    assert label.latency_ms == 5.0


@pytest.mark.parametrize("fronts", [{}, {1: Front()}])
def test_nothing_feasible_is_none(fronts: dict[int, Front]) -> None:
    assert cheapest(fronts) is None
