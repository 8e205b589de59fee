"""The best plan of each kind against every plan there is, told apart by what another question does not give."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.plan.explanation.kinds import Kind, of_kind, of_stages, with_codecs, with_shards
from lamella.plan.planners.options import Options
from lamella.plan.planners.space import Space
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.profile.document import ShardProfile
from tests.unit.plan.planners.test_exact import COMMON, DEVIATIONS, FEW, SLOS, Point, every
from tests.unit.plan.pricing.test_shards import SHARDS, sharded_model
from tests.unit.plan.synthetic import CODED_CHAINS, Made

MOST = 6
"""Stages."""


def check(model: SliceModel, kind: Kind, points: Iterable[Point], slo: float) -> None:
    """The cheapest, and the front, of a kind are those of its points."""
    space = of_kind(Options(model, Request(max_stages=MOST)), kind)
    chosen = space.cheapest(slo).chosen
    kept = [(bounded(p), p[2]) for p in points if p[0] <= MOST]
    least = min((usd for ms, usd in kept if ms <= slo * (1 + 1e-8)), default=math.inf)
    if chosen is None:
        assert not any(ms <= slo for ms, _ in kept)
    else:
        assert chosen.cost_usd == pytest.approx(least, rel=1e-7)
        assert chosen.bounded_ms <= slo * (1 + 1e-8)
    front = space.front().plans
    assert bool(front) == bool(kept)
    if front:
        assert front[0].bounded_ms == pytest.approx(min(ms for ms, _ in kept))
        assert front[-1].cost_usd == pytest.approx(min(usd for _, usd in kept))


def bounded(point: Point) -> float:
    """A plan's latency at percentile 95."""
    _, ms, _, variance = point
    return ms * (1 + DEVIATIONS * COMMON) + DEVIATIONS * math.sqrt(variance)


def rest(all_: list[Point], others: list[Point]) -> list[Point]:
    """Of all points those that the others are not, told by their figures."""

    def told(points: list[Point]) -> Counter[tuple[int, float, float, float]]:
        return Counter((s, round(ms, 7), round(usd * 1e9, 7), round(v, 7)) for s, ms, usd, v in points)

    return [(s, ms, usd / 1e9, v) for s, ms, usd, v in told(all_) - told(others)]


@settings(max_examples=12)
@given(CODED_CHAINS.map(lambda u: u[:3]), FEW, SHARDS, SLOS)
def test_the_best_of_each_kind_is_the_best_of_all_plans_of_that_kind(
    units: tuple[Made, ...], where: str, shards: list[ShardProfile], slo: float
) -> None:
    model = sharded_model(units, [s for s in shards if s.last <= len(units)], where)
    points = every(model)
    for count in range(1, len(units) + 2):
        check(model, of_stages(count), [p for p in points if p[0] == count], slo)
    check(model, with_shards(), rest(points, every(sharded_model(units, [], where))), slo)


@settings(max_examples=10)
@given(CODED_CHAINS.map(lambda u: u[:2]), FEW, SLOS)
def test_the_best_with_codecs_and_the_best_without_are_the_best_of_all(
    units: tuple[Made, ...], where: str, slo: float
) -> None:
    model = sharded_model(units, [], where)
    coded = of_kind(Options(model, Request()), with_codecs()).cheapest(slo).chosen
    plain = SliceModel(model.graph, model.profile, model.platform, Request(codec=False))
    costs = [c.cost_usd for c in (coded, Space.of(plain, Request()).cheapest(slo).chosen) if c]
    best = Space.of(model, Request()).cheapest(slo).chosen
    assert bool(costs) == bool(best)
    assert best is None or best.cost_usd == pytest.approx(min(costs))
    if coded:
        points = rest(every(model), every(plain))
        assert any((ms, usd) == pytest.approx((coded.latency_ms, coded.cost_usd)) for _, ms, usd, _ in points)


@given(CODED_CHAINS, st.integers(1, 7))
def test_a_plan_of_so_many_stages_has_as_many(units: tuple[Made, ...], count: int) -> None:
    model = sharded_model(units, [], "azure-consumption")
    chosen = of_kind(Options(model, Request()), of_stages(count)).cheapest().chosen
    if chosen:
        assert (chosen.stages, len(chosen.choices)) == (count, count)
    coded = of_kind(Options(model, Request()), with_codecs()).cheapest().chosen
    if coded:
        assert any(coding.codec != "none" for coding in coded.codings.values())
