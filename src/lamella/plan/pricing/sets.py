"""What any function that runs a set of units takes at least, in whatever order, beside whatever else runs in it.

`pricing.slices` prices runs of units in the profile's order. Here a set need not be a run, and not all of the model
need be looked at: units that are *left out* may be in the function or not. So each figure is a lower bound of
`SliceModel`'s, of any order of any such set. What depends on the set alone (weights, private copies, what crosses) is
exact where nothing is left out; of what depends on the order the least is taken: every saving between two units of the
set that were measured as neighbours, and of live tensors what crosses and the hungriest unit's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lamella.plan.pricing.memory import CODE_MB, EDGE_MB, FAR, GRAPH_MB, LOAD_FACTOR, PASSES
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.slices import Slices
from lamella.plan.pricing.spread import variances
from lamella.profile.document import Variant
from lamella.runtime.function import Layout
from lamella.units import MB

LEAST_MS = 0.001
"""Of a slice's operators (`SliceModel.compute_ms`)."""


class Crossing(NamedTuple):
    """Tensors that more than one unit sees, one row each."""

    maker: np.ndarray
    """Unit, -1 for the request's."""
    readers: np.ndarray
    """[tensors, units], bool."""
    kept: np.ndarray
    """Whether it is an output of the model."""
    travels: np.ndarray
    """Whether it may cross a border at all."""
    bytes: np.ndarray
    """At the batch that is asked for,"""
    measured_bytes: np.ndarray
    """and at the one whose live memory was measured."""

    def over(self, done: np.ndarray) -> np.ndarray:
        """Which cross the border behind sets of units, [sets, tensors]. `done` is [sets, units]."""
        made = np.where(self.maker >= 0, done[:, self.maker], True)
        left = (~done).astype(np.float32) @ self.readers.T.astype(np.float32) > 0
        found: np.ndarray = made & left
        return found

    def into(self, sets: np.ndarray) -> np.ndarray:
        """Which sets of units take, [sets, tensors]."""
        inside = np.where(self.maker >= 0, sets[:, self.maker], False)
        found: np.ndarray = ~inside & (sets.astype(np.float32) @ self.readers.T.astype(np.float32) > 0)
        return found

    def out(self, sets: np.ndarray) -> np.ndarray:
        """Which sets of units give, [sets, tensors]."""
        inside = np.where(self.maker >= 0, sets[:, self.maker], False)
        left = (~sets).astype(np.float32) @ self.readers.T.astype(np.float32) > 0
        found: np.ndarray = inside & (self.kept | left)
        return found


def crossing(model: SliceModel, core: np.ndarray) -> Crossing:
    """What units of the core make or take, as far as others of the core read it.

    Args:
        model: prices.
        core: units that are looked at, [units], bool.
    """
    graph, units = model.graph, model.profile.units
    of = [number for number, unit in enumerate(units) for _ in range(unit.first, unit.last)]
    readers: dict[str, set[int]] = {name: set() for name in graph.producer}
    for op in graph.operators:
        for name in op.inputs:
            if core[of[op.index]]:
                readers[name].add(of[op.index])
    outputs, rows = set(graph.outputs), []
    for name, made in graph.producer.items():
        maker = of[made] if made >= 0 else -1
        if maker >= 0 and not core[maker]:
            continue  # whether it crosses depends on where its maker is
        if readers[name] - {maker} or name in outputs:
            rows.append((name, maker))
    tensors = [graph.tensors[name] for name, _ in rows]
    table = np.zeros((len(rows), len(units)), bool)
    for row, (name, maker) in enumerate(rows):
        table[row, sorted(readers[name] - {maker})] = True
    return Crossing(
        np.array([maker for _, maker in rows], int),
        table,
        np.array([name in outputs for name, _ in rows], bool),
        np.array([t.portable and not t.dynamic for t in tensors], bool),
        np.array([t.bytes_at(model.batch) for t in tensors], float),
        np.array([t.bytes_at(model.memory.live_batch) for t in tensors], float),
    )


class Sets:
    """Bounds of sets of units on one model."""

    def __init__(self, model: SliceModel, core: np.ndarray, threads: int) -> None:
        """Prepare.

        Args:
            model: prices.
            core: units that are looked at, [units], bool; no other one shares a weight with any unit.
            threads: at most.
        """
        self.model, self.core, self.threads = model, core, threads
        self.whole = bool(core.all())
        self.crossing = crossing(model, core)
        self.weight_bytes = np.array([unit.weight_bytes for unit in model.profile.units], float)
        self.shared = _shared(model)
        self.inner = [_inner_bytes(model, batch) for batch in (model.memory.live_batch, model.batch)]

    def priced(self, sets: np.ndarray) -> Slices:
        """Every set in every layout. `first` is its number, `last` means nothing. `sets` is [sets, units], bool."""
        rows = [self._in(sets, number, layout) for number, layout in enumerate(self.model.layouts)]
        return Slices(*(np.concatenate(columns, axis=-1) for columns in zip(*rows, strict=True)))

    def _in(self, sets: np.ndarray, number: int, layout: Layout) -> Slices:
        model, floor = self.model, self.model.profile.floor
        parts = [model.memory.of_unit(unit, layout) for unit in range(model.units)]
        base = min(model.memory.of_unit(unit, "plain").private_mb for unit in range(model.units))
        empty_ms = min(m.load_ms for unit in model.profile.units for m in unit.memory)
        weights_mb, live_mb, extra_mb, load_ms, read_ms = (
            np.array([getattr(part, name) for part in parts])
            for name in ("weights_mb", "live_mb", "load_extra_mb", "load_ms", "read_ms")
        )
        twice = self._both(sets) if layout == "blocked" else np.zeros(len(sets))
        held = np.array(model.quantised.unit_bytes, float) if layout == "int8" else self.weight_bytes
        apart, more = sets @ held, np.array([part.private_mb - base for part in parts])
        # what is held again is taken off as large as in the model, also where it is smaller on integers: still a bound
        full = np.maximum(0.0, apart - self._repeated(sets))
        resident = sets @ weights_mb * np.where(apart > 0, np.minimum(1.0, (full + twice) / np.maximum(apart, 1.0)), 1)
        private = base + sets @ more + float(np.minimum(more[~self.core], 0.0).sum())
        least_live = self._live_mb(sets, live_mb, floor.resident_mb + resident)
        peak = np.maximum(
            floor.resident_mb + resident + private + least_live,
            floor.resident_mb + private + _most(sets, extra_mb),
        )
        longest = sets @ model.times.unit_ms(Variant(model.batch, layout, 1))[0]
        longest = np.maximum(LEAST_MS, longest)
        if layout == "prepacked" and self.whole:
            start = floor.start_ms + sets @ np.where(read_ms > 0, load_ms + read_ms, 0.0) + longest
            peak = np.maximum(peak, self._load_mb(sets, private + full / MB, read_ms, start))
        work = np.array([self._work_ms(sets, layout, count + 1) for count in range(self.threads)])
        apart_ms = longest + float(model.times.unit_ms(Variant(model.batch, layout, 1))[0][~self.core].sum())
        found = Slices(
            first=np.arange(len(sets)),
            last=np.zeros(len(sets), int),
            layout=np.full(len(sets), number),
            peak_mb=peak + EDGE_MB,
            floor_mb=floor.resident_mb + np.maximum(full / MB, private) + self._tensors(sets, 1) / MB,
            shipped_mb=(full + twice) / MB + GRAPH_MB,
            work_ms=work,
            init_ms=floor.start_ms + empty_ms + sets @ (load_ms - empty_ms + read_ms),
            variance=sets @ variances(model, Variant(model.batch, layout, 1)) / apart_ms**2,
        )
        may_block = np.array(model.memory.blocked)
        if layout != "blocked" or may_block[~self.core].any():
            return found
        return found.at(np.flatnonzero((sets & may_block).any(axis=1)))

    # ------------------------------------------------------------------------------------------------------- time

    def _work_ms(self, sets: np.ndarray, layout: Layout, threads: int) -> np.ndarray:
        """Of the operators, all that neighbours may save taken off."""
        model, asked = self.model, Variant(self.model.batch, layout, threads)
        if model.times.knows(asked):
            return self._least_ms(sets, asked)
        one, many = (self._least_ms(sets, Variant(b, layout, t)) for b, t in ((model.batch, 1), (1, threads)))
        known = model.times.unit_ms(Variant(1, layout, 1))[0]
        found: np.ndarray = one * many / np.maximum(LEAST_MS, sets @ known + float(known[~self.core].sum()))
        return found

    def _least_ms(self, sets: np.ndarray, variant: Variant) -> np.ndarray:
        times, saved = self.model.times.unit_ms(variant)
        left, right = self.core[:-1], self.core[1:]
        own = times.copy()
        own[:-1] -= np.where(left & ~right, saved, 0.0)  # a neighbour that is left out may be there
        own[1:] -= np.where(right & ~left, saved, 0.0)
        noise = np.maximum(0.0, saved - times[:-1])[~left & ~right].sum()
        both = (sets[:, :-1] & sets[:, 1:]) @ np.where(left & right, saved, 0.0)
        found: np.ndarray = np.maximum(LEAST_MS, sets @ own - both - noise)
        return found

    # ----------------------------------------------------------------------------------------------------- memory

    def _tensors(self, sets: np.ndarray, asked: int) -> np.ndarray:
        """Live at least, bytes: what crosses the set's ends, and the hungriest unit's own."""
        size = self.crossing.bytes if asked else self.crossing.measured_bytes
        ends = (self.crossing.into(sets) | self.crossing.out(sets)) @ size
        found: np.ndarray = ends + _most(sets, self.inner[asked])
        return found

    def _live_mb(self, sets: np.ndarray, live_mb: np.ndarray, held_mb: np.ndarray) -> np.ndarray:
        """`SliceModel._live_mb`, and what a larger batch takes more; the lesser of both ways where units are left out.

        One unit is as measured. Of several the lifetimes of tensors count in any case, and the mean with the hungriest
        unit where that is surely not far above.
        """
        model, units = self.model, self.model.profile.units
        sizes = self.crossing.measured_bytes
        ends = (self.crossing.into(sets) @ sizes + self.crossing.out(sets) @ sizes) / MB
        alive = np.array([model.graph.live_bytes(u.first, u.last, model.memory.live_batch) for u in units]) / MB
        asked = np.array([model.graph.live_bytes(u.first, u.last, model.batch) for u in units]) / MB
        code = np.minimum(-_most(sets, alive - live_mb), float((live_mb - alive)[~self.core].min(initial=np.inf)))
        beside = np.maximum(code, CODE_MB) + ends
        lifetimes, more = beside + self._tensors(sets, 0) / MB, beside + self._tensors(sets, 1) / MB
        alone = _most(sets, live_mb)
        one = sets @ (live_mb + asked - alive)
        several = more
        if not self.whole:
            one = np.minimum(one, more)
        elif model.memory.live_batch == model.batch:
            near = alone + ends - FAR * lifetimes <= (FAR - 1) * held_mb
            several = np.where(near, np.maximum(more, (alone + lifetimes) / 2), more)
        found: np.ndarray = np.where(sets.sum(axis=1) == 1, one, several)
        return found

    def _load_mb(self, sets: np.ndarray, held_mb: np.ndarray, read_ms: np.ndarray, start_ms: np.ndarray) -> np.ndarray:
        """`SliceModel._load_mb` of the slowest start there may be."""
        read_mb, reading = sets @ np.where(read_ms > 0, self.weight_bytes / MB, 0.0), sets @ read_ms
        with np.errstate(divide="ignore", invalid="ignore"):
            spare = (LOAD_FACTOR - 1) * start_ms / (PASSES * reading / read_mb)
            need = self.model.profile.floor.anonymous_mb + held_mb - spare
        found: np.ndarray = np.where((reading > 0) & np.isfinite(need), need, 0.0)
        return found

    def _repeated(self, sets: np.ndarray) -> np.ndarray:
        """Bytes of weights that a set's units hold several times, beyond once."""
        found = np.zeros(len(sets))
        for size, readers, _ in self.shared:
            found += size * np.maximum(0, sets[:, readers].sum(axis=1) - 1)
        return found

    def _both(self, sets: np.ndarray) -> np.ndarray:
        """`SliceModel.both_bytes`."""
        found = np.zeros(len(sets))
        for size, readers, blocked in self.shared:
            here = sets[:, readers]
            found += size * (here[:, blocked].any(axis=1) & here[:, ~blocked].any(axis=1))
        return found


def sharing(model: SliceModel) -> np.ndarray:
    """Units that hold a weight which another holds, too, [units], bool."""
    found = np.zeros(model.units, bool)
    for _, readers, _ in _shared(model):
        found[readers] = True
    return found


def _shared(model: SliceModel) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Weights of several units: bytes, the units, and which of them run blocked."""
    readers: dict[str, list[int]] = {}
    for number, unit in enumerate(model.profile.units):
        for name in {w for op in model.graph.operators[unit.first : unit.last] for w in op.weights}:
            readers.setdefault(name, []).append(number)
    blocked = np.array(model.memory.blocked)
    return [
        (model.graph.weights[name].bytes, np.array(units), blocked[units])
        for name, units in readers.items()
        if len(units) > 1
    ]


def _inner_bytes(model: SliceModel, batch: int) -> np.ndarray:
    """Per unit the peak of tensors that nobody else sees, bytes."""
    graph, outputs, found = model.graph, set(model.graph.outputs), []
    for unit in model.profile.units:
        peak = live = 0
        ends: dict[int, int] = {}
        for op in graph.operators[unit.first : unit.last]:
            for name in op.outputs:
                if name not in outputs and graph.last_use[name] < unit.last:
                    size = graph.tensors[name].bytes_at(batch)
                    live += size
                    ends[graph.last_use[name]] = ends.get(graph.last_use[name], 0) + size
            peak = max(peak, live)
            live -= ends.pop(op.index, 0)
        found.append(peak)
    return np.array(found, float)


def _most(sets: np.ndarray, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The largest of each set's values."""
    found: np.ndarray = np.where(sets, np.asarray(values, float), -np.inf).max(axis=1)
    return found
