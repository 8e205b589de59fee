"""Holds plans to a percentile of latency whose planner bounds the mean, as those of the literature do.

The planner is asked for the mean that leaves room for the spread. How much room a plan needs is known when it is there:
the first bound is that of a plan that spreads as little as any. While plans are late it is tightened, at first to just
below the plan that was, so that the next one is not passed over, then by what it is late. It is one model all the
while, so that nothing is priced anew for another bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lamella.errors import InfeasiblePlan
from lamella.plan.document import Plan, deviations
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.spread import stretch, variances
from lamella.plan.request import Request
from lamella.profile.document import Variant

TRIES = 10
SMALL = 3
"""Of them with the smallest step there is."""
EXACT = 1e-9


def held(model: SliceModel, request: Request, planned: Callable[[Request], Plan]) -> Plan:
    """The plan of a planner that bounds the mean, for a bound on the percentile that is asked for.

    Args:
        model: prices.
        request: what is asked.
        planned: the plan for a request whose bound is on the mean.

    Raises:
        InfeasiblePlan: no bound on the mean makes the planner keep the percentile.
    """
    slo = request.slo_ms
    if slo is None or not request.percentile:
        return planned(request)
    mean = _mean_ms(model, slo, request.percentile)
    for number in range(TRIES):
        plan = planned(request._replace(slo_ms=mean, asked_ms=slo))
        if plan.bounded_ms <= slo * (1 + EXACT):
            return plan
        late_ms = 0.0 if number < SMALL else (plan.bounded_ms - slo) / stretch(model, request.percentile)
        mean = min(mean, plan.predicted.latency_ms - late_ms) * (1 - EXACT)
    raise InfeasiblePlan(
        f"latency: the plans of {plan.planner} for means down to {mean:.1f} ms take {plan.bounded_ms:.1f} ms{plan.at}",
        where=f"--slo-ms {slo:g}",
        try_="--planner exact",
    )


def _mean_ms(model: SliceModel, slo_ms: float, percentile: float) -> float:
    """The mean of a plan that just keeps the bound, if it spreads as little as the model's units may by themselves.

    On several threads they take, and spread, at best as much less.
    """
    units = min(float(variances(model, Variant(model.batch, layout, 1)).sum()) for layout in model.layouts)
    units /= max(variant.threads for variant in model.profile.variants) ** 2
    room = deviations(percentile) * math.sqrt(units + model.hops.cost.deviation_ms**2)
    return max(0.0, slo_ms - room) / stretch(model, percentile)
