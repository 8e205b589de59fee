"""The planner `exact`: the cheapest plan there is within the latency bound, every choice at once.

What `mopar` decides one after the other (where to divide, which codec, which size) is one question here
(`planners.space`). One function is among the answers, so no plan is worse than it by the model. Latency is held to the
bound at a percentile, by the spread of units in the profile; without a bound the answer is a balance (decision 7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lamella.errors import InfeasiblePlan
from lamella.plan.planners.orders import orders
from lamella.plan.planners.plain import singles
from lamella.plan.planners.planner import Candidate, Decision
from lamella.plan.planners.search import cheapest
from lamella.plan.planners.space import Answer, Chosen, Space
from lamella.plan.planners.verdicts import BAND, LATENCY_MARGIN, WORTH, infeasible, lost
from lamella.plan.pricing.batching import wait_ms
from lamella.plan.pricing.cold import starts_usd
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.spread import bounded_ms
from lamella.plan.request import Request
from lamella.units import digits

MANY = 200_000
"""Slices beyond which the cheapest plan at any latency is not looked for besides: it would take as long again."""


@dataclass(frozen=True, slots=True)
class Exact:
    """Cuts, sizes, layouts, codecs, shards and threads at once, at least cost within the SLO."""

    name: str = "exact"
    shards: bool = True
    codes: bool = True
    holds: bool = True

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The cheapest plan within the SLO, or the quickest within the budget.

        With neither the best balance within little more than one function's latency.
        """
        space = Space.of(model, request)
        if request.budget_usd is not None:
            return self._afforded(space, request.budget_usd)
        if request.slo_ms is None:
            return self._balanced(space, request)
        left_ms = request.slo_ms - wait_ms(model.batch, request)
        if left_ms <= 0:
            raise InfeasiblePlan(
                f"latency: the first of {model.batch} rows waits {request.slo_ms - left_ms:.1f} ms for the others",
                where="--slo-ms",
                try_=f"--max-batch {model.batch - 1}",
            )
        return self._within(space, request._replace(slo_ms=left_ms), request.slo_ms)

    def _within(self, space: Space, request: Request, whole_ms: float) -> Decision:
        """What `request` asks; `whole_ms` is the SLO with the wait of the first row for the others in it."""
        slo_ms = request.slo_ms
        assert slo_ms is not None
        answer = space.cheapest(slo_ms)
        if answer.chosen is None:
            fastest = space.quickest()
            raise infeasible(space.options.model, [fastest.bounded("fastest")] if fastest else [], request)
        waits = f", {whole_ms - slo_ms:.1f} of which the first row waits for the others" if slo_ms < whole_ms else ""
        why = (
            f"the cheapest of all plans within the SLO of {whole_ms:g} ms{_at(request)}{waits}: {_proof(answer, space)}"
        )
        return self._decision(space, answer, answer.chosen, slo_ms, why)

    def _balanced(self, space: Space, request: Request) -> Decision:
        """Of the plans near the least cost within 2.5 % of one function's latency that of least cost x latency."""
        alone, cap = _alone(space), latency_cap(space)
        answer = space.cheapest(cap)
        if answer.chosen is None:
            raise infeasible(space.options.model, [], request)
        said, proof = "any latency (no SLO given, and no single function holds the model)", _proof(answer, space)
        if alone:
            said = f"{cap:.1f} ms{_at(request)} ({LATENCY_MARGIN - 1:.2%} above the single function, no SLO given)"
            if answer.chosen.cost_usd > alone.cost_usd * (1 - WORTH):
                why = f"one function: no division within {said} is more than {WORTH:.0%} cheaper; the cheapest: {proof}"
                alone = space.whole(alone.bounded_ms, alone.cost_usd) or alone  # `single` looks at few sizes
                return self._decision(space, answer, alone, cap, why)
        near = space.front(cap, answer.chosen.cost_usd * (1 + BAND))
        chosen = min(near.plans, key=lambda c: c.bounded_ms * c.cost_usd, default=answer.chosen)
        why = f"within {said} the least cost x latency within {BAND:.0%} of the least cost; the cheapest: {proof}"
        return self._decision(space, answer, chosen, cap, why)

    def _afforded(self, space: Space, budget_usd: float) -> Decision:
        """The quickest plan within a budget of a million requests: the first of the front that the budget leaves."""
        front, loss_usd = space.front(most_usd=budget_usd / 1e6)
        if not front:
            raise _unaffordable(space, budget_usd)
        chosen, request = front[0], space.request
        why = (
            f"the quickest of all plans within the budget of ${budget_usd:g} per million requests{_at(request)}, of "
            f"at most {request.max_stages} stages over {space.options.model.units} units"
            + (
                f"; surely of those up to ${digits(budget_usd - loss_usd * 1e6, 3)}: more than are kept"
                if loss_usd
                else ""
            )
        )
        others = [("single", one) for one in _singles(space) if one.choices != chosen.choices][:3]
        if len(front) > 1:
            others.append(("cheapest at any latency", front[-1]))
        said = tuple((_mean(name, one), _instead(one, chosen, budget_usd)) for name, one in others)
        gap = min(1.0, loss_usd * 1e6 / budget_usd) if loss_usd else 0.0
        return Decision(_mean(self.name, chosen), why, said, chosen.codings, request.percentile, gap=gap)

    def _decision(self, space: Space, answer: Answer, chosen: Chosen, cap: float, why: str) -> Decision:
        """With one function, and the cheapest at any latency, as what was turned down."""
        losers = [("single", one) for one in _singles(space) if one.choices != chosen.choices][:3]
        bound = math.isfinite(cap) and answer.proof.multiplier > 0  # else no latency was given up for cost
        free = space.cheapest().chosen if bound and len(space.options.cells.tail) <= MANY else None
        if free and free.cost_usd < chosen.cost_usd * (1 - 1e-6):
            losers.append(("cheapest at any latency", free))
        took = chosen.bounded(self.name)
        said = tuple((_mean(name, one), lost(one.bounded(name), took, Request(cap))) for name, one in losers)
        return Decision(
            _mean(self.name, chosen),
            why,
            said,
            chosen.codings,
            space.request.percentile,
            orders=orders(space, answer.chosen.cost_usd, cap) if answer.chosen else None,
            gap=_gap(answer.proof.loss_usd, answer.chosen) if answer.chosen else None,
        )


def _unaffordable(space: Space, budget_usd: float) -> InfeasiblePlan:
    """That the cheapest plan there is costs more."""
    cheapest = space.cheapest().chosen
    if cheapest is None:
        return infeasible(space.options.model, [], space.request)
    usd = cheapest.cost_usd * 1e6
    return InfeasiblePlan(
        f"budget: no plan on {space.options.model.platform.name} costs at most ${budget_usd:g} per million requests; "
        f"the cheapest costs ${digits(usd, 3)} (${digits(usd - budget_usd, 3)} more) and takes "
        f"{cheapest.bounded_ms:.1f} ms",
        where="--budget-usd",
        try_=f"--budget-usd {float(f'{usd * 1.01:.3g}'):g}",  # rounding takes less than is added
    )


def _instead(other: Chosen, chosen: Chosen, budget_usd: float) -> str:
    """Why another plan is not the quickest within the budget."""
    if (over := other.cost_usd * 1e6 - budget_usd) > budget_usd * 1e-9:
        return f"${digits(over, 3)} over the budget"
    return f"{other.bounded_ms - chosen.bounded_ms:.1f} ms slower"


def _singles(space: Space) -> list[Chosen]:
    """One function in every size that is not beaten."""
    options, found = space.options, []
    for one in singles(options.model):
        bounded = bounded_ms(options.model, one.choices, one.latency_ms, space.request.percentile)
        more = options.cold_share * starts_usd(options.model, one.choices) if options.starts_billed else 0.0
        found.append(Chosen(one.choices, {}, one.latency_ms, bounded, one.cost_usd + more, 1))
    return found


def latency_cap(space: Space) -> float:
    """What latency a plan may take by the law, ms: the SLO; without one a little more than one function; else any."""
    alone = None if space.request.slo_ms else _alone(space)
    return space.request.slo_ms or (alone.bounded_ms * LATENCY_MARGIN if alone else math.inf)


def _alone(space: Space) -> Chosen | None:
    """The one of them that `single` would take."""
    found = {id(one.choices): one for one in _singles(space)}
    best = cheapest([_mean("single", one) for one in found.values()])
    return found[id(best.choices)] if best else None


def _mean(name: str, chosen: Chosen) -> Candidate:
    return Candidate(name, chosen.choices, chosen.latency_ms, chosen.cost_usd)


def _at(request: Request) -> str:
    return f" at percentile {request.percentile:g}" if request.percentile else ""


def _gap(loss_usd: float, found: Chosen) -> float:
    """Share of a plan's cost that one as quick may save."""
    return min(1.0, loss_usd / found.cost_usd) if loss_usd else 0.0


def _unproven(loss_usd: float, found: Chosen) -> str:
    """What was not settled."""
    if not loss_usd:
        return ""
    return f"; there were more than are kept of them, and one as quick may cost up to {_gap(loss_usd, found):.2%} less"


def _proof(answer: Answer, space: Space) -> str:
    """How much was looked at, and what is known of what was not."""
    assert answer.chosen
    cost, units = answer.chosen.cost_usd, space.options.model.units
    gap = 1 - answer.proof.bound_usd / cost if cost else 0.0
    return (
        f"{answer.chosen.stages} stage(s) of at most {space.request.max_stages} over {units} units; no plan costs less "
        f"than {1 - max(0.0, gap):.1%} of it by bounds alone, {answer.proof.labels} labels looked at the rest"
        f"{_unproven(answer.proof.loss_usd, answer.chosen)}"
    )
