"""A plan made by hand: slices at given cuts, without a profile. For trying things out; nothing in it is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lamella.errors import ConfigError
from lamella.graph.cuts import legal_cuts
from lamella.graph.model import Graph
from lamella.machine import this_machine
from lamella.plan.document import FunctionPlan, Hop, Plan, Predicted, model_ref
from lamella.platforms import Platform
from lamella.units import MB

ROOM_MB = 160
"""For the runtime, the session and workspaces; generous, since nothing was measured."""


def plan_by_hand(graph: Graph, positions: Sequence[int], platform: Platform, *, given: str, vcpu: float = 1.0) -> Plan:
    """Slices between `positions`, each given its weights, twice its live activations and ample room.

    Raises:
        ConfigError: a position is no legal cut.
    """
    cuts = {c.position: c for c in legal_cuts(graph)[0]}
    for position in positions:
        if position not in cuts:
            raise ConfigError(f"{graph.name} cannot be cut at operator {position}", try_="lamella inspect MODEL")
    marks = [0, *positions, len(graph.operators)]
    functions = []
    for i, (first, last) in enumerate(pairwise(marks)):
        held = (graph.weight_bytes(first, last) + graph.live_bytes(first, last)) / MB
        size = platform.allocation_mb(ROOM_MB + held + graph.live_bytes(first, last) / MB)
        functions.append(
            FunctionPlan(
                name="whole" if len(marks) == 2 else f"stage-{i + 1}",
                first=first,
                last=last,
                kind="packaged",
                memory_mb=size or int(platform.memory.max_mb.value),
                vcpu=vcpu,
                threads=1,
                prepack=False,
                peak_mb=ROOM_MB + held,
                floor_mb=held,
                run_ms=0.0,
                cost_usd=0.0,
                package_mb=graph.weight_bytes(first, last) / MB,
                why="by hand",
            )
        )
    hops = tuple(
        Hop(
            position=p,
            tensors=cuts[p].tensors,
            side=cuts[p].side,
            bytes=cuts[p].bytes,
            channel=platform.hop.channel,
            codec="none",
            time_ms=0.0,
            cost_usd=0.0,
            why="by hand",
        )
        for p in positions
    )
    return Plan(
        model=model_ref(graph, given),
        machine=this_machine(),
        platform=platform.name,
        planner="by-hand",
        slo_ms=None,
        batch=1,
        functions=tuple(functions),
        hops=hops,
        predicted=Predicted(0.0, float(sum(f.memory_mb for f in functions)), 0.0),
        slack=(),
        losers=(),
        why=f"cut by hand at {', '.join(map(str, positions)) or 'nothing'}",
    )
