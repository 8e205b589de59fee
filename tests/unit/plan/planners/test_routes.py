"""The search for routes, against every route one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.plan.planners.route import Law, Route, Sums
from lamella.plan.planners.routes import Routes

PRICES = st.sampled_from([0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 3.25, 7.0])


@st.composite
def graphs(draw: st.DrawFn) -> Routes:
    states = draw(st.integers(2, 6))
    pairs = list(itertools.combinations(range(states), 2))
    ends = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=14))
    law = Law(draw(st.sampled_from([0.0, 0.0, 1.645])))
    # what a ms is worth is a quotient of two of them, which of subnormal ones is infinite
    number = st.one_of(PRICES, st.floats(0, 10).filter(lambda x: not x or x > 1e-100))
    sums = Sums(*(np.array(draw(st.lists(number, min_size=len(ends), max_size=len(ends)))) for _ in range(3)))
    tail, head = np.array(ends).T
    stages = np.array(draw(st.lists(st.sampled_from([0, 1, 1, 2]), min_size=len(ends), max_size=len(ends))))
    most = draw(st.sampled_from([None, None, 1, 2, 3, 9]))
    return Routes(states, tail, head, sums, law, draw(st.sampled_from([0.0, 1.0])), stages, most)


def every(routes: Routes) -> list[Route]:
    """All routes of as many stages as there may be, in sums of their own."""
    arcs_from: dict[int, list[int]] = {}
    for arc, tail in enumerate(routes.ways.tail.tolist()):
        arcs_from.setdefault(tail, []).append(arc)
    found: list[Route] = []
    open_: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    while open_:
        state, arcs = open_.pop()
        if routes.ways.stages[list(arcs)].sum() > routes.ways.most:
            continue
        if state == routes.states - 1:
            usd, ms, variance = (math.fsum(s[list(arcs)]) for s in routes._sums)
            mean = ms + routes.begin_ms
            latency = mean + routes.law.deviations * math.sqrt(variance)
            found.append(Route(tuple(routes.ways.order[list(arcs)].tolist()), usd, mean, variance, latency))
        open_ += [(int(routes.ways.head[a]), (*arcs, a)) for a in arcs_from.get(state, ())]
    return found


@settings(max_examples=400)
@given(graphs(), st.one_of(st.just(math.inf), st.floats(0, 30)))
def test_the_cheapest_route_is_that_of_looking_at_all(routes: Routes, most_ms: float) -> None:
    allowed = [r for r in every(routes) if r.latency_ms <= most_ms]
    found = routes.cheapest(most_ms)
    if not allowed:  # but for what rounding lets through
        assert all(r.latency_ms <= most_ms * (1 + 1e-8) for r in found.routes)
        return
    best = min(allowed, key=lambda r: (r.usd, r.latency_ms))
    (route,) = found.routes
    assert route.usd == pytest.approx(best.usd, rel=1e-8, abs=1e-12)
    assert route.latency_ms <= most_ms * (1 + 1e-8)
    assert found.proof.bound_usd <= best.usd * (1 + 1e-8) + 1e-12
    same = next(r for r in every(routes) if r.arcs == route.arcs)
    assert route.usd == pytest.approx(same.usd)


def test_an_slo_that_is_next_to_nothing_is_one() -> None:
    one = Sums(np.ones(2), np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    routes = Routes(2, np.zeros(2, int), np.ones(2, int), one, Law(1.645))
    for most_ms in (0.0, 5e-324, 3.8e-303, 1e-9):
        (route,) = routes.cheapest(most_ms).routes
        assert route.latency_ms == 0.0
    assert (
        not Routes(2, np.zeros(1, int), np.ones(1, int), Sums(*(np.ones(1),) * 3), Law(1.645)).cheapest(1e-303).routes
    )


@settings(max_examples=200)
@given(graphs(), st.floats(0, 30), st.lists(st.floats(0, 10), min_size=1, max_size=3))
def test_over_an_arc_there_is_a_route_that_costs_what_it_says(
    routes: Routes, most_ms: float, multipliers: list[float]
) -> None:
    found = routes.through(most_ms, multipliers)
    kept = [r for r in every(routes) if r.latency_ms <= most_ms * (1 + 1e-9)]
    for arc in np.flatnonzero(np.isfinite(found)).tolist():
        assert any(arc in r.arcs and r.usd == pytest.approx(found[arc]) for r in kept)
    best = routes.through(math.inf, [0.0])
    if not routes.ways.most:  # the cheapest of all routes over it
        for arc in range(len(best)):
            least = min((r.usd for r in every(routes) if arc in r.arcs), default=math.inf)
            assert best[arc] == pytest.approx(least)


@settings(max_examples=200)
@given(graphs(), st.booleans())
def test_the_slo_exactly_at_a_route_s_latency_is_kept(routes: Routes, last: bool) -> None:
    for route in sorted(every(routes), key=lambda r: r.latency_ms)[-1 if last else 0 :][:1]:
        found = routes.cheapest(route.latency_ms)
        assert found.routes
        assert found.routes[0].usd <= route.usd * (1 + 1e-8)


@settings(max_examples=300)
@given(graphs(), st.one_of(st.just(math.inf), st.floats(0, 30)), st.one_of(st.just(math.inf), st.floats(0, 30)))
def test_the_front_is_that_of_looking_at_all(routes: Routes, most_ms: float, most_usd: float) -> None:
    allowed = [r for r in every(routes) if r.latency_ms <= most_ms and r.usd <= most_usd]
    found = routes.front(most_ms, most_usd).routes
    for one, other in itertools.pairwise(found):
        assert one.latency_ms <= other.latency_ms
        assert one.usd > other.usd
    for route in allowed:
        assert any(f.usd <= route.usd + 1e-7 and f.latency_ms <= route.latency_ms + 1e-7 for f in found), (
            "nothing on the front is as good"
        )
    quickest = routes.quickest(most_usd).routes
    within = [r for r in every(routes) if r.usd <= most_usd]
    if within:
        assert quickest[0].latency_ms == pytest.approx(min(r.latency_ms for r in within), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_what_is_no_number_is_refused(bad: float) -> None:
    fine, wrong = np.ones(1), np.array([bad])
    for sums in (Sums(wrong, fine, fine), Sums(fine, wrong, fine), Sums(fine, fine, wrong)):
        with pytest.raises(ValueError, match="finite number from 0"):
            Routes(2, np.array([0]), np.array([1]), sums)


def test_a_graph_without_a_route_has_none() -> None:
    empty = Sums(*(np.zeros(0),) * 3)
    assert Routes(2, np.zeros(0, int), np.zeros(0, int), empty).cheapest().routes == ()
    assert Routes(2, np.zeros(0, int), np.zeros(0, int), empty).front().routes == ()
    with pytest.raises(ValueError, match="leads back"):
        Routes(2, np.array([1]), np.array([1]), Sums(*(np.ones(1),) * 3))
