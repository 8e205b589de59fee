"""How much memory a slice needs, and what its package ships, from the profile of its units.

The runtime floor, every weight in full, copies packed at load, and the highest unit's live peak beside the slice's own
hop buffers. Tests hold it against measured functions; `pricing.slices` is the same law for all slices at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import msgspec

from lamella.graph.model import Graph
from lamella.plan.pricing.quantised import Quantised
from lamella.plan.pricing.times import Times
from lamella.profile.document import Profile, UnitMemory
from lamella.runtime.function import Layout
from lamella.units import MB

LOAD_FACTOR = 1.25
"""Of the allocation rule (`deploy.sizing`)."""
PASSES = 2
"""How often onnxruntime 1.31 goes over a weight it packs: measured on bert-base, 1.8 ms per MB that does not fit where
reading takes 0.9."""
CODE_MB = 8.0
"""Pages of kernels and session that running touches, at least: measured on units with next to no activations."""
FAR = 1.2
"""Times of another estimate that are beyond what workspaces explain."""
EDGE_MB = 0.8
"""Added to predicted peaks: of 60 functions on 2026-11-22 the measured one was 0.4 MB higher on average, 1.1 at worst.

Without it a planner that may choose finds just the slices whose prediction ends below a size, and they get the next.
"""
GRAPH_MB = 1.0
"""What a package holds beside weights, at most as seen on twelve models: the graph, and filling up to pages."""


class Memory:
    """Of slices of a model at a batch."""

    def __init__(self, graph: Graph, profile: Profile, times: Times, quantised: Quantised) -> None:
        """What was measured; times are for how long a load may take."""
        self.graph, self.profile, self.times, self.quantised = graph, profile, times, quantised
        self.batch, self.units = times.batch, len(profile.units)

    @lru_cache(maxsize=65536)  # noqa: B019 - a model lives as long as one planning run
    def held_mb(self, first: int, last: int, *, layout: Layout) -> tuple[float, float]:
        """Predicted VmHWM without buffers of codecs, and what law 4 demands, MB."""
        span = self.span(first, last)
        parts = [self.of_unit(u, layout) for u in range(first, last)]
        base = self._without_copies_mb
        weights = self._weights_mb(parts, first)
        private = base + sum(p.private_mb - base for p in parts)
        takes, gives = self.graph.border(*span)
        measured = self.live_batch
        size = {n: self.graph.tensors[n].bytes_at(measured) / MB for n in (*takes, *gives)}
        into, out = sum(size[n] for n in takes), sum(size[n] for n in gives)
        live = self._live_mb(span, parts, first, into, out)
        more = (self.graph.live_bytes(*span, self.batch) - self.graph.live_bytes(*span, measured)) / MB
        floor = self.profile.floor.resident_mb
        peak = max(
            floor + weights + private + live + more,
            floor + private + max(p.load_extra_mb for p in parts),
        )
        full = self.graph.weight_bytes(*span) / MB - self.quantised.spared_mb(first, last, layout)
        if layout == "prepacked":
            peak = max(peak, self._load_mb(parts, private, full, first, last))
        peak += EDGE_MB
        law = floor + max(full, private) + self.graph.live_bytes(*span, self.batch) / MB
        return peak, law

    def _weights_mb(self, parts: Sequence[UnitMemory], first: int) -> float:
        """Resident weights of a slice: those that several of its units hold are in memory once."""
        units = self.profile.units[first : first + len(parts)]
        resident = sum(p.weights_mb for p in parts)
        apart: float = sum(u.weight_bytes for u in units)
        whole: float = self.graph.weight_bytes(units[0].first, units[-1].last)
        if any(part.layout == "int8" for part in parts):
            apart = sum(self.quantised.unit_bytes[first : first + len(parts)])
            whole = float(self.quantised.bytes_from(first)[len(parts) - 1])
        if whole == apart:
            return resident
        if any(part.layout == "blocked" for part in parts):
            whole += self.both_bytes(first, first + len(parts))
        return resident * min(1.0, whole / apart)

    def _live_mb(
        self, span: tuple[int, int], parts: Sequence[UnitMemory], first: int, into: float, out: float
    ) -> float:
        """Peak of activations, workspace and code pages of a slice that takes `into` and gives `out` MB of tensors.

        Two estimates. From its hungriest unit as measured alone, beside the slice's own hop buffers: too much, since a
        unit alone copies its border into the layout of its kernels and the slice does not. From the lifetimes of its
        tensors, with such copies of the slice's own border: too little, since kernels have workspaces. Their mean; but
        where the first is far above the second those copies are the reason, and the second counts.
        """
        last = len(parts) - 1
        alone = max(p.live_mb + into * (i > 0) + out * (i < last) for i, p in enumerate(parts))
        if not last:
            return alone
        units = self.profile.units[first : first + len(parts)]
        batch = self.live_batch
        code = min(
            p.live_mb - self.graph.live_bytes(u.first, u.last, batch) / MB for p, u in zip(parts, units, strict=True)
        )
        lifetimes = max(code, CODE_MB) + self.graph.live_bytes(*span, batch) / MB + into + out
        held = self.profile.floor.resident_mb + self._weights_mb(parts, first)
        return lifetimes if alone + held > FAR * (lifetimes + held) else max(lifetimes, (alone + lifetimes) / 2)

    def _load_mb(self, parts: Sequence[UnitMemory], private: float, file_mb: float, first: int, last: int) -> float:
        """Memory at which a prepacking load is quick enough for the allocation rule, MB.

        While it packs, the copies and the file's pages are charged together, and the runtime goes over the file twice:
        every MB that does not fit is read again, on both passes. The rule allows a quarter more than the whole start.
        """
        packed = [(p, self.profile.units[first + i]) for i, p in enumerate(parts) if p.read_ms]
        if not packed:
            return 0.0
        read_mb = sum(u.weight_bytes for _, u in packed) / MB
        ms_per_mb = sum(p.read_ms for p, _ in packed) / read_mb
        start = self.profile.floor.start_ms + sum(p.load_ms + p.read_ms for p, _ in packed)
        start += self.times.compute_ms(first, last, layout="prepacked", threads=1)
        spare = (LOAD_FACTOR - 1) * start / (PASSES * ms_per_mb)
        return self.profile.floor.anonymous_mb + private + file_mb - spare

    def more_mb(self, first: int, last: int, layout: Layout) -> float:
        """What a package ships beyond a slice's weights: its graph, and again what is read blocked and plain.

        On 8-bit integers it ships less than these, by what they spare.
        The graph for any CPU is not counted: `package.build` leaves it out where there is no room for it.
        """
        twice = self.both_bytes(first, last) / MB if layout == "blocked" else 0.0
        return twice + GRAPH_MB - self.quantised.spared_mb(first, last, layout)

    @lru_cache(maxsize=65536)  # noqa: B019 - as below
    def both_bytes(self, first: int, last: int) -> int:
        """Weights of a slice that some unit reads blocked and another as they are: blocked it holds them twice."""
        readers: dict[bool, set[str]] = {True: set(), False: set()}
        for unit, blocked in zip(self.profile.units[first:last], self.blocked[first:last], strict=True):
            readers[blocked].update(w for op in self.graph.operators[unit.first : unit.last] for w in op.weights)
        return sum(self.graph.weights[w].bytes for w in readers[True] & readers[False])

    @cached_property
    def blocked(self) -> list[bool]:
        """Units that hold a product which the blocked layout runs blocked."""
        return [any(t.variant.layout == "blocked" and not t.shared for t in u.times) for u in self.profile.units]

    @cached_property
    def _without_copies_mb(self) -> float:
        """What a session without copies has to itself: of all units the least."""
        return min(self.of_unit(u, "plain").private_mb for u in range(self.units))

    @cached_property
    def empty_ms(self) -> float:
        """Opening a session that holds nothing: the quickest of all units is as good as that."""
        return min(m.load_ms for unit in self.profile.units for m in unit.memory)

    @cached_property
    def live_batch(self) -> int:
        """The batch whose live memory is measured on every unit: the one that is asked for, or 1."""
        known = all(any(live.batch == self.batch for live in unit.lives) for unit in self.profile.units)
        return self.batch if known else 1

    @lru_cache(maxsize=65536)  # noqa: B019 - as above
    def of_unit(self, unit: int, layout: Layout) -> UnitMemory:
        """What a unit was measured to hold in a layout, alive at the batch that is asked for."""
        found = self.profile.units[unit]
        memory = found.memory_in(self.quantised.layout(unit, layout))
        live = next((live.live_mb for live in found.lives if live.batch == self.live_batch), memory.live_mb)
        return msgspec.structs.replace(memory, live_mb=live)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The operators of units `first` to `last - 1`."""
        return self.profile.units[first].first, self.profile.units[last - 1].last
