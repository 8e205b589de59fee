"""What can be chosen for a plan: states, slices that wait for their size, and arcs that do not.

A state is a border of units with the codec of what crosses it, or with the parts of a sharded stage that wait to be
joined. A cell is a slice with its layout and the codecs on either side, without a size yet. Stages of shards come with
sizes of their own. What is searched for in all that is `planners.space`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lamella.errors import ModelError
from lamella.plan.choice import Choice, Join
from lamella.plan.planners.route import Law
from lamella.plan.planners.search import Step
from lamella.plan.planners.sold import Sold
from lamella.plan.planners.verdicts import MOST_EXACT, exact_rows, refuse_too_many
from lamella.plan.pricing.arrivals import cold_share
from lamella.plan.pricing.batching import runs_per_s
from lamella.plan.pricing.cold import Started, start_usd, starts_usd
from lamella.plan.pricing.fan_out import join_alone, sharded, step
from lamella.plan.pricing.modes import modes
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.slices import Slices, slices
from lamella.plan.pricing.spread import stretch, variance_ms2
from lamella.plan.request import Request
from lamella.units import MB

MOST_CELLS = 40_000_000
"""Of slices between states: five gigabytes."""


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


class Options:
    """Everything that can be chosen for a model on a platform."""

    def __init__(self, model: SliceModel, request: Request) -> None:
        """Price all slices but for their sizes.

        Args:
            model: prices.
            request: whether there may be shards, and how many stages.

        Raises:
            ModelError: so many units that the search would take gigabytes.
        """
        self.model, self.request, self.law = model, request, Law.at(request.percentile)
        self.stretch = stretch(model, request.percentile)
        """Of means, for what all functions of a request share: it adds as they do."""
        refuse_too_many(model, exact_rows(model), "slices with their layouts", MOST_EXACT)
        self.sold = Sold(model)
        self.cold_share = cold_share(model.platform, runs_per_s(model.batch, request))
        self.starts_billed = bool(self.cold_share) and model.platform.billing.init_billed.value
        self.modes = [modes(model, unit) for unit in range(model.units + 1)]
        self.stages = self._stages()
        self.states = self._states()
        self.number = {state: k for k, state in enumerate(self.states)}
        self.cells = self._cells()
        self.fixed = self._fixed()

    @property
    def begin_ms(self) -> float:
        """What every plan takes beside its choices."""
        return self.model.entry_ms * self.stretch

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
        count = many_begins[table.first] * many_ends[table.last] * len(self.sold.by_share)
        if count.sum() > MOST_CELLS:
            raise ModelError(
                f"{self.model.graph.name} has {count.sum() / 1e6:.0f} million slices with their layouts, codecs and "
                f"channels: more than the {MOST_CELLS / 1e6:g} million that all choices at once are searched for",
                try_="--no-codecs, or --planner uniform-8",
            )
        row = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        number, share = number // len(self.sold.by_share), number % len(self.sold.by_share)
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
            work_ms=found.work_ms + self.model.hops.cost.call_ms + into[0][tail] + out[0][head],
            init_ms=found.init_ms,
            variance=found.variance,
        )

    def _slices(self) -> Slices:
        """Those that begin and end where something may cross, and that a package and the largest size hold."""
        found = slices(self.model, int(self.sold.threads.max()))
        borders = np.array([bool(here) for here in self.modes])
        held = np.maximum(found.peak_mb, found.floor_mb) <= self.sold.mb.max()
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

    def choice(self, cell: int, size: int) -> Choice:
        """A cell at a size as a choice, without the joining of what comes before: who lays a plan out adds that."""
        cells, vcpu, at = self.cells, float(self.sold.vcpu[size]), np.array([size])
        work = cells.work_ms[:, [cell]] - cells.join_ms[cell]
        run = self.sold.run_ms(work, at) + cells.wait_ms[cell]
        return Choice(
            first=int(cells.first[cell]),
            last=int(cells.last[cell]),
            memory_mb=int(self.sold.mb[size]),
            vcpu=vcpu,
            threads=int(self.sold.threads[size]) if vcpu > 1 and run[0] < work[0, 0] + cells.wait_ms[cell] else 1,
            layout=self.model.layouts[int(cells.layout[cell])],
            peak_mb=float(cells.peak_mb[cell] - cells.join_mb[cell]),
            floor_mb=float(cells.floor_mb[cell] - cells.join_mb[cell]),
            run_ms=float(run[0]),
            cost_usd=float(self.sold.cost_usd(at, run)[0]),
        )

    # ------------------------------------------------------------------------------------------------ fixed arcs

    def _fixed(self) -> list[Fixed]:
        """Stages of shards behind every state, and joins at the end."""
        model, arcs = self.model, []
        alone = model.hops.cost.deviation_ms**2  # variance of a function that does nothing but join
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

    @cached_property
    def fixed_sums(self) -> np.ndarray:
        """Tail, head, cost, time, variance and stages of each fixed arc."""
        return np.array([f[:6] for f in self.fixed], float).reshape(-1, 6)

    def _starts_usd(self, join: Join | None, choice: Choice | None) -> float:
        """Of starting a stage of shards, and what joins the parts before it by itself."""
        if not self.starts_billed:
            return 0.0
        ready = replace(choice, join=None) if choice else None  # who joins its parts is counted there
        usd = starts_usd(self.model, [ready]) if ready else 0.0
        if join:
            alone = join_alone(self.model, join)
            imports_ms = self.model.profile.floor.start_ms
            usd += start_usd(self.model.platform, Started(alone.memory_mb, alone.vcpu, imports_ms, 0.0, 0.0))
        return self.cold_share * usd
