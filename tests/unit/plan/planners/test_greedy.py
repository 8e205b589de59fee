"""`latency-greedy`: where it begins, that it stops only where no move helps, what it takes under an SLO."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.errors import InfeasiblePlan
from lamella.plan.planners.greedy import LEAST_MS, LatencyGreedy
from lamella.plan.pricing.fan_out import stages
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.profile.document import ShardProfile
from tests.unit.plan.planners.brute_force import every
from tests.unit.plan.planners.test_gillis import EVEN, HALVES
from tests.unit.plan.pricing.test_shards import SHARDS, priced, sharded_model
from tests.unit.plan.synthetic import CHAINS, PLATFORMS, Made, model_of

SLOS = st.one_of(st.none(), st.floats(5, 300))


def fewest(model: SliceModel) -> int | None:
    """The least number of slices that fit."""
    inner = [u for u in range(1, model.units) if model.fits_payload(u)]
    counts = [
        k + 1
        for k in range(model.units)
        for cuts in combinations(inner, k)
        if all(model.choices(i, j) for i, j in pairwise([0, *cuts, model.units]))
    ]
    return min(counts, default=None)


@settings(deadline=None)
@given(CHAINS, PLATFORMS, SHARDS, SLOS, st.integers(1, 6))
def test_it_keeps_the_slo_and_its_sums_and_falls_all_the_way(
    units: tuple[Made, ...], where: str, shards: list[ShardProfile], slo: float | None, most: int
) -> None:
    model = sharded_model(units, [s for s in shards if s.last <= len(units)], where).with_codings({})
    least = fewest(model)
    try:
        decision = LatencyGreedy().decide(model, Request(slo, most))
    except InfeasiblePlan:
        assert slo is not None or least is None or least > most
        return
    chosen = decision.chosen
    count, point = priced(model, chosen.choices)
    assert count == stages(chosen.choices)
    assert point == pytest.approx((chosen.latency_ms, chosen.cost_usd))
    assert stages(chosen.choices) <= most
    if slo is not None:
        assert chosen.latency_ms <= slo
        return
    trail = [*(c for c, _ in decision.losers), chosen]
    assert len(trail[0].choices) == least
    assert all(after.latency_ms < before.latency_ms for before, after in pairwise(trail))


@settings(deadline=None)
@given(CHAINS, PLATFORMS)
def test_it_stops_only_where_no_cut_helps(units: tuple[Made, ...], where: str) -> None:
    model = model_of(units, where).with_codings({})
    try:
        chosen = LatencyGreedy().decide(model, Request()).chosen
    except InfeasiblePlan:
        assert fewest(model) is None
        return
    marks = [0, *(c.last for c in chosen.choices)]
    for cut in (u for u in range(1, model.units) if u not in marks and model.fits_payload(u)):
        more = sorted({*marks, cut})
        points = every(model, more, range(len(more) - 1, len(more)))
        assert all(ms > chosen.latency_ms - LEAST_MS - 1e-9 for ms, _ in points)


def test_it_puts_shards_where_they_save_the_most_and_says_how_far_it_came() -> None:
    model = sharded_model(EVEN, [HALVES])
    decision = LatencyGreedy().decide(model, Request())
    assert [(c.first, c.last, len(c.shards)) for c in decision.chosen.choices] == [(0, 2, 2), (2, 4, 0)]
    assert "1 move from one function, 62.4 to 45.7 ms" in decision.why
    assert [why for _, why in decision.losers] == ["16.70 ms slower"]
    loose = LatencyGreedy().decide(model, Request(70.0)).chosen
    assert loose.cost_usd < decision.chosen.cost_usd or loose.choices == decision.chosen.choices
    bare = LatencyGreedy().decide(model, Request(shards=False)).chosen
    assert len(bare.choices) == 1


def test_an_slo_out_of_reach_is_not_called_out_of_everyone_s_reach() -> None:
    with pytest.raises(InfeasiblePlan, match="no plan that latency-greedy comes by on openfaas answers within 5 ms"):
        LatencyGreedy().decide(model_of(EVEN), Request(5.0))
