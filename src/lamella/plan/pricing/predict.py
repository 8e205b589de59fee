"""What a slice would take, from the profile alone: time, memory and cost of units i to j-1 as one function.

Time: that of its operators (`pricing.times`), of the call and of both hops (`pricing.hops`); below one vCPU the CPU
quota stretches it (`pricing.throttle`). Memory: `pricing.memory`. No slice is ever run for a prediction, so any of the
n*n/2 slices can be priced in O(1).

Planning asks for the same slices again and again, within other bounds and of models that differ in their hops only:
what was priced is kept, and what hops have no part in is shared by all models that are made of one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from functools import cached_property
from typing import NamedTuple

import msgspec

from lamella.graph.divide import ShardSpan
from lamella.graph.model import Graph
from lamella.plan.choice import Choice
from lamella.plan.pricing.coding import Coding
from lamella.plan.pricing.hops import NOTHING_LOST, HopPrice, Hops, Lossy
from lamella.plan.pricing.memory import Memory
from lamella.plan.pricing.quantised import Quantised
from lamella.plan.pricing.throttle import shared_ms, throttled_ms
from lamella.plan.pricing.times import Times
from lamella.plan.request import Request
from lamella.platforms import Platform
from lamella.platforms.platform import threads as threads_for
from lamella.profile.document import Profile, ShardProfile
from lamella.runtime.function import Layout
from lamella.units import MB


class _Border(NamedTuple):
    """What a hop adds to the functions on either side of it: to who takes, who gives, or both."""

    decode_ms: float
    encode_ms: float
    carrying_ms: float
    waiting_ms: float
    taking_bytes: int
    giving_bytes: int


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
            lossy: what hops and units may lose.
        """
        self.graph, self.profile, self.platform, self.lossy = graph, profile, platform, lossy
        self.request = request
        self.batch, self.vcpu = request.batch, request.vcpu
        self.equal_mb: int | None = None
        """The size of every function that it is enough for; None where each has its own."""
        self.units = len(profile.units)
        self.quantised = Quantised(graph, profile, lossy.int8)
        self.times = Times(profile, self.batch, self.quantised, paused=platform.paused)
        self.memory = Memory(graph, profile, self.times, self.quantised)
        self.hops = Hops(graph, profile, platform, request, lossy)

    def with_codings(self, chosen: Mapping[int, Coding]) -> SliceModel:
        """The same model where hops have those codecs, by the unit behind them, and others none."""
        found = self._copy()
        found.hops = self.hops.with_codings(chosen)
        return found

    def with_size(self, size_mb: int) -> SliceModel:
        """The same model where no function is smaller than a size that is sold, MB, nor larger unless it must be."""
        found = self._copy()
        found.platform, found.equal_mb = self.platform.from_mb(size_mb), size_mb
        return found

    def _copy(self) -> SliceModel:
        """To be changed: what was priced here does not hold there, but for times and memory."""
        found = copy(self)
        for name in ("_choices", "_borders", "shards", "bare"):
            found.__dict__.pop(name, None)
        return found

    def with_shards(self, kept: Collection[tuple[int, int, ShardSpan]]) -> SliceModel:
        """The same model where only those runs of units may be divided, first, last and what of them."""
        shards = tuple(s for s in self.profile.shards if (s.first, s.last, s.span) in kept)
        found = self._copy()
        found.profile = msgspec.structs.replace(self.profile, shards=shards)
        found.hops = Hops(self.graph, found.profile, self.platform, self.request, self.lossy)
        return found

    @property
    def codes_less(self) -> bool:
        """Whether some hop goes as it is only because shards may begin or end there."""
        return any(self.coding(u).codec != self.bare.coding(u).codec for u in range(1, self.units))

    def asking(self, request: Request) -> SliceModel:
        """The same model for another request."""
        if request.batch != self.batch:
            return SliceModel(self.graph, self.profile, self.platform, request, self.lossy)
        found = self._copy()
        found.request, found.vcpu = request, request.vcpu
        found.hops = Hops(self.graph, self.profile, self.platform, request, self.lossy)
        return found

    @cached_property
    def bare(self) -> SliceModel:
        """The same model where no stage may be divided, and any hop may be encoded."""
        return self.asking(self.request._replace(shards=False))

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """Those that the profile knows, plain first; int8 only where some unit may be."""
        known = dict.fromkeys(v.layout for v in self.profile.variants)
        return tuple(layout for layout in known if layout != "int8" or any(self.quantised.units))

    @property
    def own(self) -> Mapping[Layout, list[bool]]:
        """Of layouts that are the plain one in some units: in which they are their own."""
        return {"blocked": self.memory.blocked, "int8": self.quantised.units}

    def layouts_of(self, first: int, last: int) -> tuple[Layout, ...]:
        """Those that are worth a look in a slice: one is the plain one where no unit of it would be otherwise."""
        return tuple(way for way in self.layouts if way not in self.own or any(self.own[way][first:last]))

    # --------------------------------------------------------------------------------------------------- choices

    def choices(self, first: int, last: int) -> tuple[Choice, ...]:
        """Every sensible way to run the slice on the platform: none dominates another in cost and time."""
        if (first, last) not in self._choices:
            self._choices[first, last] = tuple(self._price(first, last))
        return self._choices[first, last]

    @cached_property
    def _choices(self) -> dict[tuple[int, int], tuple[Choice, ...]]:
        """Those that were asked for before."""
        return {}

    def _price(self, first: int, last: int) -> list[Choice]:
        found: list[Choice] = []
        for layout in self.layouts_of(first, last):
            peak, law = self.memory_mb(first, last, layout=layout)
            need = self.platform.allocation_mb(max(peak, law), self.vcpu)
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

    @property
    def whole(self) -> tuple[Choice, ...]:
        """The model as one function: a candidate of most planners, and what every plan is held against."""
        return self.choices(0, self.units)

    def sizes(self, need: int) -> list[int]:
        """Sizes worth trying, MB: what is needed, and where memory buys CPU a spread this machine can measure."""
        per_vcpu = self.platform.cpu.mb_per_vcpu
        if per_vcpu is None or self.equal_mb is not None:
            return [need]
        most = min(per_vcpu.value * self.profile.machine.cores, self.platform.memory.max_mb.value)
        marks = [per_vcpu.value * share for share in (0.25, 1 / 3, 0.5, 2 / 3, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)]
        bought = (self.platform.allocation_mb(m, self.vcpu) for m in marks if need < m <= most)
        sizes = {need, *(size for size in bought if size)}
        return sorted(sizes)

    def run_ms(self, first: int, last: int, *, layout: Layout, vcpu: float, more_ms: float = 0.0) -> float:
        """Time of one run of the function under its CPU share, on as many threads as are quickest, ms."""
        return self._run(first, last, layout, vcpu, more_ms)[0]

    def _run(self, first: int, last: int, layout: Layout, vcpu: float, more_ms: float = 0.0) -> tuple[float, int]:
        """The time, and on how many threads: one for each started vCPU, or one, where that is as quick."""
        run, threads = self._busy(first, last, layout, vcpu, more_ms)
        return run + self._borders[first].waiting_ms + self._borders[last].waiting_ms, threads

    def _busy(self, first: int, last: int, layout: Layout, vcpu: float, more_ms: float) -> tuple[float, int]:
        """The part of it that needs CPU."""
        into, out = self._borders[first], self._borders[last]
        beside = self.hops.cost.call_ms + into.decode_ms + out.encode_ms + more_ms
        beside += into.carrying_ms + out.carrying_ms
        alone = self.compute_ms(first, last, layout=layout, threads=1) + beside
        if vcpu < 1:
            return throttled_ms(alone, vcpu, self.platform.cpu.period_ms.value), 1
        threads = min(threads_for(vcpu), self.profile.machine.cores)
        if threads == 1:
            return alone, 1
        busy = self.compute_ms(first, last, layout=layout, threads=threads) + beside
        if vcpu < threads:
            busy = shared_ms(busy, alone * self.times.more_cpu(threads), vcpu, self.platform.cpu.period_ms.value)
        return (busy, threads) if busy < alone else (alone, 1)

    def memory_mb(self, first: int, last: int, *, layout: Layout) -> tuple[float, float]:
        """Predicted VmHWM, and what law 4 demands, MB."""
        peak, law = self.held_mb(first, last, layout=layout)
        return peak + (self._borders[first].taking_bytes + self._borders[last].giving_bytes) / MB, law

    # ----------------------------------------------------------------------------------------------------- parts

    def compute_ms(self, first: int, last: int, *, layout: Layout, threads: int) -> float:
        """Unthrottled time of the slice's operators, ms."""
        return self.times.compute_ms(first, last, layout=layout, threads=threads)

    def held_mb(self, first: int, last: int, *, layout: Layout) -> tuple[float, float]:
        """Predicted VmHWM without buffers of codecs, and what law 4 demands, MB."""
        return self.memory.held_mb(first, last, layout=layout)

    def more_mb(self, first: int, last: int, layout: Layout) -> float:
        """What a package ships beyond a slice's weights."""
        return self.memory.more_mb(first, last, layout)

    @cached_property
    def shards(self) -> Mapping[tuple[int, int], list[ShardProfile]]:
        """What was measured of dividing runs of units at the batch, by their ends."""
        found: dict[tuple[int, int], list[ShardProfile]] = {}
        for way in self.profile.shards:
            if way.batch == self.batch:
                found.setdefault((way.first, way.last), []).append(way)
        return found

    @cached_property
    def _borders(self) -> list[_Border]:
        """Before each unit, and behind the last."""
        return [
            _Border(
                coding.decode_ms,
                coding.encode_ms,
                self.hops.carrying_ms(unit),
                self.hops.waiting_ms(unit),
                coding.taking_bytes,
                coding.giving_bytes,
            )
            for unit in range(self.units + 1)
            for coding in [self.coding(unit)]
        ]

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The operators of units `first` to `last - 1`."""
        return self.memory.span(first, last)

    def coding(self, unit: int) -> Coding:
        """The codec of the hop before a unit."""
        return self.hops.coding(unit)

    def codings(self, unit: int) -> list[Coding]:
        """What was measured of the hop before a unit, plain first."""
        return self.hops.codings(unit)

    def hop(self, unit: int) -> tuple[float, float, int]:
        """The hop before a unit: time in ms and its price beyond the functions' runs, and its bytes, encoded."""
        return self.hops.hop(unit)

    def hop_of(self, coding: Coding) -> HopPrice:
        """A hop with a codec, by its channel."""
        return self.hops.hop_of(coding)

    def fits_payload(self, unit: int) -> bool:
        """Whether what crosses before a unit, encoded, may travel on the platform."""
        return self.hops.fits_payload(unit)

    @property
    def entry_ms(self) -> float:
        """What a request takes before the first function and after the last, ms."""
        return self.hops.entry_ms
