"""Prices against planning at every limit between; refusals against the first limit at which there is a plan."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.errors import InfeasiblePlan, PlatformLimit
from lamella.plan.document import Plan
from lamella.plan.explanation.document import Explanation
from lamella.plan.explanation.explain import explain
from lamella.plan.explanation.loosen import LATENCY, Asked, constraints, used, with_memory
from lamella.plan.explanation.refusal import refused
from lamella.plan.laws import broken_laws
from lamella.plan.make import make_plan
from lamella.plan.request import Request
from lamella.platforms import Platform, platform
from tests.unit.plan.synthetic import CHAINS, CODED_CHAINS, Made, graph_of, profile_of

FEW = st.sampled_from(["aws-lambda-2021", "openfaas", "azure-consumption", "azure-flex", "cloud-run", "knative"])


def asked(units: tuple[Made, ...], where: str | Platform = "openfaas", request: Request = Request()) -> Asked:  # noqa: B008 - a value
    graph = graph_of(units)
    rules = platform(where) if isinstance(where, str) else where
    return Asked(graph, profile_of(graph, units), rules, request, "zoo:made-up")


def planned(question: Asked, name: str = "exact") -> Plan:
    return make_plan(
        question.graph, question.profile, question.platform, name, given="zoo:made-up", request=question.request
    )


def explained(question: Asked, name: str = "exact", planners: tuple[str, ...] = ()) -> Explanation:
    return explain(question, planned(question, name), planners)


def limited(where: str, **limits: float) -> Platform:
    """A platform with other limits."""
    rules = platform(where)
    figures = {n: replace(getattr(rules.limits, n), number=v) for n, v in limits.items()}
    return replace(rules, limits=replace(rules.limits, **figures))


@settings(max_examples=30)
@given(CHAINS, FEW, st.sampled_from([None, 40.0, 90.0, 400.0]), st.sampled_from([1, 2, 16]))
def test_an_explanation_agrees_with_the_plans_that_it_tells_of(
    units: tuple[Made, ...], where: str, slo: float | None, most: int
) -> None:
    question = asked(units, where, Request(slo_ms=slo, max_stages=most))
    try:
        plan = planned(question)
    except (InfeasiblePlan, PlatformLimit):
        return
    found = explain(question, plan, ("single", "mopar"))
    least = found.cheapest.cost_usd_per_million
    assert found.chosen.cost_usd_per_million >= least * (1 - 1e-6)
    assert slo is None or found.chosen.cost_usd_per_million == pytest.approx(least)
    for other in found.others:
        if not other.plan:
            assert other.why
            continue
        late = found.cap_ms is not None and other.plan.bounded_ms > found.cap_ms * (1 + 1e-6)
        assert late == ("over the latency" in other.why)
        assert late or other.plan.cost_usd_per_million >= found.cheapest.cost_usd_per_million * (1 - 1e-6)
        if other.kind.endswith("stages"):
            assert other.kind == f"{other.plan.stages} stages"
    assert {p.constraint for p in found.prices} >= {
        "largest memory",
        "package",
        "payload of a hop",
        "timeout",
        "stages",
    }
    for price in found.prices:
        assert price.used <= price.limit * (1 + 1e-6)
        assert 0 <= price.one_saves <= price.most_saves + 1e-9
        assert price.next_saves <= price.most_saves + 1e-9
        assert (price.next_limit is None) == (price.most_saves == 0)


def test_the_price_of_a_limit_is_what_planning_one_step_further_saves() -> None:
    """A package limit that forbids one function: at the megabyte that allows it, and not before, the cost falls."""
    units = (Made(weights_mb=100, time_ms=5, out_mb=3), Made(weights_mb=100, time_ms=5))
    question = asked(units, limited("aws-lambda-2021", package_mb=150), Request(slo_ms=1000))
    price = next(p for p in explained(question).prices if p.constraint == "package")

    def cost(mb: float) -> float:
        changed = question._replace(platform=limited("aws-lambda-2021", package_mb=mb))
        return planned(changed).predicted.cost_usd_per_million

    costs = {mb: cost(mb) for mb in range(150, 240, 1)}
    first = next(mb for mb, usd in costs.items() if usd < costs[150] * (1 - 1e-6))
    assert 200 < first < 210
    assert price.next_limit == first
    assert price.next_saves == pytest.approx(costs[150] - costs[first])
    assert price.most_saves == pytest.approx(costs[150] - costs[239])
    assert price.one_saves == 0
    assert "package" in explained(question).why


def test_the_price_of_latency_is_the_next_point_of_the_front() -> None:
    units = (Made(weights_mb=20, time_ms=100), Made(weights_mb=900, time_ms=20))
    question = asked(units, "aws-lambda", Request(slo_ms=100))
    front = [(p.bounded_ms, p.cost_usd * 1e6) for p in question.space().front().plans]
    plan = planned(question)
    price = explained(question).prices[0]
    base = plan.predicted.cost_usd_per_million
    assert price.constraint == LATENCY
    ms, usd = next((ms, usd) for ms, usd in front if ms > 100)
    assert price.next_limit == pytest.approx(ms)
    assert price.next_saves == pytest.approx(base - usd)
    assert price.most_saves == pytest.approx(base - front[-1][1])
    one = min(usd for ms, usd in front if ms <= 101)
    assert price.one_saves == pytest.approx(max(0.0, base - one))


def test_a_stage_more_is_priced_where_the_request_allows_few() -> None:
    units = tuple(Made(weights_mb=60, time_ms=50, out_mb=0.01) for _ in range(5))
    found = explained(asked(units, "openfaas", Request(slo_ms=1000, max_stages=2)))
    price = next(p for p in found.prices if p.constraint == "stages")
    three = planned(asked(units, "openfaas", Request(slo_ms=1000, max_stages=3)))
    saved = found.cheapest.cost_usd_per_million - three.predicted.cost_usd_per_million
    assert saved > 0
    assert (price.limit, price.used, price.next_limit) == (2, 2, 3)
    assert price.one_saves == pytest.approx(saved)


def test_a_plan_of_another_planner_is_held_against_the_cheapest_one() -> None:
    units = (Made(weights_mb=20, time_ms=200, out_mb=0.1), Made(weights_mb=900, time_ms=20))
    found = explained(asked(units), "single", ("exact", "single", "uniform-3"))
    by = {o.kind: o for o in found.others}
    assert "costs" in found.why
    assert "more than the cheapest" in found.why
    assert by["one function"].why == by["single"].why == "as cheap and as quick"
    assert "cheaper" in by["exact"].why
    assert by["uniform-3"].plan is None
    assert "needs 3 units" in by["uniform-3"].why
    assert by["with codecs"].plan is None


def test_an_slo_that_none_keeps_is_refused_with_the_quickest_plan() -> None:
    question = asked((Made(time_ms=40), Made(time_ms=2)), "aws-lambda", Request(slo_ms=5))
    with pytest.raises(InfeasiblePlan) as error:
        planned(question)
    found = refused(question, error.value)
    quickest = question.space().quickest()
    assert quickest
    assert not found.together
    assert found.ways[0].constraint == LATENCY
    assert found.ways[0].needed == pytest.approx(quickest.bounded_ms)
    assert planned(question.asking(slo_ms=found.ways[0].needed)).predicted.latency_ms <= found.ways[0].needed * (
        1 + 1e-9
    )


@pytest.mark.parametrize(("mb", "together"), [(300.0, False), (4000.0, True)])
def test_a_unit_that_is_too_large_is_refused_with_what_it_needs(mb: float, together: bool) -> None:
    """300 MB break the package limit alone; 4,000 MB the largest size, too."""
    question = asked((Made(weights_mb=mb), Made()), "aws-lambda-2021")
    with pytest.raises(InfeasiblePlan) as error:
        planned(question)
    found = refused(question, error.value)
    assert found.together == together
    assert {w.constraint for w in found.ways} == ({"package", "largest memory"} if together else {"package"})
    way = next(w for w in found.ways if w.constraint == "package")
    assert mb < way.needed <= 2 * mb
    if not together:
        change = next(c for c in constraints(question) if c.name == "package").change
        assert planned(change(question, way.needed)).functions
        with pytest.raises(InfeasiblePlan):
            planned(change(question, way.needed - 1))


@settings(max_examples=15)
@given(CODED_CHAINS, FEW)
def test_beyond_its_reach_no_constraint_makes_a_plan_cheaper(units: tuple[Made, ...], where: str) -> None:
    question = asked(units, where)
    for one in constraints(question):
        far = max(one.limit, one.reach)
        costs = [one.change(question, far * times).cheapest() for times in (1, 3)]
        usd = [c.cost_usd if c else math.inf for c in costs]
        assert usd[1] == pytest.approx(usd[0], rel=1e-6)


@pytest.mark.parametrize("where", ["aws-lambda", "azure-flex", "cloud-run", "openfaas"])
def test_a_platform_with_more_memory_sells_it(where: str) -> None:
    rules = platform(where)
    most = rules.most_mb(1.0)
    larger = with_memory(rules, most + 512, 1.0)
    assert larger.most_mb(1.0) == most + 512
    assert larger.sizes_mb(1.0)[-1] == most + 512
    assert set(rules.sizes_mb(1.0)) <= set(larger.sizes_mb(1.0))


@settings(max_examples=15)
@given(CHAINS, FEW)
def test_a_plan_tells_the_slack_that_it_has(units: tuple[Made, ...], where: str) -> None:
    question = asked(units, where, Request(slo_ms=500))
    try:
        plan = planned(question)
    except (InfeasiblePlan, PlatformLimit):
        return
    takes = used(plan, question.platform)
    assert plan.slack[0].constraint.startswith(LATENCY)
    other = any(h.channel != question.platform.hop.channel for h in plan.hops)  # with a limit of its own
    told = [s for s in plan.slack if not (other and s.constraint == "payload of a hop")]
    assert all(s.used == pytest.approx(takes[s.constraint.partition(" at ")[0]]) for s in told)
    assert not broken_laws(plan, question.graph, question.platform)


def test_a_plan_that_loses_something_is_told_to_be_held_against_plans_that_do_not() -> None:
    question = asked((Made(time_ms=40), Made()))
    plan = planned(question)
    integers = replace(plan.functions[0], layout="int8", int8=("t0",))
    assert "loses something" in explain(question, replace(plan, functions=(integers, *plan.functions[1:]))).why
    assert "loses" not in explain(question, plan).why


def test_a_refusal_is_explained_at_the_price_of_the_architecture() -> None:
    units = (Made(time_ms=40), Made(time_ms=2))
    usd = []
    for architecture in ("x86", "arm", "any"):
        question = asked(units, "aws-lambda", Request(slo_ms=5, architecture=architecture))
        with pytest.raises(InfeasiblePlan) as error:
            planned(question)
        usd.append(refused(question, error.value).ways[0].plan.cost_usd_per_million)
    assert usd[1] == usd[2] < usd[0]
