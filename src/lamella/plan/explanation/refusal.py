"""Why no plan satisfies a request: how far each constraint would have to give way, and the plan that there is then."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.errors import LamellaError
from lamella.plan.document import model_ref
from lamella.plan.explanation.asking import laid_out
from lamella.plan.explanation.document import Refusal, Way, outline
from lamella.plan.explanation.loosen import LATENCY, Asked, Constraint, constraints, used
from lamella.plan.explanation.prices import Move, first_that
from lamella.plan.make import architecture_of


def refused(asked: Asked, error: LamellaError, move: Move = lambda share, what: None) -> Refusal:
    """Why no plan satisfies a request: what would have to give way, how far, and the nearest plan.

    Args:
        asked: the question.
        error: as planning raised it.
        move: told of the progress.
    """
    asked = asked.asking(judge=None)
    asked = asked._replace(platform=asked.platform.on(architecture_of(asked.platform, asked.request)))
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
    least = one.after(first_that(steps, enough))
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
