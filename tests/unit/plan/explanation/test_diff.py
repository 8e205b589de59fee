"""What changed between two plans: nothing where nothing did, and differences that add up."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.errors import InfeasiblePlan, LawBroken, PlatformLimit
from lamella.plan.document import Plan
from lamella.plan.explanation.diff import Totals, diff
from lamella.plan.request import Request
from tests.unit.plan.explanation.test_explain import asked, planned
from tests.unit.plan.synthetic import CODED_CHAINS, Made

UNITS = tuple(Made(weights_mb=60, time_ms=50, out_mb=0.01) for _ in range(6))
PLANNERS = st.sampled_from(["single", "uniform-2", "uniform-3", "mopar", "exact"])
WHERE = st.sampled_from(["openfaas", "knative", "aws-lambda-2021"])


def plan(planner: str, where: str = "openfaas", units: tuple[Made, ...] = UNITS, slo: float | None = None) -> Plan:
    return planned(asked(units, where, Request(slo_ms=slo)), planner)


@settings(max_examples=40)
@given(CODED_CHAINS, st.tuples(PLANNERS, PLANNERS), st.tuples(WHERE, WHERE))
def test_the_differences_of_segments_add_up_to_those_of_the_plans(
    units: tuple[Made, ...], planners: tuple[str, str], where: tuple[str, str]
) -> None:
    try:
        before, after = (plan(p, w, units) for p, w in zip(planners, where, strict=True))
    except (InfeasiblePlan, PlatformLimit):
        return
    found = diff(before, after)
    assert found.comparable
    assert [s.first for s in found.segments] == [0, *(s.last for s in found.segments[:-1])]
    assert found.segments[-1].last == len(units)
    for totals, side, of in ((found.was, "before", before), (found.now, "after", after)):
        parts = [getattr(s, side) for s in found.segments]
        assert sum(p.ms for p in parts) + totals.rest_ms == pytest.approx(of.predicted.latency_ms)
        cost = sum(p.cost_usd_per_million for p in parts)
        assert cost == pytest.approx(of.predicted.cost_usd_per_million)
        assert sum(p.memory_mb for p in parts) == of.predicted.memory_mb
        assert sum(p.functions for p in parts) == len(of.functions)
    cuts = [{f.first for f in p.functions} for p in (before, after)]
    assert {s.first for s in found.segments} == cuts[0] & cuts[1]
    assert found.same == (msgspec.structs.replace(after, why="", losers=()) == _without_why(before, after))


def _without_why(before: Plan, after: Plan) -> Plan | None:
    """The plan before, with reasons, slack and cold starts of the other, which are no difference."""
    functions = tuple(
        msgspec.structs.replace(a, why=b.why, peak_mb=b.peak_mb, floor_mb=b.floor_mb)
        for a, b in zip(before.functions, after.functions, strict=False)
    )
    if len(before.functions) != len(after.functions):
        return None
    hops = tuple(msgspec.structs.replace(a, why=b.why) for a, b in zip(before.hops, after.hops, strict=True))
    return msgspec.structs.replace(
        before, why="", losers=(), functions=functions, hops=hops, slack=after.slack, cold=after.cold
    )


def test_a_plan_does_not_differ_from_itself() -> None:
    found = diff(plan("exact"), plan("exact"))
    assert found.same
    assert not found.changes
    assert not any(s.changes for s in found.segments)


def test_cuts_sizes_codecs_and_channels_are_told_in_words() -> None:
    before, after = plan("single"), plan("uniform-2")
    found = diff(before, after, ("a.json", "b.json"))
    assert found.segments[0].changes == ("divided at 3",)
    assert [(c.what, c.before, c.after) for c in found.changes] == [("planner", "single", "uniform-2")]
    assert diff(after, before).segments[0].changes == ("no longer divided at 3",)
    assert diff(after, plan("uniform-3")).segments[0].changes == ("3 stages instead of 2: cut at 2, 4, not 3",)
    hop = msgspec.structs.replace(after.hops[0], codec="shuffle-zstd", channel="http")
    first = msgspec.structs.replace(after.functions[0], memory_mb=512, vcpu=0.5, layout="prepacked")
    other = msgspec.structs.replace(after, hops=(hop,), functions=(first, *after.functions[1:]))
    told = diff(after, other).segments
    assert told[0].changes == (
        f"512 MB instead of {after.functions[0].memory_mb} MB",
        "0.50 vCPU instead of 1.00 vCPU",
        "weights prepacked instead of weights plain",
    )
    assert told[1].changes == ("codec shuffle-zstd instead of codec none", "over http instead of over shared-memory")
    slower = msgspec.structs.replace(after.functions[0], run_ms=999.0)
    again = msgspec.structs.replace(after, functions=(slower, *after.functions[1:]))
    assert diff(after, again).segments[0].changes == ("predicted otherwise",)


def test_plans_of_different_models_are_compared_in_all_only() -> None:
    found = diff(plan("single"), plan("single", units=UNITS[:3]))
    assert not found.comparable
    assert not found.same
    assert found.segments == ()
    assert "model's hash" in {c.what for c in found.changes}
    assert isinstance(found.now, Totals)


@pytest.mark.parametrize("what", ["no function", "a gap", "a hop too many", "no figure at once"])
def test_a_plan_that_contradicts_itself_is_refused(what: str) -> None:
    good = plan("uniform-2")
    gap = msgspec.structs.replace(good.functions[1], first=4)
    bad = {
        "no function": msgspec.structs.replace(good, functions=(), hops=(), at_once=()),
        "a gap": msgspec.structs.replace(good, functions=(good.functions[0], gap)),
        "a hop too many": msgspec.structs.replace(good, hops=good.hops * 2),
        "no figure at once": msgspec.structs.replace(good, at_once=(1,)),
    }[what]
    with pytest.raises(LawBroken, match=r"b\.json"):
        diff(good, bad, ("a.json", "b.json"))
