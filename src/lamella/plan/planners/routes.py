"""The cheapest route through a graph of choices within a latency bound: bounds first, labels for what they leave.

A state is what the past of a plan leaves open: a border of units, the codec of what crosses it, parts that wait to be
joined. An arc is a choice: a slice with its size, layout and codecs. A route from the first state to the last is a
plan; its cost is the sum of its arcs' costs, its latency follows a law from the sums of their means and variances.

Exact, in three steps. Weighing latency into cost by a multiplier makes the bound go away: shortest routes then give a
lower bound of every plan that keeps it, and some of them keep it, which is an upper one. The multiplier that closes
the gap best is found by the crossing of two such routes' lines (Handler and Zang, 1980). With shortest distances from
both ends every arc that no route within the bounds can take is dropped. What is left is searched by label setting with
Pareto pruning, every label held against the same bounds. The reference in the tests is every route, one by one.

A percentile of latency does not add along a route. A line beneath it does (`route.Law.line`): bounds are on that, and
the law itself is for labels. Labels are kept few at first, whatever that loses: the route so found is a bound that
mostly leaves few enough for a time that loses nothing. Where it does not, the proof says how much there may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from functools import cached_property

import numpy as np

from lamella.errors import ConfigError
from lamella.plan.planners.labels import MOST_WORK, Limits, labelled
from lamella.plan.planners.route import CLOSE, Bounds, Found, Law, Line, Proof, Route, Stairs, Sums
from lamella.plan.planners.ways import Ways

ROUNDS = 30
"""Multipliers that are tried at most."""
SHARES = (100, 10, 1)
"""Labels are first for so much less work: what that finds is a bound for the next time."""
HULL = 64
"""Lines of a front's lower hull that are looked at, at most."""


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
        self.most_work = MOST_WORK
        if stages is None or most_stages is None:
            stages, most_stages = np.zeros(len(tail), int), 0
        self.ways = Ways(states, tail, head, stages, most_stages)
        self._sums = self._checked(sums)

    def _checked(self, sums: Sums) -> Sums:
        """In our order."""
        for name, values in sums._asdict().items():
            if not np.all(np.isfinite(values)) or np.any(values < 0):
                raise ValueError(f"an arc's {name} is not a finite number from 0")
        return Sums(*(np.asarray(s, float)[self.ways.order] for s in sums))

    def priced(self, sums: Sums) -> Routes:
        """The same graph where arcs add something else.

        Raises:
            ValueError: something is not a finite number from 0.
        """
        found = copy(self)
        for known in ("_least_variance", "_least_ms"):
            found.__dict__.pop(known, None)
        found._sums = self._checked(sums)
        return found

    # ------------------------------------------------------------------------------------------------- questions

    def cheapest(self, most_ms: float = math.inf, known_usd: float = math.inf) -> Found:
        """The cheapest route within a latency, of equally cheap ones the quickest; none where none keeps it.

        Args:
            most_ms: latency that it does not exceed.
            known_usd: what some route within it is known to cost.

        Raises:
            ConfigError: there are more labels than can be kept to say whether any route keeps the latency.
        """
        bounds = self.bounds(most_ms)
        if bounds is None:
            return Found((), Proof(math.inf, 0.0, len(self.ways.tail), 0, 0))
        best = bounds.known
        for share in SHARES:
            upper, work = min(best.usd, known_usd), self.most_work // share
            found = self._search(most_ms, upper, bounds.multiplier, bounds.lower_usd, work=work)
            best = min((best, *found.routes), key=lambda r: (r.usd, r.latency_ms))
            if not found.proof.loss_usd:
                break
        loss = found.proof.loss_usd
        if loss:  # of the cheapest that was looked for, which may be one that is known and was lost among the labels
            loss = min(loss + max(0.0, best.usd - known_usd), best.usd - bounds.lower_usd)
        return Found((best,), found.proof._replace(loss_usd=loss))

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
        least = float(self.ways.forward(self._sums.usd)[0][-1, -1])
        return self._search(most_ms, most_usd, 0.0, least, stairs, work=self.most_work)

    def fastest(self) -> Route | None:
        """The route of least mean latency, whatever it costs."""
        return self._route(self.ways.forward(self._sums.ms))

    # ---------------------------------------------------------------------------------------------------- bounds

    def hull(self, most: int = HULL) -> tuple[list[Route], list[float]]:
        """Routes on the lower hull of cost and mean latency, cheapest first, and what a ms was worth at each side.

        Every other route lies on or above the lines between them, up to the number of lines that were looked at.
        """
        cheap, fast = self._route(self.ways.forward(self._sums.usd)), self.fastest()
        if cheap is None or fast is None:
            return [], []
        found, multipliers, open_ = {cheap, fast}, list[float](), [(cheap, fast)]
        while open_ and len(multipliers) < most:
            left, right = open_.pop(0)  # the widest first, more or less
            saved, more = left.mean_ms - right.mean_ms, right.usd - left.usd
            if saved <= CLOSE * left.mean_ms or more <= CLOSE * right.usd:
                continue
            multiplier = more / saved
            if math.isinf(multiplier):
                continue  # latencies so small that a ms is worth more than there are numbers
            multipliers.append(multiplier)
            route = self._route(self.ways.forward(self._sums.usd + multiplier * self._sums.ms))
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
        over = [(self.ways.over(usd), 0.0), *((self.ways.over(usd + m * ms), m) for m in multipliers)]
        over_ms = self.ways.over(ms)
        ok = np.zeros(len(ms), bool)
        for corner in zip(corner_usd.tolist(), corner_ms.tolist(), strict=True):
            rest = np.flatnonzero(~ok)
            rest = rest[over_ms[rest] <= _slack(corner[1])]
            for weight, m in over:
                rest = rest[weight[rest] <= _slack(corner[0] + (m * corner[1] if m else 0.0))]
            ok[rest] = True
        found = np.empty(len(ok), bool)
        found[self.ways.order] = ok
        return found

    def bounds(self, most_ms: float) -> Bounds | None:
        """What the cheapest route within a latency costs at least and at most; None where there is none.

        Raises:
            ConfigError: there are more labels than can be kept to say whether there is one.
        """
        usd = self._sums.usd
        cheap = self._route(self.ways.forward(usd))
        if cheap is None:
            return None
        if self._keeps(cheap.latency_ms, most_ms):
            return Bounds(cheap.usd, cheap, 0.0)
        line = self._line(most_ms)
        flat, allowed = line.of(self._sums), most_ms - self.begin_ms - line.at_ms
        fast = self._route(self.ways.forward(flat))
        assert fast is not None
        if self._flat_ms(fast, line) > allowed + 2 * CLOSE * most_ms:
            return None
        met, lower, best, tried = [fast, self.fastest()], cheap.usd, 0.0, list[float]()
        left, right = (cheap.usd, self._flat_ms(cheap, line)), (fast.usd, self._flat_ms(fast, line))
        for _ in range(ROUNDS):
            if left[1] - right[1] <= CLOSE * left[1] or right[0] - left[0] <= CLOSE * right[0]:
                break
            multiplier = (right[0] - left[0]) / (left[1] - right[1])
            if math.isinf(multiplier):
                break
            tried.append(multiplier)
            route = self._route(self.ways.forward(usd + multiplier * flat))
            assert route is not None
            met.append(route)
            taken_ms = self._flat_ms(route, line)
            value = route.usd + multiplier * taken_ms
            if value - multiplier * allowed > lower:
                lower, best = value - multiplier * allowed, multiplier
            if value >= (left[0] + multiplier * left[1]) * (1 - CLOSE):
                break  # no route lies beneath the line of the two
            if taken_ms <= allowed:
                right = (route.usd, taken_ms)
            else:
                left = (route.usd, taken_ms)
        kept = tuple(r for r in met if r and self._keeps(r.latency_ms, most_ms)) or self._fastest(most_ms)
        known = min(kept, key=lambda r: (r.usd, r.latency_ms), default=None)
        return Bounds(min(lower, known.usd), known, best, tuple(tried)) if known else None

    def _fastest(self, most_ms: float) -> tuple[Route, ...]:
        """Routes that keep the bound where means do not tell, if there are any.

        By labels of latency alone: with costs every size that is sold would be one.
        """
        if not self.law.deviations:
            return ()
        found = self._search(most_ms, math.inf, 0.0, 0.0, free=True, work=self.most_work)
        if not found.routes and found.proof.loss_usd:
            raise ConfigError(
                f"whether any plan takes at most {most_ms:g} ms is not settled by as many labels as are kept",
                where="--slo-ms",
                try_=f"--slo-ms {most_ms * 1.05:.3g}, further from the least there is",
            )
        return found.routes

    def _line(self, most_ms: float) -> Line:
        """The latency that bounds are on: beneath the law for all routes that keep the bound."""
        if not self.law.deviations:
            return Line(0.0, 0.0)
        return self.law.line(self._least_ms, self._least_variance, most_ms * (1 + CLOSE) - self.begin_ms)

    def _flat_ms(self, route: Route, line: Line) -> float:
        return route.mean_ms - self.begin_ms + line.slope * route.variance

    @cached_property
    def _least_ms(self) -> float:
        return float(self.ways.forward(self._sums.ms)[0][-1, -1])

    @cached_property
    def _least_variance(self) -> float:
        return float(self.ways.forward(self._sums.variance)[0][-1, -1]) if self.law.deviations else 0.0

    def _keeps(self, latency_ms: float, most_ms: float) -> bool:
        return latency_ms <= most_ms * (1 + CLOSE)

    def through(self, most_ms: float, multipliers: Sequence[float]) -> np.ndarray:
        """What some route over each arc costs that keeps a latency, of the best ones by each multiplier. [arcs], USD.

        Where a bound falls between two routes of the lower hull, which no multiplier but takes past each other, the
        cheapest route within it is none of the hull, but often the best of those over one of its arcs.
        """
        line, best = self._line(most_ms), np.full(len(self.ways.tail), math.inf)
        adds = np.stack([*self._sums, self.ways.stages][: 4 if self.ways.most else 3], axis=1)
        for multiplier in multipliers:
            sums = self.ways.through(self._sums.usd + multiplier * line.of(self._sums), adds).T
            kept = self.law.latency_ms(self.begin_ms + sums[1], sums[2]) <= most_ms * (1 + CLOSE)
            if self.ways.most:
                kept &= sums[3] <= self.ways.most
            best = np.where(kept, np.minimum(best, sums[0]), best)
        found = np.empty(len(best))
        found[self.ways.order] = best
        return found

    def within(self, most_ms: float, most_usd: float, multiplier: float) -> np.ndarray:
        """Which arcs some route may take that keeps both bounds: the others can be left out. [arcs], bool."""
        ok = np.empty(len(self.ways.tail), bool)
        ok[self.ways.order] = self._within(self._limits(most_ms, most_usd, multiplier))
        return ok

    def weighed(self, most_ms: float, multiplier: float) -> np.ndarray:
        """What the best route over each arc costs at least, with latency weighed in. [arcs], USD."""
        found = np.empty(len(self.ways.tail))
        weight = self._sums.usd + multiplier * self._line(most_ms).of(self._sums)
        found[self.ways.order] = self.ways.over(weight)
        return found

    def _limits(self, most_ms: float, most_usd: float, multiplier: float, stairs: Stairs | None = None) -> Limits:
        ms = most_ms * (1 + CLOSE) - self.begin_ms
        return Limits(most_usd * (1 + CLOSE), ms, multiplier, stairs, self.begin_ms, self._line(most_ms))

    def _within(self, limits: Limits) -> np.ndarray:
        """By the shortest way that an arc is on: in cost, in latency, and with latency weighed into cost."""
        usd, flat = self._sums.usd, limits.line.of(self._sums)
        tests = [(usd, limits.usd), (flat, limits.flat_ms)]
        if limits.multiplier:
            tests.append((usd + limits.multiplier * flat, limits.mixed_usd))
        ok = np.ones(len(self.ways.tail), bool)
        for weight, most in tests:
            if math.isfinite(most):
                ok &= self.ways.over(weight) <= most
        return ok

    # ---------------------------------------------------------------------------------------------------- routes

    def _route(self, found: tuple[np.ndarray, np.ndarray]) -> Route | None:
        """The route to the end."""
        arcs = self.ways.route(found)
        return self._made(arcs) if arcs is not None else None

    def _made(self, arcs: Sequence[int]) -> Route:
        at = list(arcs)
        usd, ms, variance = (float(math.fsum(s[at])) for s in self._sums)
        mean = self.begin_ms + ms
        latency = float(self.law.latency_ms(np.array(mean), np.array(variance)))
        return Route(tuple(self.ways.order[at].tolist()), usd, mean, variance, latency)

    def _search(
        self,
        most_ms: float,
        most_usd: float,
        multiplier: float,
        bound_usd: float,
        stairs: Stairs | None = None,
        *,
        work: int,
        free: bool = False,
    ) -> Found:
        """The front of routes within both bounds, of labels that no step of the stairs beats for sure.

        The quickest alone, where all are searched as if they were `free`.
        """
        limits = self._limits(most_ms, most_usd, multiplier, stairs)
        kept = np.flatnonzero(self._within(limits))
        sums = self._sums._replace(usd=np.zeros_like(self._sums.usd)) if free else self._sums
        found = labelled(self.ways, sums, self.law, kept, limits, work)
        routes: list[Route] = []
        for label in found.best(self.law, self.begin_ms):
            route = self._made(found.arcs(label, self.ways))
            if route.usd > limits.usd:
                continue  # it stands for cheaper ones that were dropped
            if routes and route.latency_ms <= routes[-1].latency_ms and route.usd <= routes[-1].usd:
                routes.pop()  # exact sums may turn the order of neighbours that differ by rounding
            if not routes or route.usd < routes[-1].usd:
                routes.append(route)
        proof = Proof(float(bound_usd), multiplier, len(self._sums.usd), len(kept), found.looked_at, found.loss_usd)
        return Found(tuple(routes), proof)


def _slack(most: float) -> float:
    """A bound that sums in another order still keep."""
    return most + CLOSE * abs(most)
