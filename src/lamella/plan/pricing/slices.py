"""Every slice of a model in every layout, priced but for its size, all at once: `SliceModel` for half a million.

The law is that of `Memory.held_mb` and `Times.compute_ms`, which price one slice and are the reference in the
tests; here it is written on arrays of all the ends that one begin has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lamella.plan.pricing.memory import CODE_MB, EDGE_MB, FAR, GRAPH_MB, LOAD_FACTOR, PASSES
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.spans import Spans, spans
from lamella.plan.pricing.spread import variances
from lamella.profile.document import Variant
from lamella.runtime.function import Layout
from lamella.units import MB


class Slices(NamedTuple):
    """Slices, one row each: units `first` to `last - 1`."""

    first: np.ndarray
    last: np.ndarray
    layout: np.ndarray
    """Index into the model's layouts."""
    peak_mb: np.ndarray
    """Predicted VmHWM without buffers of codecs."""
    floor_mb: np.ndarray
    """What law 4 demands."""
    shipped_mb: np.ndarray
    """Weights in the package, and its graph."""
    work_ms: np.ndarray
    """[threads, slices], from one thread: of the operators."""
    init_ms: np.ndarray
    """Work of starting a function with it: imports, and the session from files on disk."""
    variance: np.ndarray
    """Of the operators' time on one thread, over its square: relative, whatever CPU does to it."""

    def at(self, kept: np.ndarray) -> Slices:
        """Some of them."""
        return Slices(*(column[..., kept] for column in self))


def slices(model: SliceModel, threads: int) -> Slices:
    """Every slice in every layout worth a look.

    Args:
        model: prices.
        threads: at most.
    """
    layouts = [_Units(model, number, layout, threads) for number, layout in enumerate(model.layouts)]
    rows = [layout.slices(first, *here) for first, here in enumerate(_at_both_batches(model)) for layout in layouts]
    return Slices(*(np.concatenate(columns, axis=-1) for columns in zip(*rows, strict=True)))


def _at_both_batches(model: SliceModel) -> Iterator[tuple[Spans, Spans]]:
    """At the batch whose memory was measured, and at the one that is asked for."""
    units = [(unit.first, unit.last) for unit in model.profile.units]
    asked = spans(model.graph, units, model.batch)
    if model.memory.live_batch == model.batch:
        return ((here, here) for here in asked)
    return zip(spans(model.graph, units, model.memory.live_batch), asked, strict=True)


class _Units:
    """What units were measured to take in a layout, as arrays."""

    def __init__(self, model: SliceModel, number: int, layout: Layout, threads: int) -> None:
        """Read them.

        Args:
            model: prices.
            number: of the layout.
            layout: of the weights.
            threads: at most.
        """
        self.model, self.number, self.layout, self.threads = model, number, layout, threads
        parts = [model.memory.of_unit(u, layout) for u in range(model.units)]
        self.base_mb = min(model.memory.of_unit(u, "plain").private_mb for u in range(model.units))
        self.weights_mb, self.private_mb, self.live_mb, self.load_extra_mb, self.load_ms, self.read_ms = (
            np.array([getattr(part, name) for part in parts])
            for name in ("weights_mb", "private_mb", "live_mb", "load_extra_mb", "load_ms", "read_ms")
        )
        self.empty_ms = model.memory.empty_ms
        held = model.quantised.unit_bytes if layout == "int8" else [unit.weight_bytes for unit in model.profile.units]
        self.weight_bytes = np.array(held, float)
        alive = [model.graph.live_bytes(u.first, u.last, model.memory.live_batch) for u in model.profile.units]
        self.code_mb = self.live_mb - np.array(alive) / MB
        self.read_both = _read_both(model) if layout == "blocked" else []
        self.variance = variances(model, Variant(model.batch, layout, 1))

    def slices(self, first: int, measured: Spans, asked: Spans) -> Slices:
        """Those that begin with a unit, by their ends."""
        model, floor = self.model, self.model.profile.floor
        last = np.arange(first + 1, model.units + 1)
        distinct = model.quantised.bytes_from(first) if self.layout == "int8" else asked.weights
        full_mb = distinct / MB
        private = self.base_mb + np.cumsum(self.private_mb[first:] - self.base_mb)
        twice = self._both_bytes(first)
        weights = self._weights_mb(first, distinct, twice)
        live = self._live_mb(first, measured, weights) + (asked.live - measured.live) / MB
        loading = floor.resident_mb + private + np.maximum.accumulate(self.load_extra_mb[first:])
        peak = np.maximum(floor.resident_mb + weights + private + live, loading)
        work = np.array([model.times.compute_all_ms(first, self.layout, t + 1) for t in range(self.threads)])
        if self.layout == "prepacked":
            peak = np.maximum(peak, self._load_mb(first, private, full_mb, work[0]))
        found = Slices(
            first=np.full(len(last), first),
            last=last,
            layout=np.full(len(last), self.number),
            peak_mb=peak + EDGE_MB,
            floor_mb=floor.resident_mb + np.maximum(full_mb, private) + asked.live / MB,
            shipped_mb=full_mb + twice / MB + GRAPH_MB,
            work_ms=work,
            init_ms=floor.start_ms + self.empty_ms + np.cumsum((self.load_ms - self.empty_ms + self.read_ms)[first:]),
            variance=np.cumsum(self.variance[first:]) / work[0] ** 2,
        )
        own = model.own.get(self.layout)
        return found if own is None else found.at(np.cumsum(own[first:]) > 0)

    def _both_bytes(self, first: int) -> np.ndarray:
        """`Memory.both_bytes`: from where on both kinds of readers are in the slice."""
        found = np.zeros(self.model.units - first)
        for size, kinds in self.read_both:
            nearest = [next((u for u in units if u >= first), None) for units in kinds]
            if None not in nearest:
                found[max(u for u in nearest if u is not None) - first :] += size
        return found

    def _weights_mb(self, first: int, distinct: np.ndarray, twice: np.ndarray) -> np.ndarray:
        """`Memory._weights_mb`: what several units hold is in memory once."""
        resident, apart = np.cumsum(self.weights_mb[first:]), np.cumsum(self.weight_bytes[first:])
        share = np.minimum(1.0, (distinct + twice) / np.maximum(apart, 1.0))
        found: np.ndarray = np.where(distinct == apart, resident, resident * share)
        return found

    def _live_mb(self, first: int, spans: Spans, weights: np.ndarray) -> np.ndarray:
        """`Memory._live_mb`: between what units take alone and what the lifetimes of tensors say."""
        into, out, live = spans.into / MB, spans.out / MB, self.live_mb[first:]
        alone = np.maximum(live[0] + out, live + into)
        alone[0] = live[0]
        if len(live) > 2:
            inner = np.maximum.accumulate(live[1:-1])
            alone[2:] = np.maximum(alone[2:], inner + into[2:] + out[2:])
        code = np.maximum(np.minimum.accumulate(self.code_mb[first:]), CODE_MB)
        lifetimes = code + spans.live / MB + into + out
        held = self.model.profile.floor.resident_mb + weights
        far = alone + held > FAR * (lifetimes + held)
        both = np.where(far, lifetimes, np.maximum(lifetimes, (alone + lifetimes) / 2))
        found: np.ndarray = np.r_[alone[:1], both[1:]]
        return found

    def _load_mb(self, first: int, private: np.ndarray, full_mb: np.ndarray, work_ms: np.ndarray) -> np.ndarray:
        """`Memory._load_mb`: where a prepacking load is quick enough; 0 where nothing is packed."""
        packed, floor = self.read_ms[first:] > 0, self.model.profile.floor
        read_ms, read_mb, loading = (
            np.cumsum(np.where(packed, what[first:], 0.0))
            for what in (self.read_ms, self.weight_bytes / MB, self.load_ms + self.read_ms)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            spare = (LOAD_FACTOR - 1) * (floor.start_ms + loading + work_ms) / (PASSES * read_ms / read_mb)
            need = floor.anonymous_mb + private + full_mb - spare
        found: np.ndarray = np.where(np.cumsum(packed) > 0, need, 0.0)
        return found


def _read_both(model: SliceModel) -> list[tuple[int, tuple[list[int], list[int]]]]:
    """Weights that some unit reads blocked and another as they are: bytes, and both kinds of units."""
    readers: dict[str, tuple[list[int], list[int]]] = {}
    for number, (unit, blocked) in enumerate(zip(model.profile.units, model.memory.blocked, strict=True)):
        for name in {w for op in model.graph.operators[unit.first : unit.last] for w in op.weights}:
            readers.setdefault(name, ([], []))[blocked].append(number)
    return [(model.graph.weights[name].bytes, kinds) for name, kinds in readers.items() if all(kinds)]
