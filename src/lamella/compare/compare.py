"""Deploy every plan for real, let them take turns, and measure by the definitions in docs/architecture.md."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from lamella import __version__
from lamella.compare.contenders import deployed, expected, ground, output_error
from lamella.compare.feed import feed
from lamella.compare.field import Field
from lamella.compare.measures import Seen, plan_record, unit_records
from lamella.compare.record import Comparison
from lamella.compare.rounds import run_rounds
from lamella.deploy.sizing import allocate
from lamella.graph.model import Graph
from lamella.limits import Limiter, detect
from lamella.package import build
from lamella.plan.document import Plan
from lamella.plan.laws import payload, payloads
from lamella.plan.make import make_plan
from lamella.plan.request import Request
from lamella.platforms import Platform
from lamella.profile.document import Profile
from lamella.scratch import scratch

Progress = Callable[[float, str], None]
DEFAULT_PLANNERS = ("ort", "single", "uniform-4", "mopar", "exact")
CHECKED = 3
"""How many requests are answered by the unoptimised whole model too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is asked of a comparison."""

    given: str
    """What the user called the model."""
    planners: Sequence[str] = DEFAULT_PLANNERS
    """Names; those whose plan fails are listed with the reason."""
    request: Request = field(default_factory=Request)
    """What the planners are asked."""
    plans: Mapping[str, Plan] = field(default_factory=dict)
    """Made already, by planner; the others' are made here."""
    requests: int = 40
    """Per plan, in rounds of four."""
    over_s: float = 0.0
    """Rounds begin evenly over so many seconds at least."""
    inputs: Sequence[Mapping[str, np.ndarray]] | None = None
    """The user's own requests, used in turn; random ones by default."""
    command: Sequence[str] = ()
    """Arguments of the program, where it asks."""


def compare(
    graph: Graph,
    profile: Profile,
    platform: Platform,
    settings: Settings,
    *,
    limiter: Limiter | None = None,
    progress: Progress = lambda share, what: None,
) -> Comparison:
    """What each planner's plan really costs here.

    Args:
        graph: the model.
        profile: of it, on this machine.
        platform: whose sizes, prices and CPU rule apply.
        settings: which planners, how many requests, and the rest.
        limiter: how limits are enforced.
        progress: told how far it is.

    A plan that cannot be made, packaged, allocated or started, or is lost while it answers, is listed in `failed`.

    Raises:
        ConfigError: random values are asked for an integer input of unknown range.
        InputRefused: the model itself cannot take a request.
        PlatformLimit: a request or its answer is larger than the platform's payload.
        LamellaError: the last plan's failure, when no plan is left.
    """
    request = settings.request
    for error in payloads(graph, request.batch, platform):
        raise error
    draw = feed(graph, request.batch, settings.inputs, request.ranges)
    limiter = limiter or detect()
    entrants = Field()

    def part(begin: float, end: float, what: str) -> Callable[[float, str], None]:
        return lambda share, name: progress(begin + (end - begin) * share, f"{what} {name}")

    plans = entrants.each(
        dict.fromkeys(settings.planners),
        lambda name: (
            settings.plans.get(name) or make_plan(graph, profile, platform, name, given=settings.given, request=request)
        ),
        part(0.0, 0.1, "planning"),
    )
    with (
        scratch("compare") as space,
        ground(platform, limiter, list(plans.values()), settings.request.objects) as on,
        ExitStack() as stack,
    ):
        feeds = [draw() for _ in range(CHECKED)]
        answers = expected(graph, space / "reference", feeds)
        for answer in answers:  # of a model with dynamic outputs only now
            for error in payload("an answer", sum(a.nbytes for a in answer.values()), platform):
                raise error
        packages = entrants.each(
            plans, lambda name: build(plans[name], graph, space / name), part(0.1, 0.3, "packaging")
        )
        allocations = entrants.each(
            packages, lambda name: allocate(space / name, draw(), platform, limiter), part(0.3, 0.6, "allocating")
        )
        contenders = entrants.each(
            allocations,
            lambda name: stack.enter_context(deployed(on, plans[name], space / name, allocations[name], draw())),
            part(0.6, 0.65, "cold start of"),
        )
        errors = entrants.each(
            contenders,
            lambda name: output_error(contenders[name].deployment, feeds, answers, request.judge),
            part(0.65, 0.7, "checking answers of"),
        )
        faults = {name: contenders[name].faults() for name in errors}
        per_round = 4 if settings.requests >= 12 else 1
        rounds = run_rounds(
            {name: contenders[name].deployment for name in errors},
            draw,
            rounds=max(1, settings.requests // per_round),
            per_round=per_round,
            over_s=settings.over_s,
            tick=lambda share: progress(0.7 + 0.3 * share, "interleaved rounds"),
        )
        for name, loss in rounds.lost.items():
            entrants.lose(name, loss)
        entrants.check(rounds.samples)
        seen = [
            Seen(
                plan=c.plan,
                allocation=c.allocation,
                cold_ms=c.cold_ms,
                cold=c.cold,
                error=errors[name],
                faults=c.faults() - faults[name],
                peak_mb=c.peak_mb(),
                enforced=limiter.enforced,
                refused=packages[name].refused,
            )
            for name, c in contenders.items()
            if name in rounds.samples
        ]
    progress(1.0, "done")
    return Comparison(
        model=settings.given,
        platform=platform.name,
        machine=profile.machine,
        limits_reason=limiter.reason,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        slo_ms=request.slo_ms,
        batch=request.batch,
        plans=tuple(plan_record(s, rounds, graph, profile, platform) for s in seen),
        failed=entrants.failed,
        model_hash=graph.hash,
        version=__version__,
        command=tuple(settings.command),
        floor_mb=profile.floor.resident_mb,
        units=unit_records(graph, profile, request.batch),
    )
