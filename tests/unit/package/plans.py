"""Plans written by hand: only what the package reads is meaningful."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lamella.graph.model import Graph
from lamella.machine import this_machine
from lamella.plan.document import FunctionPlan, ModelRef, Plan, Predicted
from lamella.runtime.function import Kind


def plan_of(graph: Graph, cuts: Sequence[int], kind: Kind = "packaged", batch: int = 1) -> Plan:
    """A plan that divides `graph` at `cuts` into functions named stage-1, stage-2, ..."""
    marks = [0, *cuts, len(graph.operators)]
    return Plan(
        model=ModelRef(
            given=str(graph.source),
            name=graph.name,
            hash=graph.hash,
            shapes={n: graph.tensors[n].shape for n in graph.inputs},
            outputs=graph.outputs,
        ),
        machine=this_machine(),
        platform="openfaas",
        planner="by hand",
        slo_ms=None,
        batch=batch,
        shards=(),
        at_once=(1,) * (len(marks) - 1),
        functions=tuple(
            FunctionPlan(
                name=f"stage-{i}",
                stage=i - 1,
                first=first,
                last=last,
                kind=kind,
                memory_mb=128,
                vcpu=1.0,
                threads=1,
                layout="plain",
                peak_mb=100.0,
                floor_mb=100.0,
                run_ms=1.0,
                cost_usd=0.0,
                package_mb=1.0,
                why="a test",
            )
            for i, (first, last) in enumerate(pairwise(marks), 1)
        ),
        hops=(),
        predicted=Predicted(1.0, 128.0, 0.0),
        slack=(),
        losers=(),
        why="a test",
    )
