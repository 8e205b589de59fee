"""Planners that bound the mean keep a percentile all the same."""

from __future__ import annotations

import pytest

from lamella.errors import InfeasiblePlan
from lamella.plan.document import Plan
from lamella.plan.make import make_plan
from lamella.plan.request import Request
from lamella.platforms import platform
from tests.unit.plan.synthetic import Made, graph_of, profile_of

UNITS = (
    Made(weights_mb=60, time_ms=20, out_mb=0.1, spread=0.1),
    Made(weights_mb=200, time_ms=5, out_mb=0.1, spread=0.4),
    Made(weights_mb=10, time_ms=30, out_mb=0.1, spread=0.05),
)
PLANNERS = ["single", "uniform-2", "mopar", "amps-inf", "gillis", "latency-greedy", "random"]


def made(name: str, slo: float | None, percentile: float | None = 95.0, where: str = "openfaas") -> Plan:
    graph = graph_of(UNITS)
    request = Request(slo, percentile=percentile)
    return make_plan(graph, profile_of(graph, UNITS), platform(where), name, given="m.onnx", request=request)


@pytest.mark.parametrize("where", ["openfaas", "aws-lambda"])
@pytest.mark.parametrize("name", PLANNERS)
def test_the_percentile_is_kept_and_told(name: str, where: str) -> None:
    plan = made(name, 130.0, where=where)
    assert (plan.slo_ms, plan.percentile) == (130.0, 95.0)
    assert plan.predicted.latency_ms < plan.bounded_ms <= 130.0 * (1 + 1e-9)
    (row,) = (s for s in plan.slack if s.constraint.startswith("latency"))
    assert (row.constraint, row.limit) == ("latency SLO at percentile 95", 130.0)
    assert row.used == pytest.approx(plan.bounded_ms)


@pytest.mark.parametrize("where", ["openfaas", "aws-lambda"])
def test_one_function_keeps_just_what_its_plan_promises(where: str) -> None:
    free = made("single", None, where=where)
    promised = free.predicted.at(95.0)
    bound = made("single", promised, where=where)
    assert bound.bounded_ms <= promised * (1 + 1e-9)
    assert bound.predicted.cost_usd_per_million <= free.predicted.cost_usd_per_million * 1.01  # counts as equally cheap
    with pytest.raises(InfeasiblePlan, match="on average, for the SLO of"):
        made("single", made("single", None).predicted.at(95.0) - 0.1)


def test_the_mean_is_bounded_where_no_percentile_is_asked_for() -> None:
    mean = made("single", None).predicted.latency_ms
    plan = made("single", mean, percentile=None)
    assert (plan.percentile, plan.bounded_ms) == (None, mean)


def test_what_to_ask_for_instead_is_enough() -> None:
    with pytest.raises(InfeasiblePlan) as refused:
        made("single", 20.0)
    asked = float(str(refused.value).split("--slo-ms ")[-1].split(",")[0])
    assert made("single", asked).bounded_ms <= asked
    with pytest.raises(InfeasiblePlan):
        made("single", asked - 4)
