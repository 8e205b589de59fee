"""Label setting with Pareto pruning: every route within bounds that no other beats, state by state.

A label has a cost, a mean and a variance, and in three respects few labels beat each other: where memory is sold by the
megabyte there are millions. But variance counts only in the latency's percentile, `mean + z * sqrt(variance)`. A label
is beaten by one that is no dearer and no later whatever variance is still to come, which is to say (`later_ms`) for the
least and for the greatest that may be: two latencies that hardly differ, so that fronts are nearly lines.

Where even so there are more labels than `work` is for, labels of nearly the same cost are held against each other as if
it were the same. What that may lose at each state adds up along a route, and is said. Latency is never rounded: what is
found keeps its bound, and where nothing is found nothing does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lamella.plan.planners.pareto import falling, undominated
from lamella.plan.planners.route import CLOSE, Law, Line, Stairs, Sums
from lamella.plan.planners.ways import Ways

MOST_WORK = 100_000_000
"""Labels times arcs that leave them: what a search takes before it rounds costs, some ten seconds of time."""
MOST_LABELS = 2_000_000
"""That are kept, each of 48 bytes."""
SHARE = 8
"""Of what work is left one state may make so great a part,"""
LEAST_LABELS = 32
"""and so many labels in any case."""
CHUNK = 1 << 18
"""Labels that are made before they are held against bounds and each other."""


class Limits(NamedTuple):
    """What a route may take, with room for rounding; its begin is not in it."""

    usd: float
    ms: float
    multiplier: float
    """What a ms is worth, USD; 0 where that is not known."""
    stairs: Stairs | None
    """Plans that there are: what they beat for sure is dropped."""
    begin_ms: float
    line: Line
    """Beneath the law for every route that takes at most `ms`."""

    @property
    def flat_ms(self) -> float:
        """Latency as far as it adds."""
        return self.ms - self.line.at_ms + CLOSE * abs(self.ms)

    @property
    def mixed_usd(self) -> float:
        """Cost with latency weighed into it."""
        return (self.usd + self.multiplier * self.flat_ms) * (1 + CLOSE)


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
    loss_usd: float
    """What the cheapest route may cost less than the one found; infinite where labels were dropped unseen."""

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


def later_ms(
    law: Law, ms: np.ndarray, variance: np.ndarray, rest: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Latency of labels if the rest adds nothing but the least or the greatest variance there is.

    A label that is at both no later than another is no later at any variance between: what it is ahead,
    `ms' - ms + z * (sqrt(variance' + r) - sqrt(variance + r))`, only grows or only falls with `r`.
    """
    return law.latency_ms(ms, variance + rest[0]), law.latency_ms(ms, variance + rest[1])


class _Rests(NamedTuple):
    """What is to come at least from each state with so many stages left, by arcs that may be taken."""

    sums: Sums
    flat: np.ndarray
    mixed: np.ndarray
    variance: np.ndarray
    """[states, 2]: of any rest at least, and at most."""

    @classmethod
    def of(cls, ways: Ways, sums: Sums, law: Law, kept: np.ndarray, limits: Limits) -> _Rests:
        """By shortest and longest ways to the end."""
        taken = np.zeros(len(sums.usd), bool)
        taken[kept] = True

        def least(weight: np.ndarray) -> np.ndarray:
            return ways.backward(np.where(taken, weight, math.inf))

        flat, rest = limits.line.of(sums), Sums(*(least(s) for s in sums))
        mixed = least(sums.usd + limits.multiplier * flat) if limits.multiplier else rest.usd
        low = rest.variance[:, -1]
        if not law.deviations:
            return cls(rest, least(flat), mixed, np.stack([low, low], 1))
        room = max(0.0, limits.ms - float(rest.ms[0, -1])) / law.deviations  # no deviation within the bound is above it
        high = np.minimum(ways.farthest(np.where(taken, sums.variance, -math.inf)), room * room * (1 + CLOSE))
        return cls(rest, least(flat), mixed, np.stack([low, np.maximum(low, high)], 1))


class _Search:
    """Labels as they come to be, state by state."""

    def __init__(self, ways: Ways, sums: Sums, law: Law, kept: np.ndarray, limits: Limits) -> None:
        self.ways, self.sums, self.law, self.limits = ways, sums, law, limits
        self.rests = _Rests.of(ways, sums, law, kept, limits)
        zero = np.zeros(1)
        self.fronts: list[Labels | None] = [None] * ways.states
        self.fronts[0] = Labels(Sums(zero, zero, zero), np.full(1, -1), np.full(1, -1), np.zeros(1, int))
        self.loss_usd = np.zeros(ways.states)

    def reach(self, state: int, arcs: np.ndarray, most: int) -> int:
        """Make a state's labels, at most about so many; how many they are.

        They are thinned on the way, too, where chunks leave more than one of them holds.
        """
        lost = float(self.loss_usd[self.ways.tail[arcs]].max())
        waiting: list[Labels] = []
        for made in self._extended(arcs):
            waiting.append(self._best(made.at(self._within(made, state, lost)), state))
            if sum(len(one.arc) for one in waiting) > CHUNK:
                waiting = [self._best(_joined(waiting), state)]
                if len(waiting[0].arc) > max(most, CHUNK):
                    thin, more = self._thinned(waiting[0], state, most)
                    waiting, lost = [thin], lost + more
        front = self._best(_joined(waiting), state)
        if len(front.arc) > most and state < self.ways.states - 1:
            front, more = self._thinned(front, state, most)
            lost += more
        self.loss_usd[state] = lost
        self.fronts[state] = front if len(front.arc) else None
        return len(front.arc)

    def _extended(self, arcs: np.ndarray) -> Iterator[Labels]:
        """Every label of the states that arcs leave, one arc further; some at a time."""
        tails, which = np.unique(self.ways.tail[arcs], return_inverse=True)
        before = [front for tail in tails.tolist() if (front := self.fronts[tail])]
        sizes = np.array([len(front.arc) for front in before])
        begins = np.cumsum(sizes) - sizes
        columns = [np.concatenate([front.sums[k] for front in before]) for k in range(3)]
        stages = np.concatenate([front.stages for front in before])
        counts = sizes[which]
        parts = np.cumsum(counts) // CHUNK
        for part in np.split(np.arange(len(arcs)), np.flatnonzero(np.diff(parts)) + 1):
            count = counts[part]
            by = np.repeat(arcs[part], count)
            label = np.arange(len(by)) - np.repeat(np.cumsum(count) - count, count)
            at = label + np.repeat(begins[which[part]], count)
            further = Sums(*(columns[k][at] + self.sums[k][by] for k in range(3)))
            yield Labels(further, by, label, stages[at] + self.ways.stages[by])

    def _within(self, here: Labels, state: int, lost: float) -> np.ndarray:
        """Which labels may end within the limits, with the least that there is to come; `lost` is not held to them."""
        rests, limits = self.rests, self.limits
        left = self.ways.most - here.stages
        chosen = np.flatnonzero((left >= 0) & np.isfinite(rests.sums.ms[state, np.maximum(left, 0)]))
        left = left[chosen]
        sums = Sums(*(s[chosen] for s in here.sums))
        rest = Sums(*(r[state, left] for r in rests.sums))
        usd = sums.usd - lost + rest.usd
        latency = self.law.latency_ms(sums.ms + rest.ms, sums.variance + rest.variance)
        flat = limits.line.of(sums)
        within = (usd <= limits.usd) & (latency <= limits.ms) & (flat + rests.flat[state, left] <= limits.flat_ms)
        if limits.multiplier:
            mixed = sums.usd - lost + limits.multiplier * flat + rests.mixed[state, left]
            within &= mixed <= limits.mixed_usd
        if limits.stairs:
            within &= ~limits.stairs.beats(usd, limits.begin_ms + latency)
        found: np.ndarray = chosen[within]
        return found

    def _best(self, front: Labels, state: int, usd: np.ndarray | None = None) -> Labels:
        """The labels that no other is at least as good as: in cost, latency and where they count stages.

        Labels of other numbers of stages are not held against each other where latencies are two.
        """
        usd, last = front.sums.usd if usd is None else usd, state == self.ways.states - 1
        counted = not last and bool(len(front.stages)) and bool(np.any(front.stages != front.stages[0]))
        if not self.law.deviations:
            return front.at(undominated(usd, front.sums.ms, front.stages if counted else None))
        low, high = self.rests.variance[state].tolist()
        least, most = later_ms(self.law, front.sums.ms, front.sums.variance, (low, high))
        third = most if high > low else None
        if not counted:
            return front.at(undominated(usd, least, third))
        parts = [np.flatnonzero(front.stages == count) for count in np.unique(front.stages)]
        kept = [part[undominated(usd[part], least[part], None if third is None else third[part])] for part in parts]
        return front.at(np.concatenate(kept))

    def _thinned(self, front: Labels, state: int, most: int) -> tuple[Labels, float]:
        """About so many of them, and what that may lose: costs are rounded more and more.

        Where one cost is not enough some are dropped, evenly by latency, and the loss is not known.
        """
        least, width = float(front.sums.usd.min()), float(np.ptp(front.sums.usd))
        step = width / most
        while step > 0.0:
            found = self._best(front, state, np.floor((front.sums.usd - least) / step))
            if len(found.arc) <= most:
                return found, step
            if step > width:
                front = found
                break
            step *= 4
        order = np.argsort(front.sums.ms, kind="stable")
        return front.at(order[np.linspace(0, len(order) - 1, most).astype(int)]), math.inf


def labelled(ways: Ways, sums: Sums, law: Law, kept: np.ndarray, limits: Limits, work: int = MOST_WORK) -> Labelled:
    """Labels of every state.

    Args:
        ways: the graph.
        sums: what its arcs add.
        law: of latency.
        kept: arcs that may be taken at all, in order.
        limits: that routes keep.
        work: labels times arcs that leave them, above which costs are rounded.
    """
    search = _Search(ways, sums, law, kept, limits)
    ends = np.searchsorted(ways.head[kept], np.arange(ways.states + 1))
    leaving = np.bincount(ways.tail[kept], minlength=ways.states)
    room, looked_at = MOST_LABELS, 0
    for state in range(1, ways.states):
        arcs = kept[ends[state] : ends[state + 1]]
        reached = [search.fronts[tail] is not None for tail in ways.tail[arcs].tolist()]
        if any(reached):
            share = min(room, work // max(1, int(leaving[state]))) // SHARE
            count = search.reach(state, arcs[reached], max(LEAST_LABELS, share))
            work, room, looked_at = work - count * int(leaving[state]), room - count, looked_at + count
    return Labelled(search.fronts, looked_at, float(search.loss_usd[-1]))


def _joined(parts: Sequence[Labels]) -> Labels:
    if len(parts) == 1:
        return parts[0]
    sums = Sums(*(np.concatenate([p.sums[k] for p in parts]) for k in range(3)))
    return Labels(sums, *(np.concatenate([getattr(p, name) for p in parts]) for name in ("arc", "label", "stages")))
