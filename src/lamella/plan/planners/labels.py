"""Label setting with Pareto pruning: every route within bounds that no other beats, state by state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lamella.plan.planners.pareto import falling, undominated
from lamella.plan.planners.route import CLOSE, Law, Stairs, Sums
from lamella.plan.planners.ways import Ways


class Limits(NamedTuple):
    """What a route may take, with room for rounding; its begin is not in it."""

    usd: float
    ms: float
    multiplier: float
    """What a ms is worth, USD; 0 where that is not known."""
    stairs: Stairs | None
    """Plans that there are: what they beat for sure is dropped."""
    begin_ms: float

    @property
    def mixed_usd(self) -> float:
        """Cost with latency weighed into it."""
        return (self.usd + self.multiplier * self.ms) * (1 + CLOSE)


class Labels(NamedTuple):
    """Labels of a state: their sums, by which arc they came, from which label of the state before; their stages."""

    sums: Sums
    arc: np.ndarray
    label: np.ndarray
    stages: np.ndarray

    def at(self, chosen: np.ndarray) -> Labels:
        """Some of them."""
        return Labels(Sums(*(s[chosen] for s in self.sums)), self.arc[chosen], self.label[chosen], self.stages[chosen])


class Labelled(NamedTuple):
    """The last state's labels, and how they came about."""

    fronts: Sequence[Labels | None]
    looked_at: int

    def best(self, law: Law, begin_ms: float) -> list[int]:
        """Those of the last state that the law does not beat, by latency."""
        last = self.fronts[-1]
        if last is None:
            return []
        latency = law.latency_ms(begin_ms + last.sums.ms, last.sums.variance)
        order = np.lexsort((last.sums.usd, latency))
        found: list[int] = order[falling(last.sums.usd[order])].tolist()
        return found

    def arcs(self, label: int, ways: Ways) -> list[int]:
        """Of the route to a label of the last state."""
        arcs, front = [], self.fronts[-1]
        assert front
        while front.arc[label] >= 0:
            arcs.append(int(front.arc[label]))
            label = int(front.label[label])
            earlier = self.fronts[ways.tail[arcs[-1]]]
            assert earlier
            front = earlier
        return arcs[::-1]


def labelled(ways: Ways, sums: Sums, law: Law, kept: np.ndarray, limits: Limits) -> Labelled:
    """Labels of every state.

    Args:
        ways: the graph.
        sums: what its arcs add.
        law: of latency.
        kept: arcs that may be taken at all, in order.
        limits: that routes keep.
    """
    rests = Sums(*(ways.backward(s) for s in sums))
    rest_mixed = ways.backward(sums.usd + limits.multiplier * sums.ms) if limits.multiplier else rests.usd
    fronts: list[Labels | None] = [None] * ways.states
    zero = np.zeros(1)
    fronts[0] = Labels(Sums(zero, zero, zero), np.full(1, -1), np.full(1, -1), np.zeros(1, int))
    ends = np.searchsorted(ways.head[kept], np.arange(ways.states + 1))
    looked_at = 0
    for state in range(1, ways.states):
        arcs = [a for a in kept[ends[state] : ends[state + 1]].tolist() if fronts[ways.tail[a]] is not None]
        if arcs:
            here = _extended(ways, sums, arcs, fronts)
            here = here.at(np.flatnonzero(here.stages <= ways.most))
            left = ways.most - here.stages
            rest = Sums(*(r[state, left] for r in rests))
            within = _within(here.sums, rest, law, limits)
            if limits.multiplier:
                total = here.sums.usd + limits.multiplier * here.sums.ms + rest_mixed[state, left]
                within &= total <= limits.mixed_usd
            chosen = _best(here.at(np.flatnonzero(within)), bool(law.deviations), state < ways.states - 1)
            looked_at += len(chosen.arc)
            fronts[state] = chosen if len(chosen.arc) else None
    return Labelled(fronts, looked_at)


def _within(sums: Sums, rest: Sums, law: Law, limits: Limits) -> np.ndarray:
    """Which labels may end within the limits, with the least that there is to come."""
    usd, latency = sums.usd + rest.usd, law.latency_ms(sums.ms + rest.ms, sums.variance + rest.variance)
    within: np.ndarray = (usd <= limits.usd) & (latency <= limits.ms)
    if limits.stairs:
        within &= ~limits.stairs.beats(usd, limits.begin_ms + latency)
    return within


def _extended(ways: Ways, sums: Sums, arcs: Sequence[int], fronts: Sequence[Labels | None]) -> Labels:
    """Every label of the states that arcs leave, one arc further."""
    before = [front for a in arcs if (front := fronts[ways.tail[a]])]
    counts = [len(front.arc) for front in before]
    by = np.repeat(arcs, counts)
    further = Sums(*(np.concatenate([f.sums[k] for f in before]) + sums[k][by] for k in range(3)))
    stages = np.concatenate([f.stages for f in before]) + ways.stages[by]
    return Labels(further, by, np.concatenate([np.arange(n) for n in counts]), stages)


def _best(front: Labels, varied: bool, counted: bool) -> Labels:
    """The labels that no other is at least as good as: in cost and latency, and where they count variance and stages.

    Variance and stages both: labels of other numbers of stages are not held against each other.
    """
    usd, ms, variance = front.sums
    counted = counted and bool(len(front.stages)) and bool(np.any(front.stages != front.stages[0]))
    if varied and counted:
        parts = [np.flatnonzero(front.stages == count) for count in np.unique(front.stages)]
        kept = [part[undominated(usd[part], ms[part], variance[part])] for part in parts]
        return front.at(np.concatenate(kept))
    third = variance if varied else front.stages if counted else None
    return front.at(undominated(usd, ms, third))
