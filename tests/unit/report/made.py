"""Made-up comparisons: any number of units, slices and shards, with figures that agree with each other."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from lamella.compare import record
from lamella.plan.document import Predicted
from tests.unit.plan.synthetic import MACHINE

FLOOR_MB = 50.0
OPERATORS = 3
"""Of each unit."""


def unit(k: int) -> record.UnitRecord:
    return record.UnitRecord(
        first=k * OPERATORS, last=(k + 1) * OPERATORS, kinds="Conv+Relu", weight_mb=1.0 + k, live_mb=2.0, ms=1.0 + k % 3
    )


def function(
    name: str, stage: int, units: tuple[int, int], *, memory_mb: int = 128, run_ms: float = 10.0
) -> record.FunctionRecord:
    """Of units `units[0]` to `units[1] - 1`; of none where they are equal."""
    many = max(1, units[1] - units[0])
    uses = tuple(record.Use(1 / many, 3.0 + k) for k in range(many))
    span = (units[0] * OPERATORS, units[1] * OPERATORS)
    return record.FunctionRecord(
        name, memory_mb, 1.0, memory_mb - 4.0, memory_mb - 2.0, memory_mb, run_ms, run_ms * 0.9, stage, *span, uses
    )


def plan(
    name: str,
    functions: Sequence[record.FunctionRecord],
    *,
    cost: float | None = None,
    latency_ms: float | None = None,
    noise: float = 0.02,
    at_once: tuple[int, ...] = (),
    off: float = 1e-6,
) -> record.PlanRecord:
    """Its memory-time is the sum over its functions; cost and latency follow from them where not given."""
    billed = sum(f.memory_mb * f.run_ms for f in functions) / 1000
    used = sum((FLOOR_MB + u.mb) * u.share * f.run_ms for f in functions for u in f.uses) / 1000
    bare = sum(u.mb * u.share * f.run_ms for f in functions for u in f.uses) / 1000
    cost = billed / 10 if cost is None else cost
    p50 = sum(f.run_ms for f in functions) + 1 if latency_ms is None else latency_ms
    return record.PlanRecord(
        planner=name,
        stages=len({f.stage for f in functions}),
        functions=tuple(functions),
        latency_ms=record.Latency(p50, p50 * 1.2, 900.0, p50 * (1 - noise), p50 * (1 + noise)),
        cold_split_ms=record.ColdSplit(1.0, 2.0, 3.0, 4.0, 5.0),
        cost_usd_per_million=cost,
        cost_low=cost * (1 - noise),
        cost_high=cost * (1 + noise),
        vcpu_s=p50 / 1000,
        memory_time_mb_s=record.MemoryTime(billed, billed * 1.1, used, bare),
        efficiency=record.Efficiency(used / billed, used / billed / 1.1),
        peak_memory_mb=sum(f.peak_mb for f in functions),
        major_faults=0,
        output_error=record.OutputError(off, off, off <= record.OUTPUT_TOLERANCE),
        limits="enforced",
        emulated="",
        predicted=Predicted(p50 * 0.9, float(sum(f.planned_mb for f in functions)), cost * 0.9),
        why="because",
        rounds=3,
        rounds_rejected=0,
        at_once=at_once,
    )


def comparison(plans: Sequence[record.PlanRecord], *, units: int = 6, **more: object) -> record.Comparison:
    """Of a model called zoo:made-up on openfaas."""
    fields: dict[str, object] = {
        "model": "zoo:made-up",
        "platform": "openfaas",
        "machine": MACHINE,
        "limits_reason": "",
        "date": "2026-11-22",
        "slo_ms": None,
        "model_hash": "0123456789abcdef",
        "version": "0.1.0",
        "command": ("compare", "zoo:made-up", "--platform", "openfaas"),
        "floor_mb": FLOOR_MB,
        "units": tuple(unit(k) for k in range(units)),
    }
    return record.Comparison(plans=tuple(plans), **{**fields, **more})  # type: ignore[arg-type]


def whole(name: str = "single", *, units: int = 6, memory_mb: int = 512, run_ms: float = 30.0) -> record.PlanRecord:
    """A plan of one function."""
    return plan(name, [function("whole", 0, (0, units), memory_mb=memory_mb, run_ms=run_ms)])


def sharded(name: str = "mopar") -> record.PlanRecord:
    """Six units: a slice, three shards of which two run at a time, whose parts a function of its own joins, a slice."""
    functions = [
        function("stage-1", 0, (0, 2), memory_mb=80, run_ms=9.0),
        *(function(f"stage-2-shard-{k + 1}", 1, (2, 4), memory_mb=96, run_ms=4.0 + k) for k in range(3)),
        function("stage-3-join", 2, (4, 4), memory_mb=64, run_ms=0.5),
        function("stage-4", 3, (4, 6), memory_mb=112, run_ms=7.0),
    ]
    return plan(name, functions, at_once=(1, 2, 1, 1), latency_ms=27.0)


def sample(*, units: int = 6, **more: object) -> record.Comparison:
    """Three plans, one of them with shards."""
    return comparison([whole("ort", memory_mb=1008), whole(), sharded()], units=units, **more)


@st.composite
def plans(draw: st.DrawFn) -> record.PlanRecord:
    """Any stages of any shards, one unit each."""
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    functions = [
        function(
            f"stage-{stage + 1}-{k}",
            stage,
            (stage, stage + 1),
            memory_mb=draw(st.integers(16, 4096)),
            run_ms=draw(st.floats(0.01, 5000)),
        )
        for stage, width in enumerate(widths)
        for k in range(width)
    ]
    return plan("any", functions, at_once=tuple(draw(st.integers(1, w)) for w in widths))
