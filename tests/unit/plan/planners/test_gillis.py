"""Gillis' dynamic program against every division, one by one; what the policy adds; what both keep."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.errors import InfeasiblePlan
from lamella.graph.divide import ShardSpan
from lamella.plan.choice import Choice
from lamella.plan.make import make_plan
from lamella.plan.planners.gillis import TIE_MS, Gillis, Groups, sizes
from lamella.plan.planners.plain import Single
from lamella.plan.pricing.fan_out import sharded
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.profile.document import ShardPart, ShardProfile
from tests.unit.plan.pricing.test_shards import SHARDS, priced, sharded_model
from tests.unit.plan.synthetic import CHAINS, PLATFORMS, Made, model_of

SLOS = st.one_of(st.none(), st.floats(5, 300))
SPAN = ShardSpan(0, 2, 2, "channels")
EVEN = (Made(40.0, 0.1, 20.0), Made(40.0, 0.1, 20.0), Made(90.0, 0.1, 20.0), Made(20.0, 0.1, 2.0))
HALVES = ShardProfile(0, 2, SPAN, 2, 1, (ShardPart(22.0, 120.0, 40.0),) * 2, 23.0, 0.3, 1.0)
"""Of the first two units, which take 40 ms alone."""


def outgrown(model: SliceModel, chain: tuple[Choice, ...], size: int) -> bool:
    """Whether a single function needs more than the size once it joins the parts before it."""
    pairs = [(before.join, after) for before, after in pairwise(chain) if before.join and not after.shards]
    return any(max(after.peak_mb, after.floor_mb) + join.mb > size + 1e-9 for join, after in pairs)


def every(model: SliceModel, size: int, most: int) -> list[tuple[float, float]]:
    """Latency and cost of every division into functions of one size, by the arithmetic of the tests of shards."""
    equal = model.with_size(size)
    inner = [u for u in range(1, model.units) if model.fits_payload(u)]
    points = []
    for k in range(model.units):
        for cuts in combinations(inner, k):
            ways = []
            for i, j in pairwise([0, *cuts, model.units]):
                tiles = [c for c in sharded(equal, i, j) if all(s.memory_mb == size for s in c.shards)]
                ways.append([*(c for c in equal.choices(i, j) if c.memory_mb == size), *tiles])
            for chain in product(*ways):
                stages, point = priced(equal, chain)
                if stages <= most and not outgrown(model, chain, size):
                    points.append(point)
    return points


@settings(deadline=None)
@given(CHAINS.map(lambda c: c[:4]), PLATFORMS, SHARDS, st.integers(1, 5), st.integers(0, 40))
def test_no_division_into_functions_of_one_size_is_quicker(
    units: tuple[Made, ...], where: str, shards: list[ShardProfile], most: int, at: int
) -> None:
    model = sharded_model(units, [s for s in shards if s.last <= len(units)], where).with_codings({})
    tried = sizes(model)
    size = tried[at % len(tried)]
    points = every(model, size, most)
    found = Groups(model, size, Request(max_stages=most)).quickest()
    if found is None:
        assert not points
        return
    least = min(ms for ms, _ in points)
    assert found.latency_ms <= least + TIE_MS * len(found.choices) + 1e-9
    assert found.cost_usd <= min(usd for ms, usd in points if ms <= least + 1e-9) * (1 + 1e-9)
    assert any((found.latency_ms, found.cost_usd) == pytest.approx(point) for point in points)


@settings(max_examples=50, deadline=None)
@given(CHAINS.map(lambda c: c[:4]), PLATFORMS, SHARDS, SLOS)
def test_it_keeps_the_slo_is_never_dearer_than_one_function_and_else_never_slower(
    units: tuple[Made, ...], where: str, shards: list[ShardProfile], slo: float | None
) -> None:
    model = sharded_model(units, [s for s in shards if s.last <= len(units)], where)
    alone = [c for c in model.choices(0, model.units) if slo is None or model.entry_ms + c.run_ms <= slo]
    try:
        chosen = Gillis().decide(model, Request(slo)).chosen
    except InfeasiblePlan:
        assert not alone
        return
    if slo is not None:
        assert chosen.latency_ms <= slo
        assert chosen.cost_usd <= min((c.cost_usd for c in alone), default=chosen.cost_usd)
    elif alone:
        assert chosen.latency_ms <= model.entry_ms + min(c.run_ms for c in alone) + TIE_MS


def test_it_forks_where_that_is_quicker() -> None:
    model = sharded_model(EVEN, [HALVES])
    decision = Gillis().decide(model, Request())
    assert [(c.first, c.last, len(c.shards)) for c in decision.chosen.choices] == [(0, 2, 2), (2, 4, 0)]
    assert decision.chosen.latency_ms < Single().decide(model, Request()).chosen.latency_ms - 10
    assert decision.codings == {}
    assert {c.memory_mb for c in decision.chosen.choices} == {decision.size_mb}


def test_the_plan_gives_every_function_the_same_size_and_says_so() -> None:
    model = model_of((Made(9_000, 0.1, 40.0), Made(5_000, 0.1, 40.0), Made(4_000, 0.1, 40.0), Made(time_ms=2.0)))
    plan = make_plan(model.graph, model.profile, model.platform, "gillis", given="x", request=Request())
    assert plan.stages == 2
    (size,) = {f.memory_mb for f in plan.functions}
    assert size == max(model.platform.allocation_mb(max(f.peak_mb, f.floor_mb), 1.0) or 0 for f in plan.functions)
    assert all(f"{size} MB as all functions of the plan" in f.why for f in plan.functions)
    assert {h.codec for h in plan.hops} == {"none"}


def test_the_policy_finds_a_cheaper_plan_than_the_quickest_where_the_slo_leaves_room() -> None:
    model = sharded_model(EVEN, [HALVES])
    quickest = Gillis().decide(model, Request()).chosen
    learned = Gillis().decide(model, Request(80.0))
    assert learned.chosen.cost_usd < quickest.cost_usd
    groups = Groups(model.with_codings({}), learned.chosen.choices[0].memory_mb, Request())
    start = groups.quickest()
    assert start
    (found,), told = Gillis().learn(groups, start, 80.0)
    assert found.cost_usd == pytest.approx(min(usd for ms, usd in every(groups.model, groups.size_mb, 16) if ms <= 80))
    assert told.different > 1


def test_the_same_seed_gives_the_same_plan() -> None:
    model = sharded_model(EVEN * 2, [HALVES])
    one, other = (Gillis(seed=7).decide(model, Request(140.0)) for _ in range(2))
    assert one == other
    assert "with seed 7" in one.why


def test_a_model_that_was_asked_before_gives_the_same_plans_within_other_bounds() -> None:
    model = sharded_model(EVEN, [HALVES])
    asked = [Request(80.0), Request(100.0), Request(100.0, shards=False), Request(130.0, max_stages=2), Request()]
    again = [Gillis().decide(model, request) for request in asked]
    assert again == [Gillis().decide(sharded_model(EVEN, [HALVES]), request) for request in asked]
    assert len({decision.chosen for decision in again}) > 2


def test_every_size_is_tried_and_the_ones_above_where_memory_buys_cpu() -> None:
    free, bought = sizes(model_of(EVEN)), sizes(model_of(EVEN, "aws-lambda"))
    assert free[-1] == 256  # what the whole needs
    assert bought[-1] == 3538  # two vCPU, as many as this machine has
    assert set(range(64, 257, 16)) == set(free)  # every size that is sold
    assert all(b - a <= 17 for a, b in pairwise([x for x in bought if x < 300]))


def test_an_slo_out_of_reach_says_what_was_looked_at() -> None:
    with pytest.raises(InfeasiblePlan, match="no division into functions of one size on openfaas answers within 5 ms"):
        Gillis().decide(model_of(EVEN), Request(5.0))
