"""From a decision to the plan document: names, hops, predictions, slack, losers and reasons, checked by the laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import msgspec

from lamella.errors import ConfigError, InfeasiblePlan
from lamella.graph.model import Graph
from lamella.machine import this_machine
from lamella.plan.choice import Choice
from lamella.plan.document import Cold, Loser, Plan, Predicted, Slack, model_ref
from lamella.plan.held import held
from lamella.plan.laws import check
from lamella.plan.layout import lay_out
from lamella.plan.over_all import over_all
from lamella.plan.planners.amps_inf import STORAGE, AmpsInf
from lamella.plan.planners.plain import singles
from lamella.plan.planners.planner import Candidate, Decision
from lamella.plan.planners.registry import planner
from lamella.plan.planners.search import cheapest
from lamella.plan.planners.verdicts import asked, band, cheapest_of
from lamella.plan.pricing.arrivals import cold
from lamella.plan.pricing.batching import batches, runs_per_s, wait_ms
from lamella.plan.pricing.fan_out import joined, stages
from lamella.plan.pricing.hops import NOTHING_LOST, Lossy
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.spread import bounded_ms, common_spread, deviation_ms
from lamella.plan.pricing.throttle import throttled_ms
from lamella.plan.request import Request, variant
from lamella.plan.validation.lossy import judged
from lamella.platforms import Platform
from lamella.platforms.platform import Architecture
from lamella.platforms.platform import threads as threads_for
from lamella.profile.baseline import BaselineKind, measure_whole
from lamella.profile.channels import channel_price
from lamella.profile.document import Profile
from lamella.profile.scaling import at
from lamella.runtime.function import Kind
from lamella.runtime.lanes import makespan
from lamella.units import MB, digits

BASELINES: dict[str, BaselineKind] = {"ort": "plain", "ort-default": "default"}


def make_plan(
    graph: Graph,
    profile: Profile,
    platform: Platform,
    name: str,
    *,
    given: str,
    request: Request = Request(),  # noqa: B008 - a value
) -> Plan:
    """The plan that the planner `name` makes.

    Args:
        graph: the model.
        profile: of this model on this machine.
        platform: where to run.
        name: a planner's (`planners.registry`), `ort` or `ort-default`, or a variant of one (see `plan.request`).
        given: what the user called the model.
        request: what is asked of it.

    Raises:
        InfeasiblePlan: with the binding constraint and the nearest feasible plan.
        ConfigError: no such planner or channel; or the user's metric failed.
        InputRefused: the model cannot take one of the user's requests.
    """
    base, request = variant(name, request)
    for_exact(base, request)
    _finite(profile)
    architecture = architecture_of(platform, request)
    platform = on_channel(platform, request).on(architecture)
    if base == AmpsInf().name and request.channel is None:
        platform = platform.through(STORAGE)
    if not platform.sells(request.vcpu):
        sold = ", ".join(f"{r.vcpu:g}" for r in platform.cpu.ranges)
        raise ConfigError(
            f"{platform.name} sells {sold} vCPU, or fractions of one; not {request.vcpu:g}",
            where="--vcpu",
            try_=f"--vcpu {max((r.vcpu for r in platform.cpu.ranges if r.vcpu < request.vcpu), default=1):g}",
        )
    profile = _completed(graph, profile, platform, request)

    def planned(request: Request) -> Plan:
        def model_of(lossy: Lossy) -> SliceModel:
            return SliceModel(graph, profile, platform, request, lossy)

        if base in BASELINES:
            model = model_of(NOTHING_LOST)
            return held(model, request, lambda request: _baseline(model, base, given, request))
        if request.judge and request.lossy and (request.codec or any(u.int8 for u in profile.units)):
            return judged(request.judge, model_of, lambda model: _planned(model, base, given, request))
        return _planned(model_of(NOTHING_LOST), base, given, request)

    plan = over_all(request, planned)
    unmeasured = "" if architecture == "x86" else "; at arm's price and the speed of this machine: arm is unmeasured"
    plan = msgspec.structs.replace(plan, planner=name, architecture=architecture, why=plan.why + unmeasured)
    check(plan, graph, platform)
    return plan


def _finite(profile: Profile) -> None:
    """ConfigError where a figure of a profile is no number: sums of it would be none, and comparisons of them false."""
    for number, unit in enumerate(profile.units):
        figures = [value for held in (*unit.times, *unit.memory) for value in msgspec.structs.astuple(held)]
        if not all(math.isfinite(value) for value in figures if isinstance(value, float)):
            raise ConfigError(
                f"the profile of {profile.model} has a time or a size that is no number",
                where=f"unit {number} (operators {unit.first} to {unit.last - 1})",
                try_="lamella profile MODEL",
            )
    for cut in profile.cuts:
        if not all(math.isfinite(saving.ms) for saving in cut.savings):
            raise ConfigError(
                f"the profile of {profile.model} has a saving that is no number",
                where=f"cut {cut.position}",
                try_="lamella profile MODEL",
            )


def _completed(graph: Graph, profile: Profile, platform: Platform, request: Request) -> Profile:
    """The profile with the batch and the thread counts that are asked for and were not measured (`profile.scaling`)."""
    vcpu = platform.cpu.max_vcpu.value if platform.cpu.coupling == "memory" else request.vcpu
    for count in range(1, min(profile.machine.cores, threads_for(vcpu)) + 1):
        profile = at(profile, graph, batch=request.batch, threads=count)
    return profile


def architecture_of(platform: Platform, request: Request) -> Architecture:
    """The one that is asked for, or the cheapest."""
    return platform.cheapest_architecture if request.architecture == "any" else request.architecture


def on_channel(platform: Platform, request: Request) -> Platform:
    """The platform with the channel that is asked for, whose price is measured where it is not known.

    Raises:
        ConfigError: no such channel; or the platform's hops are emulated and come with it; or `s3` without a bucket.
    """
    if request.channel in (None, platform.hop.channel):
        return platform
    if request.channel in platform.channels:
        return platform.through(request.channel)
    if platform.hop.emulated:
        raise ConfigError(
            f"channel {request.channel}: hops of {platform.name} are emulated by its catalogue, {platform.hop.channel}",
            try_="--platform openfaas",
        )
    return platform.over(channel_price(request.channel, request.objects))


class _Made(NamedTuple):
    """A plan with its price."""

    latency_ms: float
    cost_usd: float
    plan: Plan


def _planned(model: SliceModel, name: str, given: str, request: Request) -> Plan:
    """The planner's plan, the better one of those with and without shards.

    Without them more hops may be encoded: parts of a sharded stage go as they are.
    """
    if request.max_batch > 1:
        return _batched(model, name, given, request)
    if planner(name).holds:
        return document(model, planner(name).decide(model, request), name, given, request)
    return held(model, request, lambda request: _on_average(model, name, given, request))


def _on_average(model: SliceModel, name: str, given: str, request: Request) -> Plan:
    """That of a planner that bounds the mean."""
    if planner(name).codes:
        return document(model, planner(name).decide(model, request), name, given, request)
    divides = request.shards and model.profile.shards and planner(name).shards
    sharded = _sharded(model, name, given, request) if divides else None
    alone = request._replace(shards=False)
    try:
        plan = document(model.bare, planner(name).decide(model.bare, alone), name, given, request)
    except InfeasiblePlan:
        if sharded is None:
            raise
        return sharded
    made = [_Made(p.predicted.latency_ms, p.predicted.cost_usd_per_million, p) for p in (sharded, plan) if p]
    best = cheapest(made, band(request))
    assert best
    return best.plan


def for_exact(name: str, request: Request) -> None:
    """ConfigError where another planner is asked for what only `exact` decides."""
    if name not in BASELINES and planner(name).holds:
        return
    if request.max_batch > 1:
        raise ConfigError(f"--max-batch: {name} does not choose batches", try_="--planner exact")
    if request.budget_usd is not None:
        raise ConfigError(f"--budget-usd: {name} keeps no budget", try_="--planner exact")


def _batched(model: SliceModel, name: str, given: str, request: Request) -> Plan:
    """The plan of the number of rows per run at which a row costs least."""
    made: dict[int, Plan] = {}
    failed: InfeasiblePlan | None = None
    for batch in batches(model.graph, model.platform, request):
        asked = request._replace(batch=batch)
        profile = _completed(model.graph, model.profile, model.platform, asked)
        here = SliceModel(model.graph, profile, model.platform, asked)
        try:
            made[batch] = document(here, planner(name).decide(here, here.request), name, given, here.request)
        except InfeasiblePlan as error:
            failed = failed or error
    if not made:
        raise failed or InfeasiblePlan("payload: not one row fits a request", try_="another --platform")
    price = {batch: _row_usd(plan) for batch, plan in made.items()}
    best = min(price, key=lambda batch: (price[batch], batch))
    others = ", ".join(f"{batch}: ${digits(usd, 3)}" for batch, usd in price.items())
    why = f"{best} row(s) a run, of at most {request.max_batch}; per million rows {others}. {made[best].why}"
    return msgspec.structs.replace(made[best], why=why)


def _row_usd(plan: Plan) -> float:
    """Price of a million rows, their share of starts included."""
    return plan.charged_usd / plan.batch


def _sharded(model: SliceModel, name: str, given: str, request: Request) -> Plan | None:
    """The planner's plan where stages may be divided; None where there is none, or where a join turns out too large."""
    try:
        decision = planner(name).decide(model, request)
        divided = {(c.first, c.last, c.span) for c in decision.chosen.choices if c.span}
        if divided and model.codes_less:  # hops at the ends of other candidates may be encoded after all
            model = model.with_shards(divided)
            decision = planner(name).decide(model, request)
    except InfeasiblePlan:
        return None
    plan = document(model, decision, name, given, request)
    return plan if _keeps(plan, request, model.platform) else None


def _keeps(plan: Plan, request: Request, platform: Platform) -> bool:
    """Whether a plan keeps the request with its joins."""
    late = request.slo_ms is not None and plan.predicted.latency_ms > request.slo_ms
    fits = all(platform.allocation_mb(max(f.peak_mb, f.floor_mb), f.vcpu) is not None for f in plan.functions)
    return plan.stages <= request.max_stages and not late and fits


def document(model: SliceModel, decision: Decision, name: str, given: str, request: Request) -> Plan:
    """The plan that a decision is."""
    chosen = decision.chosen
    if decision.codings is not None:
        model = model.with_codings(decision.codings)
    laid = lay_out(model if decision.size_mb is None else model.with_size(decision.size_mb), chosen.choices)
    plan = Plan(
        model=model_ref(model.graph, given),
        machine=model.profile.machine,
        platform=model.platform.name,
        channel=model.platform.hop.channel,
        planner=name,
        slo_ms=request.asked_ms or request.slo_ms,
        budget_usd=request.budget_usd,
        percentile=request.percentile if request.asked_ms else decision.percentile,
        batch=model.batch,
        wait_ms=wait_ms(model.batch, request),
        shards=laid.shards,
        at_once=laid.at_once,
        functions=laid.functions,
        hops=laid.hops,
        predicted=Predicted(0.0, 0.0, 0.0),
        slack=(),
        losers=tuple(
            Loser(c.name + _details(c), stages(c.choices), c.latency_ms, c.cost_usd * 1e6, why)
            for c, why in decision.losers
        ),
        why=decision.why + (f"; {model.profile.predicted.said}" if model.profile.predicted else ""),
        orders=decision.orders,
        gap=decision.gap,
    )
    widths = zip(plan.by_stage(), plan.at_once, strict=True)
    runs_ms = [makespan([f.run_ms for f in stage], many) for stage, many in widths]
    latency = model.entry_ms + sum(runs_ms) + laid.fan_out_ms + sum(h.time_ms for h in plan.hops)
    cost = sum(f.cost_usd for f in plan.functions) + sum(h.cost_usd for h in plan.hops)
    memory = float(sum(f.memory_mb for f in plan.functions))
    deviation, common = deviation_ms(model, joined(model, chosen.choices)), common_spread(model)
    predicted = Predicted(latency, memory, cost * 1e6, deviation, common)
    plan = msgspec.structs.replace(plan, predicted=predicted)
    plan = msgspec.structs.replace(plan, cold=_cold(model, chosen.choices, cost, request))
    return msgspec.structs.replace(plan, slack=_slack(model, plan))


def _cold(model: SliceModel, choices: Sequence[Choice], cost_usd: float, request: Request) -> Cold | None:
    """What starts add, beside one function that keeps the SLO, too."""
    percentile = request.percentile if request.asked_ms is None else None  # else the bound leaves room for it

    def ms(one: Candidate) -> float:
        return wait_ms(model.batch, request) + bounded_ms(model, one.choices, one.latency_ms, percentile)

    whole = [c for c in singles(model) if request.slo_ms is None or ms(c) <= request.slo_ms]
    alone = cheapest_of(whole).choices[0] if whole else None
    return cold(model, choices, cost_usd, alone, runs_per_s(model.batch, request))


def _details(candidate: Candidate) -> str:
    if len(candidate.choices) > 1:
        return ""
    only = candidate.choices[0]
    return f", {only.memory_mb} MB, {only.layout}"


def _slack(model: SliceModel, plan: Plan) -> tuple[Slack, ...]:
    platform, rows = model.platform, []
    if plan.slo_ms is not None:
        rows.append(Slack(f"latency SLO{plan.at}", plan.slo_ms, plan.bounded_ms, "ms"))
    if plan.budget_usd is not None:
        rows.append(Slack("budget", plan.budget_usd, plan.charged_usd, "$"))
    largest = max(plan.functions, key=lambda f: f.memory_mb)
    rows.append(Slack("largest memory", platform.most_mb(largest.vcpu), largest.memory_mb, "MB"))
    rows.append(Slack("package", platform.limits.package_mb.value, max(f.package_mb for f in plan.functions), "MB"))
    if plan.hops:
        ways = [(platform.through(h.channel), h.encoded_bytes) for h in plan.hops]
        way, size = max(ways, key=lambda one: one[0].hop_mb(one[1]) / one[0].hop_limit_mb)
        rows.append(Slack("payload of a hop", way.hop_limit_mb, way.hop_mb(size), "MB"))
    rows.append(Slack("timeout", platform.limits.timeout_s.value, max(f.run_ms for f in plan.functions) / 1000, "s"))
    return tuple(rows)


def _baseline(model: SliceModel, name: str, given: str, request: Request) -> Plan:
    """The user's file as it is, its size tuned over the platform's sizes by running it."""
    graph, profile, platform = model.graph, model.profile, model.platform
    slo_ms, batch, vcpu, ranges = request.slo_ms, request.batch, request.vcpu, request.ranges
    kind = BASELINES[name]
    law = (
        profile.floor.resident_mb
        + (graph.weight_bytes(0, len(graph.operators)) + graph.live_bytes(0, len(graph.operators), batch)) / MB
    )
    peak = measure_whole(graph, kind, 1, batch, ranges).peak_mb
    need = platform.allocation_mb(max(peak, law), vcpu)
    if need is None:
        raise InfeasiblePlan(
            f"memory: {graph.name} as one plain session needs {max(peak, law):.0f} MB, the largest size of "
            f"{platform.name} is {platform.most_mb(vcpu):.0f} MB",
            try_="--planner mopar",
        )
    candidates = []
    for size in model.sizes(need):
        share = platform.vcpu(size, vcpu)
        threads = min(threads_for(share), this_machine().cores)
        whole = measure_whole(graph, kind, threads, batch, ranges)
        run = throttled_ms(whole.run_ms, share, platform.cpu.period_ms.value)
        cost = platform.cost_usd(size, run, share)
        choice = Choice(0, model.units, size, share, threads, "prepacked", peak, law, run, cost)
        candidates.append(Candidate(name, (choice,), model.entry_ms + run, choice.cost_usd))
    feasible = [c for c in candidates if slo_ms is None or c.latency_ms <= slo_ms]
    if not feasible:
        fastest = min(candidates, key=lambda c: c.latency_ms)
        raise InfeasiblePlan(
            f"latency: {name} takes {fastest.latency_ms:.1f} ms at best on {platform.name}, which is beyond "
            f"{request.bound}",
            where="--slo-ms",
            try_=f"--slo-ms {math.ceil(asked(model, request, fastest) + 0.5)}",
        )
    chosen = cheapest_of(feasible)
    why = "what people deploy today: the file as it is in one plain session, size tuned by measurement"
    plan = document(model, Decision(chosen, why, ()), name, given, request)
    function = msgspec.structs.replace(
        plan.functions[0],
        kind=cast(Kind, kind),
        package_mb=graph.source.stat().st_size / MB,
        why="peak and time measured on the whole file",
    )
    return msgspec.structs.replace(plan, functions=(function,), cold=None)  # its start was not measured
