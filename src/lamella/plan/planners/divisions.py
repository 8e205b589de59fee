"""Divisions at some of the unit borders, priced with joins and hops: where planners look that decide step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamella.plan.choice import Choice, Join
from lamella.plan.planners.planner import Candidate
from lamella.plan.planners.search import Front, Label, Step, cheapest, divide
from lamella.plan.pricing.fan_out import step, ways_to_run
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request


@dataclass(frozen=True, slots=True)
class Divisions:
    """Those at some marks, with the borders of the model among them."""

    model: SliceModel
    marks: list[int]
    request: Request

    def divide(
        self, cap_ms: float = math.inf, cap_usd: float = math.inf, *, take: Callable[[Step], Step] = lambda step: step
    ) -> dict[int, Front]:
        """The best of them by number of stages, by prices that `take` may change."""
        model = self.model

        def ways(first: int, last: int) -> list[Choice]:
            return ways_to_run(model, first, last, self.request)

        def priced(join: Join | None, choice: Choice | None) -> Step | None:
            found = step(model, join, choice)
            return take(found) if found else None

        return divide(
            [m for m in self.marks if m in (0, model.units) or model.fits_payload(m)],
            ways,
            priced,
            entry_ms=model.entry_ms,
            max_stages=self.request.max_stages,
            cap_ms=cap_ms,
            cap_usd=cap_usd,
        )

    def cheapest(self, name: str) -> list[Candidate]:
        """The cheapest division whatever its latency, if there is any: quickly found, since time does not count."""
        return self._only(name, lambda s: s._replace(hop_ms=0.0, run_ms=0.0))

    def fastest(self, name: str) -> list[Candidate]:
        """The fastest division whatever its cost, if there is any."""
        return self._only(name, lambda s: s._replace(hop_usd=0.0, run_usd=0.0))

    def _only(self, name: str, take: Callable[[Step], Step]) -> list[Candidate]:
        found = cheapest((x for front in self.divide(take=take).values() for x in front.labels), 0.0)
        total = added_up(self.model, name, found.chain()) if found else None
        return [total] if total else []


def as_candidate(name: str, label: Label) -> Candidate:
    """What a label stands for."""
    return Candidate(name, tuple(label.chain()), label.latency_ms, label.cost_usd)


def added_up(model: SliceModel, name: str, chain: Sequence[Choice]) -> Candidate | None:
    """What a chain of choices takes, joins and hops included; None where no size holds a function with its join."""
    ms, usd = model.entry_ms, 0.0
    join: Join | None = None
    for choice in (*chain, None):
        if choice or join:
            taken = step(model, join, choice)
            if taken is None:
                return None
            ms, usd = ms + taken.hop_ms + taken.run_ms, usd + taken.hop_usd + taken.run_usd
        join = choice.join if choice else None
    return Candidate(name, tuple(chain), ms, usd)
