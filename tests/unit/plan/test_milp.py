"""The search for routes against HiGHS, which knows nothing of bounds and labels: a solver that others wrote."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planner_instances import chain, routes
from lamella.errors import MissingExtra
from lamella.plan.milp import cheapest


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5), st.floats(0, 1.1), st.sampled_from([None, 1, 2, 4]))
def test_the_solver_finds_what_the_search_finds(
    seed: int, units: int, sizes: int, share: float, most: int | None
) -> None:
    arcs = chain(units, sizes, seed=seed)
    ours = routes(arcs, most)
    quick, cheap = ours.fastest(), ours.cheapest().routes
    if quick is None:
        assert cheapest(arcs, most_stages=most) is None
        return
    slo = quick.latency_ms + share * (cheap[0].latency_ms - quick.latency_ms)
    found, solved = ours.cheapest(slo), cheapest(arcs, slo, most_stages=most)
    assert solved
    assert solved.proven
    assert solved.usd == pytest.approx(found.routes[0].usd, rel=1e-6)
    assert solved.usd == pytest.approx(math.fsum(arcs.usd[list(solved.arcs)]))
    assert math.fsum(arcs.ms[list(solved.arcs)]) <= slo * (1 + 1e-8)
    assert len(solved.arcs) <= (most or units)
    assert found.proof.bound_usd <= solved.usd * (1 + 1e-6)


def test_no_route_within_the_bound_is_none() -> None:
    arcs = chain(6, 3)
    quick = routes(arcs).fastest()
    assert quick
    assert cheapest(arcs, quick.latency_ms * 0.99) is None
    assert cheapest(arcs, quick.latency_ms * (1 + 1e-7)) is not None


def test_nothing_in_time_is_none_and_a_gap_is_what_may_be_saved_at_most() -> None:
    arcs = chain(20, 6)
    quick = routes(arcs).fastest()
    assert quick
    assert cheapest(arcs, quick.latency_ms * 2, seconds=0.0) is None
    best = cheapest(arcs, quick.latency_ms * 2)
    assert best
    assert best.proven
    assert best.gap < 1e-6
    half = best._replace(usd=best.usd * 2, proven=False)
    assert half.gap == pytest.approx(0.5)


def test_without_the_solver_the_next_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(MissingExtra) as caught:
        cheapest(chain(2, 1))
    assert caught.value.try_ == "pip install 'lamella[milp]'"
