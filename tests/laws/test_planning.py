"""Laws 1, 2 and 4 to 8 on random chains, on both platforms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import InfeasiblePlan, PlatformLimit
from lamella.graph.model import Graph
from lamella.plan.document import Plan
from lamella.plan.laws import broken_laws, payloads
from lamella.plan.make import make_plan
from lamella.plan.planners.mopar import Mopar
from lamella.plan.planners.plain import Single
from lamella.plan.planners.registry import planner
from lamella.plan.planners.search import NEAR, divide
from lamella.plan.planners.simplify import merge_similar
from lamella.plan.planners.verdicts import LATENCY_MARGIN
from lamella.plan.pricing.fan_out import step
from lamella.plan.request import Request
from lamella.platforms import platform
from tests.unit.plan.synthetic import CHAINS, CODED_CHAINS, PLATFORMS, VCPUS, Made, graph_of, model_of, profile_of

TIE = 1 + NEAR + 1e-9
"""Of plans within 1 % of the least cost latency decides, so a chosen plan may cost this much more than another."""
PLANNERS = st.sampled_from(["single", "uniform-2", "uniform-3", "mopar"])
ALL = st.sampled_from(["single", "uniform-2", "uniform-3", "mopar", "exact", "gillis", "latency-greedy", "random-3"])
SLOS = st.one_of(st.none(), st.floats(0.5, 300))


@given(st.one_of(CHAINS, CODED_CHAINS), PLATFORMS, VCPUS, ALL, SLOS, st.integers(1, 8))
def test_every_plan_keeps_the_laws_and_its_slo(
    units: tuple[Made, ...], where: str, vcpu: float, name: str, slo: float | None, max_stages: int
) -> None:
    graph = graph_of(units)
    profile = profile_of(graph, units)
    try:
        plan = make_plan(graph, profile, platform(where), name, given="x", request=Request(slo, max_stages, vcpu=vcpu))
    except InfeasiblePlan:
        return
    except PlatformLimit:
        assert payloads(graph, 1, platform(where))  # what the model itself gives is too large to be answered
        return
    assert broken_laws(plan, graph, platform(where)) == []
    assert slo is None or plan.predicted.latency_ms <= slo
    assert plan.stages <= (max(3, max_stages) if name.startswith("uniform") else max_stages)
    law_6(plan, graph)


def law_6(plan: Plan, graph: Graph) -> None:
    """Cost is the sum of its parts, latency the critical path of the chain; by this test's own arithmetic."""
    rules = platform(plan.platform)
    copied = sum(graph.tensors[n].bytes_at() for n in (*graph.inputs, *graph.outputs)) / 2**20
    latency = (
        0.1 + 0.2 + 0.5 * copied + math.fsum(f.run_ms for f in plan.functions) + math.fsum(h.time_ms for h in plan.hops)
    )
    assert plan.predicted.latency_ms == pytest.approx(latency)
    cost = 0.0
    for function in plan.functions:
        step, ms = {"aws-lambda": 1, "azure-consumption": 1, "cloud-run": 100}.get(plan.platform, 0), function.run_ms
        ms = math.ceil(ms / step - 1e-8) * step if step else ms
        ms = max(ms, 100) if plan.platform == "azure-consumption" else ms
        cpu = 0.000024 * function.vcpu if plan.platform == "cloud-run" else 0.0
        cost += ms / 1000 * (function.memory_mb / 1024 * rules.billing.usd_per_gb_s.value + cpu)
        cost += rules.billing.usd_per_request.value
    assert plan.predicted.cost_usd_per_million == pytest.approx(cost * 1e6)
    assert plan.predicted.memory_mb == sum(f.memory_mb for f in plan.functions)


@given(CHAINS, PLATFORMS, VCPUS, SLOS, st.integers(1, 8))
def test_law_7_no_plan_of_mopar_is_dearer_than_the_tuned_single_function(
    units: tuple[Made, ...], where: str, vcpu: float, slo: float | None, max_stages: int
) -> None:
    model = model_of(units, where, vcpu=vcpu)
    try:
        alone = Single().decide(model, Request(slo)).chosen
    except InfeasiblePlan:
        return
    chosen = Mopar().decide(model, Request(slo, max_stages)).chosen
    assert chosen.cost_usd <= alone.cost_usd * TIE
    assert slo is not None or chosen.latency_ms <= alone.latency_ms * LATENCY_MARGIN * (1 + 1e-9)


@given(CHAINS, PLATFORMS, PLANNERS, st.floats(0.5, 300), st.floats(1, 3))
def test_law_8_loosening_the_slo_never_raises_the_cost_beyond_the_tie_rule(
    units: tuple[Made, ...], where: str, name: str, slo: float, factor: float
) -> None:
    model = model_of(units, where)
    try:
        tight = planner(name).decide(model, Request(slo)).chosen
    except InfeasiblePlan:
        return
    loose = planner(name).decide(model, Request(slo * factor)).chosen
    assert loose.cost_usd <= tight.cost_usd * TIE


@given(CHAINS, PLATFORMS, st.floats(0.5, 300), st.floats(1, 3), st.integers(1, 7))
def test_law_8_the_least_cost_itself_never_rises(
    units: tuple[Made, ...], where: str, slo: float, factor: float, max_stages: int
) -> None:
    model = model_of(units, where)
    marks = merge_similar(model)

    def least(cap: float, stages: int, positions: list[int]) -> float:
        fronts = divide(
            positions,
            model.choices,
            lambda join, choice: step(model, join, choice),
            entry_ms=model.entry_ms,
            cap_ms=cap,
            max_stages=stages,
        )
        return min((x.cost_usd for f in fronts.values() for x in f.labels), default=math.inf)

    tight = least(slo, max_stages, marks)
    every = list(range(model.units + 1))
    assert least(slo * factor, max_stages, marks) <= tight  # a looser cap
    assert least(slo, max_stages + 1, marks) <= tight  # one more stage
    assert least(slo, max_stages, every) <= tight * (1 + 1e-12)  # more places to cut: another order of sums


@given(CHAINS, PLATFORMS, st.floats(0.1, 5), st.sampled_from(["single", "mopar", "exact", "gillis", "latency-greedy"]))
def test_an_infeasible_slo_s_hint_is_feasible(units: tuple[Made, ...], where: str, slo: float, name: str) -> None:
    model = model_of(units, where)
    try:
        planner(name).decide(model, Request(slo))
    except InfeasiblePlan as error:
        if error.where == "--slo-ms":
            hint = float(error.try_.split(",")[0].removeprefix("--slo-ms "))
            assert planner(name).decide(model, Request(hint)).chosen.latency_ms <= hint
