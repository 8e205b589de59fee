"""Every plan that no other beats in both cost and latency, and where the chosen one stands among them.

The front is that of all plans there are (`planners.space`). A plan of another planner, or one that loses something,
which none of the front does, need not lie on it: then it says by how much it is beaten at its own latency.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lamella.documents import Document
from lamella.errors import InfeasiblePlan
from lamella.plan.document import Plan
from lamella.plan.explanation.asking import answered, laid_out
from lamella.plan.explanation.document import Outline, outline
from lamella.plan.explanation.loosen import Asked
from lamella.plan.planners.space import Chosen

SAME = 1e-6
"""Figures within this share are equal."""


class FrontPoint(msgspec.Struct, frozen=True):
    """A plan of the front: mean latency, and that which bounds are on."""

    latency_ms: float
    bounded_ms: float
    cost_usd_per_million: float
    stages: int
    functions: int


class Front(Document, frozen=True, kw_only=True):
    """`lamella plan --front --json`. Points by the latency that bounds are on, so that costs fall."""

    plan: Plan
    """The chosen one,"""
    chosen: Outline
    """and in figures as the points have them."""
    points: tuple[FrontPoint, ...]
    at: int | None
    """Which point is as quick as the plan, or quicker, at the least cost; none where none is."""
    on_front: bool
    """Whether that point is the plan."""
    dearer: float
    """By what share the plan costs more than that point."""
    quicker: Outline | None
    """The point before that one: the next that is quicker,"""
    cheaper: Outline | None
    """and the one behind: the next that is cheaper."""
    gap: float = 0.0
    """Share of its cost that one as quick as the cheapest point may save: not 0 where plans were too many to keep."""

    @property
    def said(self) -> str:
        """What was not settled; empty where all was."""
        if not self.gap:
            return ""
        return f"plans were too many to keep: one as quick as any of these may cost up to {self.gap:.1%} less"


def front(asked: Asked, plan: Plan) -> Front:
    """The front of a request on a platform, whatever its SLO, around a plan.

    Raises:
        InfeasiblePlan: there is no plan at all.
    """
    asked, own = answered(asked, plan)
    asked = asked.asking(judge=None, percentile=plan.percentile)
    found, loss_usd = asked.space().front()
    if not found:
        raise InfeasiblePlan(f"no plan of {asked.graph.name} runs on {asked.platform.name}", try_="another --platform")
    p = outline(own, plan.percentile)
    at = _as_quick(found, p.bounded_ms)
    least = found[at].cost_usd * 1e6 if at is not None else p.cost_usd_per_million
    dearer = p.cost_usd_per_million / least - 1 if least else 0.0

    def neighbour(number: int) -> Outline | None:
        if not 0 <= number < len(found):
            return None
        return outline(laid_out(asked, found[number], "front"), plan.percentile)

    return Front(
        plan=plan,
        chosen=p,
        points=tuple(FrontPoint(c.latency_ms, c.bounded_ms, c.cost_usd * 1e6, c.stages, _functions(c)) for c in found),
        at=at,
        on_front=at is not None and abs(dearer) <= SAME and found[at].bounded_ms >= p.bounded_ms * (1 - SAME),
        dearer=dearer,
        quicker=neighbour(at - 1) if at is not None else None,
        cheaper=neighbour(0 if at is None else at + 1),
        gap=min(1.0, loss_usd / found[-1].cost_usd) if loss_usd else 0.0,
    )


def shown(front: Front, most: int) -> list[int]:
    """Which points to show: the ends, that of the plan and its neighbours, and others evenly between."""
    last = len(front.points) - 1
    near = {k for k in range(front.at - 1, front.at + 2) if 0 <= k <= last} if front.at is not None else set()
    even = {round(i * last / max(1, most - 1)) for i in range(most)}
    return sorted(near | even)


def _as_quick(found: Sequence[Chosen], bounded_ms: float) -> int | None:
    """The last point that is not slower."""
    quick = [k for k, chosen in enumerate(found) if chosen.bounded_ms <= bounded_ms * (1 + SAME)]
    return quick[-1] if quick else None


def _functions(chosen: Chosen) -> int:
    """With the joins that stand alone, which are stages without a choice."""
    return sum(max(1, len(c.shards)) for c in chosen.choices) + chosen.stages - len(chosen.choices)
