"""From a chain of choices to functions and hops: names, operators, joins of shards, reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from lamella.graph.divide import Range, ShardedGraph, ShardSpan, shard
from lamella.graph.model import Graph
from lamella.plan.choice import Choice
from lamella.plan.document import FunctionPlan, Hop
from lamella.plan.pricing.coding import coding_why, plain, quickest
from lamella.plan.pricing.fan_out import behind, join_alone
from lamella.plan.pricing.memory import GRAPH_MB
from lamella.plan.pricing.predict import SliceModel
from lamella.units import MB


class LaidOut(NamedTuple):
    """What a chain of choices is as a plan."""

    functions: tuple[FunctionPlan, ...]
    hops: tuple[Hop, ...]
    shards: tuple[ShardSpan, ...]
    at_once: tuple[int, ...]
    fan_out_ms: float
    """What sending to several shards takes more than to one, in all stages."""


class _Stage(NamedTuple):
    """The operators of each function of a stage, in the sharded graph; the choice it serves, none for a join alone."""

    ranges: tuple[Range, ...]
    choice: Choice | None


def lay_out(model: SliceModel, choices: Sequence[Choice]) -> LaidOut:
    """Functions and hops of a chain of choices.

    The parts of a sharded stage are joined by the function after it; where that is no single function, by one of its
    own.
    """
    spans = tuple(c.span for c in choices if c.span)
    made = shard(model.graph, spans)
    ranges = stage_ranges([model.span(c.first, c.last) for c in choices], made)
    stages = [_Stage(spans, None if slice_ is None else choices[slice_]) for spans, slice_ in ranges]
    functions: list[FunctionPlan] = []
    before: Choice | None = None
    for number, stage in enumerate(stages):
        functions += _functions(model, made.graph, stage, before, number, len(stages))
        before = stage.choice
    hops = tuple(_hop(model, made.graph, before, stage) for before, stage in pairwise(stages))
    at_once = tuple(stage.choice.at_once if stage.choice else 1 for stage in stages)
    return LaidOut(tuple(functions), hops, spans, at_once, sum(c.fan_out_ms for c in choices))


def stage_ranges(slices: Sequence[Range], made: ShardedGraph) -> list[tuple[tuple[Range, ...], int | None]]:
    """For each stage the operators of its functions in the sharded graph, and which slice it serves, none for a join.

    Args:
        slices: operators of the model, all of them, in order; a divided span begins a slice of its own, and what is
            left of the slice runs with the join.
        made: the model with its spans divided.
    """
    placed = {p.span.first: p for p in made.spans}
    stages: list[tuple[tuple[Range, ...], int | None]] = []
    at = 0  # the next operator of the sharded graph
    join: Range | None = None  # what begins there, if a sharded stage was the last one
    for number, (first, last) in enumerate(slices):
        where = placed.get(first)
        if where:
            if join:
                stages.append(((join,), None))
            stages.append((where.shards, number))
            at, join = where.shards[-1][1], (where.join[0], where.join[1] + last - where.span.last)
        else:
            end = (join[1] if join else at) + last - first
            stages.append((((at, end),), number))
            at, join = end, None
    if join:
        stages.append(((join,), None))
    return stages


def model_ranges(functions: Sequence[Range], made: ShardedGraph) -> list[Range]:
    """Operators of the model that each function has a part in: a shard in all of its span, a join alone in none.

    Args:
        functions: operators of the sharded graph.
        made: the model with its spans divided.
    """
    shards = {r: (p.span.first, p.span.last) for p in made.spans for r in p.shards}

    def place(at: int) -> int:
        """Where the model is when the sharded graph is at an operator; behind the span within what replaced it."""
        more = 0
        for placed in made.spans:
            begin, end = placed.shards[0][0], placed.join[1]
            if at <= begin:
                break
            if at < end:
                return placed.span.last
            more += placed.span.last - placed.span.first - (end - begin)
        return at + more

    return [shards.get(r) or (place(r[0]), place(r[1])) for r in functions]


def _functions(
    model: SliceModel, graph: Graph, stage: _Stage, before: Choice | None, number: int, count: int
) -> list[FunctionPlan]:
    name = "whole" if count == 1 else f"stage-{number + 1}"
    choice = stage.choice
    join = before.join if before else None
    if choice is None:
        assert join
        live = graph.live_bytes(*stage.ranges[0], model.batch) / MB
        alone = join_alone(model, join, live)
        reason = "joins the parts of the stage before it; no function after it could"
        return [_function(model, alone, graph, f"{name}-join", number, stage.ranges[0], reason)]
    if not choice.shards:
        grown = behind(model, join, choice) if join else choice
        assert grown, "planned where no size holds it"
        return [_function(model, grown, graph, name, number, stage.ranges[0], why(model, grown))]
    assert choice.span
    found = []
    for k, (span, one) in enumerate(zip(stage.ranges, choice.shards, strict=True)):
        need = max(one.peak_mb, one.floor_mb)
        all_ = one.memory_mb == model.equal_mb
        said = (
            f"as all functions of the plan, {need:.0f} are needed"
            if all_
            else f"is the smallest size for {need:.0f} MB"
        )
        found.append(
            FunctionPlan(
                name=f"{name}-shard-{k + 1}",
                stage=number,
                first=span[0],
                last=span[1],
                kind="packaged",
                memory_mb=one.memory_mb,
                vcpu=model.platform.vcpu(one.memory_mb, model.vcpu),
                threads=1,
                layout=choice.layout,
                peak_mb=one.peak_mb,
                floor_mb=one.floor_mb,
                run_ms=one.run_ms,
                cost_usd=one.cost_usd,
                package_mb=graph.weight_bytes(*span) / MB + GRAPH_MB,
                why=f"{one.memory_mb} MB {said}, as measured; by {choice.span.way}, "
                f"{choice.at_once} of {len(choice.shards)} shards at a time{_emulated(model, choice)}",
            )
        )
    return found


def _emulated(model: SliceModel, choice: Choice) -> str:
    cores = model.profile.machine.cores
    return f", emulated beyond this machine's {cores} cores" if choice.at_once > cores else ""


def _function(
    model: SliceModel, choice: Choice, graph: Graph, name: str, number: int, span: Range, why: str
) -> FunctionPlan:
    """The function of a stage that is one."""
    return FunctionPlan(
        name=name,
        stage=number,
        first=span[0],
        last=span[1],
        kind="packaged",
        memory_mb=choice.memory_mb,
        vcpu=choice.vcpu,
        threads=choice.threads,
        layout=choice.layout,
        int8=model.quantised.products(choice.first, choice.last) if choice.layout == "int8" else (),
        peak_mb=choice.peak_mb,
        floor_mb=choice.floor_mb,
        run_ms=choice.run_ms,
        cost_usd=choice.cost_usd,
        package_mb=graph.weight_bytes(*span) / MB + model.more_mb(choice.first, choice.last, choice.layout),
        why=why,
    )


def why(model: SliceModel, choice: Choice) -> str:
    """Which requirement set the size, and what the next best layout of the weights would have taken."""
    need = max(choice.peak_mb, choice.floor_mb)
    what = "its predicted peak" if choice.peak_mb >= choice.floor_mb else "law 4 (all weights in full)"
    at_least = model.platform.allocation_mb(need, choice.vcpu)
    if choice.memory_mb == model.equal_mb:
        size = f"{choice.memory_mb} MB as all functions of the plan, {need:.0f} are needed"
    elif at_least == choice.memory_mb:
        size = f"{choice.memory_mb} MB is the smallest size for {what} of {need:.0f} MB"
    else:
        size = f"{choice.memory_mb} MB where {at_least} would hold it, for {choice.vcpu:.2f} vCPU"
    return f"{size}; weights {choice.layout}: {choice.run_ms:.1f} ms and {need:.0f} MB{_next_best(model, choice)}"


def _next_best(model: SliceModel, choice: Choice) -> str:
    """What the cheapest of the other layouts takes on as much CPU, at the size that it needs."""
    platform, found = model.platform, []
    least = choice.memory_mb if platform.cpu.mb_per_vcpu else 0
    for layout in model.layouts_of(choice.first, choice.last):
        if layout == choice.layout:
            continue
        need = max(model.memory_mb(choice.first, choice.last, layout=layout))
        run = model.run_ms(choice.first, choice.last, layout=layout, vcpu=choice.vcpu)
        size = platform.allocation_mb(need, choice.vcpu)
        cost = platform.cost_usd(max(size, least), run, choice.vcpu) if size else math.inf
        found.append((cost, layout, run, need))
    if not found:
        return ""
    _, layout, run, need = min(found)
    return f"; the next best, {layout}: {run:.1f} ms and {need:.0f} MB"


def crossing(graph: Graph, position: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What crosses before an operator: tensors of the model's state, and request constants beside them."""
    made, last = graph.producer, graph.last_use
    names = [n for n in made if made[n] < position <= last[n]]
    side = tuple(n for n in names if n in graph.request_constants)
    return tuple(n for n in names if n not in side), side


def _hop(model: SliceModel, graph: Graph, before: _Stage, stage: _Stage) -> Hop:
    """What crosses before a stage: the model's own cut, or the parts that shards give."""
    position = stage.ranges[0][0]
    tensors, side = crossing(graph, position)
    size = sum(graph.tensors[n].bytes_at(model.batch) for n in (*tensors, *side))
    sharded = before.choice is None or before.choice.shards or stage.choice is None or stage.choice.shards
    if sharded or stage.choice is None:
        coding, reason = plain(size), "codec none: parts of a sharded stage go as they are"
    else:
        unit = stage.choice.first
        coding = model.coding(unit)._replace(plain_bytes=size)
        said = model.lossy.said.get(unit, {})
        reason = coding_why(coding, model.codings(unit), model.platform, model.hops.share, said)
        if coding.codec == "none":
            coding = plain(size)._replace(channel=coding.channel)
            if quickest(model.codings(unit), model.platform, model.hops.share).codec != "none":
                reason = "codec none: shards may begin or end here, and their parts go as they are"
    platform = model.platform.through(coding.channel)
    return Hop(
        position=position,
        tensors=tensors,
        side=side,
        bytes=size,
        encoded_bytes=coding.bytes,
        channel=platform.hop.channel,
        codec=coding.codec,
        time_ms=model.hop_of(coding).ms,
        cost_usd=platform.hop_usd(coding.bytes) + platform.hop.usd.value * (len(stage.ranges) - 1),
        why=reason,
    )
