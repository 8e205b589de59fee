"""What hops take: the codec of each, its time, price and work, by the platform's channel."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from lamella.graph.model import Graph
from lamella.plan.pricing.coding import Coding, codings, plain, quickest
from lamella.plan.request import Request
from lamella.platforms import Platform
from lamella.profile.document import Profile
from lamella.units import MB


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
    """What hops may lose, by the unit behind them, and units themselves; by default nothing."""

    allowed: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """Codecs that may be chosen."""
    fitted: Mapping[int, tuple[Coding, ...]] = field(default_factory=dict)
    """Codecs that were fitted to what crosses there."""
    said: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """What judging said of a codec."""
    int8: frozenset[int] = frozenset()
    """Units whose products may run on 8-bit integers."""


NOTHING_LOST = Lossy()


class Hops:
    """Of a model on a platform, each before a unit; request and answer are those at the ends."""

    def __init__(self, graph: Graph, profile: Profile, platform: Platform, request: Request, lossy: Lossy) -> None:
        """As `SliceModel`."""
        self.graph, self.profile, self.platform, self.request, self.lossy = graph, profile, platform, request, lossy
        self.batch, self.units = request.batch, len(profile.units)
        self.chosen: Mapping[int, Coding] | None = None
        """Codecs, where they are chosen; None where each hop has its quickest."""
        touched_mb = graph.touched_bytes(self.batch) / MB
        self.cost = profile.hop.paused if platform.paused else profile.hop.at(touched_mb)

    def with_codings(self, chosen: Mapping[int, Coding]) -> Hops:
        """The same where they have those codecs, by the unit behind them, and others none."""
        found = copy(self)
        found.chosen = chosen
        return found

    def coding(self, unit: int) -> Coding:
        """The codec of the hop before a unit.

        None before the first unit and behind the last, which is request and answer; none where shards may begin or
        end, since their parts go as they are.
        """
        if self.chosen and (coding := self.chosen.get(unit)):
            return coding
        return plain(0) if unit in (0, self.units) else self._coding(unit)

    @lru_cache(maxsize=4096)  # noqa: B019 - as below
    def _coding(self, unit: int) -> Coding:
        found = self.codings(unit)
        if self.chosen is not None:
            return found[0]
        shards = self.profile.shards if self.request.shards else ()
        ends = {end for s in shards if s.batch == self.batch for end in (s.first, s.last)}
        allowed = self.lossy.allowed.get(unit, frozenset())
        return found[0] if unit in ends else quickest(found, self.platform, self.share, allowed)

    def codings(self, unit: int) -> list[Coding]:
        """What was measured of the hop before a unit, plain first."""
        found = codings(self.profile.cuts[unit - 1], self.batch, self.lossy.fitted.get(unit, ()))
        return found if self.request.codec else found[:1]

    @property
    def share(self) -> float:
        """The vCPU that codecs are compared at: what is asked for; one where memory buys CPU, since sizes differ."""
        return 1.0 if self.platform.cpu.mb_per_vcpu else min(1.0, self.platform.vcpu(0, self.request.vcpu))

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
        return self.cost.fixed_ms + (self.platform.hop.price.fixed_ms if self.platform.hop.price else 0.0)

    def waiting_ms(self, unit: int) -> float:
        """How long the function on either side of a border waits for the channel, billed; 0 where nobody does."""
        return 0.0 if unit in (0, self.units) else self.hop_of(self.coding(unit)).wait_ms

    @lru_cache(maxsize=4096)  # noqa: B019 - a model lives as long as one planning run
    def carrying_ms(self, unit: int) -> float:
        """What sending what crosses before a unit takes the function on either side of it.

        In shared memory nothing, but that a request or an answer of many tensors takes a function longer to read.
        """
        price = self.platform.hop.price
        if unit not in (0, self.units):
            return self.hop_of(self.coding(unit)).carried_ms if price else 0.0
        names = self.graph.outputs if unit else self.graph.inputs
        sent = price.edge_half_ms(sum(self.graph.tensors[n].bytes_at(self.batch) for n in names)) if price else 0.0
        return sent + self.cost.call_tensor_ms * max(0, len(names) - 1)

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
        hop = self.cost
        size = sum(self.graph.tensors[n].bytes_at(self.batch) for n in {*self.graph.inputs, *self.graph.outputs})
        more = sum(max(0, len(side) - 1) for side in (self.graph.inputs, self.graph.outputs))
        return hop.entry_ms + hop.fixed_ms + hop.entry_mb_ms * size / MB + hop.entry_tensor_ms * more
