"""How candidates are judged: which is taken, why another one lost, and what is said where none will do.

Without an SLO cost is weighed against latency, by three shares (decision 7).
"""

from __future__ import annotations

import math

from lamella.errors import InfeasiblePlan, ModelError
from lamella.plan.planners.planner import Candidate
from lamella.plan.planners.search import NEAR, cheapest
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.spread import bounded_ms
from lamella.plan.request import Request
from lamella.units import MB, digits

LATENCY_MARGIN = 1.025
"""Without an SLO a divided plan may take this much of the single function's predicted latency."""
BAND = 0.05
"""Without an SLO latency counts, too: of the plans within this share of the least cost that of least cost x latency."""
WORTH = 0.10
"""Without an SLO a division has to save this share of the single function's cost: less is within prediction's error."""


MOST_EXACT = 4_000_000
"""Slices of `exact`, which holds them in arrays: a gigabyte is enough."""
MOST_LOOKS = 500_000
"""Slices, times the sizes tried, of a planner that holds each as an object: gigabytes and minutes."""


def refuse_too_many(model: SliceModel, looks: int, what: str = "slices", most: int = MOST_LOOKS) -> None:
    """Where a planner would look at more than memory and patience are for.

    Raises:
        ModelError: says how many, and what divides such models all the same.
    """
    if looks > most:
        raise ModelError(
            f"{model.graph.name} has {model.units} units, which are {looks:,} {what} to look at: "
            f"more than the {most:,} that this planner is for",
            try_="--planner uniform-8 or single" + (", or exact" if exact_rows(model) <= MOST_EXACT else ""),
        )


def exact_rows(model: SliceModel) -> int:
    """Slices with their layouts, which all choices at once are searched for."""
    return model.units * (model.units + 1) // 2 * len(model.layouts)


def band(request: Request) -> float:
    """Within what share of the least cost latency counts: hardly under an SLO, or law 8 would break."""
    return BAND if request.slo_ms is None else NEAR


def cheapest_of(candidates: list[Candidate]) -> Candidate:
    """Of those within 1 % of the least cost the one with the least cost x latency."""
    best = cheapest(candidates)
    assert best is not None
    return best


def within(candidates: list[Candidate], request: Request, model: SliceModel) -> Candidate:
    """The cheapest of them within the SLO; InfeasiblePlan where none keeps it."""
    feasible = [c for c in candidates if request.slo_ms is None or c.latency_ms <= request.slo_ms]
    if not feasible:
        raise infeasible(model, candidates, request)
    return cheapest_of(feasible)


def lost(candidate: Candidate, chosen: Candidate, request: Request) -> str:
    """Why a candidate was not chosen."""
    if request.slo_ms is not None and candidate.latency_ms > request.slo_ms:
        cap = f"{request.slo_ms:.1f} ms{_average(request)}"
        return f"{candidate.latency_ms - request.slo_ms:.1f} ms over the latency cap of {cap}"
    more = candidate.cost_usd / chosen.cost_usd - 1 if chosen.cost_usd else 0.0
    if more > 0.0005:
        return f"{more:.1%} dearer"
    slower = candidate.latency_ms - chosen.latency_ms
    if more < -NEAR:
        if len(chosen.choices) == 1:
            return f"{-more:.1%} cheaper, less than the {WORTH:.0%} that a division has to save without an SLO"
        return f"{-more:.1%} cheaper, {slower:.1f} ms slower: not worth it, a percent for a percent"
    return f"as cheap, {slower:.1f} ms slower" if slower > 0 else "as cheap, with more functions"


def infeasible(
    model: SliceModel, candidates: list[Candidate], request: Request, looked_at: str = "no plan"
) -> InfeasiblePlan:
    """Which constraint binds, by how much, and the nearest feasible plan.

    Args:
        model: prices.
        candidates: plans that break the SLO; none where no plan is legal.
        request: what was asked.
        looked_at: what does not answer in time, where that is not every plan there is.
    """
    if not candidates:
        peak, law = model.memory_mb(0, model.units, layout="plain")
        worst = max((max(model.memory_mb(u, u + 1, layout="plain")), u) for u in range(model.units))
        unit = model.profile.units[worst[1]]
        most, package = model.platform.most_mb(model.vcpu), model.platform.limits.package_mb.value
        shipped = [model.graph.weight_bytes(*model.span(u, u + 1)) / MB for u in range(model.units)]
        whole = model.graph.weight_bytes(*model.span(0, model.units)) / MB  # less than the sum where units share some
        divided = worst[0] <= most and max(shipped) <= package
        crossing = _too_wide(model) if divided else ""
        hint = "--planner mopar, or more --max-stages" if divided and not crossing else "another --platform"
        if model.platform.allocation_mb(max(peak, law), model.vcpu):
            if whole > package:
                return InfeasiblePlan(
                    f"package: {model.graph.name} ships {digits(whole, 0)} MB of weights as one function and "
                    f"{digits(max(shipped), 0)} MB for its largest unit; the limit of {model.platform.name} is "
                    f"{package:g} MB{crossing}",
                    try_=hint,
                )
            vcpu = model.platform.vcpu(most, model.vcpu)
            run = min(model.run_ms(0, model.units, layout=way, vcpu=vcpu) for way in model.layouts)
            return InfeasiblePlan(
                f"timeout: {model.graph.name} runs {digits(run / 1000, 0)} s at best as one function, the timeout of "
                f"{model.platform.name} is {model.platform.limits.timeout_s.value:g} s, and no division keeps it",
                try_="another --platform" + ("" if model.platform.cpu.mb_per_vcpu else ", or more --vcpu"),
            )
        return InfeasiblePlan(
            f"memory: {model.graph.name} needs {max(peak, law):.0f} MB as one function and {worst[0]:.0f} MB for its "
            f"largest unit, the largest size of {model.platform.name} is {most:.0f} MB{crossing}",
            where=f"unit {worst[1]} ({unit.kinds}, operators {unit.first} to {unit.last - 1})",
            try_=hint,
        )
    nearest = min(candidates, key=lambda c: c.latency_ms)
    assert request.slo_ms is not None
    within = f"{request.slo_ms:g} ms" if request.asked_ms is None else request.bound
    late = digits(nearest.latency_ms - request.slo_ms, 1)
    return InfeasiblePlan(
        f"latency: {looked_at} on {model.platform.name} answers within {within}; the fastest takes "
        f"{digits(nearest.latency_ms, 1)} ms{_average(request)} ({late} ms too long) with "
        f"{len(nearest.choices)} function(s) for ${digits(nearest.cost_usd * 1e6, 2)} per million",
        where="--slo-ms",
        try_=f"--slo-ms {math.ceil(asked(model, request, nearest) + 0.5)}"
        + ("" if model.platform.cpu.mb_per_vcpu else ", or more --vcpu"),
    )


def _too_wide(model: SliceModel) -> str:
    """Why a model whose units would fit is not divided: no cut's tensors may travel; nothing where some may."""
    if model.units == 1 or any(model.fits_payload(unit) for unit in range(1, model.units)):
        return ""
    least = min(model.platform.hop_mb(c.bytes) for unit in range(1, model.units) for c in model.codings(unit))
    limit = model.platform.hop_limit_mb
    return f"; no cut is possible: at least {digits(least, 1)} MB cross each, the payload limit is {limit:g} MB"


def asked(model: SliceModel, request: Request, candidate: Candidate) -> float:
    """The bound to ask for, ms, that a plan keeps."""
    percentile = None if request.asked_ms is None else request.percentile
    return bounded_ms(model, candidate.choices, candidate.latency_ms, percentile)


def _average(request: Request) -> str:
    """Said behind a latency that is held to a mean for the sake of a percentile."""
    return "" if request.asked_ms is None else " on average"


def unfit(model: SliceModel, first: int, last: int) -> str:
    """Why no function of the platform can be units `first` to `last - 1`: which limit, by how much."""
    platform, limits = model.platform, model.platform.limits
    need = min(max(model.memory_mb(first, last, layout=way)) for way in model.layouts)
    if platform.allocation_mb(need, model.vcpu) is None:
        return (
            f"memory: a slice needs {need:.0f} MB, the largest size of {platform.name} is "
            f"{platform.most_mb(model.vcpu):.0f} MB"
        )
    shipped = model.graph.weight_bytes(*model.span(first, last)) / MB
    if shipped + min(model.more_mb(first, last, way) for way in model.layouts) > limits.package_mb.value:
        package = limits.package_mb.value
        return f"package: a slice ships {shipped:.0f} MB of weights, the limit of {platform.name} is {package:.0f} MB"
    return f"timeout: a slice runs beyond the timeout of {platform.name}, {limits.timeout_s.value:g} s"
