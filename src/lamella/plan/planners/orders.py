"""What another order of operators could save at most, and what one that was found does save.

`exact` divides along the profile's order. Where branches run side by side a plan in another order may put other units
together. Every such plan is a chain of ideals (`graph.orders`), each slice the units between two of them. So the search
of `planners.space` is run over ideals in place of borders, with prices that no function of such units is below
(`pricing.sets`): what it finds bounds every plan in any order, codec, size and layout, within the same latency. Nobody
has measured what other borders would save or how what crosses them compresses: neighbours that were not neighbours save
nothing, and a codec makes at most as little of it as the best one does anywhere in the profile.

Ideals are many where branches are: 17 tables side by side have 131,072. Then the lightest units are left out until
few enough remain. A plan without some of its work costs no more, so it is still a bound. The chain that comes out is an
order, too: it is planned as the profile's is, and shows how much of the bound is real. Rejected: to package that order;
its units' prices carry over, but answers and law 1 are held along the model's own operators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import numpy as np

from lamella.graph.orders import ideals, members, needs, one_order
from lamella.plan.document import Orders
from lamella.plan.planners.options import Cells, Fixed, Options, State
from lamella.plan.planners.sold import Sold
from lamella.plan.planners.space import Space
from lamella.plan.pricing.coding import Coding, plain
from lamella.plan.pricing.fan_out import sharded
from lamella.plan.pricing.hops import HopPrice, Hops
from lamella.plan.pricing.modes import Mode, channels, modes
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.reorder import in_order
from lamella.plan.pricing.sets import Crossing, Sets, sharing
from lamella.plan.request import Request
from lamella.profile.document import Unit

Index = TypeVar("Index", int, np.ndarray)
STATES = 3
"""Of each ideal."""

MOST_IDEALS = 400
MOST_SLICES = 4000
"""Pairs of ideals, that is sets of units: so many are priced in a tenth of a second."""
WORTH = 0.01
"""Where no order can save this share of the cost, none is planned."""


def orders(space: Space, cost_usd: float, most_ms: float = math.inf) -> Orders | None:
    """How much cheaper a plan in another order could be; None where nothing can be said.

    Args:
        space: all choices in the profile's order.
        cost_usd: of the cheapest plan in it within the latency, per request.
        most_ms: latency that none exceeds.
    """
    units = _spans(space.options.model.profile.units)
    needed = needs(space.options.model.graph, units)
    if one_order(needed):
        return Orders(one=True, units=len(units))
    core = _core(space.options.model, needed)
    if core is None:
        return None
    relaxed = Relaxed(space, needed, core)
    found, proof = relaxed.space.cheapest(most_ms)
    if found is None or not cost_usd:
        return None
    order = relaxed.order([(c.first, c.last) for c in found.choices])
    may = found.cost_usd - proof.loss_usd < cost_usd * (1 - WORTH) and order != tuple(range(len(units)))
    best = _planned(space, order, most_ms) if may else None
    saved = max(0.0, 1 - best / cost_usd) if best is not None else 0.0
    least = found.cost_usd - proof.loss_usd
    bound = min(least, cost_usd, best or math.inf)  # sums in another order differ a little
    return Orders(
        one=False,
        units=len(units),
        left_out=int((~core).sum()),
        bound_usd_per_million=bound * 1e6,
        most_saves=max(saved, 1 - bound / cost_usd),
        found_saves=saved,
    )


def _spans(units: Sequence[Unit]) -> list[tuple[int, int]]:
    return [(unit.first, unit.last) for unit in units]


def _core(model: SliceModel, needed: Sequence[int]) -> np.ndarray | None:
    """Units that are looked at, [units], bool: as many as have few enough ideals, the heaviest; None where none do."""
    weights = np.array([unit.weight_bytes for unit in model.profile.units], float)
    times = np.array([unit.times[0].median_ms for unit in model.profile.units])
    load = weights / max(1.0, weights.sum()) + times / max(1e-9, times.sum())
    shares = sharing(model)
    order = [int(unit) for unit in np.argsort(load) if not shares[unit]]
    low, high = 0, min(len(order) + 1, model.units)  # how many are left out
    while low < high:
        middle = (low + high) // 2
        if _few(needed, sorted(set(range(model.units)) - set(order[:middle]))):
            high = middle
        else:
            low = middle + 1
    if low > len(order) or low == model.units:
        return None
    core = np.ones(model.units, bool)
    core[order[:low]] = False
    return core


def _few(needed: Sequence[int], kept: Sequence[int]) -> bool:
    """Whether units have few enough ideals, and pairs of them."""
    found = ideals(needed, kept, MOST_IDEALS)
    return found is not None and len(_pairs(members(found, len(needed)))[0]) <= MOST_SLICES


def _pairs(done: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which sets hold which others, those and these. [sets, units]."""
    lacks = (~done).astype(np.float32) @ done.T.astype(np.float32)  # of the second what the first does not hold
    high, low = np.nonzero((lacks == 0) & ~np.eye(len(done), dtype=bool))
    return low, high


class Relaxed:
    """All choices over ideals, each at a price that no real one is below."""

    def __init__(self, space: Space, needed: Sequence[int], core: np.ndarray) -> None:
        """Price them.

        Args:
            space: all choices in the profile's order.
            needed: by each unit.
            core: units that are looked at.
        """
        self.model, self.needed = space.options.model, needed
        kept = [int(unit) for unit in np.flatnonzero(core)]
        found = ideals(needed, kept, MOST_IDEALS)
        assert found is not None
        self.ideals = found
        self.done = members(found, len(core))
        self.prices = Sets(space.options.model, core, int(space.options.sold.threads.max()))
        ways = _ways(space, self.prices.crossing, self.done)
        open_ = np.array([way is not None for way in ways])
        low, high = _pairs(self.done)
        legal = open_[low] & open_[high]
        self.low, self.high = low[legal], high[legal]
        self.sets = self.done[self.high] & ~self.done[self.low]
        self.space = Space(self._options(space.options, ways))

    def _options(self, options: Options, ways: Sequence[Mode | None]) -> Options:
        """The same choices between other states."""
        found = copy(options)
        found.__dict__.pop("fixed_sums", None)
        found.modes = [(way,) if way else () for way in ways]
        found.states = [State(number, 0, None) for number in range(len(ways)) for _ in range(STATES)][1:-1]
        sides = [way or _SHUT for way in ways]
        found.cells, found.stages = self._cells(options.sold, sides), {}
        found.fixed = list(self._fixed(options.request, sides))
        return found

    def _cells(self, sold: Sold, sides: Sequence[Mode]) -> Cells:
        table = self.prices.priced(self.sets)
        held = np.maximum(table.peak_mb, table.floor_mb) <= sold.mb.max()
        table = table.at(np.flatnonzero(held & (table.shipped_mb <= self.model.platform.limits.package_mb.value)))
        share = np.tile(np.arange(len(sold.by_share)), len(table.first))
        table = table.at(np.repeat(np.arange(len(table.first)), len(sold.by_share)))
        before, behind, nothing = self.low[table.first], self.high[table.first], np.zeros(len(share))
        giving, taking, wait, hop_ms, usd = (
            np.array(column)
            for column in zip(*((m.giving_ms, m.taking_ms, m.wait_ms, m.hop_ms, m.hop_usd) for m in sides), strict=True)
        )
        return Cells(
            tail=_plain(before),
            head=_plain(behind),
            first=before,
            last=behind,
            layout=table.layout,
            share=share,
            peak_mb=table.peak_mb,
            floor_mb=table.floor_mb,
            wait_ms=wait[before] + wait[behind],
            join_ms=nothing,
            join_mb=nothing,
            hop_ms=hop_ms[before],
            hop_usd=usd[before],
            work_ms=table.work_ms + self.model.hops.cost.call_ms + taking[before] + giving[behind],
            init_ms=table.init_ms,
            variance=table.variance,
        )

    def _fixed(self, request: Request, sides: Sequence[Mode]) -> list[Fixed]:
        """Stages of shards as they were measured, without what they carry and without joining their parts.

        They take and give over the platform's own channel, as it is. So they lie between states of their own.
        """
        bare, found = _bare(self.model), []
        own = [self.model.hops.hop_of(plain(side.coding.plain_bytes)) for side in sides]
        own[0] = own[-1] = HopPrice(0.0, 0.0, 0.0, 0.0)  # request and answer are no hops
        measured = {(s.first, s.last) for s in self.model.profile.shards} if request.shards else set()
        ends: set[int] = set()
        for first, last in sorted(measured):
            inside = np.zeros(self.model.units, bool)
            inside[first:last] = True
            at = np.flatnonzero((self.sets == (inside & self.prices.core)).all(axis=1))
            for choice in sharded(bare, first, last) if len(at) else ():
                for low, high in zip(self.low[at].tolist(), self.high[at].tolist(), strict=True):
                    usd, ms = own[low].usd + choice.cost_usd, own[low].ms + choice.run_ms
                    varied = choice.deviation_ms**2 + bare.hops.cost.deviation_ms**2
                    tail, head = _plain(low) + 1, _plain(high) - (high < len(sides) - 1)
                    found.append(Fixed(tail, head, usd, ms, varied, 1, replace(choice, first=low, last=high)))
                    ends |= {low, high}
        for number in sorted(ends):
            here, side, price = _plain(number), sides[number], own[number]
            if number < len(sides) - 1:
                found.append(Fixed(here, here + 1, 0.0, 0.0, 0.0, 0, None))
            if 0 < number < len(sides) - 1:
                usd, ms = max(0.0, price.usd - side.hop_usd), max(0.0, price.ms - side.hop_ms)
                found += [
                    Fixed(here - 1, here, usd, ms, 0.0, 0, None),
                    Fixed(here - 1, here + 1, 0.0, 0.0, 0.0, 0, None),
                ]
        return found

    def order(self, slices: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Units in an order that has slices between ideals: each takes the units left out that it needs.

        Args:
            slices: of one plan, the numbers of ideals before and behind each.
        """
        marks = sorted({mark for ends in slices for mark in ends})
        found: list[int] = []
        for mark in [*marks, None]:
            wanted = self._with_needs(self.ideals[mark]) if mark is not None else (1 << len(self.needed)) - 1
            found += [unit for unit in range(len(self.needed)) if wanted >> unit & 1 and unit not in found]
        return tuple(found)

    def _with_needs(self, one: int) -> int:
        for unit, needed in enumerate(self.needed):
            one |= needed if one >> unit & 1 else 0
        return one


def _plain(number: Index) -> Index:
    """The state of an ideal; before it lies that behind a stage of shards, behind it that before one."""
    return number * STATES


class _Bare(Hops):
    """Borders that carry nothing."""

    @lru_cache(maxsize=1)  # noqa: B019 - as it is cached there
    def carrying_ms(self, unit: int) -> float:
        return 0.0

    def waiting_ms(self, unit: int) -> float:
        return 0.0


def _bare(model: SliceModel) -> SliceModel:
    """The model with such borders: what shards take at least."""
    found = model.asking(model.request)
    found.hops = _Bare(model.graph, model.profile, model.platform, model.request, model.lossy)
    return found


_SHUT = Mode(plain(0), 0.0, 0.0, 0.0, 0.0, 0.0)
"""A border that no plan has."""


def _ways(space: Space, crossing: Crossing, done: np.ndarray) -> list[Mode | None]:
    """The least that crossing the border behind each set takes; None where something may not cross."""
    over, model = crossing.over(done), space.options.model
    shut, sizes = (over & ~crossing.travels).any(axis=1), over @ crossing.bytes
    ratio = max([1.0, *(c.plain_bytes / c.bytes for c in _codings(model) if c.bytes)])
    found: list[Mode | None] = [
        None if shut[number] else _least(model, int(sizes[number]), ratio) for number in range(1, len(done) - 1)
    ]
    return [modes(model, 0)[0], *found, modes(model, model.units)[0]]


def _codings(model: SliceModel) -> list[Coding]:
    """What may be on any hop."""
    return [
        coding
        for unit in range(1, model.units)
        for coding in model.codings(unit)
        if coding.lossless or coding.codec in model.lossy.allowed.get(unit, frozenset())
    ]


def _least(model: SliceModel, size: int, ratio: float) -> Mode | None:
    """Of so many bytes, encoded at best to that share; by each measure that channel which takes least of it."""
    sent = [plain(int(size / ratio))._replace(channel=channel) for channel in channels(model)]
    prices = [model.hops.hop_of(one) for one in sent if model.hops.may_travel(one)]
    if not prices:
        return None
    carried = min(p.carried_ms for p in prices)
    ms, usd, wait = (min(column) for column in zip(*((p.ms, p.usd, p.wait_ms) for p in prices), strict=True))
    return Mode(plain(size), ms, usd, carried, carried, wait)


def _planned(space: Space, order: Sequence[int], most_ms: float) -> float | None:
    """What the cheapest plan along an order costs, USD; None where there is none."""
    model = in_order(space.options.model, order)
    found = Space.of(model, space.request).cheapest(most_ms).chosen if model else None
    return found.cost_usd if found else None
