"""An SLO at a percentile of all requests, some of which find their functions stopped."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from lamella.plan.document import Plan
from lamella.plan.make import make_plan
from lamella.plan.request import Request
from lamella.platforms import platform
from tests.unit.plan.synthetic import Made, graph_of, profile_of

UNITS = (Made(time_ms=200.0), Made(time_ms=300.0, weights_mb=200.0))
WHERE = "aws-lambda-2021"


def rate_with(share: float) -> float:
    """Of requests, per second, so that such a share of them finds functions stopped."""
    return -math.log(share) / platform(WHERE).start.keep_alive_s.value


def plan_of(planner: str, slo_ms: float, share: float | None, percentile: float | None = 95.0) -> Plan:
    graph = graph_of(UNITS)
    rate = None if share is None else rate_with(share)
    request = Request(slo_ms, rate_per_s=rate, percentile=percentile)
    return make_plan(graph, profile_of(graph, UNITS), platform(WHERE), planner, given="zoo:made-up", request=request)


def in_time(plan: Plan, slo_ms: float, share: float) -> float:
    """Share of all requests that are in time by the law, where a start is too long."""
    mean, at_95 = plan.predicted.at(None), plan.predicted.at(95)
    deviation = (at_95 - mean) / NormalDist().inv_cdf(0.95)
    return (1 - share) * NormalDist(mean, deviation).cdf(slo_ms)


@pytest.mark.parametrize("planner", ["exact", "mopar", "single"])
@pytest.mark.parametrize("share", [0.01, 0.03])
def test_those_that_wait_for_starts_are_made_up_for_by_the_others(planner: str, share: float) -> None:
    slo = plan_of(planner, 60_000.0, None).bounded_ms * 1.04
    before, plan = plan_of(planner, slo, None), plan_of(planner, slo, share)
    assert before.in_time is None  # nobody said how often requests come
    assert plan.percentile == pytest.approx(95 / (1 - share))
    assert plan.asked_percentile == 95
    assert plan.in_time == pytest.approx(0.95)
    assert plan.bounded_ms <= slo * (1 + 1e-9)
    assert in_time(plan, slo, share) >= 0.95 * (1 - 1e-9)
    assert plan.predicted.cost_usd_per_million >= before.predicted.cost_usd_per_million * (1 - 1e-9)


def test_a_plan_that_was_just_in_time_gives_way_to_one_that_is_for_all() -> None:
    tight = plan_of("exact", 700.0, None)
    slo = tight.bounded_ms * (1 + 1e-6)
    again, plan = plan_of("exact", slo, None), plan_of("exact", slo, 0.02)
    assert in_time(again, slo, 0.02) < 0.95 <= in_time(plan, slo, 0.02) * (1 + 1e-9)
    assert plan.predicted.cost_usd_per_million >= again.predicted.cost_usd_per_million


def test_where_more_wait_than_may_be_late_the_slo_is_that_of_the_others() -> None:
    plan = plan_of("exact", 700.0, 0.2)
    assert plan.percentile == 95
    assert plan.in_time == pytest.approx(0.95 * 0.8)


def test_starts_that_fit_into_the_slo_are_in_time() -> None:
    plan = plan_of("exact", 60_000.0, 0.2)
    assert plan.percentile == 95
    assert plan.in_time == (pytest.approx(0.95) if plan.cold and plan.cold.platform_ms is not None else 0.95 * 0.8)


def test_a_mean_is_that_of_requests_that_find_their_functions_ready() -> None:
    plan = plan_of("exact", 700.0, 0.02, percentile=None)
    assert plan.percentile is None
    assert plan.in_time is None
