"""The planner `mopar`: MOPAR (arXiv 2404.02445) re-implemented.

Similar units are merged, measured shards added, then dynamic programming over the remaining cuts on memory-time plus
hops, under the caller's SLO or, without one, 2.5 % above the single function's latency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lamella.plan.planners.divisions import Divisions, as_candidate
from lamella.plan.planners.plain import singles
from lamella.plan.planners.planner import Candidate, Decision
from lamella.plan.planners.search import cheapest
from lamella.plan.planners.simplify import merge_similar
from lamella.plan.planners.verdicts import LATENCY_MARGIN, WORTH, band, cheapest_of, infeasible, lost, refuse_too_many
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request

MOST_SLICES = 100_000
"""Of some 450 runs of similar units, for minutes: its time grows with the third power of them."""
LOOK = 1.25
"""Divisions that cost this much more than the single function are not looked at."""


@dataclass(frozen=True, slots=True)
class Mopar:
    """Slices of similar units, shards where they pay, by dynamic programming on memory-time plus hops."""

    name: str = "mopar"
    shards: bool = True
    codes: bool = False
    holds: bool = False

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The cheapest division within the SLO, `single` among the candidates."""
        alone = singles(model)
        cap, said = self._cap(model, alone, request)
        marks = merge_similar(model) if request.similarity else list(range(model.units + 1))
        if request.shards:
            ends = {end for s in model.profile.shards for end in (s.first, s.last)}
            marks = sorted({*marks, *ends})
        refuse_too_many(model, len(marks) * (len(marks) - 1) // 2, "slices of similar units", MOST_SLICES)
        whole = [c for c in alone if c.latency_ms <= cap or request.slo_ms is None]
        least = cheapest_of(whole).cost_usd if whole else math.inf
        space = Divisions(model, marks, request)
        fronts = space.divide(cap_ms=cap, cap_usd=least * LOOK)
        within = {label: k for k, front in fronts.items() for label in front.labels}
        worth, near = WORTH if request.slo_ms is None else 0.0, band(request)
        label = cheapest((x for x in within if x.cost_usd <= least * (1 - worth)), near)
        if label is None and not whole:
            raise infeasible(model, space.fastest(self.name), request)
        chosen = as_candidate(self.name, label) if label else cheapest_of(whole)  # just what `single` says
        losers = []
        for k in fronts:
            best = cheapest((x for x in within if within[x] == k), near)
            if best and best.chain() != list(chosen.choices):
                loser = as_candidate(f"best with {k} stage{'s' * (k > 1)}", best)
                losers.append((loser, lost(loser, chosen, request)))
        losers += [(c, lost(c, chosen, Request(cap))) for c in alone if c.choices != chosen.choices][:3]
        if request.slo_ms is None:
            losers += self._beyond(space.cheapest("cheapest at any latency"), chosen, cap)
        why = f"one function: no division is {f'more than {worth:.0%} ' if worth else ''}cheaper with {said}"
        if label and len(chosen.choices) > 1:
            runs = "runs of similar units" if request.similarity else "units"
            why = (
                f"{within[label]} of at most {request.max_stages} stages over {len(marks) - 1} {runs} "
                f"({model.units} units); with {said} the least cost x latency within {near:.0%} of the least cost"
            )
        return Decision(chosen, why, tuple(losers))

    @staticmethod
    def _beyond(free: list[Candidate], chosen: Candidate, cap: float) -> list[tuple[Candidate, str]]:
        """The cheapest division at any latency, where it is worth asking for."""
        worth = [c for c in free if c.latency_ms > cap and c.cost_usd <= chosen.cost_usd * (1 - WORTH)]
        return [
            (
                c,
                f"{1 - c.cost_usd / chosen.cost_usd:.0%} cheaper, {c.latency_ms - cap:.1f} ms over the cap of "
                f"{cap:.1f} ms: --slo-ms {math.ceil(c.latency_ms)} allows it",
            )
            for c in worth
        ]

    @staticmethod
    def _cap(model: SliceModel, alone: list[Candidate], request: Request) -> tuple[float, str]:
        if request.slo_ms is not None:
            return request.slo_ms, f"latency at most {request.bound}"
        if not alone:
            return math.inf, "no SLO"
        cap = cheapest_of(alone).latency_ms * LATENCY_MARGIN
        return cap, f"latency at most {cap:.1f} ms ({LATENCY_MARGIN - 1:.2%} above the single function, no SLO given)"
