"""Starts after idle times: how often, at what price, and when one function is cheaper."""

from __future__ import annotations

import math
import random

import pytest
from msgspec.structs import replace

from lamella.errors import ConfigError
from lamella.plan.make import make_plan
from lamella.plan.planners.exact import Exact
from lamella.plan.planners.plain import singles
from lamella.plan.pricing.arrivals import cold_share
from lamella.plan.pricing.cold import starts, starts_usd
from lamella.plan.pricing.fan_out import sharded
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.profile.document import ShardPart, ShardProfile
from tests.unit.plan.pricing.test_shards import SPAN, sharded_model
from tests.unit.plan.synthetic import Made, graph_of, model_of, profile_of

UNITS = (Made(60.0, 0.5, 10.0, load_ms=20.0), Made(700.0, 0.5, 20.0, load_ms=90.0), Made(10.0, 0.5, 30.0, load_ms=5.0))

LIGHT = (Made(60.0, 0.5, 20.0, load_ms=5.0),) * 3
"""Whose imports take longer than their sessions: three small starts cost more than a large one."""


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 5e-3])
def test_the_share_is_that_of_simulated_requests(rate: float) -> None:
    where = platform("aws-lambda")
    keep = where.start.keep_alive_s.value
    draw = random.Random(0)
    idle = sum(draw.expovariate(rate) > keep for _ in range(20_000)) / 20_000
    assert cold_share(where, rate) == pytest.approx(idle, abs=0.01)


def test_without_a_rate_everything_is_ready() -> None:
    assert cold_share(platform("azure-flex"), None) == 0.0  # whose keep-alive nobody knows


def test_an_unknown_keep_alive_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="keep_alive_s of azure-flex is not known"):
        cold_share(platform("azure-flex"), 0.1)


def test_a_start_is_imports_and_the_session_of_each_slice() -> None:
    model = model_of(UNITS)
    chain = [model.choices(0, 1)[0], model.choices(1, 3)[0]]
    # an empty session takes 5 ms, once in each
    assert [one.cpu_ms for one in starts(model, chain)] == [100.0 + 20.0, 100.0 + 90.0]
    assert [one.package_mb for one in starts(model, chain)] == pytest.approx([60.0, 710.0])
    by_hand = sum(
        ms / 1000 * c.memory_mb / 1024 * model.platform.billing.usd_per_gb_s.value
        for ms, c in zip((120.0, 190.0), chain, strict=True)
    )
    assert starts_usd(model, chain) == pytest.approx(by_hand)


def test_a_free_start_costs_nothing() -> None:
    model = model_of(UNITS, "aws-lambda-2021")  # INIT was free then
    assert starts_usd(model, [model.choices(0, 1)[0]]) == 0.0


def test_shards_start_each_and_so_does_what_joins_them_alone() -> None:
    model = sharded_model(
        UNITS[:1], [ShardProfile(0, 1, SPAN, 2, 1, (ShardPart(5.0, 200.0, 150.0),) * 2, 11.0, 0.1, 0.1)]
    )
    choice = sharded(model, 0, 1)[0]
    assert len(list(starts(model, [choice]))) == len(choice.shards) + 1


def test_below_the_printed_rate_one_function_is_cheaper_and_above_it_the_division() -> None:
    model = model_of(LIGHT)
    request = Request(slo_ms=1e6)
    plan = make_plan(model.graph, model.profile, model.platform, "exact", given="made-up", request=request)
    assert len(plan.functions) > 1
    assert plan.cold
    edge = plan.cold.one_function_below_per_s
    assert edge
    assert math.isfinite(edge)
    divided = Exact().decide(model, request).chosen
    whole = min(singles(model), key=lambda c: c.cost_usd)
    for rate, fewer in ((edge * 0.9, True), (edge * 1.1, False)):
        share = cold_share(model.platform, rate)
        costs = [c.cost_usd + share * starts_usd(model, c.choices) for c in (whole, divided)]
        assert (costs[0] < costs[1]) is fewer


def test_the_planner_divides_less_where_requests_are_rare() -> None:
    model = model_of(LIGHT)
    counts = [len(Exact().decide(model, Request(slo_ms=1e6, rate_per_s=rate)).chosen.choices) for rate in (1e-6, 1.0)]
    assert counts[0] < counts[1]


def test_where_nothing_is_kept_alive_no_rate_is_told() -> None:
    where = platform("aws-lambda")
    where = replace(where, start=replace(where.start, keep_alive_s=replace(where.start.keep_alive_s, number=0.0)))
    graph = graph_of(UNITS)
    plan = make_plan(graph, profile_of(graph, UNITS), where, "exact", given="made-up", request=Request(rate_per_s=1.0))
    assert plan.cold
    assert (plan.cold.share, plan.cold.one_function_below_per_s) == (1.0, None)
