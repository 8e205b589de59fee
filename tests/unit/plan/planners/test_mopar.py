"""MOPAR against brute force."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import InfeasiblePlan
from lamella.plan.planners.mopar import Mopar
from lamella.plan.planners.plain import Single
from lamella.plan.planners.search import NEAR
from lamella.plan.planners.simplify import merge_similar
from lamella.plan.planners.verdicts import BAND, LATENCY_MARGIN, WORTH
from lamella.plan.request import Request
from tests.unit.plan.planners.brute_force import HEAVY_TAIL, SLOS, best, every
from tests.unit.plan.synthetic import CHAINS, PLATFORMS, VCPUS, Made, model_of


@given(CHAINS, PLATFORMS, VCPUS, SLOS, st.integers(1, 5))
def test_mopar_chooses_as_brute_force_over_runs_of_similar_units(
    units: tuple[Made, ...], where: str, vcpu: float, slo: float | None, max_stages: int
) -> None:
    model = model_of(units, where, vcpu=vcpu)
    alone = best(every(model, [0, model.units], range(1, 2)), float("inf"))
    cap = slo if slo is not None else alone[0] * LATENCY_MARGIN if alone else float("inf")
    divided = every(model, merge_similar(model), range(1, max_stages + 1))
    want: tuple[float, float] | None
    if slo is None and alone:
        want = best([p for p in divided if p[1] <= alone[1] * (1 - WORTH)], cap, BAND) or alone
    else:
        want = best(divided, cap, BAND if slo is None else NEAR)
    try:
        chosen = Mopar().decide(model, Request(slo, max_stages)).chosen
    except InfeasiblePlan:
        assert want is None
    else:
        assert (chosen.latency_ms, chosen.cost_usd) == want
        assert len(chosen.choices) <= max_stages


def test_mopar_divides_where_it_pays_and_says_so() -> None:
    decision = Mopar().decide(model_of(HEAVY_TAIL), Request())
    alone = Single().decide(model_of(HEAVY_TAIL), Request())
    assert [(c.first, c.last) for c in decision.chosen.choices] == [(0, 1), (1, 2), (2, 3)]
    assert decision.chosen.cost_usd < 0.5 * alone.chosen.cost_usd
    assert decision.chosen.latency_ms <= alone.chosen.latency_ms * LATENCY_MARGIN
    assert "3 of at most 16 stages" in decision.why


def test_mopar_keeps_one_function_where_no_division_pays() -> None:
    decision = Mopar().decide(model_of((Made(weights_mb=1, time_ms=0.5), Made(weights_mb=1, time_ms=0.5))), Request())
    assert len(decision.chosen.choices) == 1
    assert decision.why.startswith("one function")


def test_a_model_above_every_size_is_divided_by_mopar_and_refused_by_single() -> None:
    model = model_of((Made(weights_mb=9_000),) * 3)
    with pytest.raises(InfeasiblePlan, match="memory"):
        Single().decide(model, Request())
    assert len(Mopar().decide(model, Request()).chosen.choices) == 3
