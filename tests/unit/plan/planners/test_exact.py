"""The exact planner against every plan there is, one by one, in arithmetic of this test's own."""

from __future__ import annotations

import math
import os
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.errors import ConfigError, InfeasiblePlan, ModelError
from lamella.plan.choice import Join
from lamella.plan.document import Plan
from lamella.plan.make import make_plan
from lamella.plan.planners import space
from lamella.plan.planners.blocks import Blocks, least_of, quickest_ms, run_ms, sums_of, whole_cells
from lamella.plan.planners.exact import Exact
from lamella.plan.planners.mopar import Mopar
from lamella.plan.planners.options import Options
from lamella.plan.planners.sold import Sold
from lamella.plan.planners.space import Chosen, Space
from lamella.plan.pricing.coding import Coding, plain
from lamella.plan.pricing.fan_out import join_alone, joined, sharded
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.spread import deviation_ms
from lamella.plan.pricing.throttle import phase_deviation_ms, throttled_ms
from lamella.plan.request import Request
from lamella.profile.document import ShardProfile
from lamella.runtime.function import Layout
from tests.unit.plan.pricing.test_shards import SHARDS, sharded_model
from tests.unit.plan.synthetic import CHAINS, CODED_CHAINS, SERVING_MS, Made, model_of

FEW = st.sampled_from(["aws-lambda-2021", "openfaas", "azure-consumption", "cloud-run", "knative"])
SLOS = st.sampled_from([math.inf, 1.0, 30.0, 60.0, 100.0, 200.0, 400.0])
RATES = st.sampled_from([1e-5, 1e-3, 0.1])
"""Per second."""
Point = tuple[int, float, float, float]
"""Stages, mean latency (ms), cost (USD) and variance (ms squared)."""
COMMON = 0.04
"""Relative deviation that all functions share, where the known load took as long before as after."""
DEVIATIONS = 1.6448536269514722
"""From the mean of a normal distribution to its 95th percentile."""


def slices(
    model: SliceModel, first: int, last: int, into: Coding, out: Coding, join: Join | None, stopped: float = 0.0
) -> list[tuple[float, float, float]]:
    """Time, cost and variance of a slice in every layout and size that holds it, those beaten in all left out.

    A request finds it `stopped` with that probability.
    """
    coded = model.with_codings({first: into, last: out})
    where, found = model.platform, []
    per = where.cpu.mb_per_vcpu
    more_ms, more_mb = (join.ms, join.mb) if join else (0.0, 0.0)
    for layout in model.layouts:
        shipped = model.graph.weight_bytes(*model.span(first, last)) / 2**20 + model.more_mb(first, last, layout)
        if shipped > where.limits.package_mb.value:
            continue
        peak, law = coded.memory_mb(first, last, layout=layout)
        need = max(peak, law) + more_mb
        held = [{m.layout: m for m in unit.memory} for unit in model.profile.units[first:last]]
        empty_ms = min(m.load_ms for unit in model.profile.units for m in unit.memory)
        load_ms = [empty_ms, *(own.get(layout, own["plain"]).load_ms - empty_ms for own in held)]
        asked = {model.vcpu, *range(1, math.ceil(model.vcpu))} if per is None else {model.vcpu}
        sold = []
        for share in asked:
            sizes = [s for s in where.sizes_mb(share) if s >= need - 1e-9]
            sizes = [s for s in sizes if s <= per.value * model.profile.machine.cores] if per else sizes[:1]
            sold += [(size, where.vcpu(size, share)) for size in sizes]
        for size, vcpu in sold:
            start_ms = throttled_ms(100.0 + sum(load_ms), vcpu, where.cpu.period_ms.value)
            run = coded.run_ms(first, last, layout=layout, vcpu=vcpu, more_ms=more_ms)
            if run / 1000 <= where.limits.timeout_s.value:
                usd = where.cost_usd(size, run, vcpu)
                if stopped and where.billing.init_billed.value:
                    usd += stopped * start_ms * where.usd_per_ms(size, vcpu)
                found.append((run, usd, varied(model, first, last, layout, run) + beside(model, run, vcpu)))
    kept: list[tuple[float, float, float]] = []
    for one in sorted(found):
        if not any(usd <= one[1] and variance <= one[2] for _, usd, variance in kept):
            kept.append(one)
    return kept


def varied(model: SliceModel, first: int, last: int, layout: Layout, run_ms: float) -> float:
    """Variance of a run: that of its units, each by itself, stretched as their time is."""
    ways: list[Layout] = [layout] * (last - first)
    if layout == "int8":  # units that may not are plain in it
        ways = ["int8" if k in model.lossy.int8 else "plain" for k in range(first, last)]
    places = [[v.layout == way and v.threads == 1 for v in model.profile.variants].index(True) for way in ways]
    times = [unit.times[at] for unit, at in zip(model.profile.units[first:last], places, strict=True)]
    alone = model.compute_ms(first, last, layout=layout, threads=1)
    return sum(((t.p95_ms - t.median_ms) / DEVIATIONS) ** 2 for t in times) * (run_ms / alone) ** 2


def beside(model: SliceModel, run_ms: float, vcpu: float) -> float:
    """Variance of a run beside that of its work: of serving it, and of where in a quota's period it begins."""
    phase_ms = phase_deviation_ms(np.array([run_ms]), np.array([vcpu]), model.platform.cpu.period_ms.value)
    return SERVING_MS**2 + float(phase_ms[0]) ** 2


def crossings(model: SliceModel, unit: int) -> list[Coding]:
    """What may cross a border, plain first."""
    if unit in (0, model.units):
        return [plain(0)]
    rules = model.platform
    ways = ["", *rules.channels] if rules.hop.emulated else [""]
    sent = [c._replace(channel=way) for c in model.codings(unit) if c.lossless for way in ways]
    return [c for c in sent if model.hops.may_travel(c)]


def every(model: SliceModel, stopped: float = 0.0) -> list[Point]:
    """Every plan."""
    done: list[Point] = []
    open_: list[tuple[int, Coding, Join | None, Point]] = [(0, plain(0), None, (0, model.entry_ms, 0.0, 0.0))]
    while open_:
        unit, into, join, (stages, ms, usd, variance) = open_.pop()
        if unit == model.units:
            if join:
                alone = join_alone(model, join)
                hop_ms, hop_usd = model.hop_of(plain(sum_at(model, join.unit)))[:2]
                stages, ms, usd = stages + 1, ms + hop_ms + alone.run_ms, usd + hop_usd + alone.cost_usd
                variance += SERVING_MS**2
            done.append((stages, ms, usd, variance))
            continue
        hop_ms, hop_usd = model.hop_of(into)[:2] if unit else (0.0, 0.0)
        for last in range(unit + 1, model.units + 1):
            for out in crossings(model, last):
                for run, price, more in slices(model, unit, last, into, out, join, stopped):
                    point = (stages + 1, ms + hop_ms + run, usd + hop_usd + price, variance + more)
                    open_.append((last, out, None, point))
        if into.codec != "none" or into.channel:
            continue
        for last in range(unit + 1, model.units + 1):
            if not any(c.codec == "none" and not c.channel for c in crossings(model, last)):
                continue
            for choice in sharded(model, unit, last):
                more_ms, more_usd, stages_more, spread = 0.0, 0.0, 0, choice.deviation_ms**2
                if join:
                    alone = join_alone(model, join)
                    more_ms, more_usd, stages_more = hop_ms + alone.run_ms, hop_usd + alone.cost_usd, 1
                    spread += SERVING_MS**2
                point = (
                    stages + 1 + stages_more,
                    ms + hop_ms + choice.run_ms + more_ms,
                    usd + hop_usd + choice.cost_usd + more_usd,
                    variance + spread + beside(model, choice.run_ms, choice.vcpu),
                )
                out = plain(sum_at(model, last)) if last < model.units else plain(0)
                open_.append((last, out, choice.join, point))
    return done


def sum_at(model: SliceModel, unit: int) -> int:
    """Bytes that cross before a unit, as they are."""
    return model.coding(unit).plain_bytes


def check(model: SliceModel, slo: float, most_stages: int, rate: float | None = None) -> None:
    """The space's cheapest plan is the cheapest of all."""
    stopped = math.exp(-rate * model.platform.start.keep_alive_s.value) if rate else 0.0
    plans = every(model, stopped)
    points = [
        (ms * (1 + DEVIATIONS * COMMON) + DEVIATIONS * math.sqrt(v), usd)
        for stages, ms, usd, v in plans
        if stages <= most_stages
    ]
    every_plan = Space.of(model, Request(max_stages=most_stages, rate_per_s=rate))
    check_front(every_plan.front().plans, points, most_stages)
    answer = every_plan.cheapest(slo)
    within = [usd for ms, usd in points if ms <= slo]
    if answer.chosen is None:
        assert not within
        return
    least = min((usd for ms, usd in points if ms <= slo * (1 + 1e-8)), default=math.inf)
    assert answer.chosen.cost_usd == pytest.approx(least, rel=1e-7)
    assert answer.chosen.bounded_ms <= slo * (1 + 1e-8)
    assert answer.chosen.stages <= most_stages
    assert any(
        ms == pytest.approx(answer.chosen.bounded_ms) and usd == pytest.approx(answer.chosen.cost_usd)
        for ms, usd in points
    )


def check_front(front: tuple[Chosen, ...], points: list[tuple[float, float]], most_stages: int) -> None:
    """Every plan is on the front or beaten by one that is, and what is on it is a plan and beaten by none."""
    assert all(a.bounded_ms < b.bounded_ms and a.cost_usd > b.cost_usd for a, b in pairwise(front))
    assert all(plan.stages <= most_stages for plan in front)
    ms, usd = (np.array(x) for x in ([p[0] for p in points], [p[1] for p in points]))
    for plan in front:
        close = (np.abs(ms - plan.bounded_ms) <= 1e-6 * ms) & (np.abs(usd - plan.cost_usd) <= 1e-6 * usd)
        assert close.any()
        assert not np.any((ms < plan.bounded_ms * (1 - 1e-6)) & (usd < plan.cost_usd * (1 - 1e-6)))
    front_ms, front_usd = (np.array(x) for x in ([p.bounded_ms for p in front], [p.cost_usd for p in front]))
    as_good = (front_ms <= ms[:, None] * (1 + 1e-6)) & (front_usd <= usd[:, None] * (1 + 1e-6))
    assert as_good.any(axis=1).all()


EXAMPLES = int(os.environ.get("LAMELLA_EXAMPLES", "10"))
"""Of each kind; thousands by `make nightly`."""
SLOW = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow], deadline=None)


@SLOW
@given(CHAINS.map(lambda c: c[:3]), FEW, st.sampled_from([0.5, 1.0, 1.5, 2.0]), SLOS, st.integers(1, 4))
def test_every_size_layout_and_cut(units: tuple[Made, ...], where: str, vcpu: float, slo: float, most: int) -> None:
    check(model_of(units, where, vcpu=vcpu), slo, most)


@SLOW
@given(CHAINS.map(lambda c: c[:3]), st.sampled_from(["aws-lambda-2021", "openfaas", "knative"]), SLOS, RATES)
def test_every_start(units: tuple[Made, ...], where: str, slo: float, rate: float) -> None:
    check(model_of(units, where), slo, 3, rate)


@SLOW
@given(CODED_CHAINS.map(lambda c: c[:3]), FEW, SLOS, st.integers(1, 4))
def test_every_codec_on_every_hop(units: tuple[Made, ...], where: str, slo: float, most: int) -> None:
    check(model_of(units, where), slo, most)


@SLOW
@given(CHAINS.map(lambda c: c[:3]), FEW, SHARDS, SLOS, st.integers(1, 5))
def test_every_stage_of_shards(
    units: tuple[Made, ...], where: str, shards: list[ShardProfile], slo: float, most: int
) -> None:
    check(sharded_model(units, [s for s in shards if s.last <= len(units)], where), slo, most)


@settings(max_examples=15, deadline=None)
@given(CHAINS.map(lambda c: c[:2]), SLOS, st.integers(150, 1700))
def test_every_megabyte_where_memory_buys_cpu(units: tuple[Made, ...], slo: float, most_mb: int) -> None:
    model = model_of(units, "aws-lambda")
    memory = model.platform.memory
    few = replace(
        memory, min_mb=replace(memory.min_mb, number=most_mb - 10), max_mb=replace(memory.max_mb, number=most_mb + 10)
    )
    check(SliceModel(model.graph, model.profile, replace(model.platform, memory=few), model.request), slo, 3)


@settings(max_examples=30, deadline=None)
@given(CHAINS.map(lambda c: c[:3]), st.sampled_from(["aws-lambda", "aws-lambda-2021"]), st.sampled_from([None, 0.1]))
def test_no_size_of_a_block_beats_it(units: tuple[Made, ...], where: str, rate: float | None) -> None:
    options = Options(model_of(units, where), Request(rate_per_s=rate))
    blocks = whole_cells(options)
    while True:
        least = least_of(options, blocks, quickest_ms(options, blocks, run_ms(options, blocks)))
        for cell, low, high, *found in zip(*blocks, *(s[: len(blocks.cell)] for s in least), strict=True):
            size = np.unique(np.linspace(low, high, 40).astype(int))
            one = Blocks(np.full(len(size), cell), size, size)
            sums = sums_of(options, one, run_ms(options, one), size)
            for bound, values in zip(found, sums, strict=True):
                assert bound <= values[: len(size)].min() * (1 + 1e-9)
        if np.array_equal(blocks.low, blocks.high):
            break
        blocks = Blocks(*(column[::3] for column in blocks.divided()))


@given(
    st.lists(st.sampled_from([7.0, 90.0, 550.0, 1000.0]), min_size=4, max_size=4),
    st.integers(128, 7000),
    st.integers(1, 5000),
)
def test_no_size_of_a_block_beats_it_on_four_cores(work_ms: list[float], low_mb: int, wide: int) -> None:
    """More threads may take longer than fewer did."""
    model = model_of((Made(),), "aws-lambda")
    four = replace(model.profile, machine=replace(model.profile.machine, cores=4))
    sold = Sold(SliceModel(model.graph, four, model.platform, model.request))
    size = np.arange(low_mb - 128, min(low_mb - 128 + wide, int(sold.measured[0]) - 1) + 1)
    if len(size) < 2:
        return
    work, ends = np.array([work_ms]).T, (size[:1], size[-1:])
    run = sold.run_ms(np.repeat(work, len(size), axis=1), size)
    assert sold.quickest_ms(run[-1:], work, *ends)[0] <= run.min() * (1 + 1e-9)
    assert sold.least_usd(work, np.zeros(1), *ends)[0] <= sold.cost_usd(size, run).min() * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(CHAINS, st.sampled_from(["aws-lambda", "aws-lambda-2021"]), st.floats(1.0, 2.0), st.sampled_from([0, 40]))
def test_with_too_many_blocks_the_plan_is_as_near_as_it_says(
    units: tuple[Made, ...], where: str, looser: float, most: int
) -> None:
    model = model_of(units, where)
    quickest = Space.of(model, model.request).quickest()
    assume(quickest)
    assert quickest
    slo = quickest.bounded_ms * looser
    best = Space.of(model, model.request).cheapest(slo)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "MOST_BLOCKS", most)
        patch.setattr(space, "CORE", 3)
        found = Space.of(model, model.request).cheapest(slo)
    assert best.chosen
    assert found.chosen
    assert best.proof.loss_usd == 0
    assert found.chosen.bounded_ms <= slo * (1 + 1e-8)
    assert found.cost_usd - found.proof.loss_usd <= best.cost_usd * (1 + 1e-8)
    assert found.cost_usd >= best.cost_usd * (1 - 1e-8)


def test_a_plan_says_what_may_be_left_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of((Made(60, 3.0, 42.0),) * 4, "aws-lambda")

    def made(request: Request) -> Plan:
        return make_plan(model.graph, model.profile, model.platform, "exact", given="made-up", request=request)

    quickest = Space.of(model, model.request).quickest()
    assert quickest
    request = Request(quickest.bounded_ms * 1.05)
    proven = made(request)
    assert proven.gap == 0
    assert "more than are kept" not in proven.why
    monkeypatch.setattr(space, "MOST_BLOCKS", 0)
    monkeypatch.setattr(space, "CORE", 1)
    plan = made(request)
    assert plan.gap
    assert plan.predicted.cost_usd_per_million * (1 - plan.gap) <= proven.predicted.cost_usd_per_million * (1 + 1e-9)
    assert f"may cost up to {plan.gap:.2%} less" in plan.why


@settings(max_examples=40, deadline=None)
@given(CHAINS, FEW, SLOS)
def test_it_is_never_dearer_than_mopar_and_a_looser_slo_never_dearer(
    units: tuple[Made, ...], where: str, slo: float
) -> None:
    model = model_of(units, where)
    costs = []
    for bound in (slo, slo * 1.3):
        request = Request(bound if math.isfinite(bound) else 1e9, percentile=None)
        try:
            costs.append(Exact().decide(model, request).chosen.cost_usd)
        except InfeasiblePlan:
            costs.append(math.inf)
        try:
            assert costs[-1] <= Mopar().decide(model, request).chosen.cost_usd * (1 + 1e-9)
        except InfeasiblePlan:
            assert costs[-1] == math.inf
    assert costs[1] <= costs[0] * (1 + 1e-9)


@pytest.mark.parametrize(("where", "ratio"), list(product(["openfaas", "knative", "aws-lambda-2021"], [1.0, 4.0])))
def test_the_plan_document_says_what_was_chosen(where: str, ratio: float) -> None:
    units = (Made(60, 3.0, 42.0, ratio=ratio, coding_ms=0.2),) * 4
    model = model_of(units, where)
    decision = Exact().decide(model, Request(1e6))
    plan = make_plan(model.graph, model.profile, model.platform, "exact", given="made-up", request=Request(1e6))
    assert plan.predicted.latency_ms == pytest.approx(decision.chosen.latency_ms)
    assert plan.predicted.cost_usd_per_million == pytest.approx(decision.chosen.cost_usd * 1e6)
    assert "no plan costs less" in plan.why


@settings(max_examples=25, deadline=None)
@given(CHAINS.map(lambda c: c[:2]), FEW, SHARDS, st.floats(0.0, 1.0))  # of three units every plan takes minutes
def test_the_quickest_plan_within_a_budget_is_that_of_all(
    units: tuple[Made, ...], where: str, shards: list[ShardProfile], share: float
) -> None:
    model = sharded_model(units, [s for s in shards if s.last <= len(units)], where)
    points = [
        (ms * (1 + DEVIATIONS * COMMON) + DEVIATIONS * math.sqrt(v), usd * 1e6)
        for stages, ms, usd, v in every(model)
        if stages <= 3
    ]
    assume(points)
    least, most = min(usd for _, usd in points), max(usd for _, usd in points)
    budget = least + share * (most - least)
    decision = Exact().decide(model, Request(budget_usd=budget, max_stages=3))
    assert decision.chosen.cost_usd * 1e6 <= budget * (1 + 1e-8)
    coded = model.with_codings(decision.codings or {})
    deviation = deviation_ms(model, joined(coded, decision.chosen.choices))  # as the document has it
    bounded = decision.chosen.latency_ms * (1 + DEVIATIONS * COMMON) + DEVIATIONS * deviation
    assert bounded == pytest.approx(min(ms for ms, usd in points if usd <= budget * (1 + 1e-8)))
    with pytest.raises(InfeasiblePlan, match="the cheapest costs") as refused:
        Exact().decide(model, Request(budget_usd=least * 0.9, max_stages=3))
    told = float(str(refused.value.try_).rpartition(" ")[2])
    assert Exact().decide(model, Request(budget_usd=told, max_stages=3)).chosen.cost_usd * 1e6 <= told


@settings(max_examples=25, deadline=None)
@given(CHAINS.map(lambda c: c[:2]), FEW, SLOS, st.sampled_from([0.5, 1.0, 2.0]))
def test_one_function_is_the_best_of_every_size(units: tuple[Made, ...], where: str, slo: float, vcpu: float) -> None:
    model = model_of(units, where, vcpu=vcpu)
    points = [
        (ms * (1 + DEVIATIONS * COMMON) + DEVIATIONS * math.sqrt(v), usd)
        for stages, ms, usd, v in every(model)
        if stages == 1
    ]
    found = Space.of(model, model.request).whole(slo, math.inf)
    best = min((ms * usd for ms, usd in points if ms <= slo), default=None)
    if found is None:
        assert best is None
    else:
        assert found.bounded_ms * found.cost_usd == pytest.approx(best, rel=1e-6)
        assert found.bounded_ms <= slo


def test_the_plan_document_has_its_budget() -> None:
    model = model_of((Made(60, 3.0, 42.0),) * 2)
    request = Request(budget_usd=5.0, rate_per_s=0.001)
    plan = make_plan(model.graph, model.profile, model.platform, "exact", given="made-up", request=request)
    assert (plan.slo_ms, plan.budget_usd) == (None, 5.0)
    assert (plan.slack[0].constraint, plan.slack[0].used) == ("budget", plan.charged_usd)
    assert plan.charged_usd <= 5.0


def test_others_keep_no_budget() -> None:
    model = model_of((Made(60, 3.0, 42.0),) * 2)
    for name in ("mopar", "ort"):
        with pytest.raises(ConfigError, match=f"{name} keeps no budget"):
            make_plan(
                model.graph, model.profile, model.platform, name, given="made-up", request=Request(budget_usd=1.0)
            )


def test_a_slice_that_needs_more_memory_than_buys_every_core_gets_the_smallest_size_that_holds_it() -> None:
    """4,000 MB on Lambda buy 2.3 vCPU, and the profile's machine has two."""
    model = model_of((Made(weights_mb=4000.0), Made(time_ms=50.0)), "aws-lambda")
    found = Exact().decide(model, Request(1000.0)).chosen
    assert max(c.memory_mb for c in found.choices) > 4000
    assert found.cost_usd <= Mopar().decide(model, Request(1000.0)).chosen.cost_usd * (1 + 1e-9)


def test_a_request_that_cannot_be_met_names_the_bound_and_the_nearest_plan() -> None:
    model = model_of((Made(time_ms=50.0),) * 3)
    with pytest.raises(InfeasiblePlan, match=r"answers within 10 ms; the fastest takes 161"):
        Exact().decide(model, Request(10.0))


def test_so_many_units_that_the_search_would_take_gigabytes_are_refused() -> None:
    few = model_of((Made(),) * 2)
    many = replace(few.profile, units=few.profile.units[:1] * 10_000)
    with pytest.raises(ModelError, match=r"has 10000 units, which are 150,015,000 slices"):
        Space.of(SliceModel(few.graph, many, few.platform, few.request), few.request)
