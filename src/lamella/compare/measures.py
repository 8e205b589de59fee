"""From what was seen of a plan to its row of the record, by the measures of docs/architecture.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lamella.compare.record import (
    ColdSplit,
    Efficiency,
    FunctionRecord,
    Latency,
    MemoryTime,
    OutputError,
    PlanRecord,
    Turn,
    UnitRecord,
    Use,
)
from lamella.compare.rounds import Rounds, Sample, interval
from lamella.deploy.sizing import Allocation
from lamella.graph.divide import ShardedGraph, shard
from lamella.graph.model import Graph
from lamella.plan.document import FunctionPlan, Plan
from lamella.plan.layout import model_ranges
from lamella.platforms import Platform
from lamella.platforms.packing import Load, Packing, pack
from lamella.profile.document import Pace, Profile, Unit, Work
from lamella.profile.pace import mixed, model_work
from lamella.runtime.function import LAYOUTS
from lamella.runtime.instance import ColdStart
from lamella.runtime.lanes import makespan
from lamella.units import MB

LEAST_MS = 0.001
"""A clock may see no time pass in a run that does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of one plan beside its rounds."""

    plan: Plan
    allocation: Mapping[str, Allocation]
    cold_ms: float
    """Latency of the first request with nothing running."""
    cold: ColdStart
    """The slowest function's start."""
    error: OutputError
    faults: int
    """Major faults during the rounds."""
    peak_mb: float
    enforced: bool
    refused: Mapping[str, str] = field(default_factory=dict)
    """Functions that are planned blocked and ran plain, and why."""


def plan_record(seen: Seen, rounds: Rounds, graph: Graph, profile: Profile, platform: Platform) -> PlanRecord:
    """One plan's row: every figure by its definition, hops of the catalogue added where they are emulated."""
    platform = platform.on(seen.plan.architecture)
    plan, waits = seen.plan, _waits_ms(seen.plan, platform)
    samples = [s.waiting(waits) for s in rounds.samples[plan.planner]]
    platform = platform.through(plan.channel)
    sizes = [seen.allocation[f.name].memory_mb for f in plan.functions]
    added = sum(platform.through(h.channel).hop_ms(h.encoded_bytes) for h in plan.hops)
    hop_usd = sum(h.cost_usd for h in plan.hops)

    def cost(sample: Sample) -> float:
        functions = zip(sizes, sample.stage_ms, plan.functions, strict=True)
        runs = (platform.cost_usd(m, t, f.vcpu) for m, t, f in functions)
        return (sum(runs) + hop_usd) * 1e6

    def billed_mb_s(sample: Sample) -> float:
        return sum(m * platform.billed_ms(t) for m, t in zip(sizes, sample.stage_ms, strict=True)) / 1000

    latency = np.array([s.latency_ms for s in samples]) + added
    stages = np.array([s.stage_ms for s in samples])
    medians = np.median(stages, axis=0)
    billed = float(np.mean([billed_mb_s(s) for s in samples]))
    resident = float(sum(sizes) * np.mean(latency)) / 1000
    used, bare = used_memory_time(plan, graph, profile, stages.mean(axis=0))
    made = shard(graph, plan.shards)
    held = uses(plan, made, graph, profile)
    spans = model_ranges([(f.first, f.last) for f in plan.functions], made)
    costs, latencies = _by_round(samples, cost), _by_round(samples, lambda s: s.latency_ms + added)
    p50_low, p50_high = interval(latencies, lambda v: float(np.median(v)))
    cost_low, cost_high = interval(costs, lambda v: float(np.mean(v)))
    return PlanRecord(
        planner=plan.planner,
        stages=plan.stages,
        functions=tuple(
            FunctionRecord(
                name=f.name,
                memory_mb=sizes[i],
                cpu=f.vcpu,
                peak_mb=seen.allocation[f.name].peak_mb,
                predicted_peak_mb=f.peak_mb,
                planned_mb=f.memory_mb,
                run_ms=float(medians[i]),
                predicted_run_ms=f.run_ms,
                stage=f.stage,
                first=spans[i][0],
                last=spans[i][1],
                uses=held[i],
            )
            for i, f in enumerate(plan.functions)
        ),
        latency_ms=Latency(
            float(np.median(latency)), float(np.percentile(latency, 95)), seen.cold_ms + added, p50_low, p50_high
        ),
        cold_split_ms=ColdSplit(*seen.cold),
        cost_usd_per_million=float(np.mean([cost(s) for s in samples])),
        cost_low=cost_low,
        cost_high=cost_high,
        vcpu_s=float(np.mean([s.cpu_ms for s in samples])) / 1000,
        memory_time_mb_s=MemoryTime(billed, resident, used, bare),
        efficiency=Efficiency(used / billed, used / resident),
        peak_memory_mb=seen.peak_mb,
        major_faults=seen.faults,
        output_error=seen.error,
        limits="enforced" if seen.enforced else "unlimited",
        emulated=_emulated(plan, added, float(np.median([s.emulated_ms for s in samples]))),
        predicted=plan.predicted,
        why=plan.why,
        packing=_packing(plan, sizes, medians.tolist(), platform),
        rounds=rounds.kept,
        rounds_rejected=rounds.rejected,
        rounds_noisy_kept=rounds.noisy_kept,
        turns=tuple(Turn(float(np.mean(c)), float(np.mean(t))) for c, t in zip(costs, latencies, strict=True)),
        at_once=plan.at_once,
        refused=dict(seen.refused),
        slowdown=plan_slowdown(plan, added, rounds.paces[plan.planner], graph, profile, platform),
    )


def plan_slowdown(
    plan: Plan, added: float, pace: Pace, graph: Graph, profile: Profile, platform: Platform
) -> float | None:
    """How much longer the plan would take at that pace than at the profile's; none where that has none.

    Args:
        plan: as it was deployed.
        added: what emulated hops take in all, which is as long at any pace; ms.
        pace: of its turns.
        graph: the model.
        profile: that the plan was made from.
        platform: its rules.
    """
    if not profile.pace:
        return None
    waits = {f.name: wait for f, wait in zip(plan.functions, _waits_ms(plan, platform), strict=True)}
    stages = zip(plan.by_stage(), plan.at_once, strict=True)
    runs = sum(makespan([f.run_ms - waits[f.name] for f in stage], many) for stage, many in stages)
    driver = max(0.0, plan.predicted.latency_ms - added - runs)
    cold = profile.hop.coldness(graph.touched_bytes(plan.batch) / MB)
    serving = Work() if platform.paused else Work(calls=1 - cold)  # as `pace.at_pace` scales it
    parts = [(runs, model_work(graph, profile, plan.batch)), (driver, serving), (added, Work())]
    return pace.over(profile.pace, mixed(parts))


def _waits_ms(plan: Plan, platform: Platform) -> list[float]:
    """What each function is billed more for hops that are emulated: half of those on both sides, where it waits."""
    ways = [(platform.through(h.channel), h.encoded_bytes) for h in plan.hops]
    halves = [0.0, *(way.hop_ms(size) / 2 if way.hop.billed else 0.0 for way, size in ways), 0.0]
    return [halves[f.stage] + halves[f.stage + 1] for f in plan.functions]


def _emulated(plan: Plan, added_ms: float, taken_ms: float) -> str:
    said = [f"{len(plan.hops)} hops, {added_ms:.1f} ms by the catalogue"] if added_ms else []
    said += [f"up to {max(plan.at_once)} shards side by side, {taken_ms:.1f} ms taken off"] if taken_ms else []
    return "; ".join(said)


def _packing(plan: Plan, sizes: Sequence[int], run_ms: Sequence[float], platform: Platform) -> Packing | None:
    if platform.node is None:
        return None
    functions = zip(plan.functions, sizes, run_ms, strict=True)
    return pack([Load(size, f.vcpu, max(ms, LEAST_MS)) for f, size, ms in functions], platform.node)


def _by_round(samples: Sequence[Sample], value: Callable[[Sample], float]) -> list[list[float]]:
    rounds: dict[int, list[float]] = {}
    for sample in samples:
        rounds.setdefault(sample.round, []).append(value(sample))
    return list(rounds.values())


def used_memory_time(plan: Plan, graph: Graph, profile: Profile, stage_ms: np.ndarray) -> tuple[float, float]:
    """Integral of (runtime floor + weights and live tensors of the unit running), MB-s, with and without the floor.

    One formula for every plan: the time of each function is shared among its units as in `uses`.
    """
    seconds = stage_ms / 1000
    held = [sum(u.share * u.mb for u in function) for function in uses(plan, shard(graph, plan.shards), graph, profile)]
    bare = float(np.dot(held, seconds))
    return bare + profile.floor.resident_mb * float(seconds.sum()), bare


def uses(plan: Plan, made: ShardedGraph, graph: Graph, profile: Profile) -> list[tuple[Use, ...]]:
    """For each function what its units hold, and their shares of its time.

    Times are those of the profile at the plan's batch, on one thread, with plain weights; a shard counts as one unit.
    Weights are counted as the function holds them: those on 8-bit integers are fewer bytes.

    Args:
        plan: whose functions.
        made: the graph with the plan's shards.
        graph: the model.
        profile: of the model.
    """
    measured = _variant(profile, plan.batch)
    place = {(op.inputs, op.outputs): op.index for op in made.graph.operators}  # a join gives what an operator gave
    ends = [place.get((end.inputs, end.outputs), -1) for end in (graph.operators[u.last - 1] for u in profile.units)]
    found = []
    for function in plan.functions:
        units = [u for u, end in zip(profile.units, ends, strict=True) if function.first <= end < function.last]
        parts = [
            (
                u.times[measured].median_ms,
                _weight_bytes(u, function, graph) + graph.live_bytes(u.first, u.last, plan.batch),
            )
            for u in units
        ]
        if not parts:  # a shard, or what joins shards: no unit of the profile
            span = function.first, function.last
            parts = [(1.0, made.graph.weight_bytes(*span) + made.graph.live_bytes(*span, plan.batch))]
        total = sum(ms for ms, _ in parts)
        found.append(tuple(Use(ms / total, size / MB) for ms, size in parts))
    return found


def _weight_bytes(unit: Unit, function: FunctionPlan, graph: Graph) -> int:
    """Of a unit, as a function holds them."""
    integers = unit.memory_in("int8").weight_bytes if set(unit.int8) & set(function.int8) else None
    return graph.weight_bytes(unit.first, unit.last) if integers is None else integers


def unit_records(graph: Graph, profile: Profile, batch: int) -> tuple[UnitRecord, ...]:
    """What the model is made of, in order."""
    measured = _variant(profile, batch)
    return tuple(
        UnitRecord(
            first=u.first,
            last=u.last,
            kinds=u.kinds,
            weight_mb=u.weight_bytes / MB,
            live_mb=graph.live_bytes(u.first, u.last, batch) / MB,
            ms=u.times[measured].median_ms,
        )
        for u in profile.units
    )


def _variant(profile: Profile, batch: int) -> int:
    """Which of the measured variants stands for a batch: plain weights, the fewest threads."""
    variants = profile.variants
    fits = [k for k, v in enumerate(variants) if v.batch == batch]
    return min(fits, key=lambda k: (LAYOUTS.index(variants[k].layout), variants[k].threads))
