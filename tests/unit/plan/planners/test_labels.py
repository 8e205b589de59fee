"""Labels where they are too many to keep, and what is held against them; every route, one by one, is the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lamella.errors import ConfigError
from lamella.plan.planners import labels
from lamella.plan.planners.labels import later_ms
from lamella.plan.planners.pareto import undominated
from lamella.plan.planners.route import Law, Sums
from lamella.plan.planners.routes import Routes
from tests.unit.plan.planners.test_routes import every, graphs

NUMBER = st.floats(0, 100)
SLOS = st.one_of(st.just(math.inf), st.floats(0, 30))


@given(NUMBER, NUMBER, NUMBER, NUMBER, st.tuples(NUMBER, NUMBER), st.floats(0, 1))
def test_who_is_no_later_at_both_ends_of_what_is_to_come_is_so_between(
    ms: float, other_ms: float, variance: float, other: float, rest: tuple[float, float], share: float
) -> None:
    law = Law(1.645)
    low, high = sorted(rest)
    one = later_ms(law, np.array([ms]), np.array([variance]), (low, high))
    two = later_ms(law, np.array([other_ms]), np.array([other]), (low, high))
    assume(one[0] <= two[0] and one[1] <= two[1])
    between = low + share * (high - low)
    assert ms + 1.645 * math.sqrt(variance + between) <= other_ms + 1.645 * math.sqrt(other + between) + 1e-9


@given(NUMBER, NUMBER, st.floats(0, 1000), NUMBER, st.floats(0, 1000))
def test_the_line_is_beneath_the_law_for_whatever_keeps_the_bound(
    least_ms: float, least: float, most_ms: float, more_ms: float, more: float
) -> None:
    law, ms, variance = Law(1.645), least_ms + more_ms, least + more
    latency = float(law.latency_ms(np.array(ms), np.array(variance)))
    assume(latency <= most_ms)
    line = law.line(least_ms, least, most_ms)
    flat = float(line.of(Sums(np.zeros(1), np.array([ms]), np.array([variance])))[0]) + line.at_ms
    assert flat <= latency + 1e-6
    assert flat >= ms + 1.645 * math.sqrt(least) - 1e-6, "it says more than means do"


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=40))
def test_what_is_left_of_points_is_what_no_other_beats(points: list[tuple[int, int, int]]) -> None:
    usd, ms, third = np.array(points, float).reshape(-1, 3).T
    kept = {points[k] for k in undominated(usd, ms, third).tolist()}
    beaten = {p for p in points for q in points if q != p and all(a <= b for a, b in zip(q, p, strict=True))}
    assert kept == set(points) - beaten
    assert len(undominated(usd, ms, third)) == len(kept)


@given(graphs())
def test_the_farthest_way_is_that_of_looking_at_all(routes: Routes) -> None:
    routes.ways.most = 100  # it is of however many stages
    found = max((r.variance for r in every(routes)), default=-math.inf)
    assert routes.ways.farthest(routes._sums.variance)[0] == pytest.approx(found)


@settings(max_examples=200)
@given(graphs(), SLOS)
def test_labels_made_a_few_at_a_time_are_the_same(routes: Routes, most_ms: float) -> None:
    whole = routes.cheapest(most_ms), routes.front(most_ms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "CHUNK", 2)
        assert (routes.cheapest(most_ms), routes.front(most_ms)) == whole


@settings(max_examples=400)
@given(graphs(), SLOS, st.integers(1, 3))
def test_with_too_many_labels_the_cheapest_is_as_near_as_it_says(routes: Routes, most_ms: float, kept: int) -> None:
    """And keeps the latency, and is found where there is one, or nothing is said."""
    allowed = [r for r in every(routes) if r.latency_ms <= most_ms]
    routes.most_work = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "LEAST_LABELS", kept)
        try:
            found = routes.cheapest(most_ms)
        except ConfigError:
            return
    if not allowed:
        assert all(r.latency_ms <= most_ms * (1 + 1e-8) for r in found.routes)
        return
    (route,) = found.routes
    least = min(r.usd for r in allowed)
    assert route.latency_ms <= most_ms * (1 + 1e-8)
    assert route.usd - found.proof.loss_usd <= least * (1 + 1e-8) + 1e-12
    assert route.usd >= least * (1 - 1e-8) - 1e-12


@settings(max_examples=400)
@given(graphs(), SLOS, SLOS, st.integers(1, 3))
def test_with_too_many_labels_the_front_is_as_near_as_it_says(
    routes: Routes, most_ms: float, most_usd: float, kept: int
) -> None:
    allowed = [r for r in every(routes) if r.latency_ms <= most_ms and r.usd <= most_usd]
    routes.most_work = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "LEAST_LABELS", kept)
        found = routes.front(most_ms, most_usd)
    assert all(r.usd <= most_usd * (1 + 1e-8) and r.latency_ms <= most_ms * (1 + 1e-8) for r in found.routes)
    loss = found.proof.loss_usd
    for route in allowed:
        if route.usd + loss <= most_usd:
            assert any(
                f.usd <= route.usd + loss + 1e-7 and f.latency_ms <= route.latency_ms + 1e-7 for f in found.routes
            )


def test_a_chain_of_many_trade_offs_is_done_with_a_limit_and_says_what_it_may_lose() -> None:
    """Powers of two, so that every sum is another: 16 million routes, of which none beats another nor costs more with
    latency weighed in. Any whole number of ms is one's, and what it costs is the rest."""
    steps = 24
    usd = np.array([(2.0**k, 0.0) for k in range(steps)]).ravel() + 1.0
    ms = np.array([(0.0, 2.0**k) for k in range(steps)]).ravel() + 1.0
    tail = np.repeat(np.arange(steps), 2)
    routes = Routes(steps + 1, tail, tail + 1, Sums(usd, ms, np.ones(len(usd))), Law(1.645))
    routes.most_work = 1_000_000
    most_ms = 0.37 * 2**steps
    least = 2**steps - 1 + 2 * steps - math.floor(most_ms - 1.645 * math.sqrt(steps))
    found = routes.cheapest(most_ms)
    assert found.routes[0].latency_ms <= most_ms
    assert found.routes[0].usd - found.proof.loss_usd <= least <= found.routes[0].usd
    assert 0 < found.proof.loss_usd < 0.001 * least
    assert found.proof.labels < routes.most_work
