"""Deploy every plan for real, let them take turns, and measure by the definitions in docs/architecture.md."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from lamella.compare.contenders import deployed, expected, ground, output_error
from lamella.compare.feed import feed
from lamella.compare.measures import Seen, plan_record
from lamella.compare.record import Comparison
from lamella.compare.rounds import run_rounds
from lamella.deploy.sizing import allocate
from lamella.errors import ConfigError, InfeasiblePlan, PlatformLimit
from lamella.graph.model import Graph
from lamella.limits import Limiter, detect
from lamella.package import build
from lamella.plan.document import Plan
from lamella.plan.make import make_plan
from lamella.platforms import Platform
from lamella.profile.document import Profile
from lamella.scratch import scratch

Progress = Callable[[float, str], None]
DEFAULT_PLANNERS = ("ort", "ort-default", "single", "uniform-4", "mopar")
CHECKED = 3
"""How many requests are answered by the unoptimised whole model too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is asked of a comparison."""

    given: str
    """What the user called the model."""
    planners: Sequence[str] = DEFAULT_PLANNERS
    """Names; those that find no plan are listed with the reason."""
    slo_ms: float | None = None
    """Passed to the planners, as is `max_stages`."""
    max_stages: int = 8
    vcpu: float = 1.0
    """Per function where the platform lets one choose."""
    batch: int = 1
    """Rows per request."""
    requests: int = 40
    """Per plan, in rounds of four."""
    inputs: Sequence[Mapping[str, np.ndarray]] | None = None
    """The user's own requests, used in turn; random ones by default."""
    ranges: Mapping[str, tuple[float, float]] | None = None
    """Value ranges of integer inputs."""


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

    Raises:
        ConfigError: random values are asked for an integer input of unknown range.
    """
    draw = feed(graph, settings.batch, settings.inputs, settings.ranges)
    limiter = limiter or detect()
    plans, failed = _plans(graph, profile, platform, settings, progress)
    with (
        scratch("compare") as space,
        ground(platform, limiter, list(plans.values())) as on,
        ExitStack() as stack,
    ):
        for k, (name, plan) in enumerate(plans.items()):
            progress(0.1 + 0.2 * k / len(plans), f"packaging {name}")
            build(plan, graph, space / name)
        allocations = {}
        for k, name in enumerate(plans):
            progress(0.3 + 0.3 * k / len(plans), f"allocating {name} by the rule")
            allocations[name] = allocate(space / name, draw(), platform, limiter)
        contenders = {}
        for k, (name, plan) in enumerate(plans.items()):
            progress(0.6 + 0.05 * k / len(plans), f"cold start of {name}")
            contenders[name] = stack.enter_context(deployed(on, plan, space / name, allocations[name], draw()))
        progress(0.67, "checking answers")
        feeds = [draw() for _ in range(CHECKED)]
        answers = expected(graph, space / "reference", feeds)
        errors = {name: output_error(c.deployment, feeds, answers) for name, c in contenders.items()}
        faults = {name: c.faults() for name, c in contenders.items()}
        per_round = 4 if settings.requests >= 12 else 1
        rounds = run_rounds(
            {name: c.deployment for name, c in contenders.items()},
            draw,
            rounds=max(1, settings.requests // per_round),
            per_round=per_round,
            tick=lambda share: progress(0.7 + 0.3 * share, "interleaved rounds"),
        )
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
            )
            for name, c in contenders.items()
        ]
    progress(1.0, "done")
    return Comparison(
        model=settings.given,
        platform=platform.name,
        machine=profile.machine,
        limits_reason=limiter.reason,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        slo_ms=settings.slo_ms,
        plans=tuple(plan_record(s, rounds, graph, profile, platform) for s in seen),
        failed=failed,
    )


def _plans(
    graph: Graph, profile: Profile, platform: Platform, settings: Settings, progress: Progress
) -> tuple[dict[str, Plan], dict[str, str]]:
    plans: dict[str, Plan] = {}
    failed: dict[str, str] = {}
    last: InfeasiblePlan | PlatformLimit | None = None
    for k, name in enumerate(dict.fromkeys(settings.planners)):
        progress(0.1 * k / len(settings.planners), f"planning {name}")
        try:
            plans[name] = make_plan(
                graph,
                profile,
                platform,
                name,
                given=settings.given,
                slo_ms=settings.slo_ms,
                max_stages=settings.max_stages,
                batch=settings.batch,
                vcpu=settings.vcpu,
                ranges=settings.ranges,
            )
        except (InfeasiblePlan, PlatformLimit) as error:
            failed[name] = str(error)
            last = error
    if not plans:
        raise last or ConfigError("no planner is named", try_="--planners ort,single,mopar")
    return plans, failed
