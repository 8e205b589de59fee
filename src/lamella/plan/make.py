"""From a decision to the plan document: names, hops, predictions, slack, losers and reasons, checked by the laws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import msgspec

from lamella.errors import InfeasiblePlan
from lamella.graph.model import Graph
from lamella.machine import this_machine
from lamella.plan.document import FunctionPlan, Hop, Loser, Plan, Predicted, Slack, model_ref
from lamella.plan.laws import check
from lamella.plan.planners import Candidate, Decision, Request, cheapest_of, planner
from lamella.plan.predict import Choice, SliceModel, throttled_ms
from lamella.platforms import Platform
from lamella.platforms.platform import threads as threads_for
from lamella.profile.baseline import BaselineKind, measure_whole
from lamella.profile.document import Profile
from lamella.runtime.function import Kind
from lamella.units import MB

BASELINES: dict[str, BaselineKind] = {"ort": "plain", "ort-default": "default"}


def make_plan(
    graph: Graph,
    profile: Profile,
    platform: Platform,
    name: str,
    *,
    given: str,
    slo_ms: float | None = None,
    max_stages: int = 8,
    batch: int = 1,
    vcpu: float = 1.0,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Plan:
    """The plan that the planner `name` makes.

    Args:
        graph: the model.
        profile: of this model on this machine.
        platform: where to run.
        name: `ort`, `ort-default`, `single`, `uniform-K` or `mopar`.
        given: what the user called the model.
        slo_ms: latency bound; None for the planner's own rule.
        max_stages: at most so many functions.
        batch: rows per request.
        vcpu: per function, where the platform lets one choose.
        ranges: value ranges of integer inputs, for the measured baselines.

    Raises:
        InfeasiblePlan: with the binding constraint and the nearest feasible plan.
        ConfigError: no such planner.
    """
    if name in BASELINES:
        plan = _baseline(graph, profile, platform, name, given, slo_ms, batch, vcpu, ranges)
    else:
        model = SliceModel(graph, profile, platform, batch=batch, vcpu=vcpu)
        decision = planner(name).decide(model, Request(slo_ms, max_stages))
        plan = _document(model, decision, name, given, slo_ms)
    check(plan, graph, platform)
    return plan


def _document(model: SliceModel, decision: Decision, name: str, given: str, slo_ms: float | None) -> Plan:
    chosen = decision.chosen
    functions = tuple(_function(model, c, i, len(chosen.choices), decision) for i, c in enumerate(chosen.choices))
    hops = tuple(_hop(model, c.first) for c in chosen.choices[1:])
    return Plan(
        model=model_ref(model.graph, given),
        machine=model.profile.machine,
        platform=model.platform.name,
        planner=name,
        slo_ms=slo_ms,
        batch=model.batch,
        functions=functions,
        hops=hops,
        predicted=Predicted(chosen.latency_ms, float(sum(f.memory_mb for f in functions)), chosen.cost_usd * 1e6),
        slack=_slack(model, chosen, slo_ms),
        losers=tuple(
            Loser(c.name + _details(c), len(c.choices), c.latency_ms, c.cost_usd * 1e6, why)
            for c, why in decision.losers
        ),
        why=decision.why,
    )


def _details(candidate: Candidate) -> str:
    if len(candidate.choices) > 1:
        return ""
    only = candidate.choices[0]
    return f", {only.memory_mb} MB, prepacking {'on' if only.prepack else 'off'}"


def _function(model: SliceModel, choice: Choice, index: int, stages: int, decision: Decision) -> FunctionPlan:
    first, last = model.span(choice.first, choice.last)
    return FunctionPlan(
        name="whole" if stages == 1 else f"stage-{index + 1}",
        first=first,
        last=last,
        kind="packaged",
        memory_mb=choice.memory_mb,
        vcpu=choice.vcpu,
        threads=choice.threads,
        prepack=choice.prepack,
        peak_mb=choice.peak_mb,
        floor_mb=choice.floor_mb,
        run_ms=choice.run_ms,
        cost_usd=choice.cost_usd,
        package_mb=model.graph.weight_bytes(first, last) / MB,
        why=_why(model, choice),
    )


def _why(model: SliceModel, choice: Choice) -> str:
    """Which requirement set the size, and what prepacking would have done."""
    need = max(choice.peak_mb, choice.floor_mb)
    what = "its predicted peak" if choice.peak_mb >= choice.floor_mb else "law 4 (all weights in full)"
    at_least = model.platform.allocation_mb(need)
    if at_least == choice.memory_mb:
        size = f"{choice.memory_mb} MB is the smallest size for {what} of {need:.0f} MB"
    else:
        size = f"{choice.memory_mb} MB where {at_least} would hold it, for {choice.vcpu:.2f} vCPU"
    other_peak, other_law = model.memory_mb(choice.first, choice.last, prepack=not choice.prepack)
    other_ms = model.run_ms(choice.first, choice.last, prepack=not choice.prepack, vcpu=choice.vcpu)
    verb = "on" if choice.prepack else "off"
    return (
        f"{size}; prepacking {verb}: {choice.run_ms:.1f} ms and {need:.0f} MB, "
        f"the other way {other_ms:.1f} ms and {max(other_peak, other_law):.0f} MB"
    )


def _hop(model: SliceModel, unit: int) -> Hop:
    cut = model.profile.cuts[unit - 1]
    time_ms, usd, size = model.hop(unit)
    measured = max(c.batch for c in cut.codecs if c.batch in (1, model.batch))
    plain, bf16 = (next(c for c in cut.codecs if (c.codec, c.batch) == (n, measured)) for n in ("none", "bf16"))
    work = bf16.encode_ms + bf16.decode_ms - plain.encode_ms - plain.decode_ms
    saved = model.platform.hop_ms(size) - model.platform.hop_ms(int(size / bf16.ratio))
    gain = f"save {saved:.2f} ms of transfer" if model.platform.hop.emulated else "save nothing in shared memory"
    return Hop(
        position=cut.position,
        tensors=cut.tensors,
        side=cut.side,
        bytes=size,
        channel=model.platform.hop.channel,
        codec="none",
        time_ms=time_ms,
        cost_usd=usd,
        why=f"codec none: bf16 would {gain} for {work:.2f} ms of work, and is lossy",
    )


def _slack(model: SliceModel, chosen: Candidate, slo_ms: float | None) -> tuple[Slack, ...]:
    platform, rows = model.platform, []
    if slo_ms is not None:
        rows.append(Slack("latency SLO", slo_ms, chosen.latency_ms, "ms"))
    rows.append(Slack("largest memory", platform.memory.max_mb.value, max(c.memory_mb for c in chosen.choices), "MB"))
    package = max(model.graph.weight_bytes(*model.span(c.first, c.last)) / MB for c in chosen.choices)
    rows.append(Slack("package", platform.limits.package_mb.value, package, "MB"))
    if len(chosen.choices) > 1:
        payload = max(platform.payload_mb(model.hop(c.first)[2]) for c in chosen.choices[1:])
        rows.append(Slack("payload of a hop", platform.limits.payload_mb.value, payload, "MB"))
    rows.append(Slack("timeout", platform.limits.timeout_s.value, max(c.run_ms for c in chosen.choices) / 1000, "s"))
    return tuple(rows)


def _baseline(
    graph: Graph,
    profile: Profile,
    platform: Platform,
    name: str,
    given: str,
    slo_ms: float | None,
    batch: int,
    vcpu: float,
    ranges: Mapping[str, tuple[float, float]] | None,
) -> Plan:
    """The user's file as it is, its size tuned over the platform's sizes by running it."""
    kind = BASELINES[name]
    law = (
        profile.floor.resident_mb
        + (graph.weight_bytes(0, len(graph.operators)) + graph.live_bytes(0, len(graph.operators), batch)) / MB
    )
    model = SliceModel(graph, profile, platform, batch=batch, vcpu=vcpu)
    peak = measure_whole(graph, kind, 1, batch, ranges).peak_mb
    need = platform.allocation_mb(max(peak, law))
    if need is None:
        raise InfeasiblePlan(
            f"memory: {graph.name} as one plain session needs {max(peak, law):.0f} MB, the largest size of "
            f"{platform.name} is {platform.memory.max_mb.value:.0f} MB",
            try_="--planner mopar",
        )
    candidates = []
    for size in model.sizes(need):
        share = platform.vcpu(size, vcpu)
        threads = min(threads_for(share), this_machine().cores)
        whole = measure_whole(graph, kind, threads, batch, ranges)
        run = throttled_ms(round(whole.run_ms, 3), round(share, 4), platform.cpu.period_ms.value)
        choice = Choice(0, model.units, size, share, threads, True, peak, law, run, platform.cost_usd(size, run))
        candidates.append(Candidate(name, (choice,), model.entry_ms + run, choice.cost_usd))
    feasible = [c for c in candidates if slo_ms is None or c.latency_ms <= slo_ms]
    if not feasible:
        fastest = min(candidates, key=lambda c: c.latency_ms)
        raise InfeasiblePlan(
            f"latency: {name} takes {fastest.latency_ms:.1f} ms at best on {platform.name}, the SLO is {slo_ms:g} ms",
            where="--slo-ms",
            try_=f"--slo-ms {math.ceil(fastest.latency_ms + 0.5)}",
        )
    chosen = cheapest_of(feasible)
    why = "what people deploy today: the file as it is in one plain session, size tuned by measurement"
    plan = _document(model, Decision(chosen, why, ()), name, given, slo_ms)
    function = msgspec.structs.replace(
        plan.functions[0],
        kind=cast(Kind, kind),
        package_mb=graph.source.stat().st_size / MB,
        why="peak and time measured on the whole file",
    )
    return msgspec.structs.replace(plan, functions=(function,))
