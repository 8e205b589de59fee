"""What a slice would take, from the profile alone: time, memory and cost of units i to j-1 as one function.

Time: units less the savings at inner cuts (see `profile.timing`), plus the call; below one vCPU the CPU quota stretches
it. Memory: the runtime floor, every weight in full, copies packed at load, and the highest unit's live peak beside the
slice's own hop buffers. No slice is ever run for a prediction, so any of the n*n/2 slices can be priced in O(1).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

from lamella.graph.divide import ShardSpan
from lamella.graph.model import Graph
from lamella.plan.choice import Choice
from lamella.plan.pricing.coding import Coding, codings, plain, quickest
from lamella.plan.request import Request
from lamella.platforms import Platform
from lamella.platforms.platform import threads as threads_for
from lamella.profile.document import Profile, UnitMemory, Variant
from lamella.runtime.function import Layout
from lamella.units import MB

PACKING: Mapping[Layout, Layout] = {"plain": "prepacked", "prepacked": "plain"}
"""Layouts that are the same where prepacking does nothing."""
EXACT_MS = 1e-6
"""Work that ends with its grant to this much needs no further period: sums of floats miss by less."""
LOAD_FACTOR = 1.25
"""Of the allocation rule (`deploy.sizing`)."""
PASSES = 2
"""How often onnxruntime 1.31 goes over a weight it packs: measured on bert-base, 1.8 ms per MB that does not fit where
reading takes 0.9."""
INERT_MB = 0.5
CODE_MB = 8.0
"""Pages of kernels and session that running touches, at least: measured on units with next to no activations."""
FAR = 1.2
EDGE_MB = 0.8
"""Added to predicted peaks: of 60 functions on 2026-11-22 the measured one was 0.4 MB higher on average, 1.1 at worst.

Without it a planner that may choose finds just the slices whose prediction ends below a size, and they get the next.
"""
GRAPH_MB = 1.0
"""What a package holds beside weights, at most as seen on twelve models: the graph, and filling up to pages."""


def throttled(cpu_ms: np.ndarray, vcpu: np.ndarray, period_ms: float) -> np.ndarray:
    """Wall time of one-thread runs of `cpu_ms` under quotas, on average over the phase in a period; many at once.

    The kernel grants `vcpu * period` of CPU time in each period and holds the process back when it is spent. An idle
    process starts with its grant unspent. So a run that its first grant does not cover pauses after each grant; how
    long at first depends on what was left of the period when it began, which is uniform. From one vCPU nothing is held.
    """
    found = np.array(cpu_ms, float)
    held = (vcpu < 1) & (cpu_ms > vcpu * period_ms + EXACT_MS)
    found[held] = _throttled(found[held], vcpu[held], period_ms)
    return found


def _throttled(cpu_ms: np.ndarray, vcpu: np.ndarray, period_ms: float) -> np.ndarray:
    """Those that their first grant does not cover."""
    grant = vcpu * period_ms
    idle = period_ms - grant
    work = np.maximum(cpu_ms - grant, 0.0)  # after the first grant
    whole = np.ceil(np.maximum(work - EXACT_MS, 0.0) / grant) - 1
    late = (
        (grant + period_ms) / 2 + whole * idle + work
    )  # began with more left than a grant takes: it waits for the rest
    periods = np.floor((cpu_ms + EXACT_MS) / grant)
    part = np.maximum(cpu_ms - periods * grant, 0.0)  # began so late that the next grant follows at once
    early = (part * (cpu_ms + periods * idle) + (grant - part) * (cpu_ms + (periods - 1) * idle)) / period_ms
    held: np.ndarray = (1 - grant / period_ms) * late + early
    return held


@lru_cache(maxsize=65536)
def throttled_ms(cpu_ms: float, vcpu: float, period_ms: float) -> float:
    """`throttled` of one run."""
    return float(throttled(np.array(cpu_ms), np.array(vcpu), period_ms))


class HopPrice(NamedTuple):
    """What a hop takes."""

    ms: float
    """Beyond the functions' runs,"""
    usd: float
    """and its price."""
    carried_ms: float
    """Work of the function on either side."""
    wait_ms: float
    """What that waits for it, billed."""


@dataclass(frozen=True, slots=True)
class Lossy:
    """What hops may lose, by the unit behind them; by default nothing."""

    allowed: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """Codecs that may be chosen."""
    fitted: Mapping[int, tuple[Coding, ...]] = field(default_factory=dict)
    """Codecs that were fitted to what crosses there."""
    said: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """What judging said of a codec."""
    int8: frozenset[int] = frozenset()
    """Units whose products may run on 8-bit integers."""


NOTHING_LOST = Lossy()


class SliceModel:
    """Prices slices of one model on one platform."""

    def __init__(
        self,
        graph: Graph,
        profile: Profile,
        platform: Platform,
        request: Request = Request(),  # noqa: B008 - a value
        lossy: Lossy = NOTHING_LOST,
    ) -> None:
        """Prepare.

        Args:
            graph: the model.
            profile: of it.
            platform: where it runs.
            request: what is asked: rows, vCPU where it is free, how many shards at once; without codecs hops are plain,
                with shards they are where these may begin or end.
            lossy: what hops may lose.
        """
        self.graph, self.profile, self.platform, self.lossy = graph, profile, platform, lossy
        self.request = request
        self.batch, self.vcpu = request.batch, request.vcpu
        self.equal_mb: int | None = None
        """The size of every function that it is enough for; None where each has its own."""
        self.units = len(profile.units)
        outputs = sum(graph.tensors[n].bytes_at(self.batch) for op in graph.operators for n in op.outputs)
        touched = (graph.weight_bytes(0, len(graph.operators)) + outputs) / MB
        # where memory buys CPU, requests come one by one, after pauses (the measure of latency): nothing is warm
        self.hop_cost = profile.hop.cold if platform.cpu.mb_per_vcpu else profile.hop.at(touched)

    def with_codings(self, chosen: Mapping[int, Coding]) -> SliceModel:
        """The same model where hops have those codecs, by the unit behind them, and others none."""
        return _Coded(self, chosen)

    def with_size(self, size_mb: int) -> SliceModel:
        """The same model where no function is smaller than a size that is sold, MB, nor larger unless it must be."""
        return _EquallySized(self, size_mb)

    def with_shards(self, kept: Collection[tuple[int, int, ShardSpan]]) -> SliceModel:
        """The same model where only those runs of units may be divided, first, last and what of them."""
        shards = tuple(s for s in self.profile.shards if (s.first, s.last, s.span) in kept)
        profile = msgspec.structs.replace(self.profile, shards=shards)
        return SliceModel(self.graph, profile, self.platform, self.request, self.lossy)

    @property
    def codes_less(self) -> bool:
        """Whether some hop goes as it is only because shards may begin or end there."""
        bare = self.without_shards()
        return any(self.coding(u).codec != bare.coding(u).codec for u in range(1, self.units))

    def asking(self, request: Request) -> SliceModel:
        """The same model for another request."""
        return SliceModel(self.graph, self.profile, self.platform, request, self.lossy)

    def without_shards(self) -> SliceModel:
        """The same model where no stage may be divided, and any hop may be encoded."""
        return self.asking(self.request._replace(shards=False))

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """Those that the profile knows, plain first; int8 only where some unit may be."""
        known = dict.fromkeys(v.layout for v in self.profile.variants)
        return tuple(layout for layout in known if layout != "int8" or any(self.quantised))

    @cached_property
    def blocked(self) -> list[bool]:
        """Units that hold a product which the blocked layout runs blocked."""
        return [any(t.variant.layout == "blocked" and not t.shared for t in u.times) for u in self.profile.units]

    @cached_property
    def quantised(self) -> list[bool]:
        """Units that run on 8-bit integers in a slice that does: those that may; the others are plain in it."""
        return [bool(u.int8) and k in self.lossy.int8 for k, u in enumerate(self.profile.units)]

    @cached_property
    def own(self) -> dict[Layout, list[bool]]:
        """Of layouts that are the plain one in some units: in which they are their own."""
        return {"blocked": self.blocked, "int8": self.quantised}

    def int8(self, first: int, last: int) -> tuple[str, ...]:
        """What the products of a slice give that run on 8-bit integers where it does."""
        units = zip(self.profile.units[first:last], self.quantised[first:last], strict=True)
        return tuple(name for unit, chosen in units if chosen for name in unit.int8)

    @cached_property
    def spared_bytes(self) -> list[int]:
        """What each unit's weights take less on 8-bit integers; nothing of what another unit reads, too."""
        readers: dict[str, set[int]] = {}
        for number, unit in enumerate(self.profile.units):
            for name in {w for op in self.graph.operators[unit.first : unit.last] for w in op.weights}:
                readers.setdefault(name, set()).add(number)
        shared = [0] * self.units
        for name, numbers in readers.items():
            for number in numbers if len(numbers) > 1 else ():
                shared[number] += self.graph.weights[name].bytes
        return [self._spared(number, shared[number]) for number in range(self.units)]

    def _spared(self, number: int, shared: int) -> int:
        if not self.quantised[number]:
            return 0
        unit, memory = self.profile.units[number], self.memory_of(number, "int8")
        held = unit.weight_bytes if memory.weight_bytes is None else memory.weight_bytes
        return max(0, unit.weight_bytes - held - shared)

    def layouts_of(self, first: int, last: int) -> tuple[Layout, ...]:
        """Those worth a look in a slice: one is the plain one where no product of the slice would lie otherwise."""
        return tuple(way for way in self.layouts if way not in self.own or any(self.own[way][first:last]))

    def more_mb(self, first: int, last: int, layout: Layout) -> float:
        """What a package ships beyond a slice's weights: its graph, and again what is read blocked and plain.

        The graph for any CPU is not counted: `package.build` leaves it out where there is no room for it.
        On 8-bit integers it is less, as weights are.
        """
        if layout == "int8":
            return GRAPH_MB - sum(self.spared_bytes[first:last]) / MB
        return (self.both_bytes(first, last) / MB if layout == "blocked" else 0.0) + GRAPH_MB

    @lru_cache(maxsize=65536)  # noqa: B019 - as below
    def both_bytes(self, first: int, last: int) -> int:
        """Weights of a slice that some unit reads blocked and another as they are: blocked it holds them twice."""
        readers: dict[bool, set[str]] = {True: set(), False: set()}
        for unit, blocked in zip(self.profile.units[first:last], self.blocked[first:last], strict=True):
            readers[blocked].update(w for op in self.graph.operators[unit.first : unit.last] for w in op.weights)
        return sum(self.graph.weights[w].bytes for w in readers[True] & readers[False])

    @cached_property
    def _inert(self) -> list[bool]:
        """Units on which prepacking does nothing: no private copy appears."""
        return [
            abs(self.memory_of(u, "prepacked").private_mb - self.memory_of(u, "plain").private_mb) < INERT_MB
            for u in range(self.units)
        ]

    @cached_property
    def _prefix(self) -> dict[Variant, tuple[np.ndarray, np.ndarray]]:
        """Per variant the prefix sums of unit times and of savings.

        Where prepacking does nothing its two measurements are of the same thing: their mean is used for both, or the
        planner would pick the luckier one, slice after slice. Units that the blocked layout shares with the plain one
        have that mean, too. A saving below zero is noise.
        """
        raw = {
            v: (
                np.array([u.times[k].median_ms for u in self.profile.units]),
                np.array([c.savings[k].ms for c in self.profile.cuts]),
            )
            for k, v in enumerate(self.profile.variants)
        }
        same_units = np.array(self._inert)
        same_cuts = same_units[:-1] & same_units[1:]
        table = dict(raw)
        for variant, (times, savings) in raw.items():
            other = raw.get(msgspec.structs.replace(variant, layout=PACKING.get(variant.layout, variant.layout)))
            if other:
                times = np.where(same_units, (times + other[0]) / 2, times)
                savings = np.where(same_cuts, (savings + other[1]) / 2, savings)
            table[variant] = times, savings
        for k, variant in enumerate(self.profile.variants):
            if variant.layout in self.own:
                plain_times, plain_savings = table[msgspec.structs.replace(variant, layout="plain")]
                times, savings = table[variant]
                units, cuts = self.profile.units, self.profile.cuts
                own = np.array([not u.times[k].shared for u in units])
                chosen = own & np.array(self.quantised) if variant.layout == "int8" else own
                times = np.where(chosen, times, plain_times)
                savings = np.where(np.array([c.savings[k].shared for c in cuts], bool), plain_savings, savings)
                kept = (own & ~chosen)[:-1] | (own & ~chosen)[1:]  # measured with a neighbour that lies otherwise now
                table[variant] = times, np.where(kept, np.minimum(savings, plain_savings), savings)
        return {
            variant: (np.concatenate([[0.0], np.cumsum(times)]), np.cumsum([0.0, *np.maximum(savings, 0.0)]))
            for variant, (times, savings) in table.items()
        }

    def compute_ms(self, first: int, last: int, *, layout: Layout, threads: int) -> float:
        """Unthrottled time of the slice's operators, ms."""
        variant = Variant(self.batch, layout, threads)
        if variant not in self._prefix:  # larger batches are measured on one thread: scale as batch 1 does
            one = self._sum(first, last, Variant(self.batch, layout, 1))
            return (
                one
                * self._sum(first, last, Variant(1, layout, threads))
                / self._sum(first, last, Variant(1, layout, 1))
            )
        return self._sum(first, last, variant)

    def compute_all_ms(self, first: int, layout: Layout, threads: int) -> np.ndarray:
        """`compute_ms` of every slice that begins with a unit, by its end."""

        def sums(variant: Variant) -> np.ndarray:
            times, saved = self._prefix[variant]
            found: np.ndarray = np.maximum(0.001, times[first + 1 :] - times[first] - (saved[first:] - saved[first]))
            return found

        variant = Variant(self.batch, layout, threads)
        if variant in self._prefix:
            return sums(variant)
        one, many = (sums(Variant(1, layout, t)) for t in (1, threads))
        scaled: np.ndarray = sums(Variant(self.batch, layout, 1)) * many / one
        return scaled

    def _sum(self, first: int, last: int, variant: Variant) -> float:
        times, saved = self._prefix[variant]
        return max(0.001, float(times[last] - times[first] - (saved[last - 1] - saved[first])))

    def run_ms(self, first: int, last: int, *, layout: Layout, vcpu: float, more_ms: float = 0.0) -> float:
        """Time of one run of the function under its CPU share, on as many threads as are quickest, ms."""
        return self._run(first, last, layout, vcpu, more_ms)[0]

    def _run(self, first: int, last: int, layout: Layout, vcpu: float, more_ms: float = 0.0) -> tuple[float, int]:
        """The time, and on how many threads: one for each started vCPU, or one, where that is as quick."""
        run, threads = self._busy(first, last, layout, vcpu, more_ms)
        return run + self.waiting_ms(first) + self.waiting_ms(last), threads

    def _busy(self, first: int, last: int, layout: Layout, vcpu: float, more_ms: float) -> tuple[float, int]:
        """The part of it that needs CPU."""
        beside = self.hop_cost.call_ms + self.coding(first).decode_ms + self.coding(last).encode_ms + more_ms
        beside += self.carrying_ms(first) + self.carrying_ms(last)
        alone = self.compute_ms(first, last, layout=layout, threads=1) + beside
        if vcpu < 1:
            return throttled_ms(alone, vcpu, self.platform.cpu.period_ms.value), 1
        threads = min(threads_for(vcpu), self.profile.machine.cores)
        if threads == 1:
            return alone, 1
        busy = self.compute_ms(first, last, layout=layout, threads=threads) + beside
        if vcpu < threads:
            busy = max(busy, alone / vcpu)
        return (busy, threads) if busy < alone else (alone, 1)

    def waiting_ms(self, unit: int) -> float:
        """How long the function on either side of a border waits for the channel, billed; 0 where nobody does."""
        return 0.0 if unit in (0, self.units) else self.hop_of(self.coding(unit)).wait_ms

    @lru_cache(maxsize=4096)  # noqa: B019 - as below
    def carrying_ms(self, unit: int) -> float:
        """What sending what crosses before a unit takes the function on either side of it; 0 in shared memory."""
        price = self.platform.hop.price
        if price is None:
            return 0.0
        if unit in (0, self.units):
            names = self.graph.outputs if unit else self.graph.inputs
            return price.edge_half_ms(sum(self.graph.tensors[n].bytes_at(self.batch) for n in names))
        return self.hop_of(self.coding(unit)).carried_ms

    @cached_property
    def live_batch(self) -> int:
        """The batch whose live memory is measured on every unit: the one that is asked for, or 1."""
        known = all(any(live.batch == self.batch for live in unit.lives) for unit in self.profile.units)
        return self.batch if known else 1

    def memory_of(self, unit: int, layout: Layout) -> UnitMemory:
        """What a unit was measured to hold in a layout, alive at the batch that is asked for."""
        found = self.profile.units[unit]
        if layout == "int8" and not self.quantised[unit]:
            layout = "plain"
        memory = next((m for m in found.memory if m.layout == layout), found.memory[0])
        live = next((live.live_mb for live in found.lives if live.batch == self.live_batch), memory.live_mb)
        return msgspec.structs.replace(memory, live_mb=live)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The operators of units `first` to `last - 1`."""
        return self.profile.units[first].first, self.profile.units[last - 1].last

    def memory_mb(self, first: int, last: int, *, layout: Layout) -> tuple[float, float]:
        """Predicted VmHWM, and what law 4 demands, MB."""
        peak, law = self.held_mb(first, last, layout=layout)
        return peak + (self.coding(first).taking_bytes + self.coding(last).giving_bytes) / MB, law

    @lru_cache(maxsize=65536)  # noqa: B019 - a model lives as long as one planning run
    def held_mb(self, first: int, last: int, *, layout: Layout) -> tuple[float, float]:
        """Predicted VmHWM without buffers of codecs, and what law 4 demands, MB."""
        span = self.span(first, last)
        parts = [self.memory_of(u, layout) for u in range(first, last)]
        base = min(self.memory_of(u, "plain").private_mb for u in range(self.units))  # a session without copies
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
        full = self.graph.weight_bytes(*span) / MB
        if layout == "int8":
            full -= sum(self.spared_bytes[first:last]) / MB
        if layout == "prepacked":
            peak = max(peak, self._load_mb(parts, private, full, first, last))
        peak += EDGE_MB
        law = floor + max(full, private) + self.graph.live_bytes(*span, self.batch) / MB
        return peak, law

    def _weights_mb(self, parts: Sequence[UnitMemory], first: int) -> float:
        """Resident weights of a slice: those that several of its units hold are in memory once."""
        units = self.profile.units[first : first + len(parts)]
        resident = sum(p.weights_mb for p in parts)
        apart = sum(u.weight_bytes for u in units)
        whole = self.graph.weight_bytes(units[0].first, units[-1].last)
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
        start += self.compute_ms(first, last, layout="prepacked", threads=1)
        spare = (LOAD_FACTOR - 1) * start / (PASSES * ms_per_mb)
        return self.profile.floor.anonymous_mb + private + file_mb - spare

    def choices(self, first: int, last: int) -> list[Choice]:
        """Every sensible way to run the slice on the platform: none dominates another in cost and time."""
        found: list[Choice] = []
        for layout in self.layouts_of(first, last):
            peak, law = self.memory_mb(first, last, layout=layout)
            need = self.platform.allocation_mb(max(peak, law))
            shipped = self.graph.weight_bytes(*self.span(first, last)) / MB + self.more_mb(first, last, layout)
            if need is None or shipped > self.platform.limits.package_mb.value:
                continue
            for size in self.sizes(need):
                vcpu = self.platform.vcpu(size, self.vcpu)
                run, threads = self._run(first, last, layout, vcpu)
                if run / 1000 > self.platform.limits.timeout_s.value:
                    continue
                cost = self.platform.cost_usd(size, run, vcpu)
                found.append(Choice(first, last, size, vcpu, threads, layout, peak, law, run, cost))
        found.sort(key=lambda c: (c.run_ms, c.cost_usd))
        kept: list[Choice] = []
        for choice in found:
            if not kept or choice.cost_usd < kept[-1].cost_usd * (1 - 1e-12):
                kept.append(choice)
        return kept

    def sizes(self, need: int) -> list[int]:
        """Sizes worth trying, MB: what is needed, and where memory buys CPU a spread this machine can measure."""
        per_vcpu = self.platform.cpu.mb_per_vcpu
        if per_vcpu is None:
            return [need]
        most = min(per_vcpu.value * self.profile.machine.cores, self.platform.memory.max_mb.value)
        marks = [per_vcpu.value * share for share in (0.25, 1 / 3, 0.5, 2 / 3, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)]
        sizes = {need, *(size for m in marks if need < m <= most and (size := self.platform.allocation_mb(m)))}
        return sorted(sizes)

    @property
    def share(self) -> float:
        """The vCPU that codecs are compared at: what is asked for; one where memory buys CPU, since sizes differ."""
        return 1.0 if self.platform.cpu.mb_per_vcpu else min(1.0, self.platform.vcpu(0, self.vcpu))

    def coding(self, unit: int) -> Coding:
        """The codec of the hop before a unit.

        None before the first unit and behind the last, which is request and answer; none where shards may begin or
        end, since their parts go as they are.
        """
        return plain(0) if unit in (0, self.units) else self._coding(unit)

    @lru_cache(maxsize=4096)  # noqa: B019 - as above
    def _coding(self, unit: int) -> Coding:
        found = self.codings(unit)
        shards = self.profile.shards if self.request.shards else ()
        ends = {end for s in shards if s.batch == self.batch for end in (s.first, s.last)}
        allowed = self.lossy.allowed.get(unit, frozenset())
        return found[0] if unit in ends else quickest(found, self.platform, self.share, allowed)

    def codings(self, unit: int) -> list[Coding]:
        """What was measured of the hop before a unit, plain first."""
        found = codings(self.profile.cuts[unit - 1], self.batch, self.lossy.fitted.get(unit, ()))
        return found if self.request.codec else found[:1]

    def hop(self, unit: int) -> tuple[float, float, int]:
        """The hop before a unit: time in ms and its price beyond the functions' runs, and its bytes, encoded.

        Encoding and decoding are not in it: functions do that, and are billed for it.
        """
        coding = self.coding(unit)
        price = self.hop_of(coding)
        return price.ms, price.usd, coding.bytes

    def hop_of(self, coding: Coding) -> HopPrice:
        """A hop with a codec, by its channel."""
        platform = self.platform.through(coding.channel)
        price, apart = platform.hop.price, platform.hop_ms(coding.bytes)
        carried = price.transfer_ms(coding.bytes) / 2 if price else 0.0
        wait = apart / 2 if platform.hop.billed else 0.0
        return HopPrice(apart - 2 * wait + self.between_ms, platform.hop_usd(coding.bytes), carried, wait)

    @property
    def between_ms(self) -> float:
        """What the driver does between two functions, ms."""
        return self.hop_cost.fixed_ms + (self.platform.hop.price.fixed_ms if self.platform.hop.price else 0.0)

    def fits_payload(self, unit: int) -> bool:
        """Whether what crosses before a unit, encoded, may travel on the platform."""
        return self.may_travel(self.coding(unit))

    def may_travel(self, coding: Coding) -> bool:
        """Whether so many bytes may go over a hop of the platform, by its channel."""
        platform = self.platform.through(coding.channel)
        return platform.hop_mb(coding.bytes) <= platform.hop_limit_mb

    @property
    def entry_ms(self) -> float:
        """What a request takes before the first function and after the last, ms."""
        hop = self.hop_cost
        size = sum(self.graph.tensors[n].bytes_at(self.batch) for n in {*self.graph.inputs, *self.graph.outputs})
        return hop.entry_ms + hop.fixed_ms + hop.entry_mb_ms * size / MB


class _Coded(SliceModel):
    """A model whose codecs are chosen."""

    def __init__(self, model: SliceModel, chosen: Mapping[int, Coding]) -> None:
        super().__init__(model.graph, model.profile, model.platform, model.request, model.lossy)
        self._chosen = chosen

    def coding(self, unit: int) -> Coding:
        """As chosen; plain else."""
        return self._chosen.get(unit) or self._uncoded(unit)

    @lru_cache(maxsize=4096)  # noqa: B019 - as above
    def _uncoded(self, unit: int) -> Coding:
        return plain(0) if unit in (0, self.units) else self.codings(unit)[0]


class _EquallySized(SliceModel):
    """A model whose functions have one size. What does not depend on sizes is asked of the model itself, once."""

    def __init__(self, model: SliceModel, size_mb: int) -> None:
        super().__init__(model.graph, model.profile, model.platform.from_mb(size_mb), model.request, model.lossy)
        self.equal_mb = size_mb
        self._model = model

    def coding(self, unit: int) -> Coding:
        return self._model.coding(unit)

    def compute_ms(self, first: int, last: int, *, layout: Layout, threads: int) -> float:
        return self._model.compute_ms(first, last, layout=layout, threads=threads)

    @lru_cache(maxsize=65536)  # noqa: B019 - as above
    def held_mb(self, first: int, last: int, *, layout: Layout) -> tuple[float, float]:
        return self._model.held_mb(first, last, layout=layout)

    def more_mb(self, first: int, last: int, layout: Layout) -> float:
        return self._model.more_mb(first, last, layout)

    def sizes(self, need: int) -> list[int]:
        return [need]
