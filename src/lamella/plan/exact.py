"""The planner `exact`: the cheapest plan there is within the latency bound, every choice at once.

What `mopar` decides one after the other (where to divide, which codec, which size) is one question here (`plan.space`).
One function is among the answers, so no plan is worse than it by the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lamella.plan.planners import LATENCY_MARGIN, Candidate, Decision, cheapest_of, infeasible, lost, singles
from lamella.plan.predict import SliceModel
from lamella.plan.request import Request
from lamella.plan.space import Chosen, Space


@dataclass(frozen=True, slots=True)
class Exact:
    """Cuts, sizes, layouts, codecs, shards and threads at once, at least cost within the SLO."""

    name: str = "exact"
    shards: bool = True

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The cheapest plan within the SLO; without one within a little more than the single function's latency."""
        alone = singles(model)
        cap, said = math.inf, "any latency (no SLO given, and no single function holds the model)"
        if request.slo_ms is not None:
            cap, said = request.slo_ms, f"the SLO of {request.slo_ms:g} ms"
        elif alone:
            cap = cheapest_of(alone).latency_ms * LATENCY_MARGIN
            said = f"{cap:.1f} ms ({LATENCY_MARGIN - 1:.2%} above the single function, no SLO given)"
        space = Space(model, request)
        answer = space.cheapest(cap)
        if answer.chosen is None:
            fastest = space.quickest()
            raise infeasible(model, [_candidate("fastest", fastest)] if fastest else [], request)
        chosen = _candidate(self.name, answer.chosen)
        proof = answer.proof
        gap = 1 - proof.bound_usd / chosen.cost_usd if chosen.cost_usd else 0.0
        why = (
            f"the cheapest of all plans within {said}: {answer.chosen.stages} stage(s) of at most {request.max_stages} "
            f"over {model.units} units; no plan costs less than "
            f"{1 - max(0.0, gap):.1%} of it by bounds alone, {proof.labels} labels looked at the rest"
        )
        losers = [(c, lost(c, chosen, Request(cap))) for c in alone if c.choices != chosen.choices][:3]
        free = space.cheapest().chosen
        if free and free.cost_usd < chosen.cost_usd * (1 - 1e-6):
            any_ = _candidate("cheapest at any latency", free)
            losers.append((any_, lost(any_, chosen, Request(cap))))
        return Decision(chosen, why, tuple(losers), answer.chosen.codings)


def _candidate(name: str, chosen: Chosen) -> Candidate:
    return Candidate(name, chosen.choices, chosen.latency_ms, chosen.cost_usd)
