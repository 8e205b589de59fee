"""What a constraint costs: the cheapest plan where it alone is looser, planned again each time.

By one unit more, by the least that saves anything, and with no limit at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lamella.plan.explanation.document import Price
from lamella.plan.explanation.loosen import LATENCY, Asked, Constraint, constraints
from lamella.plan.planners.space import Chosen, Space

SAME = 1e-6
"""Costs within this share are equal."""
Move = Callable[[float, str], None]
"""Progress: the share that is done, and what is done now."""


def prices(asked: Asked, space: Space, best: Chosen, takes: dict[str, float], move: Move) -> Iterator[Price]:
    """Of every constraint that holds the cheapest plan back or might; `takes` is what the explained plan uses."""
    every = constraints(asked)
    if asked.request.slo_ms is not None:
        yield _latency_price(space, best, asked.request.slo_ms, takes[LATENCY])
    for number, one in enumerate(every):
        move(number / len(every), f"price of {one.name}")
        yield _price(asked, one, best.cost_usd, takes[one.name])


def _latency_price(space: Space, best: Chosen, slo_ms: float, takes: float) -> Price:
    """From the front of cost and latency, every point of it."""
    front = space.front().plans
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
    first = first_that(steps, saves) if most is not None and _less(most, base_usd) else None
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


def first_that(most: int, holds: Callable[[int], bool]) -> int:
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
