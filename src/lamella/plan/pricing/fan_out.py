"""What parallel shards would take, from what was measured of them, and what joining their parts costs who comes next.

The function after a sharded stage joins its parts: it runs longer and holds them beside its own tensors. Where no
single function follows, another sharded stage or the answer, a function of its own joins them, which is a stage and a
hop more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from lamella.plan.choice import Choice, Join, Shard
from lamella.plan.planners.search import Step
from lamella.plan.pricing.memory import CODE_MB, EDGE_MB, GRAPH_MB
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.throttle import throttled_ms
from lamella.plan.request import Request
from lamella.profile.document import ShardPart, ShardProfile
from lamella.runtime.lanes import makespan
from lamella.units import MB


def sharded(model: SliceModel, first: int, last: int) -> list[Choice]:
    """Ways to run units `first` to `last - 1` as parallel shards: those that were measured, where they fit."""
    found = []
    for way, fork_join_ms in _ways(model, first, last):
        # every shard takes all that crosses, and gives its part
        carried = model.hops.carrying_ms(first) + model.hops.carrying_ms(last) / len(way.parts)
        waiting = model.hops.waiting_ms(first) + model.hops.waiting_ms(last)
        shards = [s for part in way.parts if (s := _shard(model, part, carried, waiting))]
        if len(shards) < len(way.parts):
            continue
        largest = max(shards, key=lambda s: s.memory_mb)
        # quotas stretch the runs; the rest of the stage's time, its hops, is as measured
        fan_out = max(0.0, fork_join_ms - model.hops.cost.fixed_ms)
        # every shard is sent the stage's input and sends its part: one more message each
        messages_usd = (len(shards) - 1) * model.platform.hop.usd.value
        run_ms = makespan([s.run_ms for s in shards], way.at_once) + fan_out
        found.append(
            Choice(
                first=first,
                last=last,
                memory_mb=largest.memory_mb,
                vcpu=model.platform.vcpu(largest.memory_mb, model.vcpu),
                threads=1,
                layout=way.layout,
                peak_mb=largest.peak_mb,
                floor_mb=largest.floor_mb,
                run_ms=run_ms,
                cost_usd=sum(s.cost_usd for s in shards) + messages_usd,
                shards=tuple(shards),
                span=way.span,
                fan_out_ms=fan_out,
                join=Join(way.span.last, last, way.join_ms, way.join_mb),
                at_once=way.at_once,
                deviation_ms=way.deviation_ms * (run_ms / way.stage_ms if way.stage_ms else 1.0),
            )
        )
    return _undominated(found)


def ways_to_run(model: SliceModel, first: int, last: int, request: Request) -> list[Choice]:
    """Ways to run units `first` to `last - 1`: as one function, or where shards are asked for as those."""
    return [*model.choices(first, last), *(sharded(model, first, last) if request.shards else ())]


def _undominated(found: list[Choice]) -> list[Choice]:
    """Those that no other of as little joining and spread beats in both time and cost."""
    kept: list[Choice] = []
    for choice in sorted(found, key=lambda c: (c.run_ms, c.cost_usd)):
        if not any(k.cost_usd <= choice.cost_usd and _as_good_to_join(k, choice) for k in kept):
            kept.append(choice)
    return kept


def _as_good_to_join(one: Choice, other: Choice) -> bool:
    assert one.join
    assert other.join
    light = one.join.first == other.join.first and one.join.ms <= other.join.ms and one.join.mb <= other.join.mb
    return light and one.deviation_ms <= other.deviation_ms


def _ways(model: SliceModel, first: int, last: int) -> list[tuple[ShardProfile, float]]:
    """What was measured of dividing units `first` to `last - 1`, with the time of forking and joining, ms.

    More at once than the machine has cores is made of what was measured: the shards' runs one at a time, and the
    fork and join of as many at once as there are cores.
    """
    cores = model.profile.machine.cores
    most = model.request.at_once or cores
    here = model.shards.get((first, last), [])
    forks = {(w.span, w.layout, w.at_once): w.stage_ms - makespan([p.run_ms for p in w.parts], w.at_once) for w in here}
    found = [(w, forks[w.span, w.layout, w.at_once]) for w in here if w.at_once <= most]
    for way in here:
        at_once = min(most, len(way.parts))
        if way.at_once == 1 and at_once > cores:
            fork = max(ms for (span, layout, _), ms in forks.items() if (span, layout) == (way.span, way.layout))
            found.append((msgspec.structs.replace(way, at_once=at_once), fork))
    return found


def _shard(model: SliceModel, part: ShardPart, carried_ms: float, waiting_ms: float) -> Shard | None:
    """A shard as a function of the platform; None where it does not fit."""
    platform = model.platform
    law = model.profile.floor.resident_mb + part.weights_mb
    peak = part.peak_mb + EDGE_MB
    size = platform.allocation_mb(max(peak, law), model.vcpu)
    if size is None or part.weights_mb + GRAPH_MB > platform.limits.package_mb.value:
        return None
    vcpu = platform.vcpu(size, model.vcpu)
    run = throttled_ms(part.run_ms + carried_ms, vcpu, platform.cpu.period_ms.value) + waiting_ms
    if run / 1000 > platform.limits.timeout_s.value:
        return None
    return Shard(size, peak, law, run, platform.cost_usd(size, run, vcpu))


def stages(choices: Sequence[Choice]) -> int:
    """How many a chain of choices takes: parts that no single function comes behind are joined by one of their own."""
    pairs = zip(choices, [*choices[1:], None], strict=True)
    return sum(1 + bool(one.join and (after is None or after.shards)) for one, after in pairs)


def behind(model: SliceModel, join: Join, choice: Choice) -> Choice | None:
    """A single function that joins the parts of the stage before it, too; None where no size holds it."""
    peak, floor = choice.peak_mb + join.mb, choice.floor_mb + join.mb
    size = model.platform.allocation_mb(max(peak, floor), choice.vcpu)
    if size is None:
        return None
    size = max(size, choice.memory_mb)
    vcpu = model.platform.vcpu(size, choice.vcpu)
    run = model.run_ms(choice.first, choice.last, layout=choice.layout, vcpu=vcpu, more_ms=join.ms)
    cost = model.platform.cost_usd(size, run, vcpu)
    return replace(choice, memory_mb=size, vcpu=vcpu, peak_mb=peak, floor_mb=floor, run_ms=run, cost_usd=cost)


def joined(model: SliceModel, choices: Sequence[Choice]) -> list[Choice]:
    """Each as it runs in a plan: single functions with the joining of the parts before them."""
    before = [None, *(c.join for c in choices)]
    pairs = zip(before, choices, strict=False)
    return [(join and not c.shards and behind(model, join, c)) or c for join, c in pairs]


def join_alone(model: SliceModel, join: Join, live_mb: float | None = None) -> Choice:
    """A function that only joins parts: nothing but the runtime, the parts and the whole.

    Args:
        model: prices.
        join: what to do.
        live_mb: what its tensors take, where that is known better than from the join's measurement.
    """
    live = join.mb if live_mb is None else live_mb
    tail_mb = model.graph.weight_bytes(join.first, model.span(0, join.unit)[1]) / MB
    floor = model.profile.floor.resident_mb + live + tail_mb
    peak = floor + CODE_MB
    size = model.platform.allocation_mb(peak, model.vcpu) or int(model.platform.most_mb(model.vcpu))
    vcpu = model.platform.vcpu(size, model.vcpu)
    # the parts and the whole are carried
    run = (model.hops.cost.call_ms + join.ms + 2 * model.hops.carrying_ms(join.unit)) / min(1.0, vcpu)
    run += 2 * model.hops.waiting_ms(join.unit)
    cost = model.platform.cost_usd(size, run, vcpu)
    return Choice(join.unit, join.unit, size, vcpu, 1, "plain", peak, floor, run, cost)


def step(model: SliceModel, join: Join | None, choice: Choice | None) -> Step | None:
    """What a choice takes behind a stage whose parts it has to join, or behind none; see `search.divide`."""
    unit = choice.first if choice else model.units
    hop_ms, hop_usd = model.hop(unit)[:2] if choice and unit else (0.0, 0.0)
    if choice and (not join or not choice.shards):
        taken = behind(model, join, choice) if join else choice
        return Step(1, hop_ms, hop_usd, taken.run_ms, taken.cost_usd) if taken else None
    assert join
    alone = join_alone(model, join)
    more_ms, more_usd = model.hop(join.unit)[:2]
    run_ms, run_usd = (choice.run_ms, choice.cost_usd) if choice else (0.0, 0.0)
    stages = 2 if choice else 1
    return Step(stages, hop_ms + more_ms, hop_usd + more_usd, alone.run_ms + run_ms, alone.cost_usd + run_usd)
