"""Plans written by hand: only what the package reads is meaningful."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from lamella.graph.model import Graph
from lamella.machine import this_machine
from lamella.plan.document import FunctionPlan, ModelRef, Plan, Predicted, Slack
from lamella.runtime.function import Kind
from lamella.units import MB


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


def limited_to(plan: Plan, size: int) -> Plan:
    """The plan as held against a platform whose packages have at most so many bytes."""
    return msgspec.structs.replace(plan, slack=(Slack("package", size / MB, 1.0, "MB"),))
