"""A plan as a route through a graph of choices: what its arcs add up to, the law of its latency, and what is proven."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lamella.plan.document import deviations
from lamella.plan.planners.pareto import undominated

CLOSE = 1e-9
"""Relative: sums in another order differ by less."""


class Law(NamedTuple):
    """How the latency of a plan follows from mean and variance: `mean + deviations * sqrt(variance)`.

    Means and variances of functions and hops add: they are taken as independent. The percentile is that of a normal
    distribution; 0 deviations ask for the mean, 1.645 for the 95th percentile.
    """

    deviations: float = 0.0

    @classmethod
    def at(cls, percentile: float | None) -> Law:
        """That of a percentile from 50 to below 100; of the mean where there is none."""
        return cls(max(0.0, deviations(percentile)))

    def latency_ms(self, mean_ms: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Of sums."""
        return mean_ms + self.deviations * np.sqrt(variance) if self.deviations else mean_ms

    def line(self, mean_ms: float, variance: float, most_ms: float) -> Line:
        """The chord beneath the law, of routes that take at least so much and at most `most_ms`, begin not in it.

        The law is concave in the variance, and a route that keeps the bound has a variance of at most what the least
        mean leaves room for: between that and the least variance the law lies on or above the chord.
        """
        low = math.sqrt(variance)
        if not self.deviations or not low < math.inf:
            return Line(0.0, 0.0)
        high = max(low, CLOSE * max(1.0, most_ms), (most_ms - mean_ms) / self.deviations)  # slopes stay numbers
        if math.isinf(high):
            return Line(0.0, self.deviations * low)
        slope = self.deviations / (low + high)
        return Line(slope, slope * low * high)


class Line(NamedTuple):
    """A latency that adds along a route and is never above the law's: `mean + slope * variance`, and `at_ms` once."""

    slope: float
    at_ms: float

    def of(self, sums: Sums) -> np.ndarray:
        """What arcs or labels add to it."""
        return sums.ms + self.slope * sums.variance if self.slope else sums.ms


class Sums(NamedTuple):
    """A cost (USD), a mean (ms) and a variance (ms squared) each."""

    usd: np.ndarray
    ms: np.ndarray
    variance: np.ndarray


class Route(NamedTuple):
    """A plan: its arcs in order, and their sums."""

    arcs: tuple[int, ...]
    usd: float
    mean_ms: float
    variance: float
    latency_ms: float


class Proof(NamedTuple):
    """Why there is nothing cheaper: the bound, and how much was looked at."""

    bound_usd: float
    """No plan within the latency bound costs less, by the multipliers alone; labels prove the rest."""
    multiplier: float
    """What a ms is worth at the bound, USD: loosening it by one saves about so much."""
    arcs: int
    left: int
    """Arcs that the bounds did not rule out."""
    labels: int
    loss_usd: float = 0.0
    """What the cheapest may cost less than the one found: not 0 only where there were more labels than are kept."""


class Bounds(NamedTuple):
    """Of what the cheapest route within a latency costs: `lower_usd` or more, and at most what `known` does."""

    lower_usd: float
    known: Route
    multiplier: float
    tried: tuple[float, ...] = ()
    """All multipliers that were looked at: by others than the best one there may be routes that keep the latency."""

    @property
    def upper_usd(self) -> float:
        """What is known to be enough."""
        return self.known.usd


class Found(NamedTuple):
    """The routes that are best, by latency, and the proof."""

    routes: tuple[Route, ...]
    proof: Proof


class Stairs(NamedTuple):
    """Cost and latency of plans that there are, none of which beats another: by latency, so that costs fall."""

    ms: np.ndarray
    usd: np.ndarray

    @classmethod
    def of(cls, routes: Sequence[Route]) -> Stairs:
        """Of routes, those left out that others beat."""
        ms, usd = (np.array(x, float) for x in ([r.latency_ms for r in routes], [r.usd for r in routes]))
        kept = undominated(usd, ms)
        return cls(ms[kept], usd[kept])

    def corners(self) -> tuple[np.ndarray, np.ndarray]:
        """The dearest and slowest (USD, ms) that are not beaten: whatever is not is below and before one of them."""
        return np.r_[math.inf, self.usd], np.r_[self.ms, math.inf]

    def beats(self, usd: np.ndarray, ms: np.ndarray) -> np.ndarray:
        """Whether some step is cheaper and quicker, by more than rounding."""
        if not len(self.ms):
            return np.zeros(len(usd), bool)
        at = np.searchsorted(self.ms, ms * (1 - CLOSE), side="right") - 1
        return (at >= 0) & (self.usd[np.maximum(at, 0)] < usd * (1 - CLOSE))
