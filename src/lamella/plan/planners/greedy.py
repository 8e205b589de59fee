"""The planner `latency-greedy`: divide where latency falls most, until it falls no more.

It begins with one function, or where none holds the model with as few slices as can, every slice at its quickest. A
move cuts a slice in two, or puts a measured stage of shards in place of a part of it; of all moves the one that leaves
the least latency is made. A hop only adds time, so what gets a move made is mostly shards. Without an SLO the end of
that way is the plan. With one it is the cheapest plan on the way, its sizes chosen at least cost within the SLO.

No move is ever taken back: where two moves help only together, neither is made. `exact` says what that loses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lamella.plan.choice import Choice
from lamella.plan.planners.divisions import added_up
from lamella.plan.planners.planner import Candidate, Decision
from lamella.plan.planners.search import divide
from lamella.plan.planners.verdicts import infeasible, lost, refuse_too_many
from lamella.plan.pricing.fan_out import sharded, stages, step, ways_to_run
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request

LEAST_MS = 1e-6
"""A move has to save as much: sums of floats differ by less."""


@dataclass(frozen=True, slots=True)
class LatencyGreedy:
    """The move that saves the most latency, one after the other."""

    name: str = "latency-greedy"
    shards: bool = True
    codes: bool = True
    holds: bool = False

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The end of the way; with an SLO what is cheapest on it within that."""
        refuse_too_many(model, model.units * (model.units + 1) // 2)
        model = model.with_codings({})
        trail = _trail(model, request)
        if not trail:
            raise infeasible(model, [], request)
        if request.slo_ms is None:
            chosen = trail[-1]
            why = f"no further cut or shards lower its latency; {_told(trail)}"
        else:
            within = [c for at in trail if (c := _cheapest(model, at, request))]
            if not within:
                raise infeasible(model, [trail[-1]], request, f"no plan that {self.name} comes by")
            chosen = min(within, key=lambda c: (c.cost_usd, c.latency_ms))
            why = f"the cheapest within {request.bound} of what it came by; {_told(trail)}"
        losers = [(c, _lost(c, chosen, request)) for c in trail if c.choices != chosen.choices]
        return Decision(chosen, why, tuple(losers), {})


def _trail(model: SliceModel, request: Request) -> list[Candidate]:
    """The plans from the first to the one that no move makes quicker; empty where no division fits."""
    trail = [at] if (at := _begin(model, request)) else []
    while trail:
        made = (added_up(model, "", chain) for chain in _moves(model, trail[-1].choices, request))
        best = min((c for c in made if c), key=lambda c: (c.latency_ms, c.cost_usd), default=None)
        if best is None or best.latency_ms > trail[-1].latency_ms - LEAST_MS:
            break
        trail.append(best._replace(name=f"after {len(trail)} move{'s' * (len(trail) > 1)}"))
    return trail


def _begin(model: SliceModel, request: Request) -> Candidate | None:
    """The fewest slices that fit, of equally few the quickest."""
    if whole := _quickest(model, 0, model.units):
        return added_up(model, "one function", [whole])
    borders = [0, *(u for u in range(1, model.units) if model.fits_payload(u)), model.units]
    best: dict[int, tuple[float, float, list[Choice]]] = {0: (0, 0.0, [])}
    for number, last in enumerate(borders[1:], 1):
        for first in borders[:number]:
            if first in best and (one := _quickest(model, first, last)):
                count, ms, chain = best[first]
                longer = (count + 1, ms + model.hop(first)[0] + one.run_ms, [*chain, one])
                if last not in best or longer[:2] < best[last][:2]:
                    best[last] = longer
    count, _, chain = best.get(model.units, (math.inf, 0.0, []))
    return added_up(model, "as few slices as fit", chain) if count <= request.max_stages else None


def _quickest(model: SliceModel, first: int, last: int) -> Choice | None:
    return min(model.choices(first, last), key=lambda c: (c.run_ms, c.cost_usd), default=None)


def _moves(model: SliceModel, chain: Sequence[Choice], request: Request) -> Iterator[list[Choice]]:
    """Every chain one move away that has no more stages than are allowed."""
    for at, one in enumerate(chain):
        if not one.shards:
            for part in _divided(model, one, request):
                moved = [*chain[:at], *part, *chain[at + 1 :]]
                if stages(moved) <= request.max_stages:
                    yield moved


def _divided(model: SliceModel, one: Choice, request: Request) -> Iterator[list[Choice]]:
    """A slice in two, or with a stage of shards in it."""
    legal = {0, model.units, *(u for u in range(one.first, one.last + 1) if model.fits_payload(u))}
    for unit in sorted(legal & set(range(one.first + 1, one.last))):
        halves = [_quickest(model, one.first, unit), _quickest(model, unit, one.last)]
        if len(found := [half for half in halves if half]) == 2:
            yield found
    spans = {(s.first, s.last) for s in model.profile.shards} if request.shards else set()
    for first, last in sorted(spans):
        if one.first <= first < last <= one.last and {first, last} <= legal:
            ends = [(one.first, first), (last, one.last)]
            around = [_quickest(model, *end) if end[0] < end[1] else None for end in ends]
            if all(slice_ or begin == end for slice_, (begin, end) in zip(around, ends, strict=True)):
                for shards in sharded(model, first, last):
                    yield [choice for choice in (around[0], shards, around[1]) if choice]


def _cheapest(model: SliceModel, plan: Candidate, request: Request) -> Candidate | None:
    """The same stages in the sizes that cost least within the SLO; None where no size is quick enough."""
    assert request.slo_ms is not None
    spans = {(c.first, c.last): c.span for c in plan.choices}
    found = divide(
        [0, *(c.last for c in plan.choices)],
        lambda i, j: [c for c in ways_to_run(model, i, j, request) if c.span == spans[i, j]] if (i, j) in spans else [],
        lambda join, choice: step(model, join, choice),
        entry_ms=model.entry_ms,
        max_stages=request.max_stages,
        cap_ms=request.slo_ms,
    )
    best = min(
        (x for front in found.values() for x in front.labels), key=lambda x: (x.cost_usd, x.latency_ms), default=None
    )
    return Candidate(plan.name, tuple(best.chain()), best.latency_ms, best.cost_usd) if best else None


def _told(trail: Sequence[Candidate]) -> str:
    """How far it went."""
    moves = len(trail) - 1
    made = f"{moves} move{'s' * (moves != 1)} from {trail[0].name}"
    return f"{made}, {trail[0].latency_ms:.1f} to {trail[-1].latency_ms:.1f} ms" if moves else made


def _lost(candidate: Candidate, chosen: Candidate, request: Request) -> str:
    """Why it did not stay at a plan on the way."""
    if request.slo_ms is None:
        return f"{candidate.latency_ms - chosen.latency_ms:.2f} ms slower"
    return lost(candidate, chosen, request)
