"""From measured nodes to formulas: least relative errors by coefficients that are not negative.

A roofline is the part that carries to shapes far from those measured: more multiply-accumulates never take less time.
What it leaves, kernels' efficiency by shape, is smooth in the logarithms of the dimensions: the second part is ridge
regression on how near a node is to each measured one (Rasmussen and Williams, Gaussian Processes for Machine Learning,
2006, equation 2.25), and fades where none is near. It is kept where it makes networks that were left out come out
better. Rejected: boosted trees, which are constant beyond the largest shape they saw, and nobody can read; one formula
for all kinds, which is off by half; plain least squares, which is about the largest node only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lamella.predictor.document import MOST, Formula, Kind, KindFit, MemoryFit, correction, logarithms, nearness
from lamella.predictor.sampling import LAYOUTS, Sampled
from lamella.predictor.work import ANY, Work
from lamella.runtime.function import Layout

FOLDS = 5
INSTANT_MS = 0.003
"""Errors are relative to a node's time and this: what takes a microsecond cannot be timed better."""
REACHES = (0.7, 1.2, 2.0)
NOISE = 0.15
"""Variance of a measured logarithm over that of what the roofline leaves."""
FLAT, TINY = 1e-10, 1e-300
"""A slope, relative to the steepest, that leads nowhere."""
STEPS, SMALL = 4, 0.02
"""Of reweighting; smaller relative errors are all alike."""
LEAST = 8
"""So many nodes have neighbours worth asking."""
FIGURES = ("weights_mb", "private_mb", "live_mb", "load_extra_mb", "load_ms", "read_ms")
"""Of `UnitMemory`."""
Way = tuple[Layout, int, bool]


def nonnegative(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The least-squares coefficients that are not negative, on as few columns as explain it.

    Lawson and Hanson's active sets (Solving Least Squares Problems, 1974, chapter 23) on the normal equations.
    """
    scale = np.sqrt((rows**2).sum(axis=0))
    scale[scale == 0] = 1.0
    unit = rows / scale
    gram, target = np.einsum("ij,ik->jk", unit, unit), np.einsum("ij,i->j", unit, values)  # small: no threads for it
    found, free = np.zeros(len(scale)), np.zeros(len(scale), bool)
    for _ in range(3 * len(scale)):
        slope = np.where(free, -np.inf, target - gram @ found)
        if slope.max() <= FLAT * np.abs(target).max():
            break
        free[slope.argmax()] = True
        found, free = _within(gram, target, found, free)
    coefficients: np.ndarray = found / scale
    return coefficients


def _within(gram: np.ndarray, target: np.ndarray, start: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The solution on the free columns, those left out that would be negative."""
    found, free = start.copy(), free.copy()
    while True:
        best = np.zeros(len(found))
        best[free] = np.linalg.lstsq(gram[np.ix_(free, free)], target[free], rcond=FLAT)[0]
        bound = free & (best <= 0)
        if not bound.any():
            return best, free
        found += (found[bound] / (found[bound] - best[bound] + TINY)).min() * (best - found)
        free &= ~(bound & (found <= FLAT))
        found[~free] = 0.0


def least_absolute(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients that are not negative and make the sum of absolute errors small: a few outliers move them little.

    Least squares, reweighted by the errors of the step before (Green 1984, Iteratively Reweighted Least Squares).
    """
    found = nonnegative(rows, values)
    for _ in range(STEPS):
        weight = 1 / np.sqrt(np.maximum(np.abs(rows @ found - values), SMALL))
        found = nonnegative(rows * weight[:, None], values * weight)
    return found


def folds_of(networks: Sequence[int]) -> np.ndarray:
    """Which fold each is in: those that are there take turns, so that every fold leaves some to fit on."""
    place = {number: k % FOLDS for k, number in enumerate(dict.fromkeys(networks))}
    return np.array([place[number] for number in networks])


class _Table(NamedTuple):
    """Nodes of one kind."""

    names: tuple[str, ...]
    terms: np.ndarray
    """[nodes, terms]"""
    points: np.ndarray
    """[nodes, dimensions]"""
    folds: np.ndarray
    """[nodes]: by network."""
    times: dict[Way, np.ndarray]

    def only(self, kept: np.ndarray) -> _Table:
        times = {way: t[kept] for way, t in self.times.items()}
        return self._replace(terms=self.terms[kept], points=self.points[kept], folds=self.folds[kept], times=times)


class _Fit(NamedTuple):
    coefficients: np.ndarray
    leaning: np.ndarray
    reach: float
    points: np.ndarray

    def of(self, terms: np.ndarray, points: np.ndarray) -> np.ndarray:
        base: np.ndarray = terms @ self.coefficients
        if not len(self.leaning):
            return base
        corrected: np.ndarray = base * correction(nearness(points, self.points, self.reach), self.leaning)
        return corrected


def fit_kinds(samples: Sequence[Sampled]) -> tuple[tuple[Kind, ...], dict[tuple[int, int], float]]:
    """The kinds, and of each node (its network, its place) the plain cold time predicted with its network left out."""
    kinds, left_out = [], dict[tuple[int, int], float]()
    for kind, table, where in _tables(samples):
        made, predicted = _kind(kind, table)
        kinds.append(made)
        if kind != ANY:
            left_out.update(zip(where, predicted.tolist(), strict=True))
    return tuple(kinds), left_out


def _tables(samples: Sequence[Sampled]) -> Iterator[tuple[str, _Table, list[tuple[int, int]]]]:
    """Each kind's nodes; and all of them, in the terms that all have."""
    found: dict[str, list[tuple[int, int, Work]]] = {}
    for number, sampled in enumerate(samples):
        for place, work in enumerate(sampled.works):
            if work.kind != ANY:
                found.setdefault(work.kind, []).append((number, place, work))
    for kind, held in found.items():
        where = [(number, place) for number, place, _ in held]
        yield kind, _table(samples, where, [work.terms for *_, work in held]), where
    where = [(n, k) for n, sampled in enumerate(samples) for k in range(len(sampled.works))]
    yield ANY, _table(samples, where, [samples[n].works[k].common for n, k in where]), where


def _table(
    samples: Sequence[Sampled], where: list[tuple[int, int]], terms: Sequence[Sequence[tuple[str, float]]]
) -> _Table:
    names = tuple(dict.fromkeys(name for one in terms for name, _ in one))
    rows = [[dict(one).get(name, 0.0) for name in names] for one in terms]
    works = [samples[n].works[k] for n, k in where]
    same = len({len(w.dimensions) for w in works}) == 1
    points = [logarithms(w.dimensions) if same else () for w in works]
    ways = [(t.layout, t.threads, t.warm) for t in samples[0].times]
    times = {way: np.array([samples[n].times[i].ms[k] for n, k in where]) for i, way in enumerate(ways)}
    return _Table(names, np.array(rows), np.array(points), folds_of([n for n, _ in where]), times)


def _kind(kind: str, table: _Table) -> tuple[Kind, np.ndarray]:
    """A kind's fits, and its plain cold times on one thread as predicted with their networks left out."""
    first: Way = ("plain", min(t for _, t, _ in table.times), False)
    cold = [way for way in table.times if not way[2]]
    tries = REACHES if kind != ANY and len(table.terms) >= LEAST else ()
    predictions = {way: _left_out(table, way, (0.0, *tries)) for way in cold}
    errors = {way: {r: _error(p, table.times[way]) for r, p in found.items()} for way, found in predictions.items()}
    reach = min((0.0, *tries), key=lambda r: sum(errors[way][r] for way in cold))
    fits = []
    for way in table.times:
        fit = _fit(table, way, reach, _roofline(table, way))
        error = errors[way][reach] if way in cold else _error(_left_out(table, way, [reach])[reach], table.times[way])
        coefficients = dict(zip(table.names, fit.coefficients.tolist(), strict=True))
        fits.append(KindFit(*way, Formula(coefficients, error), tuple(fit.leaning.tolist())))
    points = tuple(map(tuple, table.points.tolist())) if reach else ()
    return Kind(kind, points, reach or 1.0, tuple(fits)), predictions[first][reach]


def _left_out(table: _Table, way: Way, reaches: Sequence[float]) -> dict[float, np.ndarray]:
    """By reach every node's time by a fit that did not see its fold; by the whole one's where there is but one fold."""
    found = {reach: np.zeros(len(table.terms)) for reach in reaches}
    for fold in range(FOLDS):
        out = table.folds == fold
        if not out.any():
            continue
        seen = table if out.all() else table.only(~out)
        coefficients = _roofline(seen, way)
        for reach, times in found.items():
            times[out] = _fit(seen, way, reach, coefficients).of(table.terms[out], table.points[out])
    return found


def _error(predicted: np.ndarray, measured: np.ndarray) -> float:
    return float(np.mean(np.abs(predicted - measured) / (measured + INSTANT_MS)))


def _roofline(table: _Table, way: Way) -> np.ndarray:
    """Coefficients of the terms."""
    weight = 1 / (table.times[way] + INSTANT_MS)
    return least_absolute(table.terms * weight[:, None], table.times[way] * weight)


def _fit(table: _Table, way: Way, reach: float, coefficients: np.ndarray) -> _Fit:
    """The roofline, and where there is a reach the correction by neighbours."""
    times = table.times[way]
    if not reach:
        return _Fit(coefficients, np.zeros(0), 1.0, table.points)
    base = np.maximum(table.terms @ coefficients, 1e-6)
    left = np.clip(np.log((times + INSTANT_MS) / (base + INSTANT_MS)), -MOST, MOST)
    near = nearness(table.points, table.points, reach)
    leaning = np.linalg.solve(near + NOISE * np.eye(len(left)), left)
    return _Fit(coefficients, leaning, reach, table.points)


def fit_memory(samples: Sequence[Sampled]) -> tuple[MemoryFit, ...]:
    """Figures of functions by what they hold, in each layout; errors in MB or ms, relative to a figure and one more."""
    rows = np.array([list(s.footprint.terms().values()) for s in samples])
    names = tuple(samples[0].footprint.terms())
    folds = np.random.default_rng(0).permutation(len(samples)) % FOLDS  # in order they would be families
    found = []
    for layout in LAYOUTS:
        memory = [next(m for m in s.memory if m.layout == layout) for s in samples]
        figures = {}
        for figure in FIGURES:
            values = np.array([getattr(m, figure) for m in memory])
            figures[figure] = _formula(names, rows, values, folds)
        found.append(MemoryFit(layout, figures))
    return tuple(found)


def _formula(names: Sequence[str], rows: np.ndarray, values: np.ndarray, folds: np.ndarray) -> Formula:
    def solve(kept: np.ndarray) -> np.ndarray:
        weight = 1 / (values[kept] + 1)
        return nonnegative(rows[kept] * weight[:, None], values[kept] * weight)

    whole = solve(np.ones(len(values), bool))
    off = np.zeros(len(values))
    for fold in range(FOLDS):
        out = folds == fold
        if out.any():
            off[out] = rows[out] @ (whole if out.all() else solve(~out)) - values[out]
    return Formula(dict(zip(names, whole.tolist(), strict=True)), float(np.mean(np.abs(off) / (values + 1))))


def network_error(samples: Sequence[Sampled], left_out: Mapping[tuple[int, int], float]) -> tuple[float, float]:
    """Mean absolute relative error of nodes, weighted by time, and of whole networks."""
    off = total = 0.0
    errors = []
    for number, sampled in enumerate(samples):
        times = next(t for t in sampled.times if t.layout == "plain" and not t.warm).ms
        pairs = [(left_out[number, k], ms) for k, ms in enumerate(times) if (number, k) in left_out]
        off += sum(abs(p - m) for p, m in pairs)
        total += sum(m for _, m in pairs)
        errors.append(abs(math.fsum(p - m for p, m in pairs)) / math.fsum(m for _, m in pairs))
    return off / total, float(np.mean(errors))
