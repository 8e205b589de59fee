"""Everything that can be chosen for a plan at once, and the least cost in it.

The plan's choices become a graph (`planners.routes`): states, and between them slices with layout, codecs and size, or
stages of shards (`planners.options`). Where memory buys CPU every size that is sold counts, a megabyte apart: far too
many to price. So an arc begins as one block of all sizes, as cheap as the cheapest and as quick as the quickest one
(`planners.blocks`); what even so cannot be part of a plan within the bounds is dropped, the rest is divided, until
blocks are sizes.

Few are dropped unless a plan near the cheapest is known. Where the bound falls just short of what one function takes,
plans within it cost far more than multipliers let them: of those over each arc the best are looked at, too
(`Routes.through`).

Optimal under the model's law: costs, mean latencies and variances of functions and hops add; below one vCPU a quota
stretches them (`pricing.throttle`); a percentile is that of a normal distribution (`planners.route`). Shards were
measured as stages, so that the slowest of them counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from lamella.plan.choice import Choice
from lamella.plan.planners.blocks import (
    NEVER,
    Arcs,
    Blocks,
    arcs_of,
    least_of,
    quickest_ms,
    real_of,
    run_ms,
    sums_of,
    whole_cells,
)
from lamella.plan.planners.options import Options
from lamella.plan.planners.planner import Candidate
from lamella.plan.planners.route import Bounds, Proof, Route, Stairs
from lamella.plan.planners.routes import Routes
from lamella.plan.pricing.coding import Coding
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request

CLOSER = 8
"""How often the plan of least mean is bettered at the percentile: most often never, or once."""
CORE = 500
"""Blocks of each division that are looked at for a plan near the cheapest."""
TRIED = 1
"""Multipliers by which plans are looked for that keep a bound: the slope between the cheapest and the quickest,"""
NEAR = 1.01
"""where one that costs so much more than the bound is not known yet."""
MOST_BLOCKS = 1_500_000
"""That are priced at once, each in a good kilobyte."""


class Chosen(NamedTuple):
    """A plan as choices, with the codecs of its hops, and its sums."""

    choices: tuple[Choice, ...]
    codings: Mapping[int, Coding]
    latency_ms: float
    """On average."""
    bounded_ms: float
    """By the law: the percentile that is asked for."""
    cost_usd: float
    """Per request, its share of starts included."""
    stages: int

    def bounded(self, name: str) -> Candidate:
        """With the latency that bounds are on."""
        return Candidate(name, self.choices, self.bounded_ms, self.cost_usd)


class Answer(NamedTuple):
    """The best plan, if there is one, and why there is no better one."""

    chosen: Chosen | None
    proof: Proof

    @property
    def cost_usd(self) -> float:
        """Of the plan; infinite where there is none."""
        return self.chosen.cost_usd if self.chosen else math.inf

    def or_else(self, known: Answer) -> Answer:
        """This, or a cheaper plan of the same question, by this one's proof."""
        if known.cost_usd >= self.cost_usd:
            return self
        loss = max(0.0, known.cost_usd - (self.cost_usd - self.proof.loss_usd))
        return Answer(known.chosen, self.proof._replace(loss_usd=loss))


class Front(NamedTuple):
    """Plans that no other beats in both cost and latency."""

    plans: tuple[Chosen, ...]
    loss_usd: float
    """What a plan as quick as one of them may cost less: not 0 only where there were more labels than are kept."""


NOTHING = Answer(None, Proof(math.inf, 0.0, 0, 0, 0))


class _Level(NamedTuple):
    """A division of sizes into blocks: with each block's largest size, and with what no size in it beats."""

    blocks: Blocks
    real: Routes
    optimistic: Routes
    single: bool
    """Whether each block is one size: then both are the same."""


class _First(NamedTuple):
    """The first one, where a block is all sizes of a cell."""

    blocks: Blocks
    real: Routes
    optimistic: Routes
    single: bool
    least: Routes
    """With the smallest size of each."""


def all_routes(options: Options, arcs: Arcs, most_stages: int | None) -> Routes:
    """Every way through the choices."""
    return Routes(
        len(options.states),
        arcs.tail,
        arcs.head,
        arcs.sums,
        law=options.law,
        begin_ms=options.begin_ms,
        stages=arcs.stages,
        most_stages=most_stages,
    )


class Space:
    """All plans that there are of some options, or those of a kind."""

    def __init__(self, options: Options, graph: Callable[[Options, Arcs, int | None], Routes] = all_routes) -> None:
        """Begin with nothing searched.

        Args:
            options: what can be chosen.
            graph: the ways through it: of options, arcs and the most stages. `explanation.kinds` asks for others here.
        """
        self.options, self.request, self.graph = options, options.request, graph
        self._begun: dict[int | None, _First] = {}

    @classmethod
    def of(cls, model: SliceModel, request: Request) -> Space:
        """All plans for a model."""
        return cls(Options(model, request))

    def cheapest(self, most_ms: float = math.inf) -> Answer:
        """The cheapest plan within a latency, ms, and the number of stages that is asked for."""
        most = self.request.max_stages
        found = self._cheapest(most_ms, None)  # far less to look at, and most often within
        fits = found.chosen is None or found.chosen.stages <= most
        return found if fits else self._cheapest(most_ms, most)

    def _cheapest(self, most_ms: float, most_stages: int | None) -> Answer:
        first = self._first(most_stages)
        level: _First | _Level = first
        upper, known = math.inf, NOTHING
        while not level.single:
            limits = level.optimistic.bounds(most_ms)
            if limits is None:
                return NOTHING
            for real in (level.real, *((first.least,) if level is first else ())):
                if bounds := real.bounds(most_ms):
                    upper = min(upper, bounds.upper_usd)
            if upper > limits.lower_usd * NEAR:
                upper = min(upper, float(level.real.through(most_ms, limits.tried[:TRIED]).min()))
            if level is first and limits.lower_usd < upper:
                known = self._dived(first, limits, most_ms, most_stages)
                upper = min(upper, known.cost_usd)
            ok = level.optimistic.within(most_ms, upper, limits.multiplier)
            finer = level.blocks.at(ok).divided()
            if len(finer.cell) > MOST_BLOCKS:
                return self._coarse(level, most_ms, limits.lower_usd).or_else(known)
            level = self._level(finer, most_stages)
        found = level.real.cheapest(most_ms, upper)
        answer = Answer(self._read(found.routes[0], level.blocks) if found.routes else None, found.proof)
        return answer.or_else(known) if found.proof.loss_usd else answer

    def _dived(self, first: _First, limits: Bounds, most_ms: float, most_stages: int | None) -> Answer:
        """A plan near the cheapest: of every division of sizes only the most promising blocks are divided further."""
        level: _First | _Level = first
        bounds: Bounds | None = limits
        while bounds and not level.single:
            ranks = [level.optimistic.weighed(most_ms, bounds.multiplier)]
            if bounds.upper_usd > bounds.lower_usd * NEAR:
                ranks.append(level.optimistic.through(most_ms, bounds.tried[:TRIED]))
            some = [np.argsort(by[: len(level.blocks.cell)], kind="stable")[:CORE] for by in ranks]
            best = np.unique(np.concatenate(some))
            level = self._level(level.blocks.at(best).divided(), most_stages)
            bounds = level.optimistic.bounds(most_ms)
        return self._coarse(level, most_ms, limits.lower_usd) if bounds else NOTHING

    def _coarse(self, level: _First | _Level, most_ms: float, lower_usd: float) -> Answer:
        """The cheapest plan of a division's largest sizes, where no plan of any size is below `lower_usd`."""
        found = level.real.cheapest(most_ms)
        if not found.routes or found.routes[0].usd >= NEVER:
            return NOTHING
        loss = max(0.0, found.routes[0].usd - lower_usd)
        largest = level.blocks._replace(low=level.blocks.high)
        return Answer(self._read(found.routes[0], largest), found.proof._replace(loss_usd=loss))

    def front(self, most_ms: float = math.inf, most_usd: float = math.inf) -> Front:
        """Every plan within bounds that no other beats in both cost and latency, by latency, so that costs fall."""
        most = self.request.max_stages
        found = self._front(most_ms, most_usd, None)
        return found if all(plan.stages <= most for plan in found.plans) else self._front(most_ms, most_usd, most)

    def _front(self, most_ms: float, most_usd: float, most_stages: int | None) -> Front:
        first = self._first(most_stages)
        level: _First | _Level = first
        known = first.least.hull()[0]
        while not level.single:
            known += level.real.hull()[0]
            if not known:
                return Front((), 0.0)
            optimistic = level.optimistic
            ok = optimistic.beating(Stairs.of(known), optimistic.hull()[1])
            ok &= optimistic.within(most_ms, most_usd, 0.0)
            level = self._level(level.blocks.at(ok).divided(), most_stages)
        found = level.real.front(most_ms, most_usd, known + level.real.hull()[0])
        return Front(tuple(self._read(route, level.blocks) for route in found.routes), found.proof.loss_usd)

    def quickest(self) -> Chosen | None:
        """The quickest plan whatever it costs, at the percentile: the one of least mean, or one that spreads less."""
        plan = self._least_mean()
        for _ in range(CLOSER if plan else 0):
            assert plan
            better = self.cheapest(plan.bounded_ms * (1 - 1e-6)).chosen
            if better is None:
                break
            plan = better
        return plan

    def _least_mean(self) -> Chosen | None:
        for most in (None, self.request.max_stages):
            level = self._first(most)
            found = level.real.fastest()
            largest = Blocks(level.blocks.cell, level.blocks.high, level.blocks.high)
            plan = self._read(found, largest) if found else None
            if plan is None or plan.stages <= self.request.max_stages:
                return plan
        return None

    def whole(self, most_ms: float, most_usd: float) -> Chosen | None:
        """One function within bounds, of every size that is sold that of least cost x latency; None where none is."""
        options = self.options
        cells, wide = options.cells, whole_cells(options)
        wide = wide.at((cells.tail[wide.cell] == 0) & (cells.head[wide.cell] == len(options.states) - 1))
        sizes = [np.arange(low, high + 1) for low, high in zip(wide.low, wide.high, strict=True)]
        size = np.concatenate([np.zeros(0, int), *sizes])
        blocks = Blocks(np.repeat(wide.cell, wide.high - wide.low + 1), size, size)
        run = run_ms(options, blocks)
        sums = sums_of(options, blocks, run, size)
        usd, ms, variance = (column[: len(size)] for column in sums)
        mean_ms = ms + options.begin_ms
        bounded_ms = options.law.latency_ms(mean_ms, variance)
        fits = (usd <= most_usd) & (bounded_ms <= most_ms)
        fits &= run / 1000 <= options.model.platform.limits.timeout_s.value
        if not fits.any():
            return None
        best = int(np.argmin(np.where(fits, usd * bounded_ms, np.inf)))
        found = (float(column[best]) for column in (usd, mean_ms, variance, bounded_ms))
        return self._read(Route((best,), *found), blocks)

    def _first(self, most_stages: int | None) -> _First:
        """Each cell as one block: where every search begins."""
        if most_stages not in self._begun:
            level = self._level(whole_cells(self.options), most_stages)
            least = level.real
            if not level.single:
                small = level.blocks._replace(high=level.blocks.low)
                least = level.real.priced(real_of(self.options, small, run_ms(self.options, small)))
            self._begun[most_stages] = _First(*level, least)
        return self._begun[most_stages]

    def _level(self, blocks: Blocks, most_stages: int | None) -> _Level:
        """The graphs of blocks, those left out that no size of ends before the platform's timeout."""
        run = run_ms(self.options, blocks)
        quickest = quickest_ms(self.options, blocks, run)
        ends = quickest / 1000 <= self.options.model.platform.limits.timeout_s.value
        blocks, run, quickest = blocks.at(ends), run[ends], quickest[ends]
        sums = real_of(self.options, blocks, run)
        real = self.graph(self.options, arcs_of(self.options, blocks, sums), most_stages)
        if np.array_equal(blocks.low, blocks.high):
            return _Level(blocks, real, real, True)
        optimistic = real.priced(least_of(self.options, blocks, quickest))
        return _Level(blocks, real, optimistic, False)

    def _read(self, route: Route, blocks: Blocks) -> Chosen:
        """A route as choices."""
        options = self.options
        choices: list[Choice] = []
        codings: dict[int, Coding] = {}
        stages = 0
        for arc in route.arcs:
            if arc >= len(blocks.cell):
                fixed = options.fixed[arc - len(blocks.cell)]
                stages += fixed.stages
                if fixed.choice:
                    choices.append(fixed.choice)
                continue
            stages += 1
            cell = int(blocks.cell[arc])
            choices.append(options.choice(cell, int(blocks.low[arc])))
            for end in (int(options.cells.tail[cell]), int(options.cells.head[cell])):
                state = options.states[end]
                codings[state.unit] = options.modes[state.unit][state.mode].coding
        mean_ms = route.mean_ms / options.stretch
        return Chosen(tuple(choices), codings, mean_ms, route.latency_ms, route.usd, stages)
