"""How many rows share a run."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from lamella.errors import ConfigError
from lamella.plan.document import Plan
from lamella.plan.make import make_plan
from lamella.plan.pricing.batching import batches, wait_ms
from lamella.plan.request import Request
from lamella.platforms import platform
from tests.unit.plan.pricing.test_slices import with_rows
from tests.unit.plan.synthetic import Made, graph_of, model_of, profile_of

UNITS = (Made(60.0, 0.01, 10.0), Made(200.0, 0.01, 20.0), Made(10.0, 0.01, 5.0))


@pytest.mark.parametrize("batch", [2, 5, 64])
@pytest.mark.parametrize("percentile", [50.0, 95.0])
def test_the_wait_is_that_of_simulated_rows(batch: int, percentile: float) -> None:
    draw = random.Random(1)
    waits = sorted(sum(draw.expovariate(20.0) for _ in range(batch - 1)) for _ in range(4_000))
    seen = waits[int(len(waits) * percentile / 100)] * 1000
    found = wait_ms(batch, Request(rate_per_s=20.0, max_batch=64, percentile=percentile))
    assert found == pytest.approx(seen, rel=0.08)


def test_on_average_a_row_waits_for_so_many_distances() -> None:
    assert wait_ms(5, Request(rate_per_s=20.0, max_batch=64, percentile=None)) == pytest.approx(200.0)
    assert wait_ms(5, Request(rate_per_s=20.0)) == 0.0, "rows of one request come together"


def test_batches_are_powers_of_two_and_what_lies_between_them() -> None:
    asked = Request(slo_ms=100.0, rate_per_s=1.0, max_batch=13)
    assert list(batches(graph_of(UNITS), platform("openfaas"), asked)) == [1, 2, 3, 4, 6, 8, 12]


def test_what_is_tried_for_fewer_rows_is_tried_for_more() -> None:
    tried = [
        set(batches(graph_of(UNITS), platform("openfaas"), Request(slo_ms=9.0, rate_per_s=1.0, max_batch=most)))
        for most in range(1, 65)
    ]
    assert all(a <= b for a, b in pairwise(tried))


@pytest.mark.parametrize(("slo_ms", "rate"), [(None, None), (9.0, None), (None, 1.0)])
def test_without_a_rate_or_a_bound_there_is_no_batch_to_choose(slo_ms: float | None, rate: float | None) -> None:
    asked = Request(slo_ms=slo_ms, rate_per_s=rate, max_batch=4)
    with pytest.raises(ConfigError, match="rows wait for each other"):
        list(batches(graph_of(UNITS), platform("openfaas"), asked))


def plan_at(rate: float, slo_ms: float = 400.0) -> Plan:
    """Of rows whose run takes three times one's at a batch of four."""
    model = with_rows(model_of(UNITS), 4)
    request = Request(slo_ms=slo_ms, rate_per_s=rate, max_batch=4)
    return make_plan(model.graph, model.profile, model.platform, "exact", given="made-up", request=request)


def test_rows_share_a_run_where_they_come_often_enough() -> None:
    often, rare = plan_at(1000.0), plan_at(0.5)
    assert (often.batch, rare.batch) == (4, 1)
    assert "4 row(s) a run, of at most 4; per million rows 1: $" in often.why
    assert often.wait_ms == pytest.approx(wait_ms(4, Request(rate_per_s=1000.0, max_batch=4)))
    assert often.bounded_ms <= 400.0
    assert f"within the SLO of 400 ms at percentile 95, {often.wait_ms:.1f} of which the first row waits" in often.why
    assert often.predicted.cost_usd_per_million / 4 < rare.predicted.cost_usd_per_million


def test_the_wait_is_within_the_bound() -> None:
    tight = plan_at(1000.0).bounded_ms
    assert plan_at(1000.0, tight * 1.001).batch == 4
    assert plan_at(1000.0, tight * 0.8).batch < 4


@pytest.mark.parametrize("name", ["mopar", "ort", "ort-default"])
def test_a_planner_that_does_not_choose_batches_says_so(name: str) -> None:
    graph = graph_of(UNITS)
    request = Request(slo_ms=100.0, rate_per_s=1.0, max_batch=4)
    with pytest.raises(ConfigError, match=f"{name} does not choose batches"):
        make_plan(graph, profile_of(graph, UNITS), platform("openfaas"), name, given="made-up", request=request)
