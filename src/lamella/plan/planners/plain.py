"""The plain planners: one function, and slices of equal numbers of units.

`single` is a candidate of every planner that divides, so no plan is worse than it by the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from lamella.errors import InfeasiblePlan
from lamella.plan.planners.divisions import Divisions, as_candidate
from lamella.plan.planners.planner import Candidate, Decision
from lamella.plan.planners.verdicts import lost, unfit, within
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request


def singles(model: SliceModel) -> list[Candidate]:
    """The model as one function, every size that is not dominated; empty where none fits."""
    return [Candidate("single", (c,), model.entry_ms + c.run_ms, c.cost_usd) for c in model.whole]


@dataclass(frozen=True, slots=True)
class Single:
    """One function of our own package, the cheapest size and layout for it."""

    name: str = "single"
    shards: bool = False
    codes: bool = False
    holds: bool = False

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The cheapest single function within the SLO."""
        candidates = singles(model)
        chosen = within(candidates, request, model)
        losers = tuple((c, lost(c, chosen, request)) for c in candidates if c is not chosen)
        return Decision(chosen, "the cheapest way to serve the model as one function", losers)


@dataclass(frozen=True, slots=True)
class Uniform:
    """As many slices as asked, each with the same number of units: what one does without a profile."""

    stages: int
    shards: bool = False
    codes: bool = False
    holds: bool = False

    @property
    def name(self) -> str:
        """`uniform-K`."""
        return f"uniform-{self.stages}"

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The cheapest sizes for equal slices."""
        if self.stages > model.units:
            raise InfeasiblePlan(
                f"{self.name} needs {self.stages} units, {model.graph.name} divides into {model.units}",
                try_=f"--planner uniform-{model.units}",
            )
        marks = [round(i * model.units / self.stages) for i in range(self.stages + 1)]
        where = model.platform.name
        for unit in marks[1:-1]:
            if not model.fits_payload(unit):
                raise InfeasiblePlan(
                    f"payload: {self.name} divides before unit {unit}, where "
                    f"{model.platform.hop_mb(model.hop(unit)[2]):.1f} MB go over the wire; the limit of {where} is "
                    f"{model.platform.hop_limit_mb:g} MB",
                    try_="--planner mopar",
                )
        fronts = Divisions(model, marks, Request(max_stages=self.stages, shards=False)).divide()
        candidates = [as_candidate(self.name, x) for x in fronts[self.stages].labels] if self.stages in fronts else []
        if not candidates:
            worst = next(ends for ends in pairwise(marks) if not model.choices(*ends))
            raise InfeasiblePlan(
                f"{self.name}: {unfit(model, *worst)}",
                where=f"units {worst[0]} to {worst[1] - 1}",
                try_="--planner mopar",
            )
        chosen = within(candidates, request, model)
        return Decision(chosen, f"{self.stages} slices of equal numbers of units", ())
