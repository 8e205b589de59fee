"""The table of a comparison: its columns with what they mean, and a row per plan. Terminal and page print the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from lamella.compare.record import Comparison, OutputError, PlanRecord
from lamella.platforms.packing import Packing


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of every plan."""

    name: str
    about: str
    """Its definition, short."""
    of: Callable[[PlanRecord], str]
    is_text: bool = False


def base(record: Comparison) -> PlanRecord:
    """The plan the others' cost is held against: the single function, else the first."""
    return next((p for p in record.plans if p.planner == "single"), record.plans[0])


def sizes(plan: PlanRecord) -> str:
    """The allocations of a plan's functions, equal neighbours once: 80+8x112."""
    runs = [(mb, len(list(same))) for mb, same in groupby(f.memory_mb for f in plan.functions)]
    return "+".join(f"{count}x{mb}" if count > 1 else str(mb) for mb, count in runs)


def money(usd: float) -> str:
    """A cost of a million requests, cents' tenths and at least three digits: 123.456, 0.00123."""
    return f"{usd:.3f}" if usd >= 0.1 or not usd else f"{usd:.3g}" if usd >= 1e-4 else f"{usd:.2e}"


def columns(record: Comparison) -> tuple[Column, ...]:
    """The table's columns."""
    against = base(record)
    return (
        Column("plan", "The planner that made it.", lambda p: p.planner, is_text=True),
        Column("stages", "Steps of the chain; the shards of a step count once.", lambda p: str(p.stages)),
        Column(
            "$/million",
            "Cost of a million requests at the platform's prices, with its rounding, minimums and fees.",
            lambda p: money(p.cost_usd_per_million),
        ),
        Column(
            f"vs {against.planner}",
            f"The cost of {against.planner} over the plan's: above 1 is cheaper.",
            lambda p: f"{against.cost_usd_per_million / p.cost_usd_per_million:.2f}x" if p.cost_usd_per_million else "",
        ),
        Column("p50 ms", "Median latency, from the intended send time.", lambda p: f"{p.latency_ms.p50:.1f}"),
        Column("p95", "Latency that 95 of 100 requests keep, ms.", lambda p: f"{p.latency_ms.p95:.1f}"),
        Column(
            "cold",
            "Latency of the first request: no instance running, no file in the page cache, ms.",
            lambda p: f"{p.latency_ms.cold:.0f}",
        ),
        Column(
            "allocated MB",
            "For each function the smallest size sold that holds its peak and at which, under the enforced limit, it "
            "is as quick as without.",
            sizes,
            is_text=True,
        ),
        Column("peak MB", "VmHWM, summed over the functions.", lambda p: f"{p.peak_memory_mb:.0f}"),
        Column("vCPU-s", "CPU time of one request.", lambda p: f"{p.vcpu_s:.3f}"),
        Column(
            "billed MB-s",
            "Allocation × the time the function runs, summed over the functions, after the platform's rounding.",
            lambda p: f"{p.memory_time_mb_s.billed:.1f}",
        ),
        Column(
            "resident",
            "Allocation × the time the functions stay up: the whole request, MB-s.",
            lambda p: f"{p.memory_time_mb_s.resident:.1f}",
        ),
        Column(
            "efficiency",
            "Used over billed memory-time. Used is the runtime floor with the weights and live tensors of the unit "
            "that is running, by one formula for every plan.",
            lambda p: f"{p.efficiency.billed:.0%}",
        ),
        Column(
            "error",
            "Largest difference of the answers from the whole model's, of the output's range; of a plan with lossy "
            "codecs what its metric says, too. BROKEN where that is not allowed.",
            lambda p: _error(p.output_error),
        ),
        Column(
            "predicted",
            "How far the predicted latency was from p50.",
            lambda p: f"{p.predicted.latency_ms / p.latency_ms.p50 - 1:+.1%}",
        ),
        Column(
            "rejected",
            "Rounds thrown away and run again, because a known load beside them was slow.",
            lambda p: str(p.rounds_rejected),
        ),
        Column(
            "noisy kept",
            "Rounds kept all the same, after too many had been rejected: their noise is in the figures.",
            lambda p: str(p.rounds_noisy_kept),
        ),
    )


def _error(error: OutputError) -> str:
    """By law 3, and by what the plan's lossy codecs were judged by."""
    by = f" {error.judged.metric} {error.judged.measured:.2g}" if error.judged else ""
    return f"{error.max_rel:.0e}{by}" + ("" if error.within_tolerance else " BROKEN")


def _packed(of: Callable[[Packing], str]) -> Callable[[PlanRecord], str]:
    return lambda plan: of(plan.packing) if plan.packing else ""


NODE_COLUMNS = (
    Column("on a node of one's own cluster", "The planner that made it.", lambda p: p.planner, is_text=True),
    Column(
        "functions",
        "Instances on a node, in the proportions that serve the most requests.",
        _packed(lambda n: f"{n.functions:.1f}"),
    ),
    Column("requests/hour", "Per node, every instance busy.", _packed(lambda n: f"{n.requests_per_hour:,.0f}")),
    Column("bound by", "What a node runs out of first.", _packed(lambda n: n.bound), is_text=True),
)
"""Of the plans that have a packing."""
