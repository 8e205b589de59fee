"""Why a plan is as it is: the best plan of every other kind, and what each constraint costs.

All of it is planned, nothing estimated: a price is what the cheapest plan costs less where one constraint is looser
(`explanation.prices`). Where nothing is feasible the same search tells how far each constraint would have to give way
(`explanation.refusal`).

The reference is the cheapest plan there is (`planners.space`), whoever made the plan that is explained: other planners'
plans need not follow a limit that is loosened. What loses, codecs and precisions, is left out of what a plan is held
against.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lamella.errors import InfeasiblePlan
from lamella.plan.document import Plan
from lamella.plan.explanation.asking import answered, laid_out
from lamella.plan.explanation.document import Explanation, Other, Outline, Price, outline
from lamella.plan.explanation.kinds import of_kind, of_stages, with_codecs, with_shards
from lamella.plan.explanation.loosen import Asked, used
from lamella.plan.explanation.prices import SAME, Move
from lamella.plan.explanation.prices import prices as prices_of
from lamella.plan.make import make_plan
from lamella.plan.planners.exact import latency_cap
from lamella.plan.planners.orders import orders
from lamella.plan.planners.space import Chosen, Space

MORE_STAGES = 2
"""Divisions with so many stages more than the plan are shown,"""
LEAST_STAGES = 4
"""and those up to so many in any case."""


def explain(
    asked: Asked, plan: Plan, planners: Sequence[str] = (), move: Move = lambda share, what: None
) -> Explanation:
    """The plan against the best of every other kind, and the price of every constraint.

    Args:
        asked: the question that the plan answers.
        plan: any planner's answer.
        planners: whose plans it is held against, too.
        move: told of the progress.

    Raises:
        InfeasiblePlan: nothing satisfies the request any more (the platform or the profile is another than then).
    """
    asked, plan = answered(asked, plan)
    free = asked.asking(judge=None, percentile=plan.percentile)
    cap = latency_cap(free.space())
    asked = free.asking(slo_ms=cap if math.isfinite(cap) else None)
    space = asked.space()
    best = space.cheapest(cap).chosen
    if best is None:
        make_plan(asked.graph, asked.profile, asked.platform, "exact", given=asked.given, request=asked.request)
        raise InfeasiblePlan(f"no plan keeps {cap:.1f} ms on {asked.platform.name}", try_="lamella plan again")
    chosen, cheapest = outline(plan, plan.percentile), laid_out(asked, best, "exact")
    found = [*_kinds(asked, space, plan, _part(move, 0.0, 0.4)), *_by(planners, free, chosen, _part(move, 0.4, 0.5))]
    priced = tuple(prices_of(asked, space, best, used(plan, asked.platform), _part(move, 0.5, 1.0)))
    return Explanation(
        model=plan.model,
        machine=asked.profile.machine,
        platform=plan.platform,
        planner=plan.planner,
        slo_ms=plan.slo_ms,
        percentile=plan.percentile,
        cap_ms=asked.request.slo_ms,
        batch=plan.batch,
        chosen=chosen,
        cheapest=outline(cheapest, plan.percentile),
        others=tuple(found),
        prices=priced,
        why=_why(plan, chosen, outline(cheapest, plan.percentile), priced),
        orders=orders(space, best.cost_usd, cap),
    )


def _part(move: Move, low: float, high: float) -> Move:
    return lambda share, what: move(low + share * (high - low), what)


def _why(plan: Plan, chosen: Outline, cheapest: Outline, prices: Sequence[Price]) -> str:
    """In a sentence or two: how near the plan is to the cheapest one, and what holds that back."""
    more = chosen.cost_usd_per_million / cheapest.cost_usd_per_million - 1 if cheapest.cost_usd_per_million else 0.0
    balance = ", quicker as it may be: without an SLO latency counts, too" if plan.slo_ms is None else ""
    said = f"{plan.planner}'s plan is the cheapest there is"
    if more > SAME:
        said = f"{plan.planner}'s plan costs {more:.1%} more than the cheapest there is{balance}"
    elif more < -SAME:
        said = f"{plan.planner}'s plan costs {-more:.1%} less than any lossless plan by today's profile"
    if plan.lossy:
        said += ", and loses something; what it is held against and priced by does not"
    binding = sorted((p for p in prices if p.next_limit is not None), key=lambda p: -p.most_saves)
    if not binding:
        return f"{said}; loosening any one constraint saves nothing"
    told = [
        f"{p.constraint} (${p.next_saves:.3g} per million from {p.next_limit:g} {p.unit}".rstrip() + ")"
        for p in binding
        if p.next_limit is not None
    ]
    return f"{said}; held back by {', '.join(told)}"


# ---------------------------------------------------------------------------------------------------- other kinds


def _kinds(asked: Asked, space: Space, plan: Plan, move: Move) -> Iterator[Other]:
    chosen, cap = outline(plan, plan.percentile), asked.request.slo_ms
    most = min(max(LEAST_STAGES, plan.stages + MORE_STAGES), asked.request.max_stages, space.options.model.units)
    kinds = [*(of_stages(k) for k in range(1, most + 1)), with_shards(), with_codecs()]
    for number, kind in enumerate(kinds):
        move(number / len(kinds), kind.name)
        yield _compared(kind.name, _best(of_kind(space.options, kind), cap), asked, chosen)
    for without, other in (
        ("without shards", asked.asking(shards=False)),
        ("without codecs", asked.asking(codec=False)),
    ):
        yield _compared(without, _best(other.space(), cap), other, chosen)


def _by(planners: Sequence[str], asked: Asked, chosen: Outline, move: Move) -> Iterator[Other]:
    """Other planners' plans, each by its own rule where no SLO is given."""
    graph, profile, platform, request, given = asked
    for number, name in enumerate(planners):
        move(number / len(planners), name)
        try:
            made = outline(make_plan(graph, profile, platform, name, given=given, request=request), request.percentile)
        except InfeasiblePlan as error:
            yield Other(name, None, error.message)
        else:
            yield Other(name, made, against(chosen, made, request.slo_ms))


def _best(space: Space, cap_ms: float | None) -> Chosen | None:
    """The cheapest plan within a latency; where none keeps it the quickest."""
    return space.cheapest(math.inf if cap_ms is None else cap_ms).chosen or space.quickest()


def _compared(kind: str, found: Chosen | None, asked: Asked, chosen: Outline) -> Other:
    if found is None:
        return Other(kind, None, "there is no such plan")
    made = outline(laid_out(asked, found, kind), asked.request.percentile)
    return Other(kind, made, against(chosen, made, asked.request.slo_ms))


def against(chosen: Outline, other: Outline, cap_ms: float | None) -> str:
    """Why not the other: what it costs and takes more."""
    if cap_ms is not None and other.bounded_ms > cap_ms * (1 + SAME):
        return f"{other.bounded_ms - cap_ms:.1f} ms over the latency allowed"
    slower = other.latency_ms - chosen.latency_ms
    time = f", {abs(slower):.1f} ms {'slower' if slower > 0 else 'quicker'}" if abs(slower) >= 0.05 else ""
    if not chosen.cost_usd_per_million:
        return f"as cheap{time}"
    more = other.cost_usd_per_million / chosen.cost_usd_per_million - 1
    if abs(more) <= SAME:
        return f"as cheap{time}" if time else "as cheap and as quick"
    return f"{abs(more):.1%} {'dearer' if more > 0 else 'cheaper'}{time}"
