"""Records of comparisons by hand, for what reads them."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.compare import record
from lamella.machine import this_machine
from lamella.plan.document import Predicted


def plan(
    name: str,
    sizes: Sequence[int],
    run_ms: float,
    cost: float,
    *,
    turns: tuple[record.Turn, ...] = (),
    p95: float = 0.0,
) -> record.PlanRecord:
    functions = tuple(
        record.FunctionRecord(f"stage-{k}", size, 1.0, size, size, size, run_ms / len(sizes), run_ms / len(sizes))
        for k, size in enumerate(sizes)
    )
    return record.PlanRecord(
        planner=name,
        stages=len(sizes),
        functions=functions,
        latency_ms=record.Latency(run_ms, p95 or run_ms, 900.0, run_ms, run_ms),
        cold_split_ms=record.ColdSplit(1.0, 2.0, 3.0, 4.0, 5.0),
        cost_usd_per_million=cost,
        cost_low=cost,
        cost_high=cost,
        vcpu_s=run_ms / 1000,
        memory_time_mb_s=record.MemoryTime(sum(sizes) / len(sizes) * run_ms / 1000, 1.0, 1.0, 1.0),
        efficiency=record.Efficiency(0.5, 0.5),
        peak_memory_mb=float(sum(sizes)),
        major_faults=0,
        output_error=record.OutputError(0.0, 0.0),
        limits="enforced",
        emulated="",
        predicted=Predicted(run_ms, float(sum(sizes)), cost),
        why="",
        rounds=len(turns) or 3,
        turns=turns,
        rounds_rejected=0,
    )


def comparison(platform: str, plans: Sequence[record.PlanRecord]) -> record.Comparison:
    return record.Comparison(
        model="zoo:vgg19",
        platform=platform,
        machine=this_machine(),
        limits_reason="",
        date="2026-11-21",
        slo_ms=None,
        plans=tuple(plans),
    )
