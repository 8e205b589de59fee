"""One function, and equal slices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import InfeasiblePlan
from lamella.plan.planners.plain import Single, Uniform
from lamella.plan.planners.registry import planner
from lamella.plan.planners.search import NEAR
from lamella.plan.request import Request
from tests.unit.plan.planners.brute_force import SLOS, best, every, total
from tests.unit.plan.synthetic import CHAINS, PLATFORMS, VCPUS, Made, model_of


@given(CHAINS, PLATFORMS, VCPUS, SLOS)
def test_single_chooses_as_brute_force(units: tuple[Made, ...], where: str, vcpu: float, slo: float | None) -> None:
    model = model_of(units, where, vcpu=vcpu)
    want = best(every(model, [0, model.units], range(1, 2)), slo or float("inf"))
    try:
        chosen = Single().decide(model, Request(slo)).chosen
    except InfeasiblePlan:
        assert want is None
    else:
        assert (chosen.latency_ms, chosen.cost_usd) == want
        assert total(model, chosen.choices) == want


@given(CHAINS, PLATFORMS, VCPUS, SLOS, st.integers(1, 4))
def test_uniform_chooses_the_sizes_of_equal_slices_as_brute_force(
    units: tuple[Made, ...], where: str, vcpu: float, slo: float | None, stages: int
) -> None:
    model = model_of(units, where, vcpu=vcpu)
    if stages > model.units:
        with pytest.raises(InfeasiblePlan, match=f"uniform-{stages} needs {stages} units"):
            Uniform(stages).decide(model, Request(slo))
        return
    marks = [round(i * model.units / stages) for i in range(stages + 1)]
    want = best(every(model, marks, range(stages, stages + 1)), slo or float("inf"))
    try:
        chosen = Uniform(stages).decide(model, Request(slo)).chosen
    except InfeasiblePlan:
        assert want is None
    else:
        assert (chosen.latency_ms, chosen.cost_usd) == want
        lengths = [c.last - c.first for c in chosen.choices]
        assert len(lengths) == stages
        assert max(lengths) - min(lengths) <= 1


def test_a_slice_in_which_nothing_runs_blocked_is_never_called_blocked() -> None:
    units = (Made(blocked_speedup=2.0, time_ms=100.0), Made(weights_mb=300.0, time_ms=90.0))
    chosen = planner("uniform-2").decide(model_of(units), Request()).chosen
    assert [c.layout for c in chosen.choices] == ["blocked", "plain"]


@given(CHAINS, PLATFORMS, SLOS)
def test_knowing_the_blocked_layout_never_worsens_the_optimum(
    units: tuple[Made, ...], where: str, slo: float | None
) -> None:
    bare = tuple(replace(u, blocked_speedup=0.0) for u in units)
    try:
        least = Single().decide(model_of(bare, where), Request(slo)).chosen
    except InfeasiblePlan:
        return
    chosen = Single().decide(model_of(units, where), Request(slo)).chosen
    assert chosen.cost_usd <= least.cost_usd * (1 + NEAR)


def test_uniform_slices_whose_hop_exceeds_the_payload_are_not_blamed_on_sizes() -> None:
    with pytest.raises(InfeasiblePlan) as caught:
        Uniform(2).decide(model_of((Made(out_mb=12), Made()), "aws-lambda"), Request())
    assert "payload" in caught.value.message
    assert "16.0 MB" in caught.value.message


def test_a_model_of_one_unit_has_no_uniform_division() -> None:
    with pytest.raises(InfeasiblePlan, match="uniform-3 needs 3 units, made-up divides into 1") as caught:
        Uniform(3).decide(model_of((Made(),)), Request())
    assert caught.value.try_ == "--planner uniform-1"
    assert len(Uniform(1).decide(model_of((Made(),)), Request()).chosen.choices) == 1


def test_more_uniform_slices_than_units_names_the_most_there_can_be() -> None:
    with pytest.raises(InfeasiblePlan) as caught:
        Uniform(4).decide(model_of((Made(), Made())), Request())
    assert caught.value.try_ == "--planner uniform-2"
