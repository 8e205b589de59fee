"""What explaining says, as documents: plans in figures, other kinds, prices of constraints, ways out of a refusal."""

from __future__ import annotations

import msgspec

from lamella.documents import Document
from lamella.machine import Machine
from lamella.plan.document import ModelRef, Orders, Plan


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """A plan in figures. Memory is the sum of its allocations."""

    stages: int
    functions: int
    sharded: int
    """Stages that are shards."""
    codecs: tuple[str, ...]
    """Of hops that do not go plain."""
    memory_mb: float
    latency_ms: float
    """On average."""
    bounded_ms: float
    """At the percentile that the explained plan is held to; the mean where it is held to none."""
    cost_usd_per_million: float
    """Its share of starts included, where a rate of requests is given."""


class Other(msgspec.Struct, frozen=True):
    """The best plan of another kind; none where there is none, and why."""

    kind: str
    plan: Outline | None
    why: str


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """A constraint, and what loosening it alone saves, USD per million requests. Planned again, each time."""

    constraint: str
    unit: str
    limit: float
    used: float
    """By the plan that is explained."""
    step: float
    one_saves: float
    """With a step more."""
    next_limit: float | None
    """The least that saves anything; none where nothing does."""
    next_saves: float
    most_saves: float
    """With no limit at all."""
    how: str


class Explanation(Document, frozen=True, kw_only=True):
    """`lamella explain --json`."""

    model: ModelRef
    machine: Machine
    """Where the profile behind it was measured."""
    platform: str
    planner: str
    slo_ms: float | None
    """As it was asked."""
    percentile: float | None
    """Of latency, that it bounds; none: the mean."""
    cap_ms: float | None
    """What latency was allowed: the SLO, or without one a little above the single function's."""
    batch: int
    chosen: Outline
    cheapest: Outline
    """The cheapest plan there is within the same bounds."""
    others: tuple[Other, ...]
    prices: tuple[Price, ...]
    why: str
    orders: Orders | None = None
    """What plans in another order of units could save of the cheapest one's cost; none where nothing is known."""


class Way(msgspec.Struct, frozen=True):
    """How far a constraint has to give way, and the cheapest plan there is then."""

    constraint: str
    unit: str
    limit: float
    needed: float
    plan: Outline


class Refusal(Document, frozen=True, kw_only=True):
    """`lamella explain --json` of a request that no plan satisfies."""

    model: ModelRef
    platform: str
    slo_ms: float | None
    batch: int
    error: str
    together: bool
    """Whether all the ways are needed at once; else any of them will do."""
    ways: tuple[Way, ...]
    """The nearest first: by how much of itself a limit has to grow."""


def outline(plan: Plan, percentile: float | None) -> Outline:
    """A plan in figures, its latency at a percentile beside its mean."""
    return Outline(
        stages=plan.stages,
        functions=len(plan.functions),
        sharded=sum(len(stage) > 1 for stage in plan.by_stage()),
        codecs=tuple(dict.fromkeys(h.codec for h in plan.hops if h.codec != "none")),
        memory_mb=plan.predicted.memory_mb,
        latency_ms=plan.predicted.latency_ms,
        bounded_ms=msgspec.structs.replace(plan, percentile=percentile).bounded_ms,
        cost_usd_per_million=plan.charged_usd,
    )
