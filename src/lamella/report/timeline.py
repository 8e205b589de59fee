"""What a request goes through on each platform, on one scale of time; and what it costs, on one scale of money.

Prices of platforms are powers of ten apart, so money has a scale of powers of ten. A plan without a cost has no place
on one, and no dot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lamella.plan.document import FunctionPlan, Plan
from lamella.plan.explanation.places import Places
from lamella.report.scales import Label, inside, number, tick, ticks
from lamella.report.strip import BAR_PX, SHARD_PX, Bar, Lane
from lamella.runtime.lanes import makespan

DOT_PX = 18
"""Height of a row of money."""
AXIS_PX = 20


@dataclass(frozen=True, slots=True)
class Timeline:
    """The figure: a lane per platform, and numbers of time under the last."""

    lanes: tuple[Lane, ...]
    across: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class Dot:
    """A platform's cost: percent across, pixels down."""

    x: float
    y: float
    name: str
    text: str
    best: bool


@dataclass(frozen=True, slots=True)
class Money:
    """The figure."""

    dots: tuple[Dot, ...]
    across: tuple[Label, ...]
    height: float


def timeline(places: Places) -> Timeline:
    """Functions as bars from the request's arrival on, hops as the gaps between."""
    plans = places.possible
    most = max(plan.predicted.latency_ms for _, plan in plans)
    lanes = tuple(_lane(place.platform, plan, most) for place, plan in plans)
    across = tuple(Label(100 * v / most, 13, f"{tick(v)} ms" if v else "0") for v in ticks(0, most, 5))
    return Timeline(lanes, across)


def _lane(name: str, plan: Plan, most_ms: float) -> Lane:
    stages = plan.by_stage()
    height = float(max(BAR_PX, max(len(s) for s in stages) * SHARD_PX))
    hops = [h.time_ms for h in plan.hops]
    runs = [makespan([f.run_ms for f in stage], many) for stage, many in zip(stages, plan.at_once, strict=True)]
    entry = max(0.0, plan.predicted.latency_ms - sum(runs) - sum(hops))
    bars: list[Bar] = []
    at = entry / 2  # to the first function; the other half is the way back
    for stage, run, hop in zip(stages, runs, [*hops, 0.0], strict=True):
        bars += _bars(stage, at / most_ms * 100, run / most_ms * 100, height)
        at += run + hop
    about = f"{said(plan)}; {number(plan.predicted.latency_ms)} ms"
    return Lane(name, about, tuple(bars), (), height)


def _bars(stage: Sequence[FunctionPlan], left: float, width: float, height: float) -> list[Bar]:
    """A stage; its shards above each other, all as long as the stage is."""
    tall = height / len(stage)
    kind = "shard" if len(stage) > 1 else "slice"
    return [
        Bar(
            left,
            width,
            k * tall,
            tall,
            kind,
            inside(left, width, height / 2 + 4, f"{f.memory_mb} MB") if kind == "slice" else (),
            f"{f.name}: {f.memory_mb} MB, {f.vcpu:.2f} vCPU, {number(f.run_ms)} ms",
        )
        for k, f in enumerate(stage)
    ]


def said(plan: Plan) -> str:
    """How a plan is divided, in a few words."""
    count = len(plan.functions)
    sharded = sum(len(stage) > 1 for stage in plan.by_stage())
    found = "one function" if count == 1 else f"{count} functions"
    if sharded:
        found += f" in {plan.stages} stages, {sharded} of shards"
    return found


def money(places: Places) -> Money | None:
    """The figure; None where fewer than two plans cost something."""
    costs = [(p.platform, plan.request_usd) for p, plan in places.possible]
    known = [(name, usd) for name, usd in costs if usd > 0]
    if len(known) < 2:
        return None
    low = math.floor(math.log10(min(usd for _, usd in known)) + 1e-9)
    high = max(low + 1, math.ceil(math.log10(max(usd for _, usd in known)) - 1e-9))

    def x(usd: float) -> float:
        return 100 * (math.log10(usd) - low) / (high - low)

    best = min(usd for _, usd in known)
    dots = tuple(
        Dot(x(usd), (k + 1) * 2 * DOT_PX - 7, name, f"${number(usd)}", usd == best)
        for k, (name, usd) in enumerate(known)
    )
    height = len(known) * 2 * DOT_PX + AXIS_PX
    between = (1, 2, 5) if high - low <= 2 else (1,)
    at = [m * 10.0**k for k in range(low, high) for m in between] + [10.0**high]
    across = tuple(Label(x(usd), height - 4, f"${tick(usd)}", anchor=_side(x(usd))) for usd in at)
    return Money(dots, across, height)


def _side(x: float) -> str:
    """Where a number stands, so that those at the ends stay within."""
    return "start" if x < 1 else "end" if x > 99 else "middle"
