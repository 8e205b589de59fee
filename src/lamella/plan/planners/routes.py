"""The cheapest route through a graph of choices within a latency bound: bounds first, labels for what they leave.

A state is what the past of a plan leaves open: a border of units, the codec of what crosses it, parts that wait to be
joined. An arc is a choice: a slice with its size, layout and codecs. A route from the first state to the last is a
plan; its cost is the sum of its arcs' costs, its latency follows a law from the sums of their means and variances.

Exact, in three steps. Weighing latency into cost by a multiplier makes the bound go away: shortest routes then give a
lower bound of every plan that keeps it, and some of them keep it, which is an upper one. The multiplier that closes
the gap best is found by the crossing of two such routes' lines (Handler and Zang, 1980). With shortest distances from
both ends every arc that no route within the bounds can take is dropped. What is left is searched by label setting with
Pareto pruning, every label held against the same bounds. The reference in the tests is every route, one by one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

ROUNDS = 30
"""Multipliers that are tried at most."""
HULL = 64
"""Lines of a front's lower hull that are looked at, at most."""
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
        return cls(max(0.0, NormalDist().inv_cdf(percentile / 100)) if percentile else 0.0)

    def latency_ms(self, mean_ms: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Of sums."""
        return mean_ms + self.deviations * np.sqrt(variance) if self.deviations else mean_ms


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


class Bounds(NamedTuple):
    """Of what the cheapest route within a latency costs: some route costs `upper_usd`, and no one below `lower_usd`."""

    lower_usd: float
    upper_usd: float
    multiplier: float


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
        kept = _undominated(usd, ms, None)
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


class Routes:
    """A graph of choices, ready to be searched."""

    def __init__(
        self,
        states: int,
        tail: np.ndarray,
        head: np.ndarray,
        sums: Sums,
        law: Law | None = None,
        begin_ms: float = 0.0,
        stages: np.ndarray | None = None,
        most_stages: int | None = None,
    ) -> None:
        """Put arcs in order.

        Args:
            states: how many; the first is where routes begin, the last where they end.
            tail: of each arc, the state it leaves.
            head: the state it reaches, always a later one.
            sums: what each arc adds.
            law: of latency; that of means by default.
            begin_ms: what every route takes beside its arcs.
            stages: how many each arc adds.
            most_stages: a route may have; any number by default.

        Raises:
            ValueError: an arc leads back, or something is not a finite number from 0.
        """
        if len(tail) and (np.any(tail >= head) or tail.min() < 0 or head.max() >= states):
            raise ValueError("an arc leads back, or out of the graph")
        self.states, self.law, self.begin_ms = states, law or Law(), begin_ms
        limited = stages is not None and most_stages is not None
        counts = stages if limited else np.zeros(len(tail), int)
        self._most = most_stages if limited and most_stages is not None else 0
        assert counts is not None
        self._order = _ordered(head, counts, states)
        self._tail, self._head, self._stages = tail[self._order], head[self._order], counts[self._order]
        self._sums = self._checked(sums)
        self._into = _groups(self._head, self._stages)
        self._by_tail = _ordered(self._tail, self._stages, states)
        self._from = _groups(self._tail[self._by_tail], self._stages[self._by_tail])

    def _checked(self, sums: Sums) -> Sums:
        """In our order."""
        for name, values in sums._asdict().items():
            if not np.all(np.isfinite(values)) or np.any(values < 0):
                raise ValueError(f"an arc's {name} is not a finite number from 0")
        return Sums(*(np.asarray(s, float)[self._order] for s in sums))

    def priced(self, sums: Sums) -> Routes:
        """The same graph where arcs add something else.

        Raises:
            ValueError: something is not a finite number from 0.
        """
        found = copy(self)
        found.__dict__.pop("_least_variance", None)
        found._sums = self._checked(sums)
        return found

    # ------------------------------------------------------------------------------------------------- questions

    def cheapest(self, most_ms: float = math.inf) -> Found:
        """The cheapest route within a latency, of equally cheap ones the quickest; none where none keeps it."""
        bounds = self.bounds(most_ms)
        if bounds is None:
            return Found((), Proof(math.inf, 0.0, len(self._tail), 0, 0))
        found = self._search(most_ms, bounds.upper_usd, bounds.multiplier, bounds.lower_usd)
        best = min(found.routes, key=lambda r: (r.usd, r.latency_ms))
        return Found((best,), found.proof)

    def quickest(self, most_usd: float = math.inf) -> Found:
        """The quickest route within a budget, of equally quick ones the cheapest; none where none keeps it."""
        front = self.front(most_usd=most_usd)
        return Found(front.routes[:1], front.proof)

    def front(
        self, most_ms: float = math.inf, most_usd: float = math.inf, known: Sequence[Route] | None = None
    ) -> Found:
        """Every route that no other beats in both cost and latency, within bounds; by latency.

        Args:
            most_ms: latency that none exceeds.
            most_usd: cost that none exceeds.
            known: routes of this graph, against which labels are held; by default those of the front's lower hull.
        """
        stairs = Stairs.of(self.hull()[0] if known is None else known)
        least = float(self._forward(self._sums.usd)[0][-1, -1])
        return self._search(most_ms, most_usd, 0.0, least, stairs)

    def hull(self, most: int = HULL) -> tuple[list[Route], list[float]]:
        """Routes on the lower hull of cost and mean latency, cheapest first, and what a ms was worth at each side.

        Every other route lies on or above the lines between them, up to the number of lines that were looked at.
        """
        cheap, fast = self._route(self._forward(self._sums.usd)), self.fastest()
        if cheap is None or fast is None:
            return [], []
        found, multipliers, open_ = {cheap, fast}, list[float](), [(cheap, fast)]
        while open_ and len(multipliers) < most:
            left, right = open_.pop(0)  # the widest first, more or less
            saved, more = left.mean_ms - right.mean_ms, right.usd - left.usd
            if saved <= CLOSE * left.mean_ms or more <= CLOSE * right.usd:
                continue
            multiplier = more / saved
            multipliers.append(multiplier)
            route = self._route(self._forward(self._sums.usd + multiplier * self._sums.ms))
            assert route is not None
            line = left.usd + multiplier * left.mean_ms
            if route not in found and route.usd + multiplier * route.mean_ms < line * (1 - CLOSE):
                found.add(route)
                open_ += [(left, route), (route, right)]
        return sorted(found, key=lambda r: r.usd), multipliers

    def beating(self, stairs: Stairs, multipliers: Sequence[float]) -> np.ndarray:
        """Which arcs a route may take that no step of `stairs` beats; the others can be left out. [arcs], bool.

        Args:
            stairs: cost and latency of plans that there are.
            multipliers: what a ms is worth, USD: each gives a bound of what any route over an arc comes to.
        """
        usd, ms = self._sums.usd, self._sums.ms
        least = self.begin_ms + self.law.deviations * math.sqrt(self._least_variance)
        corner_usd, corner_ms = stairs.corners()
        corner_ms = corner_ms - least
        over = [(self._shortest_over(usd), 0.0), *((self._shortest_over(usd + m * ms), m) for m in multipliers)]
        over_ms = self._shortest_over(ms)
        ok = np.zeros(len(ms), bool)
        for corner in zip(corner_usd.tolist(), corner_ms.tolist(), strict=True):
            rest = np.flatnonzero(~ok)
            rest = rest[over_ms[rest] <= _slack(corner[1])]
            for weight, m in over:
                rest = rest[weight[rest] <= _slack(corner[0] + (m * corner[1] if m else 0.0))]
            ok[rest] = True
        found = np.empty(len(ok), bool)
        found[self._order] = ok
        return found

    # ---------------------------------------------------------------------------------------------------- bounds

    def bounds(self, most_ms: float) -> Bounds | None:
        """What the cheapest route within a latency costs at least and at most; None where there is none.

        Latency by the law is at least the mean, with the least deviation any route has.
        """
        usd, ms = self._sums.usd, self._sums.ms
        cheap = self._route(self._forward(usd))
        if cheap is None:
            return None
        if self._keeps(cheap.latency_ms, most_ms):
            return Bounds(cheap.usd, cheap.usd, 0.0)
        fast = self._fastest(most_ms)
        if fast is None:
            return None
        allowed = most_ms - self.begin_ms - self.law.deviations * math.sqrt(self._least_variance)
        upper, lower, best = fast.usd, cheap.usd, 0.0
        left, right = (cheap.usd, cheap.mean_ms - self.begin_ms), (fast.usd, fast.mean_ms - self.begin_ms)
        for _ in range(ROUNDS):
            if left[1] - right[1] <= CLOSE * left[1] or right[0] - left[0] <= CLOSE * right[0]:
                break
            multiplier = (right[0] - left[0]) / (left[1] - right[1])
            route = self._route(self._forward(usd + multiplier * ms))
            assert route is not None
            mean = route.mean_ms - self.begin_ms
            value = route.usd + multiplier * mean
            if value - multiplier * allowed > lower:
                lower, best = value - multiplier * allowed, multiplier
            if self._keeps(route.latency_ms, most_ms):
                upper = min(upper, route.usd)
            if value >= (left[0] + multiplier * left[1]) * (1 - CLOSE):
                break  # no route lies beneath the line of the two
            if mean <= allowed:
                right = (route.usd, mean)
            else:
                left = (route.usd, mean)
        return Bounds(min(lower, upper), upper, best)

    def fastest(self) -> Route | None:
        """The route of least mean latency, whatever it costs."""
        return self._route(self._forward(self._sums.ms))

    def _fastest(self, most_ms: float) -> Route | None:
        """A route that keeps the bound, if there is one; by the mean, or where that does not do, by labels."""
        route = self.fastest()
        if route is None or self._keeps(route.latency_ms, most_ms):
            return route
        if not self.law.deviations:
            return None
        found = self._search(most_ms, math.inf, 0.0, 0.0).routes
        return min(found, key=lambda r: r.usd) if found else None

    @cached_property
    def _least_variance(self) -> float:
        return float(self._forward(self._sums.variance)[0][-1, -1]) if self.law.deviations else 0.0

    def _keeps(self, latency_ms: float, most_ms: float) -> bool:
        return latency_ms <= most_ms * (1 + CLOSE)

    def _forward(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least weight from the begin to each state with at most 0, 1, ... stages, and the last arc to it."""
        width = self._most + 1
        least, by = np.full((self.states, width), math.inf), np.full((self.states, width), -1)
        least[0] = 0.0
        for state, count, low, high in self._into:
            if count < width:
                values = least[self._tail[low:high], : width - count] + weight[low:high, None]
                at = np.argmin(values, axis=0)
                found = values[at, np.arange(width - count)]
                better = found < least[state, count:]
                least[state, count:][better] = found[better]
                by[state, count:][better] = low + at[better]
        return least, by

    def _backward(self, weight: np.ndarray) -> np.ndarray:
        """The least weight from each state to the end with at most 0, 1, ... stages."""
        width = self._most + 1
        least = np.full((self.states, width), math.inf)
        least[-1] = 0.0
        heads, weights = self._head[self._by_tail], weight[self._by_tail]
        for state, count, low, high in reversed(self._from):
            if count < width:
                values = least[heads[low:high], : width - count] + weights[low:high, None]
                least[state, count:] = np.minimum(least[state, count:], values.min(axis=0))
        return least

    def _route(self, found: tuple[np.ndarray, np.ndarray]) -> Route | None:
        """The route to the end."""
        least, by = found
        if not math.isfinite(least[-1, -1]):
            return None
        arcs, state, stages = [], self.states - 1, self._most
        while state:
            arcs.append(int(by[state, stages]))
            state, stages = int(self._tail[arcs[-1]]), stages - int(self._stages[arcs[-1]])
        return self._made(arcs[::-1])

    def _made(self, arcs: Sequence[int]) -> Route:
        at = list(arcs)
        usd, ms, variance = (float(math.fsum(s[at])) for s in self._sums)
        mean = self.begin_ms + ms
        latency = float(self.law.latency_ms(np.array(mean), np.array(variance)))
        return Route(tuple(self._order[at].tolist()), usd, mean, variance, latency)

    def within(self, most_ms: float, most_usd: float, multiplier: float) -> np.ndarray:
        """Which arcs some route may take that keeps both bounds, by means: the others can be left out. [arcs], bool."""
        ok = np.empty(len(self._tail), bool)
        ok[self._order] = self._within((most_usd * (1 + CLOSE), most_ms * (1 + CLOSE) - self.begin_ms), multiplier)
        return ok

    def _within(self, caps: tuple[float, float], multiplier: float) -> np.ndarray:
        """By the shortest way that an arc is on: in cost, in latency, and with latency weighed into cost."""
        usd, ms = self._sums.usd, self._sums.ms
        tests = [(usd, caps[0]), (ms, caps[1])]
        if multiplier:
            tests.append((usd + multiplier * ms, (caps[0] + multiplier * caps[1]) * (1 + CLOSE)))
        ok = np.ones(len(self._tail), bool)
        for weight, most in tests:
            if math.isfinite(most):
                ok &= self._shortest_over(weight) <= most
        return ok

    def _shortest_over(self, weight: np.ndarray) -> np.ndarray:
        """Of each arc the least weight of a route that takes it."""
        before, after = self._forward(weight)[0], self._backward(weight)
        if not self._most:
            over: np.ndarray = before[self._tail, 0] + weight + after[self._head, 0]
            return over
        found = np.full(len(weight), math.inf)
        for state, count, low, high in self._into:
            left = self._most - count
            if left >= 0:
                rest = after[state, left::-1] if left < self._most else after[state, ::-1]
                found[low:high] = weight[low:high] + (before[self._tail[low:high], : left + 1] + rest).min(axis=1)
        return found

    # ---------------------------------------------------------------------------------------------------- labels

    def _search(
        self, most_ms: float, most_usd: float, multiplier: float, bound_usd: float, stairs: Stairs | None = None
    ) -> Found:
        """The front of routes within both bounds, of labels that no step of the stairs beats for sure."""
        usd, ms, variance = self._sums
        caps = (most_usd * (1 + CLOSE), most_ms * (1 + CLOSE) - self.begin_ms)
        rests = Sums(self._backward(usd), self._backward(ms), self._backward(variance))
        rest_mixed = self._backward(usd + multiplier * ms) if multiplier else rests.usd
        mixed_cap = (caps[0] + multiplier * caps[1]) * (1 + CLOSE) if multiplier else math.inf
        kept = np.flatnonzero(self._within(caps, multiplier))
        fronts: list[_Front | None] = [None] * self.states
        zero = np.zeros(1)
        fronts[0] = _Front(Sums(zero, zero, zero), np.full(1, -1), np.full(1, -1), np.zeros(1, int))
        ends = np.searchsorted(self._head[kept], np.arange(self.states + 1))
        labels = 0
        for state in range(1, self.states):
            arcs = [a for a in kept[ends[state] : ends[state + 1]].tolist() if fronts[self._tail[a]] is not None]
            if arcs:
                here = self._extended(arcs, fronts)
                here = here.at(np.flatnonzero(here.stages <= self._most))
                left = self._most - here.stages
                latency = self.law.latency_ms(
                    here.sums.ms + rests.ms[state, left], here.sums.variance + rests.variance[state, left]
                )
                within = (here.sums.usd + rests.usd[state, left] <= caps[0]) & (latency <= caps[1])
                if multiplier:
                    total = here.sums.usd + multiplier * here.sums.ms + rest_mixed[state, left]
                    within &= total <= mixed_cap
                if stairs:
                    within &= ~stairs.beats(here.sums.usd + rests.usd[state, left], self.begin_ms + latency)
                chosen = _best(here.at(np.flatnonzero(within)), bool(self.law.deviations), state < self.states - 1)
                labels += len(chosen.arc)
                fronts[state] = chosen if len(chosen.arc) else None
        routes = self._read(fronts)
        return Found(routes, Proof(float(bound_usd), multiplier, len(self._tail), len(kept), labels))

    def _extended(self, arcs: Sequence[int], fronts: Sequence[_Front | None]) -> _Front:
        """Every label of the states that arcs leave, one arc further."""
        before = [front for a in arcs if (front := fronts[self._tail[a]])]
        counts = [len(front.arc) for front in before]
        by = np.repeat(arcs, counts)
        sums = Sums(*(np.concatenate([f.sums[k] for f in before]) + self._sums[k][by] for k in range(3)))
        stages = np.concatenate([f.stages for f in before]) + self._stages[by]
        return _Front(sums, by, np.concatenate([np.arange(n) for n in counts]), stages)

    def _read(self, fronts: Sequence[_Front | None]) -> tuple[Route, ...]:
        """The last state's labels as routes, those that are beaten by the law left out."""
        last = fronts[-1]
        if last is None:
            return ()
        latency = self.law.latency_ms(self.begin_ms + last.sums.ms, last.sums.variance)
        order = np.lexsort((last.sums.usd, latency))
        routes: list[Route] = []
        for at in order[_falling(last.sums.usd[order])].tolist():
            arcs, front, label = [], last, at
            while front.arc[label] >= 0:
                arc = int(front.arc[label])
                arcs.append(arc)
                label = int(front.label[label])
                earlier = fronts[self._tail[arc]]
                assert earlier
                front = earlier
            route = self._made(arcs[::-1])
            if routes and route.latency_ms <= routes[-1].latency_ms and route.usd <= routes[-1].usd:
                routes.pop()  # exact sums may turn the order of neighbours that differ by rounding
            if not routes or route.usd < routes[-1].usd:
                routes.append(route)
        return tuple(routes)


def _slack(most: float) -> float:
    """A bound that sums in another order still keep."""
    return most + CLOSE * abs(most)


def _ordered(state: np.ndarray, stages: np.ndarray, states: int) -> np.ndarray:
    """Indices by state, then stages. Small numbers are sorted by their digits, in a tenth of the time."""
    width = int(stages.max(initial=0)) + 1
    small = states * width <= np.iinfo(np.uint16).max
    key = (state * width + stages).astype(np.uint16 if small else np.int64)
    return np.argsort(key, kind="stable")


def _groups(state: np.ndarray, stages: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Runs of equal state and stages: those, the first index, and one past the last."""
    if not len(state):
        return []
    begins = np.flatnonzero(np.r_[True, (state[1:] != state[:-1]) | (stages[1:] != stages[:-1])])
    ends = np.r_[begins[1:], len(state)]
    return list(zip(state[begins].tolist(), stages[begins].tolist(), begins.tolist(), ends.tolist(), strict=True))


class _Front(NamedTuple):
    """Labels of a state: their sums, by which arc they came, from which label of the state before; their stages."""

    sums: Sums
    arc: np.ndarray
    label: np.ndarray
    stages: np.ndarray

    def at(self, chosen: np.ndarray) -> _Front:
        return _Front(Sums(*(s[chosen] for s in self.sums)), self.arc[chosen], self.label[chosen], self.stages[chosen])


def _best(front: _Front, varied: bool, counted: bool) -> _Front:
    """The labels that no other is at least as good as: in cost and latency, and where they count variance and stages.

    Variance and stages both: labels of other numbers of stages are not held against each other.
    """
    usd, ms, variance = front.sums
    counted = counted and bool(len(front.stages)) and bool(np.any(front.stages != front.stages[0]))
    if varied and counted:
        parts = [np.flatnonzero(front.stages == count) for count in np.unique(front.stages)]
        kept = [part[_undominated(usd[part], ms[part], variance[part])] for part in parts]
        return front.at(np.concatenate(kept))
    third = variance if varied else front.stages if counted else None
    return front.at(_undominated(usd, ms, third))


def _undominated(usd: np.ndarray, ms: np.ndarray, third: np.ndarray | None) -> np.ndarray:
    """Indices of points that no other is at most as large as in all respects, of equal ones the first."""
    if third is not None:
        order = np.lexsort((third, usd, ms))
        return np.array(_skyline(usd[order].tolist(), third[order].tolist(), order.tolist()), int)
    order = np.lexsort((usd, ms))
    kept: np.ndarray = order[_falling(usd[order])]
    return kept


def _falling(values: np.ndarray) -> np.ndarray:
    """Which of them are below all before them."""
    below = np.ones(len(values), bool)
    below[1:] = values[1:] < np.minimum.accumulate(values)[:-1]
    return below


def _skyline(usd: list[float], variance: list[float], order: list[int]) -> list[int]:
    """Of points by their first coordinate those that no earlier one is at most as large as in the other two.

    The earlier ones' two coordinates make a staircase, kept by the first with the second falling.
    """
    steps: list[float] = []
    heights: list[float] = []
    kept = []
    for u, v, index in zip(usd, variance, order, strict=True):
        at = bisect_right(steps, u)
        if at and heights[at - 1] <= v:
            continue
        kept.append(index)
        low = bisect_left(steps, u)
        high = low
        while high < len(steps) and heights[high] >= v:
            high += 1
        steps[low:high] = [u]
        heights[low:high] = [v]
    return kept
