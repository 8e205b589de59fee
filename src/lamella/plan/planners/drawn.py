"""The planner `random`: a legal plan drawn blindly, the plain baseline of the literature.

One draw: a number of stages, as many cuts, and for each slice one of the ways to run it (a size, a layout, shards where
some were measured), each with equal odds. What breaks a limit or the SLO is drawn again; the first that keeps both is
the plan. Not the best of many draws: that is a search, and its quality is a matter of how many one pays for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from lamella.plan.choice import Choice
from lamella.plan.planners.divisions import added_up
from lamella.plan.planners.planner import Candidate, Decision
from lamella.plan.planners.verdicts import infeasible
from lamella.plan.pricing.fan_out import stages, ways_to_run
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request

DRAWS = 1000
"""After so many that break a limit or the SLO it gives up."""


@dataclass(frozen=True, slots=True)
class Random:
    """Cuts, sizes and shards by lot, the same ones for the same seed."""

    seed: int = 0
    shards: bool = True
    codes: bool = True
    holds: bool = False

    @property
    def name(self) -> str:
        """`random`, or with another seed than 0 `random-SEED`."""
        return f"random-{self.seed}" if self.seed else "random"

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The first draw that keeps the limits and the SLO."""
        model = model.with_codings({})
        drawn: list[Candidate] = []
        rng = np.random.default_rng(self.seed)
        cuts = [unit for unit in range(1, model.units) if model.fits_payload(unit)]
        ways = cache(lambda first, last: ways_to_run(model, first, last, request))
        for number in range(1, DRAWS + 1):
            marks = _marks(cuts, request.max_stages, rng)
            chain = _chain([ways(*ends) for ends in pairwise([0, *marks, model.units])], rng)
            candidate = added_up(model, self.name, chain) if chain else None
            if candidate is None or stages(chain) > request.max_stages:
                continue
            if request.slo_ms is None or candidate.latency_ms <= request.slo_ms:
                kept = "the limits" if request.slo_ms is None else f"the limits and {request.bound}"
                why = f"drawn blindly with seed {self.seed}: draw {number} is the first that keeps {kept}"
                return Decision(candidate, why, (), {})
            drawn.append(candidate)
        raise infeasible(model, drawn, request, f"none of {DRAWS} plans drawn by {self.name}")


def _marks(cuts: Sequence[int], most_stages: int, rng: np.random.Generator) -> list[int]:
    """Where to divide: any number of times, each with equal odds, then at any cuts, likewise."""
    count = int(rng.integers(min(most_stages, len(cuts) + 1)))
    found: list[int] = sorted(rng.choice(cuts, count, replace=False).tolist()) if count else []
    return found


def _chain(ways: Sequence[Sequence[Choice]], rng: np.random.Generator) -> list[Choice]:
    """One of the ways of each slice; empty where a slice has none."""
    return [found[int(rng.integers(len(found)))] for found in ways] if all(ways) else []
