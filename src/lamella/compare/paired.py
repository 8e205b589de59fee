"""One plan against another, round by round: what a noisy minute does to both leaves their difference alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lamella.compare.record import PlanRecord
from lamella.compare.rounds import interval


class Difference(NamedTuple):
    """What a plan costs more than another, as a share of the other's mean cost, with its 95 % interval."""

    share: float
    low: float
    high: float

    @property
    def loses(self) -> bool:
        """Whether the plan is dearer beyond the interval."""
        return self.low > 0


def difference(plan: PlanRecord, other: PlanRecord) -> Difference:
    """What `plan` costs more than `other` in the rounds of one comparison, paired.

    The interval is a bootstrap of the mean over rounds; of fewer than three rounds it is the mean itself.

    Raises:
        ValueError: they do not have the same rounds, or none.
    """
    pairs = list(zip(plan.turns, other.turns, strict=True))
    if not pairs:
        raise ValueError(f"{plan.planner} and {other.planner} have no rounds: they were recorded without")
    mean = float(np.mean([b.cost_usd_per_million for _, b in pairs]))
    shares = [(a.cost_usd_per_million - b.cost_usd_per_million) / mean for a, b in pairs]
    low, high = interval([[s] for s in shares], lambda v: float(np.mean(v)))
    return Difference(float(np.mean(shares)), low, high)
