"""AMPS-Inf's planner against its own formulation: every assignment one by one, and the program as the paper has it."""

from __future__ import annotations

import math
import sys
from itertools import combinations, pairwise, product
from typing import NamedTuple

import highspy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.errors import InfeasiblePlan, MissingExtra
from lamella.plan.document import Plan
from lamella.plan.laws import broken_laws
from lamella.plan.make import make_plan
from lamella.plan.planners.amps_inf import BLOCK_MB, AmpsInf, Program
from lamella.plan.planners.milp import Arcs, cheapest
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.platforms import Platform, names, platform
from lamella.units import MB
from tests.unit.plan.synthetic import CHAINS, Made, graph_of, model_of, profile_of

WHERE = st.sampled_from(["aws-lambda-2021", "aws-lambda", "openfaas", "cloud-run", "azure-flex"])
BIG = Made(weights_mb=100.0, time_ms=20.0, out_mb=0.5)


def storing(units: tuple[Made, ...], where: str, vcpu: float) -> SliceModel:
    """The model of a chain whose hops go through object storage, where the platform has some."""
    model = model_of(units, where)
    request = Request(vcpu=vcpu, codec=False, shards=False)
    return SliceModel(model.graph, model.profile, model.platform.through("s3"), request)


# --------------------------------------------------------------------------------------------------- one by one


def blocks(where: Platform, model: SliceModel) -> list[int]:
    """Sizes that a partition may have."""
    sold = list(where.sizes_mb(model.vcpu))
    if where.cpu.mb_per_vcpu is None:
        return sold
    kept = [sold[0]]
    for size in sold:
        if size >= kept[-1] + BLOCK_MB and size <= where.cpu.mb_per_vcpu.value * model.profile.machine.cores:
            kept.append(size)
    return kept


def storage(model: SliceModel, unit: int) -> tuple[float, float, float]:
    """The hop before a unit: ms, USD, MB."""
    if unit in (0, model.units):
        return 0.0, 0.0, 0.0
    ms, usd, size = model.hop(unit)
    return ms, usd, size / MB


def waiting_ms(model: SliceModel, unit: int) -> float:
    """Half of a transfer through objects: who puts waits for it, and who gets."""
    if unit in (0, model.units) or model.platform.hop.channel != "s3":
        return 0.0
    way = model.platform.hop
    return (way.latency_ms.value + model.hop(unit)[2] / MB / way.mb_per_s.value * 1000) / 2


def partition(model: SliceModel, first: int, last: int) -> list[tuple[float, float]]:
    """Latency and the paper's price of a partition with each block of memory that holds it."""
    where, found = model.platform, []
    (get_ms, get_usd, get_mb), (_, _, put_mb) = storage(model, first), storage(model, last)
    disk = where.limits.disk_mb.value if where.limits.disk_mb else math.inf
    if get_mb + put_mb > disk:
        return []
    ways = []
    for layout in model.layouts:
        shipped = model.graph.weight_bytes(*model.span(first, last)) / MB + model.more_mb(first, last, layout)
        if shipped <= where.limits.package_mb.value:
            ways.append((max(model.memory_mb(first, last, layout=layout)), layout))
    sizes = blocks(where, model)
    for need, layout in ways:
        fits = [s for s in sizes if s >= need - 1e-9]
        for size in fits if where.cpu.mb_per_vcpu else fits[:1]:
            vcpu = where.vcpu(size, model.vcpu)
            run = waiting_ms(model, first) + waiting_ms(model, last)
            run += (
                model.run_ms(first, last, layout=layout, vcpu=vcpu)
                - model.hops.waiting_ms(first)
                - model.hops.waiting_ms(last)
            )
            if run / 1000 <= where.limits.timeout_s.value:
                found.append((run + get_ms, where.cost_usd(size, run, vcpu) + get_usd))
    kept: list[tuple[float, float]] = []
    for ms, usd in sorted(found):
        if not kept or usd < kept[-1][1]:
            kept.append((ms, usd))
    return kept


def every(model: SliceModel, most: int) -> list[tuple[float, float]]:
    """Latency and the paper's price of every assignment of units to partitions and of blocks to these."""
    inner = [u for u in range(1, model.units) if model.fits_payload(u)]
    found = []
    for count in range(min(most, len(inner) + 1)):
        for cuts in combinations(inner, count):
            marks = [0, *cuts, model.units]
            for chosen in product(*(partition(model, a, b) for a, b in pairwise(marks))):
                found.append((model.entry_ms + sum(ms for ms, _ in chosen), sum(usd for _, usd in chosen)))
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(CHAINS.map(lambda c: c[:3]), WHERE, st.sampled_from([1.0, 2.0]), st.floats(0, 1.2), st.integers(1, 3))
def test_it_finds_the_cheapest_of_all_assignments(
    units: tuple[Made, ...], where: str, vcpu: float, share: float, most: int
) -> None:
    model, asked = storing(units, where, vcpu), Request(vcpu=vcpu, max_stages=most)
    points = every(model, most)
    program = Program(model, asked)
    quick = program.quickest()
    assert bool(quick) == bool(points)
    if not quick:
        with pytest.raises(InfeasiblePlan):
            AmpsInf().decide(model, asked._replace(slo_ms=1e9))
        return
    least, cheap = min(ms for ms, _ in points), min(points, key=lambda p: (p[1], p[0]))
    assert program.latency_ms(quick) == pytest.approx(least)
    slo = (least + share * (cheap[0] - least)) * (1 + 1e-7)
    solved = program.solve(slo, quick)
    assert solved.usd == pytest.approx(min(usd for ms, usd in points if ms <= slo), rel=1e-6)
    assert solved.proven
    whole = cheapest(program.arcs, slo - model.entry_ms, most_stages=most)
    assert whole
    assert whole.usd == pytest.approx(solved.usd, rel=1e-6), "what bounds leave out is not missed"
    decision = AmpsInf().decide(model, asked._replace(slo_ms=slo))
    assert decision.chosen.latency_ms <= slo * (1 + 1e-8)
    assert decision.chosen.latency_ms == pytest.approx(program.latency_ms(solved.arcs))
    assert decision.chosen.cost_usd == pytest.approx(solved.usd)
    assert len(decision.chosen.choices) <= most
    if least > 1.0:
        with pytest.raises(InfeasiblePlan, match="latency: no plan on"):
            AmpsInf().decide(model, asked._replace(slo_ms=least * 0.99))


# ------------------------------------------------------------------------------------------- as the paper has it


class Terms(NamedTuple):
    """What the paper's program is told. ms, MB, USD."""

    time_ms: np.ndarray
    """[units, blocks]"""
    weights_mb: np.ndarray
    cut_ms: np.ndarray
    """Of what crosses behind each unit but the last: a put, or a get."""
    usd_per_step: np.ndarray
    """[blocks], of the bill's steps."""
    step_ms: float
    fee_usd: float
    cut_usd: float
    package_mb: float
    slo_ms: float
    most: int


def as_arcs(terms: Terms) -> Arcs:
    """The same with a variable for each run of units and block."""
    units, count = terms.time_ms.shape
    cut = np.r_[0.0, terms.cut_ms, 0.0]
    rows = []
    for first, last in combinations(range(units + 1), 2):
        if terms.weights_mb[first:last].sum() <= terms.package_mb:
            for k in range(count):
                ms = terms.time_ms[first:last, k].sum() + cut[first] + cut[last]
                steps = math.ceil(ms / terms.step_ms - 1e-9)
                usd = steps * terms.usd_per_step[k] + terms.fee_usd + terms.cut_usd * (first > 0)
                rows.append((first, last, usd, ms))
    tail, head, usd, ms = (np.array(x) for x in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 4
    return Arcs(units + 1, tail.astype(int), head.astype(int), usd, ms)


def literal(terms: Terms) -> float | None:
    """The paper's program as reconstructed: x_ij, y_jk, each product by three inequalities, billed steps whole.

    Returns:
        The least cost, USD; None where there is no plan.
    """
    units, count = terms.time_ms.shape
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    highs.setOptionValue("mip_rel_gap", 1e-9)
    highs.setOptionValue("mip_feasibility_tolerance", 1e-9)
    rows, parts, sizes = range(units), range(min(terms.most, units)), range(count)
    x = {(i, j): highs.addBinary() for i in rows for j in parts}
    y = {(j, k): highs.addBinary() for j in parts for k in sizes}
    w = {(i, j, k): highs.addVariable(0, 1) for i in rows for j in parts for k in sizes}
    ends = {
        (i, j): highs.addVariable(0, 1) for i in rows[:-1] for j in parts
    }  # the last of j, which is not the model's
    put = {(i, j, k): highs.addVariable(0, 1) for i in rows[:-1] for j in parts for k in sizes}
    got = {(i, j, k): highs.addVariable(0, 1) for i in rows[:-1] for j in parts for k in sizes}
    longest = terms.time_ms.sum(axis=0).max() + 2 * terms.cut_ms.sum()
    most_steps = math.ceil(longest / terms.step_ms) + 1
    steps = {(j, k): highs.addIntegral(0, most_steps) for j in parts for k in sizes}
    for i in rows:
        highs.addConstr(sum(x[i, j] for j in parts) == 1)
    highs.addConstr(x[0, 0] == 1)
    for j in parts:
        used = sum(y[j, k] for k in sizes)
        highs.addConstr(used <= 1)
        for i in rows:
            highs.addConstr(x[i, j] <= used)
            if i:  # partitions in order, none left out
                before = x[i - 1, j] + (x[i - 1, j - 1] if j else 0)
                highs.addConstr(x[i, j] <= before)
        highs.addConstr(used <= sum(x[i, j] for i in rows))
        highs.addConstr(sum(x[i, j] * float(terms.weights_mb[i]) for i in rows) <= terms.package_mb)
        for i in rows[:-1]:  # ends = x_ij and x_(i+1)(j+1)
            after = x[i + 1, j + 1] if j + 1 in parts else None
            highs.addConstr(ends[i, j] <= x[i, j])
            highs.addConstr(ends[i, j] <= (after if after is not None else 0))
            if after is not None:
                highs.addConstr(ends[i, j] >= x[i, j] + after - 1)
    both = [*((w[key], x[key[:2]], y[key[1:]]) for key in w), *((put[key], ends[key[:2]], y[key[1:]]) for key in put)]
    both += [(got[i, j, k], ends[i, j - 1], y[j, k]) for i, j, k in got if j]
    for what, one, other in both:
        highs.addConstr(what <= one)
        highs.addConstr(what <= other)
        highs.addConstr(what >= one + other - 1)
    run = {
        (j, k): sum(w[i, j, k] * float(terms.time_ms[i, k]) for i in rows)
        + sum(put[i, j, k] * float(terms.cut_ms[i]) for i in rows[:-1])
        + sum(got[i, j, k] * float(terms.cut_ms[i]) for i in rows[:-1] if j)
        for j in parts
        for k in sizes
    }
    for key, ms in run.items():
        highs.addConstr(steps[key] * terms.step_ms >= ms)
    highs.addConstr(sum(run.values()) <= terms.slo_ms)
    fees = sum(y[key] * terms.fee_usd for key in y) + sum(end * terms.cut_usd for end in ends.values())
    bill = sum(steps[j, k] * float(terms.usd_per_step[k]) for j, k in steps)
    highs.minimize(bill + fees)
    if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    return float(highs.getObjectiveValue())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1.0, 10.0]))
def test_a_variable_per_partition_says_what_one_per_unit_and_product_says(
    seed: int, units: int, count: int, most: int, step_ms: float
) -> None:
    rng = np.random.default_rng(seed)
    speed = np.sort(rng.integers(1, 5, count))
    base = rng.integers(4, 40, units)
    terms = Terms(
        time_ms=np.ceil(base[:, None] / speed),
        weights_mb=rng.integers(1, 60, units).astype(float),
        cut_ms=rng.integers(1, 12, units - 1).astype(float),
        usd_per_step=speed * rng.uniform(0.8, 1.3, count) * step_ms,
        step_ms=step_ms,
        fee_usd=float(rng.integers(0, 5)),
        cut_usd=float(rng.integers(0, 3)),
        package_mb=float(rng.integers(40, 150)),
        slo_ms=float(base.sum() * rng.uniform(0.3, 1.5)) + 0.5,
        most=most,
    )
    arcs = as_arcs(terms)
    ours = cheapest(arcs, terms.slo_ms, most_stages=most) if len(arcs.usd) else None
    theirs = literal(terms)
    assert (ours is None) == (theirs is None)
    if ours and theirs:
        assert ours.usd == pytest.approx(theirs, rel=1e-6)


# ------------------------------------------------------------------------------------------------------- limits


def made(units: tuple[Made, ...], where: Platform, **asked: float | str) -> Plan:
    """The plan of a chain."""
    graph = graph_of(units)
    request = Request(**asked)  # type: ignore[arg-type]
    return make_plan(graph, profile_of(graph, units), where, "amps-inf", given="chain", request=request)


def test_packages_of_250_mb_divide_a_model_of_400() -> None:
    plan = made((BIG,) * 4, platform("aws-lambda-2021"), slo_ms=1000.0)
    assert plan.stages == 2
    assert all(f.package_mb <= 250 for f in plan.functions)
    assert {h.channel for h in plan.hops} == {"s3"}
    assert all(f.memory_mb in range(128, 3009, 64) for f in plan.functions)
    assert made((BIG,) * 4, platform("aws-lambda"), slo_ms=1000.0).stages == 1


def test_temporary_storage_holds_what_crosses_on_both_sides() -> None:
    where = platform("aws-lambda-2021")
    units = (Made(weights_mb=200.0, out_mb=300.0),) * 2 + (Made(weights_mb=200.0),)
    with pytest.raises(InfeasiblePlan, match="temporary storage: a partition takes and gives up to 600 MB") as caught:
        made(units, where, slo_ms=60_000.0)
    assert caught.value.exit_code == 3
    roomy = replace(where, limits=replace(where.limits, disk_mb=None))
    assert made(units, roomy, slo_ms=60_000.0).stages == 3


def test_a_slice_runs_until_it_has_put_its_output_and_that_may_be_too_long() -> None:
    where = platform("aws-lambda-2021")
    units = (Made(weights_mb=200.0, time_ms=900.0),) * 2
    plan = made(units, where)
    longest = max(f.run_ms for f in plan.functions) / 1000
    timeout = replace(where.limits.timeout_s, number=longest - 0.01)
    slow = replace(where, limits=replace(where.limits, timeout_s=timeout))
    assert max(f.run_ms for f in made(units, slow).functions) / 1000 < longest, (
        "the run fits, and its put of 30 ms does not"
    )


def test_what_no_partition_holds_is_told_with_the_limit() -> None:
    with pytest.raises(InfeasiblePlan, match="package: made-up ships"):
        made((Made(weights_mb=300.0), BIG), platform("aws-lambda-2021"))
    with pytest.raises(
        InfeasiblePlan,
        match=r"answers within 0.4753 ms on average, for the SLO of 1 ms at percentile 95; the fastest takes",
    ) as caught:
        made((BIG, BIG), platform("aws-lambda"), slo_ms=1.0)
    assert caught.value.try_
    assert caught.value.try_.startswith("--slo-ms ")


@pytest.mark.parametrize("where", [name for name in names() if platform(name).kind == "functions"])
def test_on_every_platform_its_plan_keeps_the_laws_and_says_how_it_was_found(where: str) -> None:
    units = (BIG, Made(time_ms=30.0, out_mb=2.0), BIG)
    plan = made(units, platform(where))
    assert not broken_laws(plan, graph_of(units), platform(where))
    assert "HiGHS" in plan.why
    assert "gap 0.00%" in plan.why
    assert all(h.codec == "none" for h in plan.hops)
    assert ("no object storage" in plan.why) == (where not in ("aws-lambda", "aws-lambda-2021", "ray"))
    assert plan.planner == "amps-inf"


def test_hops_of_lambda_are_the_catalogue_s_object_storage_with_its_own_limit() -> None:
    where = platform("aws-lambda-2021")
    units = (replace_out(BIG, 100.0),) * 3 + (BIG,)
    through = where.through("s3")
    (hop,) = made(units, where, slo_ms=5000.0).hops
    assert hop.channel == "s3"
    assert hop.cost_usd == pytest.approx(5.4e-6)
    assert hop.time_ms < 1.0, "it is in the runs of both functions"
    assert through.hop_ms(hop.bytes) == pytest.approx(60 + 100 / 85 * 1000, abs=1.0), "no base64 on the way"
    assert (through.hop_limit_mb, through.hop_mb(2**20)) == (5120, 1.0)
    invoked = where.through("invoke")
    assert invoked.hop_limit_mb == 6
    assert invoked.hop_mb(3 * 2**20) == pytest.approx(4.0)
    with pytest.raises(InfeasiblePlan):
        made(units, where, slo_ms=5000.0, channel="invoke")


def test_when_time_is_up_the_plan_says_that_and_how_far_off_it_may_be() -> None:
    units = tuple(Made(weights_mb=20.0 + k, time_ms=5.0 + k % 5) for k in range(24))
    plan = made(units, platform("aws-lambda-2021"), slo_ms=1000.0, solver_s=1e-9)
    assert "the cheapest that was found in time" in plan.why
    assert "--solver-s" in plan.why
    gap = float(plan.why.split("gap ")[1].split("%")[0]) / 100
    best = made(units, platform("aws-lambda-2021"), slo_ms=1000.0)
    found, least = (p.predicted.cost_usd_per_million for p in (plan, best))
    assert found * (1 - gap) <= least * 1.001 <= found * 1.001
    assert plan.predicted.latency_ms <= 1000.0


def test_without_an_slo_it_is_held_to_a_little_more_than_one_function_s_latency() -> None:
    units = (BIG, BIG)
    plan, alone = (
        made(units, platform("aws-lambda")),
        make_plan(graph_of(units), profile_of(graph_of(units), units), platform("aws-lambda"), "single", given="chain"),
    )
    assert plan.predicted.latency_ms <= alone.predicted.latency_ms * 1.0251
    assert "no SLO given" in plan.why


def test_without_the_solver_there_is_one_command_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(MissingExtra) as caught:
        made((BIG,), platform("aws-lambda"))
    assert caught.value.try_ == "pip install 'lamella[milp]'"


def replace_out(unit: Made, out_mb: float) -> Made:
    """A unit that gives so much."""
    return Made(weights_mb=unit.weights_mb, time_ms=unit.time_ms, out_mb=out_mb)
