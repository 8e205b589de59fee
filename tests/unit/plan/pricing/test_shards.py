"""Planning with shards, on made-up measurements: against brute force, and the times of stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise, product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import InfeasiblePlan
from lamella.graph.divide import ShardSpan
from lamella.plan.choice import Choice
from lamella.plan.planners.mopar import Mopar
from lamella.plan.planners.simplify import merge_similar
from lamella.plan.pricing.fan_out import sharded, stages
from lamella.plan.pricing.memory import CODE_MB
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.profile.document import Profile, ShardPart, ShardProfile
from lamella.runtime.lanes import makespan
from tests.unit.plan.planners.brute_force import best
from tests.unit.plan.synthetic import CHAINS, PLATFORMS, Made, graph_of, profile_of

HEAVY = (Made(weights_mb=5, time_ms=40, out_mb=0.1), Made(weights_mb=600, time_ms=20, out_mb=0.1), Made(time_ms=5))

SPAN = ShardSpan(0, 1, 2, "channels")
SHARDS = st.lists(
    st.builds(
        lambda first, width, count, at_once, run, peak, spread: ShardProfile(
            first,
            first + width,
            SPAN,
            at_once,
            1,
            (ShardPart(run, peak, peak / 2),) * count,
            99.0,
            0.1,
            0.1,
            deviation_ms=spread,
        ),
        first=st.integers(0, 3),
        width=st.integers(1, 2),
        count=st.sampled_from([2, 4, 8]),
        at_once=st.integers(1, 2),
        run=st.sampled_from([0.5, 3.0, 20.0]),
        peak=st.sampled_from([60.0, 100.0, 300.0]),
        spread=st.sampled_from([0.0, 10.0]),
    ),
    max_size=3,
)


def sharded_model(units: tuple[Made, ...], shards: list[ShardProfile], where: str = "openfaas") -> SliceModel:
    graph = graph_of(units)
    profile = msgspec.structs.replace(profile_of(graph, units), shards=tuple(shards))
    return SliceModel(graph, profile, platform(where))


@given(st.lists(st.floats(0.1, 50), min_size=1, max_size=6), st.integers(1, 3))
def test_a_makespan_is_that_of_a_queue(times: list[float], at_once: int) -> None:
    ends = [0.0] * at_once
    for time in times:
        first = min(range(at_once), key=ends.__getitem__)
        ends[first] += time
    assert makespan(times, at_once) == pytest.approx(max(ends))
    assert makespan(times, 1) == pytest.approx(sum(times))
    assert makespan(times, len(times)) == pytest.approx(max(times))
    assert makespan(times, at_once) >= max(max(times), sum(times) / at_once) - 1e-9


@given(CHAINS, PLATFORMS, SHARDS, st.sampled_from([60.0, 200.0, 1000.0]), st.integers(1, 4))
def test_mopar_chooses_among_shards_as_brute_force(
    units: tuple[Made, ...], where: str, shards: list[ShardProfile], slo: float, max_stages: int
) -> None:
    model = sharded_model(units, [s for s in shards if s.last <= len(units)], where)
    ends = {end for s in model.profile.shards for end in (s.first, s.last)}
    marks = sorted({*merge_similar(model), *ends})
    points = []
    inner = [m for m in marks[1:-1] if model.fits_payload(m)]
    for k in range(1, max_stages + 1):
        for cuts in combinations(inner, k - 1):
            edges = list(pairwise([marks[0], *cuts, marks[-1]]))
            ways = [[*model.choices(i, j), *sharded(model, i, j)] for i, j in edges]
            made = [priced(model, chosen) for chosen in product(*ways)]
            points += [point for stages, point in made if stages <= max_stages]
    want = best(points, slo)
    try:
        chosen = Mopar().decide(model, Request(slo, max_stages)).chosen
    except InfeasiblePlan:
        assert want is None
    else:
        assert (chosen.latency_ms, chosen.cost_usd) == pytest.approx(want)


def priced(model: SliceModel, chosen: Sequence[Choice]) -> tuple[int, tuple[float, float]]:
    """Stages, latency and cost of a chain: parts are joined by the single function that follows, or by one of its own.

    By this test's own arithmetic.
    """
    stages, latency, cost = 0, model.entry_ms, 0.0
    for k, (before, choice) in enumerate(pairwise([None, *chosen, None])):
        open_ = before.join if before else None
        if choice and (k or open_):
            ms, usd, _ = model.hop(choice.first)
            latency, cost = latency + ms, cost + usd
        if choice is None and not open_:
            continue
        if choice and not (open_ and choice.shards):
            run, usd = choice.run_ms, choice.cost_usd
            if open_:
                size = model.platform.allocation_mb(max(choice.peak_mb, choice.floor_mb) + open_.mb, 1.0)
                if size is None:
                    return 99, (math.inf, math.inf)
                size = max(size, choice.memory_mb)
                vcpu = model.platform.vcpu(size, model.vcpu)  # a quota stretches the join, too
                run = model.run_ms(choice.first, choice.last, layout=choice.layout, vcpu=vcpu, more_ms=open_.ms)
                usd = model.platform.cost_usd(size, run, vcpu)
            stages, latency, cost = stages + 1, latency + run, cost + usd
            continue
        assert open_
        tail = model.profile.units[open_.unit - 1].last
        weights = model.graph.weight_bytes(open_.first, tail) / 2**20
        size = (
            model.platform.allocation_mb(model.profile.floor.resident_mb + open_.mb + weights + CODE_MB, 1.0) or 10240
        )
        vcpu = model.platform.vcpu(size, model.vcpu)
        run = (model.hops.cost.call_ms + open_.ms + 2 * model.hops.carrying_ms(open_.unit)) / min(1.0, vcpu)
        ms, usd, _ = model.hop(open_.unit)
        stages, latency = stages + 1, latency + run + ms
        cost += usd + model.platform.cost_usd(size, run, vcpu)
        if choice:
            stages, latency, cost = stages + 1, latency + choice.run_ms, cost + choice.cost_usd
    return stages, (latency, cost)


def test_shards_are_taken_where_they_are_cheaper_and_not_where_they_are_forbidden() -> None:
    part = ShardPart(5.0, 200.0, 150.0)
    model = sharded_model(HEAVY, [ShardProfile(1, 2, SPAN, 2, 1, (part,) * 4, 11.0, 0.0, 0.0)])
    chosen = Mopar().decide(model, Request(1000.0)).chosen
    (stage,) = [c for c in chosen.choices if c.shards]
    assert (stage.first, stage.last, len(stage.shards), stage.at_once) == (1, 2, 4, 2)
    assert stage.run_ms == pytest.approx(11.0 - model.hops.cost.fixed_ms)
    assert stage.cost_usd == pytest.approx(4 * model.platform.cost_usd(208, 5.0, 1.0))
    without = Mopar().decide(model, Request(1000.0, shards=False)).chosen
    assert not any(c.shards for c in without.choices)
    assert without.cost_usd > chosen.cost_usd


def test_shards_of_another_batch_or_too_large_are_no_choice() -> None:
    large = ShardProfile(1, 2, SPAN, 1, 1, (ShardPart(1.0, 1e6, 10.0),) * 2, 9.0, 0.0, 0.0)
    other = ShardProfile(1, 2, SPAN, 1, 4, (ShardPart(1.0, 60.0, 10.0),) * 2, 9.0, 0.0, 0.0)
    assert sharded(sharded_model(HEAVY, [large, other]), 1, 2) == []


def test_more_at_once_than_cores_is_made_of_runs_apart_and_the_measured_fork_and_join() -> None:
    apart = ShardProfile(1, 2, SPAN, 1, 1, (ShardPart(5.0, 200.0, 150.0),) * 4, 20.4, 0.0, 0.0)
    together = ShardProfile(1, 2, SPAN, 2, 1, (ShardPart(8.0, 200.0, 150.0),) * 4, 17.0, 0.0, 0.0)
    plain = sharded_model(HEAVY, [apart, together])
    assert plain.profile.machine.cores == 2
    assert [c.at_once for c in sharded(plain, 1, 2)] == [2, 1]
    wide = SliceModel(plain.graph, plain.profile, plain.platform, Request(at_once=8))
    found = {c.at_once: c for c in sharded(wide, 1, 2)}
    assert sorted(found) == [4]  # as cheap as one after the other, and quicker than both
    assert found[4].run_ms == pytest.approx(5.0 + (17.0 - 2 * 8.0) - wide.hops.cost.fixed_ms)
    assert found[4].cost_usd == pytest.approx(4 * wide.platform.cost_usd(208, 5.0, 1.0))
    one = SliceModel(plain.graph, plain.profile, plain.platform, Request(at_once=1))
    assert [c.at_once for c in sharded(one, 1, 2)] == [1]


def test_parts_that_nobody_joins_are_a_stage_more() -> None:
    part = ShardPart(5.0, 200.0, 150.0)
    model = sharded_model(HEAVY, [ShardProfile(1, 2, SPAN, 2, 1, (part,) * 4, 11.0, 0.0, 0.0)])
    before, after = model.choices(0, 1)[0], model.choices(2, 3)[0]
    (one,) = sharded(model, 1, 2)
    assert [stages(c) for c in ([before], [before, one, after], [before, one], [one, one, after])] == [1, 3, 3, 4]


def priced_alone(model: SliceModel) -> list[list[Choice]]:
    """Every slice by itself."""
    slices = combinations(range(model.units + 1), 2)
    return [[*model.choices(*ends), *sharded(model, *ends)] for ends in slices]


@given(CHAINS.map(lambda c: c[:4]), PLATFORMS, SHARDS)
def test_a_model_made_of_another_prices_as_one_made_anew(
    units: tuple[Made, ...], where: str, shards: list[ShardProfile]
) -> None:
    shards = [s for s in shards if s.last <= len(units)]
    model, fresh = sharded_model(units, shards, where), sharded_model(units, shards, where)
    before = priced_alone(model)  # and is kept

    def anew(profile: Profile, request: Request) -> SliceModel:
        return SliceModel(model.graph, profile, model.platform, request)

    asked, whole = Request(vcpu=2.0, codec=False, at_once=1), model.profile
    kept = {(s.first, s.last, s.span) for s in shards[:1]}
    fewer = msgspec.structs.replace(whole, shards=tuple(s for s in shards if (s.first, s.last, s.span) in kept))
    assert priced_alone(model.asking(asked)) == priced_alone(anew(whole, asked))
    assert priced_alone(model.bare) == priced_alone(anew(whole, Request(shards=False)))
    assert priced_alone(model.with_shards(kept)) == priced_alone(anew(fewer, Request()))
    assert priced_alone(model.with_codings({})) == priced_alone(fresh.with_codings({}))
    assert priced_alone(model.with_size(512)) == priced_alone(fresh.with_size(512))
    assert priced_alone(model) == before
