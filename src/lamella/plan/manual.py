"""A plan made by hand: slices at given cuts, without a profile. For trying things out; nothing in it is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lamella.errors import ConfigError
from lamella.graph.cuts import legal_cuts
from lamella.graph.divide import ShardSpan, shard
from lamella.graph.model import Graph
from lamella.machine import this_machine
from lamella.plan.document import FunctionPlan, Hop, Plan, Predicted, model_ref
from lamella.plan.layout import crossing, stage_ranges
from lamella.platforms import Platform
from lamella.units import MB

ROOM_MB = 160
"""For the runtime, the session and workspaces; generous, since nothing was measured."""


def plan_by_hand(
    graph: Graph,
    positions: Sequence[int],
    platform: Platform,
    *,
    given: str,
    vcpu: float = 1.0,
    shards: Sequence[ShardSpan] = (),
    at_once: int = 1,
    codec: str = "none",
) -> Plan:
    """Slices between `positions` and around `shards`, given their weights, twice their live activations, ample room.

    Hops have the codec, but for those of shards.

    Raises:
        ConfigError: a position is no legal cut.
        ShardRefused: a span cannot be divided.
    """
    legal = {c.position for c in legal_cuts(graph)[0]}
    count = len(graph.operators)
    ends = {end for s in shards for end in (s.first, s.last)} - {0, count}
    for position in {*positions, *ends}:
        if position not in legal:
            raise ConfigError(f"{graph.name} cannot be cut at operator {position}", try_="lamella inspect MODEL")
    marks = [0, *sorted({*positions, *ends}), count]
    divided = shard(graph, shards)
    made = divided.graph
    stages = [spans for spans, _ in stage_ranges(list(pairwise(marks)), divided)]
    functions = []
    for number, spans in enumerate(stages):
        for k, (first, last) in enumerate(spans):
            held = (made.weight_bytes(first, last) + made.live_bytes(first, last)) / MB
            size = platform.allocation_mb(ROOM_MB + held + made.live_bytes(first, last) / MB, vcpu)
            name = "whole" if len(stages) == 1 else f"stage-{number + 1}"
            functions.append(
                FunctionPlan(
                    name=name if len(spans) == 1 else f"{name}-shard-{k + 1}",
                    stage=number,
                    first=first,
                    last=last,
                    kind="packaged",
                    memory_mb=size or int(platform.most_mb(vcpu)),
                    vcpu=vcpu,
                    threads=1,
                    layout="plain",
                    peak_mb=ROOM_MB + held,
                    floor_mb=held,
                    run_ms=0.0,
                    cost_usd=0.0,
                    package_mb=made.weight_bytes(first, last) / MB,
                    why="by hand",
                )
            )
    hops = []
    for before, spans in pairwise(stages):
        tensors, side = crossing(made, spans[0][0])
        size = sum(made.tensors[n].bytes_at() for n in (*tensors, *side))
        hops.append(
            Hop(
                position=spans[0][0],
                tensors=tensors,
                side=side,
                bytes=size,
                encoded_bytes=size,
                channel=platform.hop.channel,
                codec="none" if max(len(before), len(spans)) > 1 else codec,
                time_ms=0.0,
                cost_usd=0.0,
                why="by hand",
            )
        )
    return Plan(
        model=model_ref(graph, given),
        machine=this_machine(),
        platform=platform.name,
        channel=platform.hop.channel,
        planner="by-hand",
        slo_ms=None,
        batch=1,
        shards=tuple(sorted(shards, key=lambda s: s.first)),
        at_once=tuple(min(at_once, len(spans)) for spans in stages),
        functions=tuple(functions),
        hops=tuple(hops),
        predicted=Predicted(0.0, float(sum(f.memory_mb for f in functions)), 0.0),
        slack=(),
        losers=(),
        why=f"cut by hand at {', '.join(map(str, positions)) or 'nothing'}",
    )
