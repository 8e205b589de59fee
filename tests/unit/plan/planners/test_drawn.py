"""`random`: seeds, what is drawn, and that limits and the SLO are kept."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.errors import InfeasiblePlan
from lamella.plan.planners.drawn import Random
from lamella.plan.planners.registry import planner
from lamella.plan.pricing.fan_out import stages
from lamella.plan.request import Request
from lamella.profile.document import ShardProfile
from tests.unit.plan.planners.test_gillis import EVEN, HALVES
from tests.unit.plan.pricing.test_shards import SHARDS, priced, sharded_model
from tests.unit.plan.synthetic import CHAINS, PLATFORMS, Made, model_of


@settings(max_examples=40, deadline=None)
@given(CHAINS, PLATFORMS, SHARDS, st.one_of(st.none(), st.floats(5, 300)), st.integers(1, 6), st.integers(0, 99))
def test_what_it_draws_keeps_the_slo_the_stages_and_its_sums_and_comes_again(
    units: tuple[Made, ...], where: str, shards: list[ShardProfile], slo: float | None, most: int, seed: int
) -> None:
    model = sharded_model(units, [s for s in shards if s.last <= len(units)], where).with_codings({})
    try:
        decision = Random(seed).decide(model, Request(slo, most))
    except InfeasiblePlan:
        return
    assert Random(seed).decide(model, Request(slo, most)) == decision
    chosen = decision.chosen
    count, point = priced(model, chosen.choices)
    assert count == stages(chosen.choices)
    assert point == pytest.approx((chosen.latency_ms, chosen.cost_usd))
    assert stages(chosen.choices) <= most
    assert slo is None or chosen.latency_ms <= slo


def test_every_division_is_drawn_by_some_seed() -> None:
    model = sharded_model(EVEN, [HALVES])
    drawn = {
        tuple((c.last, bool(c.shards)) for c in Random(s).decide(model, Request()).chosen.choices) for s in range(200)
    }
    assert len({tuple(last for last, _ in d) for d in drawn}) == 2**3
    assert any(sharded for d in drawn for _, sharded in d)


def test_its_name_holds_the_seed() -> None:
    assert planner("random") == planner("random-0") == Random(0)
    assert planner("random-12") == Random(12)
    assert [Random(s).name for s in (0, 12)] == ["random", "random-12"]


def test_an_slo_that_no_draw_keeps_says_so_and_the_one_it_names_is_kept() -> None:
    with pytest.raises(
        InfeasiblePlan, match="none of 1000 plans drawn by random on openfaas answers within 5"
    ) as caught:
        Random().decide(model_of(EVEN), Request(5.0))
    hint = re.match(r"--slo-ms (\d+)", caught.value.try_)
    assert hint
    assert Random().decide(model_of(EVEN), Request(float(hint[1]))).chosen.latency_ms <= float(hint[1])


def test_a_model_that_fits_nowhere_is_infeasible_by_memory() -> None:
    with pytest.raises(InfeasiblePlan, match="memory: "):
        Random().decide(model_of((Made(), Made(weights_mb=20_000))), Request())
