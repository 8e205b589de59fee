"""The question that a plan answers, and choices that answer one as a plan."""

from __future__ import annotations

import msgspec

from lamella.plan.document import Plan
from lamella.plan.explanation.loosen import Asked
from lamella.plan.make import document
from lamella.plan.planners.planner import Candidate, Decision
from lamella.plan.planners.space import Chosen
from lamella.profile.scaling import at


def answered(asked: Asked, plan: Plan) -> tuple[Asked, Plan]:
    """The question that a plan answers: of as many rows as share a run, with what these wait taken off the SLO.

    Its percentile is that of requests that find their functions ready.
    """
    request, platform = asked.request, asked.platform.on(plan.architecture)
    slo = None if plan.slo_ms is None else plan.slo_ms - plan.wait_ms
    rate = plan.cold.rate_per_s if plan.cold else request.rate_per_s
    request = request._replace(
        slo_ms=slo, batch=plan.batch, rate_per_s=rate, max_batch=1, architecture=plan.architecture, ready=True
    )
    profile = asked.profile
    if asked.request.max_batch > 1:  # of the most rows and of one: what was not measured is scaled
        threads = max(v.threads for v in profile.variants)
        profile = at(profile, asked.graph, batch=plan.batch, threads=threads)
    asked = asked._replace(request=request, platform=platform, profile=profile)
    return asked, msgspec.structs.replace(plan, slo_ms=slo, wait_ms=0.0)


def laid_out(asked: Asked, chosen: Chosen, name: str) -> Plan:
    """Choices as a plan."""
    candidate = Candidate(name, chosen.choices, chosen.latency_ms, chosen.cost_usd)
    decision = Decision(candidate, "", (), chosen.codings, asked.request.percentile)
    return document(asked.model(), decision, name, asked.given, asked.request)
