"""Everything that can be chosen for a plan at once, and the least cost in it.

The plan's choices become a graph (`planners.routes`). A state is a border of units with the codec of what crosses it,
or with the parts of a sharded stage that wait to be joined. An arc is a slice with its layout, codecs and size, or a
stage of shards. Where memory buys CPU every size that is sold counts, a megabyte apart: far too many to price. So an
arc begins as one block of all sizes, as cheap as its smallest and as quick as its largest one, which no size in it
beats; what even so cannot be part of a plan within the bounds is dropped, the rest is divided, until blocks are sizes.

Optimal under the model's law: costs, mean latencies and variances of functions and hops add; below one vCPU a quota
stretches them (`pricing.predict`); a percentile is that of a normal distribution (`planners.routes`). Shards were
measured as stages, so that the slowest of them counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lamella.errors import ConfigError
from lamella.plan.choice import Choice, Join
from lamella.plan.planners.planner import Candidate
from lamella.plan.planners.routes import Law, Proof, Route, Routes, Stairs, Sums
from lamella.plan.planners.search import Step
from lamella.plan.pricing.arrivals import Started, cold_share, start_usd, starts_usd
from lamella.plan.pricing.batching import runs_per_s
from lamella.plan.pricing.coding import Coding
from lamella.plan.pricing.fan_out import join_alone, sharded, step
from lamella.plan.pricing.modes import modes
from lamella.plan.pricing.predict import SliceModel, throttled
from lamella.plan.pricing.slices import Slices, slices
from lamella.plan.pricing.spread import beside, common_spread, variance_ms2
from lamella.plan.request import Request
from lamella.platforms.platform import threads as threads_for
from lamella.units import MB

MOST_SLICES = 4_000_000
"""Of which a gigabyte is enough to hold what they take."""
BLOCKS = 4
"""What is left of a block of sizes is divided into so many."""


class State(NamedTuple):
    """What a plan leaves open before a unit: the mode of what crosses, or parts to be joined."""

    unit: int
    mode: int
    join: Join | None


class Cells(NamedTuple):
    """Slices that wait for their size, one row each."""

    tail: np.ndarray
    head: np.ndarray
    first: np.ndarray
    last: np.ndarray
    layout: np.ndarray
    """Index into the model's layouts."""
    share: np.ndarray
    """Index into what is sold by CPU."""
    peak_mb: np.ndarray
    floor_mb: np.ndarray
    wait_ms: np.ndarray
    """For channels: in no work, and billed."""
    join_ms: np.ndarray
    join_mb: np.ndarray
    """Of joining the parts before it: in its memory and work."""
    hop_ms: np.ndarray
    hop_usd: np.ndarray
    """Of the hop before it."""
    work_ms: np.ndarray
    """[threads, cells], from one thread: what is billed, unthrottled."""
    init_ms: np.ndarray
    """Work of a start."""
    variance: np.ndarray
    """Of the run, over its square."""


class Fixed(NamedTuple):
    """An arc that is no slice of one size: a stage of shards, or what joins its parts at the end."""

    tail: int
    head: int
    usd: float
    ms: float
    variance: float
    stages: int
    choice: Choice | None


def _fixed(tail: int, head: int, taken: Step, starts_usd: float, variance: float, choice: Choice | None) -> Fixed:
    return Fixed(
        tail,
        head,
        taken.hop_usd + taken.run_usd + starts_usd,
        taken.hop_ms + taken.run_ms,
        variance,
        taken.stages,
        choice,
    )


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


class Blocks(NamedTuple):
    """Sizes `low` to `high` (indices of what is sold) of cells."""

    cell: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, kept: np.ndarray) -> Blocks:
        """Some of them, by a mask that may be longer: of arcs, of which blocks are the first."""
        return Blocks(*(b[kept[: len(self.cell)]] for b in self))

    def divided(self) -> Blocks:
        """Each in parts of about the same ratio of sizes, of at least one."""
        count = np.minimum(self.high - self.low + 1, BLOCKS)
        parts = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(parts)) - np.repeat(np.cumsum(count) - count, count)
        width = (self.high - self.low + 1)[parts]
        low = self.low[parts] + number * width // count[parts]
        high = self.low[parts] + (number + 1) * width // count[parts] - 1
        return Blocks(self.cell[parts], low, high)


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


class Space:
    """Everything that can be chosen for a model on a platform."""

    def __init__(self, model: SliceModel, request: Request) -> None:
        """Price all slices but for their sizes.

        Args:
            model: prices.
            request: whether there may be shards, and how many stages.

        Raises:
            ConfigError: so many units that the search would take gigabytes.
        """
        self.model, self.request, self.law = model, request, Law.at(request.percentile)
        self.stretch = 1 + self.law.deviations * common_spread(model)
        """Of means, for what all functions of a request share: it adds as they do."""
        rows = model.units * (model.units + 1) // 2 * len(model.layouts)
        if rows > MOST_SLICES:
            raise ConfigError(
                f"{model.graph.name} has {model.units} units, which are {rows / 1e6:.1f} million slices with their "
                f"layouts: more than the {MOST_SLICES / 1e6:g} million that all choices at once are searched for",
                try_="--planner uniform-8, or single",
            )
        platform = model.platform
        per_vcpu = platform.cpu.mb_per_vcpu
        most = per_vcpu.value * model.profile.machine.cores if per_vcpu else math.inf
        self.free = per_vcpu is None
        self.sold = [np.array(platform.sizes_mb(vcpu), float) for vcpu in self._shares()]
        """Sizes by what is asked for of CPU, MB; below, all of them one after the other."""
        self.measured = np.array([max(1, int((sizes <= most).sum())) for sizes in self.sold])
        """How many of them buy no more CPU than was measured: beyond, a slice gets the smallest that holds it."""
        self.sizes = np.concatenate(self.sold)
        self.vcpu = np.array(
            [platform.vcpu(size, v) for sizes, v in zip(self.sold, self._shares(), strict=True) for size in sizes]
        )
        self.threads = np.array([min(model.profile.machine.cores, threads_for(v)) for v in self.vcpu.tolist()])
        self.most_threads = int(self.threads.max())
        self.usd_per_ms = np.array(
            [platform.usd_per_ms(mb, vcpu) for mb, vcpu in zip(self.sizes.tolist(), self.vcpu.tolist(), strict=True)]
        )
        self.cold_share = cold_share(platform, runs_per_s(model.batch, request))
        self.starts_billed = bool(self.cold_share) and platform.billing.init_billed.value
        self.modes = [modes(model, unit) for unit in range(model.units + 1)]
        self._begun: dict[int | None, _First] = {}
        self.stages = self._stages()
        self.states = self._states()
        self.number = {state: k for k, state in enumerate(self.states)}
        self.cells = self._cells()
        self.fixed = self._fixed()

    def _shares(self) -> list[float]:
        """How much CPU a function may have where that is free: what is asked for, and whole ones below it."""
        most = self.model.vcpu
        return [*(float(v) for v in range(1, math.ceil(most))), most] if self.free else [most]

    # ---------------------------------------------------------------------------------------------------- states

    def _stages(self) -> dict[tuple[int, int], list[Choice]]:
        """Stages of shards, where their parts may travel as they are."""
        model = self.model
        if not self.request.shards:
            return {}
        spans = sorted({(s.first, s.last) for s in model.profile.shards if s.batch == model.batch})
        plain = [bool(m) and m[0].coding.codec == "none" and not m[0].coding.channel for m in self.modes]
        return {span: sharded(model, *span) for span in spans if plain[span[0]] and plain[span[1]]}

    def _states(self) -> list[State]:
        """In the order of units; the begin first, the end last."""
        joins: dict[int, dict[Join, None]] = {}
        for (_, last), found in self.stages.items():
            joins.setdefault(last, {}).update(dict.fromkeys(c.join for c in found if c.join))
        states = []
        for unit, here in enumerate(self.modes):
            waiting = [State(unit, 0, join) for join in joins.get(unit, ())]
            plain = [State(unit, k, None) for k in range(len(here))]
            states += [*waiting, *plain] if unit == self.model.units else [*plain, *waiting]
        return states

    # ----------------------------------------------------------------------------------------------------- cells

    def _cells(self) -> Cells:
        """Every slice behind every state, before every mode, in every layout, that the largest size holds."""
        table = self._slices()
        begins, many_begins = self._at_units(lambda state: True)
        ends, many_ends = self._at_units(lambda state: state.join is None)
        count = many_begins[table.first] * many_ends[table.last] * len(self.sold)
        row = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        number, share = number // len(self.sold), number % len(self.sold)
        found = table.at(row)
        tail = begins[found.first, number // many_ends[found.last]]
        head = ends[found.last, number % many_ends[found.last]]
        into, out = self._sides()
        return Cells(
            tail=tail,
            head=head,
            first=found.first,
            last=found.last,
            layout=found.layout,
            share=share,
            peak_mb=found.peak_mb + into[2][tail] + out[1][head],
            floor_mb=found.floor_mb + into[3][tail],
            wait_ms=into[6][tail] + out[2][head],
            join_ms=into[1][tail],
            join_mb=into[3][tail],
            hop_ms=into[4][tail],
            hop_usd=into[5][tail],
            work_ms=found.work_ms + self.model.hop_cost.call_ms + into[0][tail] + out[0][head],
            init_ms=found.init_ms,
            variance=found.variance,
        )

    def _slices(self) -> Slices:
        """Those that begin and end where something may cross, and that a package and the largest size hold."""
        found = slices(self.model, self.most_threads)
        borders = np.array([bool(here) for here in self.modes])
        held = np.maximum(found.peak_mb, found.floor_mb) <= self.sizes.max()
        shipped = found.shipped_mb <= self.model.platform.limits.package_mb.value
        return found.at(np.flatnonzero(borders[found.first] & borders[found.last] & held & shipped))

    def _at_units(self, wanted: Callable[[State], bool]) -> tuple[np.ndarray, np.ndarray]:
        """Which states stand before each unit, [units + 1, most], and how many."""
        found: list[list[int]] = [[] for _ in range(self.model.units + 1)]
        for k, state in enumerate(self.states):
            if wanted(state):
                found[state.unit].append(k)
        counts = np.array([len(here) for here in found])
        table = np.zeros((len(found), max(1, counts.max())), int)
        for unit, here in enumerate(found):
            table[unit, : len(here)] = here
        return table, counts

    def _sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Per state what a slice behind it takes (ms, join ms, MB, join MB, hop ms, USD, wait ms), and before it."""
        into, out = np.zeros((7, len(self.states))), np.zeros((3, len(self.states)))
        for k, state in enumerate(self.states):
            mode = self.modes[state.unit][state.mode]
            join_ms, join_mb = (state.join.ms, state.join.mb) if state.join else (0.0, 0.0)
            taking_mb, giving_mb = (b / MB for b in (mode.coding.taking_bytes, mode.coding.giving_bytes))
            hop = mode.hop_ms, mode.hop_usd, mode.wait_ms
            into[:, k] = mode.taking_ms + join_ms, join_ms, taking_mb + join_mb, join_mb, *hop
            out[:, k] = mode.giving_ms, giving_mb, mode.wait_ms
        return into, out

    def _fixed(self) -> list[Fixed]:
        """Stages of shards behind every state, and joins at the end."""
        model, arcs = self.model, []
        alone = model.hop_cost.deviation_ms**2  # variance of a function that does nothing but join
        for state in self.states:
            if state.mode:
                continue  # parts of what is encoded are not sent
            here = self.number[state]
            found = [c for (first, _), choices in self.stages.items() if first == state.unit for c in choices]
            for choice in found:
                if taken := step(model, state.join, choice):
                    head = self.number[State(choice.last, 0, choice.join)]
                    starts = self._starts_usd(state.join, choice)
                    varied = variance_ms2(model, choice) + (taken.stages - 1) * alone
                    arcs.append(_fixed(here, head, taken, starts, varied, choice))
            if state.join and state.unit == model.units and (taken := step(model, state.join, None)):
                starts = self._starts_usd(state.join, None)
                arcs.append(_fixed(here, len(self.states) - 1, taken, starts, alone, None))
        return arcs

    def _starts_usd(self, join: Join | None, choice: Choice | None) -> float:
        """Of starting a stage of shards, and what joins the parts before it by itself."""
        if not self.starts_billed:
            return 0.0
        ready = replace(choice, join=None) if choice else None  # who joins its parts is counted there
        usd = starts_usd(self.model, [ready]) if ready else 0.0
        if join:
            alone = join_alone(self.model, join)
            imports_ms = self.model.profile.floor.start_ms
            usd += start_usd(self.model.platform, Started(alone.memory_mb, alone.vcpu, imports_ms, 0.0))
        return self.cold_share * usd

    # ----------------------------------------------------------------------------------------------------- prices

    def run_ms(self, work_ms: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Of work [threads, any] at sizes (indices): `SliceModel.run_ms`, many at once."""
        one, vcpu = work_ms[0], self.vcpu[size]
        many = work_ms[self.threads[size] - 1, np.arange(len(size))]
        slow = throttled(one, vcpu, self.model.platform.cpu.period_ms.value)
        shared = np.maximum(many, np.where(vcpu < self.threads[size], one / np.maximum(vcpu, 1.0), 0.0))
        return np.where(vcpu < 1, slow, np.minimum(one, shared))

    def cost_usd(self, size: np.ndarray, run_ms: np.ndarray) -> np.ndarray:
        """Of runs at sizes (indices): `Platform.cost_usd`, many at once."""
        billing = self.model.platform.billing
        step_ms = billing.granularity_ms.value
        billed = np.ceil(run_ms / step_ms - 1e-9) * step_ms if step_ms else run_ms
        if billing.min_ms:
            billed = np.maximum(billed, billing.min_ms.value)
        cost: np.ndarray = billed * self.usd_per_ms[size] + billing.usd_per_request.value
        return cost

    def _usd(self, blocks: Blocks, size: np.ndarray, run_ms: np.ndarray) -> np.ndarray:
        """Of blocks by the price of a size and at their quickest: runs, and their share of starts."""
        cost = self.cost_usd(size, run_ms)
        if self.starts_billed:
            vcpu, period_ms = self.vcpu[blocks.high], self.model.platform.cpu.period_ms.value
            init_ms = throttled(self.cells.init_ms[blocks.cell], vcpu, period_ms)
            cost = cost + self.cold_share * init_ms * self.usd_per_ms[size]
        return cost

    @cached_property
    def whole(self) -> Blocks:
        """Each cell with all sizes that hold it; where memory buys nothing but room, with the smallest."""
        need = np.maximum(self.cells.peak_mb, self.cells.floor_mb)
        ends = np.cumsum([len(sizes) for sizes in self.sold])
        low = np.empty(len(need), int)
        for share, (sizes, end) in enumerate(zip(self.sold, ends, strict=True)):
            here = self.cells.share == share
            low[here] = end - len(sizes) + np.searchsorted(sizes, need[here] - 1e-9)
        begins = ends - [len(sizes) for sizes in self.sold]
        cell = np.flatnonzero(low < ends[self.cells.share])
        quickest = (begins + self.measured - 1)[self.cells.share[cell]]
        return Blocks(cell, low[cell], low[cell] if self.free else np.maximum(low[cell], quickest))

    # ----------------------------------------------------------------------------------------------------- search

    def cheapest(self, most_ms: float = math.inf) -> Answer:
        """The cheapest plan within a latency, ms, and the number of stages that is asked for."""
        most = self.request.max_stages
        found = self._cheapest(most_ms, None)  # far less to look at, and most often within
        fits = found.chosen is None or found.chosen.stages <= most
        return found if fits else self._cheapest(most_ms, most)

    def _cheapest(self, most_ms: float, most_stages: int | None) -> Answer:
        first = self._first(most_stages)
        level: _First | _Level = first
        upper = math.inf
        while not level.single:
            for real in (level.real, *((first.least,) if level is first else ())):
                if bounds := real.bounds(most_ms):
                    upper = min(upper, bounds.upper_usd)
            limits = level.optimistic.bounds(most_ms)
            if limits is None:
                return Answer(None, Proof(math.inf, 0.0, 0, 0, 0))
            ok = level.optimistic.within(most_ms, upper, limits.multiplier)
            level = self._level(level.blocks.at(ok).divided(), most_stages)
        found = level.real.cheapest(most_ms)
        return Answer(self._read(found.routes[0], level.blocks) if found.routes else None, found.proof)

    def _first(self, most_stages: int | None) -> _First:
        """Each cell as one block: where every search begins."""
        if most_stages not in self._begun:
            level = self._level(self.whole, most_stages)
            least = level.real
            if not level.single:
                small = level.blocks._replace(high=level.blocks.low)
                run = self._run_ms(small)
                least = level.real.priced(self._sums(small, run, self._usd(small, small.low, run)))
            self._begun[most_stages] = _First(*level, least)
        return self._begun[most_stages]

    def _level(self, blocks: Blocks, most_stages: int | None) -> _Level:
        """The graphs of blocks, those left out that no size of ends before the platform's timeout."""
        run = self._run_ms(blocks)
        kept = run / 1000 <= self.model.platform.limits.timeout_s.value
        blocks, run = blocks.at(kept), run[kept]
        real = self._routes(blocks, self._sums(blocks, run, self._usd(blocks, blocks.high, run)), most_stages)
        if np.array_equal(blocks.low, blocks.high):
            return _Level(blocks, real, real, True)
        optimistic = real.priced(self._sums(blocks, run, self._usd(blocks, blocks.low, run)))
        return _Level(blocks, real, optimistic, False)

    def _run_ms(self, blocks: Blocks) -> np.ndarray:
        """At the largest size of each."""
        run = self.run_ms(self.cells.work_ms[:, blocks.cell], blocks.high)
        whole: np.ndarray = run + self.cells.wait_ms[blocks.cell]
        return whole

    def front(self, most_ms: float = math.inf, most_usd: float = math.inf) -> tuple[Chosen, ...]:
        """Every plan within bounds that no other beats in both cost and latency, by latency, so that costs fall."""
        most = self.request.max_stages
        found = self._front(most_ms, most_usd, None)
        return found if all(plan.stages <= most for plan in found) else self._front(most_ms, most_usd, most)

    def _front(self, most_ms: float, most_usd: float, most_stages: int | None) -> tuple[Chosen, ...]:
        first = self._first(most_stages)
        level: _First | _Level = first
        known = first.least.hull()[0]
        while not level.single:
            known += level.real.hull()[0]
            if not known:
                return ()
            optimistic = level.optimistic
            ok = optimistic.beating(Stairs.of(known), optimistic.hull()[1])
            ok &= optimistic.within(most_ms, most_usd, 0.0)
            level = self._level(level.blocks.at(ok).divided(), most_stages)
        found = level.real.front(most_ms, most_usd, known + level.real.hull()[0])
        return tuple(self._read(route, level.blocks) for route in found.routes)

    def quickest(self) -> Chosen | None:
        """The quickest plan whatever it costs."""
        for most in (None, self.request.max_stages):
            level = self._first(most)
            found = level.real.fastest()
            largest = Blocks(level.blocks.cell, level.blocks.high, level.blocks.high)
            plan = self._read(found, largest) if found else None
            if plan is None or plan.stages <= self.request.max_stages:
                return plan
        return None

    def _sums(self, blocks: Blocks, run_ms: np.ndarray, usd: np.ndarray) -> Sums:
        """What arcs add: blocks first, then the fixed ones."""
        cell, fixed = blocks.cell, self.fixed_sums
        varied = self.cells.variance[cell] * run_ms**2 + beside(self.model, run_ms, self.vcpu[blocks.high])
        return Sums(
            np.concatenate([usd + self.cells.hop_usd[cell], fixed[:, 2]]),
            np.concatenate([run_ms + self.cells.hop_ms[cell], fixed[:, 3]]) * self.stretch,
            np.concatenate([varied, fixed[:, 4]]),
        )

    def _routes(self, blocks: Blocks, sums: Sums, most_stages: int | None) -> Routes:
        """The graph where each block is one arc."""
        cell, fixed = blocks.cell, self.fixed_sums
        tail = np.concatenate([self.cells.tail[cell], fixed[:, 0].astype(int)])
        head = np.concatenate([self.cells.head[cell], fixed[:, 1].astype(int)])
        stages = np.concatenate([np.ones(len(cell), int), fixed[:, 5].astype(int)])
        return self._graph(cell, tail, head, sums, stages, most_stages)

    @cached_property
    def fixed_sums(self) -> np.ndarray:
        """Tail, head, cost, time, variance and stages of each fixed arc."""
        return np.array([f[:6] for f in self.fixed], float).reshape(-1, 6)

    def _graph(
        self,
        cell: np.ndarray,
        tail: np.ndarray,
        head: np.ndarray,
        sums: Sums,
        stages: np.ndarray,
        most_stages: int | None,
    ) -> Routes:
        """Of arcs: those of cells first, then the fixed ones. `explanation.kinds` asks for more here."""
        states, begin_ms = len(self.states), self.model.entry_ms * self.stretch
        return Routes(
            states, tail, head, sums, law=self.law, begin_ms=begin_ms, stages=stages, most_stages=most_stages
        )  # fmt: skip

    def _read(self, route: Route, blocks: Blocks) -> Chosen:
        """A route as choices."""
        choices: list[Choice] = []
        codings: dict[int, Coding] = {}
        stages = 0
        for arc in route.arcs:
            if arc >= len(blocks.cell):
                fixed = self.fixed[arc - len(blocks.cell)]
                stages += fixed.stages
                if fixed.choice:
                    choices.append(fixed.choice)
                continue
            stages += 1
            cell = int(blocks.cell[arc])
            choices.append(self.choice(cell, int(blocks.low[arc])))
            for end in (int(self.cells.tail[cell]), int(self.cells.head[cell])):
                state = self.states[end]
                codings[state.unit] = self.modes[state.unit][state.mode].coding
        return Chosen(tuple(choices), codings, route.mean_ms / self.stretch, route.latency_ms, route.usd, stages)

    def choice(self, cell: int, size: int) -> Choice:
        """A cell at a size as a choice, without the joining of what comes before: who lays a plan out adds that."""
        cells, vcpu, at = self.cells, float(self.vcpu[size]), np.array([size])
        work = cells.work_ms[:, [cell]] - cells.join_ms[cell]
        run = self.run_ms(work, at) + cells.wait_ms[cell]
        return Choice(
            first=int(cells.first[cell]),
            last=int(cells.last[cell]),
            memory_mb=int(self.sizes[size]),
            vcpu=vcpu,
            threads=int(self.threads[size]) if vcpu > 1 and run[0] < work[0, 0] + cells.wait_ms[cell] else 1,
            layout=self.model.layouts[int(cells.layout[cell])],
            peak_mb=float(cells.peak_mb[cell] - cells.join_mb[cell]),
            floor_mb=float(cells.floor_mb[cell] - cells.join_mb[cell]),
            run_ms=float(run[0]),
            cost_usd=float(self.cost_usd(at, run)[0]),
        )
