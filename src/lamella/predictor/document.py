"""The calibration: what single operators take on a machine, as formulas with their errors. Times in ms, memory in MB.

The time of a node is the sum of its terms (`predictor.work`), each times a coefficient that is never negative, and that
times a correction read off the measured nodes nearest to it: one where none is near. A person can read which roofline
a kind of operator has; every formula carries the error it made on networks that it was not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import msgspec
import numpy as np

from lamella.documents import Document
from lamella.machine import Machine
from lamella.predictor.footprint import Footprint
from lamella.predictor.work import ANY, Work
from lamella.profile.document import Floor, HopCosts, Variant
from lamella.profile.quiet import Load
from lamella.runtime.function import Layout

MOST = math.log(2)
"""Of a correction, either way: more is a mistake in a measurement, not a kernel's efficiency."""


class Formula(msgspec.Struct, frozen=True):
    """A sum of terms with coefficients, and how far it was off."""

    coefficients: dict[str, float]
    error: float
    """Mean absolute error on networks left out (five folds): relative to the figure; of memory also in MB."""

    def of(self, terms: Sequence[tuple[str, float]]) -> float:
        """The sum; terms without a coefficient count nothing."""
        return sum(self.coefficients.get(name, 0.0) * amount for name, amount in terms)


class KindFit(msgspec.Struct, frozen=True):
    """One kind of operator in one variant."""

    layout: Layout
    threads: int
    warm: bool
    """Whether caches hold what a request touches."""
    formula: Formula
    leaning: tuple[float, ...] = ()
    """Of each point of the kind: how much the logarithm of a neighbour's time is corrected. Empty where that is no
    better."""


class Kind(msgspec.Struct, frozen=True, dict=True):
    """What was measured of a kind of operator."""

    kind: str
    points: tuple[tuple[float, ...], ...]
    """Logarithms of the dimensions of every node that was measured."""
    reach: float
    """How far, in these logarithms, a node's correction reaches."""
    fits: tuple[KindFit, ...]

    @cached_property
    def by_variant(self) -> dict[tuple[Layout, int, bool], KindFit]:
        """Its fits."""
        return {(f.layout, f.threads, f.warm): f for f in self.fits}

    def near(self, dimensions: Sequence[float]) -> np.ndarray:
        """How near a node is to every point, 0 to 1."""
        found: np.ndarray = nearness(np.array([logarithms(dimensions)]), np.array(self.points), self.reach)[0]
        return found


class MemoryFit(msgspec.Struct, frozen=True):
    """What a function of some nodes takes in one layout: fields of `profile.document.UnitMemory`."""

    layout: Layout
    figures: dict[str, Formula]


class Calibration(Document, frozen=True, kw_only=True, dict=True):
    """`calibration.json`."""

    machine: Machine
    networks: int
    """How many were measured, of the spread's."""
    spread: int
    operators: int
    """Nodes in them."""
    threads: tuple[int, ...]
    call_ms: float
    """What a run of a session takes beyond its operators."""
    floor: Floor
    hop: HopCosts
    kinds: tuple[Kind, ...]
    memory: tuple[MemoryFit, ...]
    error: float
    """Of all nodes' times, cold, plain, on one thread, each weighted by its time: mean absolute, networks left out."""
    network_error: float
    """The same of whole networks."""
    loads: tuple[Load, ...]
    """Known loads beside the measurements."""

    @cached_property
    def _kinds(self) -> dict[str, Kind]:
        return {k.kind: k for k in self.kinds}

    def node_ms(self, work: Work, variant: Variant, share: float) -> float:
        """Time of a node.

        Args:
            work: what it has to do.
            variant: layout and threads of the calibration; the batch is in the work.
            share: how cold caches are, 0 to 1.
        """
        kind, terms = self._kinds.get(work.kind), work.terms
        if kind is None:
            kind, terms = self._kinds[ANY], work.common
        cold, warm = (self._at(kind, work, terms, (variant.layout, variant.threads, w)) for w in (False, True))
        return min(warm, cold) + share * max(0.0, cold - warm)

    def _at(
        self, kind: Kind, work: Work, terms: Sequence[tuple[str, float]], variant: tuple[Layout, int, bool]
    ) -> float:
        fit = kind.by_variant[variant]
        found = fit.formula.of(terms)
        if not fit.leaning:
            return found
        return found * float(correction(kind.near(work.dimensions)[None], np.array(fit.leaning))[0])

    def figure(self, layout: Layout, name: str, held: Footprint) -> float:
        """A figure of `profile.document.UnitMemory`, of a function that holds so much."""
        fit = next(m for m in self.memory if m.layout == layout)
        return fit.figures[name].of(tuple(held.terms().items()))


def correction(near: np.ndarray, leaning: np.ndarray) -> np.ndarray:
    """What the neighbours make of a roofline's times, at most twice and at least half: [nodes, points] to [nodes]."""
    found: np.ndarray = np.exp(np.clip(near @ leaning, -MOST, MOST))
    return found


def logarithms(dimensions: Sequence[float]) -> tuple[float, ...]:
    """What neighbours are told by."""
    return tuple(math.log(max(d, 1.0)) for d in dimensions)


def nearness(a: np.ndarray, b: np.ndarray, reach: float) -> np.ndarray:
    """For rows of `a` and of `b` a bell curve of their distance."""
    apart = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=-1)
    found: np.ndarray = np.exp(-apart / (2 * reach**2))
    return found
