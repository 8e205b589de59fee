"""Why a plan is as it is: the best plan of every other kind, and what each constraint costs.

All of it is planned, nothing estimated: a price is what the cheapest plan costs less where one constraint is looser, as
it is for one unit more, for the least that saves anything, and for no limit at all. Where nothing is feasible the same
search tells how far each constraint would have to give way, alone, and the plan that there is then.

The reference is the cheapest plan there is (`planners.space`), whoever made the plan that is explained: other planners'
plans need not follow a limit that is loosened. What loses, codecs and precisions, is left out
of what a plan is held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import msgspec

from lamella.documents import Document
from lamella.errors import InfeasiblePlan, LamellaError
from lamella.machine import Machine
from lamella.plan.document import ModelRef, Orders, Plan, model_ref
from lamella.plan.explanation.kinds import of_kind, of_stages, with_codecs, with_shards
from lamella.plan.explanation.loosen import LATENCY, Asked, Constraint, constraints, used
from lamella.plan.make import document, make_plan
from lamella.plan.planners.exact import latency_cap
from lamella.plan.planners.orders import orders
from lamella.plan.planners.planner import Candidate, Decision
from lamella.plan.planners.space import Chosen, Space
from lamella.profile.scaling import at

SAME = 1e-6
"""Costs within this share are equal."""
MORE_STAGES = 2
"""Divisions with so many stages more than the plan are shown,"""
LEAST_STAGES = 4
"""and those up to so many in any case."""
Move = Callable[[float, str], None]
"""Progress: the share that is done, and what is done now."""


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
    prices = tuple(_prices(asked, space, best, used(plan, asked.platform), _part(move, 0.5, 1.0)))
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
        prices=prices,
        why=_why(plan, chosen, outline(cheapest, plan.percentile), prices),
        orders=orders(space, best.cost_usd, cap),
    )


def answered(asked: Asked, plan: Plan) -> tuple[Asked, Plan]:
    """The question that a plan answers: of as many rows as share a run, with what these wait taken off the SLO."""
    request, platform = asked.request, asked.platform.on(plan.architecture)
    slo = None if plan.slo_ms is None else plan.slo_ms - plan.wait_ms
    rate = plan.cold.rate_per_s if plan.cold else request.rate_per_s
    request = request._replace(
        slo_ms=slo, batch=plan.batch, rate_per_s=rate, max_batch=1, architecture=plan.architecture
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
    found = space.cheapest(math.inf if cap_ms is None else cap_ms).chosen
    if found is None and (quickest := space.quickest()):
        found = space.cheapest(quickest.bounded_ms).chosen
    return found


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


# -------------------------------------------------------------------------------------------------------- prices


def _prices(asked: Asked, space: Space, best: Chosen, takes: dict[str, float], move: Move) -> Iterator[Price]:
    every = constraints(asked)
    if asked.request.slo_ms is not None:
        yield _latency_price(space, best, asked.request.slo_ms, takes[LATENCY])
    for number, one in enumerate(every):
        move(number / len(every), f"price of {one.name}")
        yield _price(asked, one, best.cost_usd, takes[one.name])


def _latency_price(space: Space, best: Chosen, slo_ms: float, takes: float) -> Price:
    """From the front of cost and latency, every point of it."""
    front = space.front()
    cheaper = [p for p in front if p.bounded_ms > slo_ms and _less(p.cost_usd, best.cost_usd)]
    one = [p.cost_usd for p in cheaper if p.bounded_ms <= slo_ms + 1]
    return Price(
        constraint=LATENCY,
        unit="ms",
        limit=slo_ms,
        used=takes,
        step=1.0,
        one_saves=_saved(best.cost_usd, min(one, default=None)),
        next_limit=cheaper[0].bounded_ms if cheaper else None,
        next_saves=_saved(best.cost_usd, cheaper[0].cost_usd if cheaper else None),
        most_saves=_saved(best.cost_usd, cheaper[-1].cost_usd if cheaper else None),
        how=f"the front of cost and latency, {len(cheaper)} of its {len(front)} plans are slower and cheaper",
    )


def _price(asked: Asked, one: Constraint, base_usd: float, takes: float) -> Price:
    """By planning again: at one step more, at the reach, and between them until the least that saves is found."""
    steps = one.grid()

    def cost(more: int) -> float | None:
        chosen = one.change(asked, one.after(more)).cheapest()
        return chosen.cost_usd if chosen else None

    def saves(more: int) -> bool:
        found = cost(more)
        return found is not None and _less(found, base_usd)

    most = cost(steps) if steps else None
    first = _first(steps, saves) if most is not None and _less(most, base_usd) else None
    how = f"no plan could use more than {one.reach:.0f} {one.unit}".rstrip() if not steps else "planned again"
    if steps and first is None:
        how = f"planned again with {one.after(steps):.0f} {one.unit}".rstrip() + ": no cheaper plan"
    return Price(
        constraint=one.name,
        unit=one.unit,
        limit=one.limit,
        used=takes,
        step=one.step,
        one_saves=_saved(base_usd, cost(1)) if first == 1 else 0.0,
        next_limit=one.after(first) if first else None,
        next_saves=_saved(base_usd, cost(first)) if first else 0.0,
        most_saves=_saved(base_usd, most),
        how=how,
    )


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The least number from 1 to `most` of which something holds that holds of `most` and of all after the first."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _less(usd: float, than: float) -> bool:
    return usd < than * (1 - SAME)


def _saved(base_usd: float, usd: float | None) -> float:
    """Per million requests; nothing where it is not less."""
    return (base_usd - usd) * 1e6 if usd is not None and _less(usd, base_usd) else 0.0


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


def _part(move: Move, low: float, high: float) -> Move:
    return lambda share, what: move(low + share * (high - low), what)


# ------------------------------------------------------------------------------------------------------ infeasible


def refused(asked: Asked, error: LamellaError, move: Move = lambda share, what: None) -> Refusal:
    """Why no plan satisfies a request: what would have to give way, how far, and the nearest plan.

    Args:
        asked: the question.
        error: as planning raised it.
        move: told of the progress.
    """
    asked = asked.asking(judge=None)
    ways, every = [], constraints(asked)
    quickest = asked.space().quickest()
    slo = asked.request.slo_ms
    if quickest and slo is not None:
        later = asked.asking(slo_ms=quickest.bounded_ms)
        ways += [_way(LATENCY, "ms", slo, quickest.bounded_ms, later)]
    for number, one in enumerate(every):
        move(number / len(every), f"without the limit on {one.name}")
        ways.append(_alone(asked, one))
    together = not any(ways)
    if together:
        ways = _all_at_once(asked, every)
    return Refusal(
        model=model_ref(asked.graph, asked.given),
        platform=asked.platform.name,
        slo_ms=slo,
        batch=asked.request.batch,
        error=error.message,
        together=together,
        ways=tuple(sorted((w for w in ways if w), key=lambda w: w.needed / w.limit)),
    )


def _alone(asked: Asked, one: Constraint) -> Way | None:
    """The least of a constraint that makes the request feasible; None where it does not."""

    def enough(more: int) -> bool:
        return one.change(asked, one.after(more)).cheapest() is not None

    steps = one.grid()
    if not steps or not enough(steps):
        return None
    least = one.after(_first(steps, enough))
    return _way(one.name, one.unit, one.limit, least, one.change(asked, least))


def _way(name: str, unit: str, limit: float, needed: float, asked: Asked) -> Way | None:
    chosen = asked.cheapest()
    return (
        Way(name, unit, limit, needed, outline(laid_out(asked, chosen, "exact"), asked.request.percentile))
        if chosen
        else None
    )


def _all_at_once(asked: Asked, every: Sequence[Constraint]) -> list[Way | None]:
    """Every constraint that the cheapest plan without any of them breaks."""
    free, slo = asked, asked.request.slo_ms
    for one in every:
        free = one.change(free, one.after(one.grid()))
    chosen = free.cheapest()
    if chosen is None:
        free = free.asking(slo_ms=None)
        chosen = free.cheapest()
    if chosen is None:
        return []
    plan = laid_out(free, chosen, "exact")
    takes, made = used(plan, free.platform), outline(plan, free.request.percentile)
    limits = [(o.name, o.unit, o.limit) for o in every] + ([(LATENCY, "ms", slo)] if slo is not None else [])
    return [Way(name, unit, limit, takes[name], made) for name, unit, limit in limits if takes[name] > limit]
