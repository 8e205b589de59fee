"""The same request on several platforms, and the front of one: in order, and with reasons."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.errors import ConfigError, InfeasiblePlan, PlatformLimit
from lamella.plan.explanation.front import front, shown
from lamella.plan.explanation.places import held_back, survey
from lamella.plan.request import Request
from lamella.platforms import platform
from tests.unit.plan.explanation.test_explain import FEW, asked, planned
from tests.unit.plan.synthetic import CHAINS, Made

UNITS = (Made(weights_mb=100, time_ms=20, out_mb=0.1), Made(weights_mb=100, time_ms=20))
NAMES = ("openfaas", "aws-lambda-2021", "aws-lambda", "azure-flex", "cloud-run")


def test_platforms_come_by_cost_and_those_that_cannot_last_with_what_is_in_the_way() -> None:
    units = (Made(weights_mb=300, time_ms=20, out_mb=0.1), Made(weights_mb=10, time_ms=20))
    counts: list[int] = []
    found = survey([asked(units, w) for w in NAMES], "exact", counts.append)
    costs = [plan.predicted.cost_usd_per_million for _, plan in found.possible]
    assert counts == [1, 2, 3, 4, 5]
    assert costs == sorted(costs)
    assert [p.platform for p in found.places][-1] == "aws-lambda-2021"
    last = found.places[-1]
    assert last.plan is None
    assert last.binding
    assert last.binding.constraint == "package"
    assert held_back(last).startswith("package: 30")
    assert held_back(last).endswith("MB needed, 250 allowed")
    assert "package: made-up ships" in last.refused
    for place in found.places[:-1]:
        assert place.plan == planned(asked(units, place.platform))
        assert place.tightest


def test_an_answer_that_no_platform_carries_and_an_unknown_figure_are_rows() -> None:
    rules = platform("openfaas")
    price = replace(rules.billing.usd_per_gb_s, number="unknown", confidence="unknown")
    nobody = replace(rules, billing=replace(rules.billing, usd_per_gb_s=price))
    found = survey([asked((Made(out_mb=12),), "aws-lambda"), asked(UNITS, nobody)], "exact")
    assert [p.plan for p in found.places] == [None, None]
    assert held_back(found.places[0]) == "an answer of 12.0 MB is 16.0 MB on the wire, the limit of aws-lambda is 6 MB"
    assert "usd_per_gb_s of openfaas is not known" in held_back(found.places[1])
    assert found.places[1].price == "unknown"
    assert found.possible == []
    with pytest.raises(ConfigError):
        survey([], "exact")


@settings(max_examples=25)
@given(CHAINS, FEW, st.sampled_from([None, 60.0, 300.0]), st.sampled_from(["exact", "mopar", "single"]))
def test_a_plan_stands_where_it_belongs_on_the_front(
    units: tuple[Made, ...], where: str, slo: float | None, planner: str
) -> None:
    question = asked(units, where, Request(slo_ms=slo))
    try:
        plan = planned(question, planner)
    except (InfeasiblePlan, PlatformLimit):
        return
    found = front(question, plan)
    costs = [p.cost_usd_per_million for p in found.points]
    assert costs == sorted(costs, reverse=True)
    assert found.at is not None
    at = found.points[found.at]
    assert at.bounded_ms <= found.chosen.bounded_ms * (1 + 1e-6)
    assert all(p.bounded_ms > found.chosen.bounded_ms for p in found.points[found.at + 1 :])
    assert found.dearer >= -1e-6
    if planner == "exact" and slo:  # without an SLO it balances, and one function has to be beaten by a tenth
        assert found.on_front
    if found.cheaper:
        assert found.cheaper.cost_usd_per_million == pytest.approx(costs[found.at + 1])
        assert found.cheaper.bounded_ms == pytest.approx(found.points[found.at + 1].bounded_ms)
        assert found.cheaper.functions == found.points[found.at + 1].functions
    if found.quicker:
        assert found.quicker.bounded_ms == pytest.approx(found.points[found.at - 1].bounded_ms)
    for most in (1, 4, 12):
        here = shown(found, most)
        assert here == sorted(set(here))
        assert found.at in here
        assert len(here) <= most + 3
        assert all(0 <= k < len(costs) for k in here)
