"""The best plan of a kind: of just so many stages, with a sharded stage, with a codec on some hop.

A limit on what there may be at most is another request. What there has to be is not: the cheapest plan of at most
three stages may have one. So the graph of choices (`planners.options`) is unrolled: every state once for each number
of marked arcs before it, and a plan ends only where it has taken as many as the kind asks for. All else is the same
search, and as exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lamella.plan.planners.blocks import Arcs
from lamella.plan.planners.options import Fixed, Options
from lamella.plan.planners.route import Route, Stairs, Sums
from lamella.plan.planners.routes import Routes
from lamella.plan.planners.space import Space


class Kind(NamedTuple):
    """What is asked of a plan: that it takes `least` marked arcs, and no more where it has to be `just` so many."""

    name: str
    least: int
    just: bool
    slices: Callable[[Options], np.ndarray]
    """Marks of cells, [cells],"""
    fixed: Callable[[Fixed], int]
    """and of a stage of shards or a join alone."""


def of_stages(count: int) -> Kind:
    """Just so many stages; what joins shards by itself is one."""
    name = "one function" if count == 1 else f"{count} stages"
    return Kind(name, count, True, lambda options: np.ones(len(options.cells.tail), int), lambda arc: arc.stages)


def with_shards() -> Kind:
    """A stage of shards at least."""
    return Kind("with shards", 1, False, lambda options: np.zeros(len(options.cells.tail), int), _sharded)


def with_codecs() -> Kind:
    """A hop at least that does not go plain; a codec that plain is as good as in every respect is not looked at."""
    return Kind("with codecs", 1, False, _encoded, lambda arc: 0)


def _sharded(arc: Fixed) -> int:
    return int(arc.choice is not None)


def _encoded(options: Options) -> np.ndarray:
    """Slices that take something encoded: every hop is taken by one."""
    coded = [options.modes[state.unit][state.mode].coding.codec != "none" for state in options.states]
    tails: np.ndarray = np.array(coded, int)[options.cells.tail]
    return tails


def of_kind(options: Options, kind: Kind) -> Space:
    """The plans of a kind."""
    slices, fixed = kind.slices(options), np.array([kind.fixed(arc) for arc in options.fixed], int)

    def unrolled(options: Options, arcs: Arcs, most_stages: int | None) -> Routes:
        return Marked(options, arcs, np.concatenate([slices[arcs.cell], fixed]), kind, most_stages)

    return Space(options, unrolled)


class Marked(Routes):
    """Routes that take as many marks as a kind asks for. Arcs are told by the numbers they were given by."""

    def __init__(self, options: Options, arcs: Arcs, marks: np.ndarray, kind: Kind, most_stages: int | None) -> None:
        """Unroll: a state stands there once for each number of marks before it, `least` of them or more in the last.

        Args:
            options: what can be chosen.
            arcs: of it.
            marks: how often each arc counts.
            kind: what is asked for.
            most_stages: a route may have.
        """
        width = kind.least + 1
        count = len(arcs.tail)
        self.arcs, self.of = count, np.repeat(np.arange(count), width)
        before = np.tile(np.arange(width), count)
        after = before + marks[self.of]
        if kind.just:
            fits = after < width
            self.of, before, after = self.of[fits], before[fits], after[fits]
        super().__init__(
            len(options.states) * width,
            arcs.tail[self.of] * width + before,
            arcs.head[self.of] * width + np.minimum(after, kind.least),
            Sums(*(s[self.of] for s in arcs.sums)),
            law=options.law,
            begin_ms=options.begin_ms,
            stages=arcs.stages[self.of],
            most_stages=most_stages,
        )

    def priced(self, sums: Sums) -> Routes:
        """With other sums of the arcs it was given."""
        return super().priced(Sums(*(s[self.of] for s in sums)))

    def within(self, most_ms: float, most_usd: float, multiplier: float) -> np.ndarray:
        """As of all routes: an arc may be taken where it may be behind any number of marks."""
        return self._any(super().within(most_ms, most_usd, multiplier))

    def beating(self, stairs: Stairs, multipliers: Sequence[float]) -> np.ndarray:
        """As of all routes, likewise."""
        return self._any(super().beating(stairs, multipliers))

    def weighed(self, most_ms: float, multiplier: float) -> np.ndarray:
        """As of all routes: the least, behind any number of marks."""
        return self._least(super().weighed(most_ms, multiplier))

    def through(self, most_ms: float, multipliers: Sequence[float]) -> np.ndarray:
        """As of all routes, likewise."""
        return self._least(super().through(most_ms, multipliers))

    def _least(self, usd: np.ndarray) -> np.ndarray:
        found = np.full(self.arcs, np.inf)
        np.minimum.at(found, self.of, usd)
        return found

    def _any(self, ok: np.ndarray) -> np.ndarray:
        found = np.zeros(self.arcs, bool)
        found[self.of[ok]] = True
        return found

    def _made(self, arcs: Sequence[int]) -> Route:
        route = super()._made(arcs)
        return route._replace(arcs=tuple(self.of[list(route.arcs)].tolist()))
