"""The planner `amps-inf`: AMPS-Inf (Jarachanthan et al., ICPP 2021), cuts and sizes by a mixed-integer program.

The paper's question: which partition each unit is in (x_ij, one-hot), and which block of memory each partition has
(y_jk, one-hot), so that the cost of a request is least within a response time. Partitions run one after another, and
what crosses goes through object storage; a function runs, and is billed, while it gets its input and puts its output.
Its time is a sum over units that depends on its memory, so the objective has products x_ij * y_jk.

The products are linearised exactly, and by the partition: units in a row and a block, of which one binary says whether
they are chosen, stands for the product of all its x and its y. That is far stronger than an inequality per product, and
it prices a partition whole: throttling and the bill's rounding, which no sum over units gets right, are in it. x and y
are read off: unit i is in the partition whose run holds it. Of two blocks of the same run one that is beaten in cost
and time is left out; no program would choose it. So is a partition that shortest distances, with a price on the
latency, show to be in no plan as cheap as one that is known; the solver gets the rest, and proves its optimum.

Ours where the paper is silent or we go further: time, memory and weights by our profile, warm; in each partition the
layout that is quickest where it fits; hops go as they are, no codec, no shards.

Where the catalogue of a platform has object storage, hops are its; elsewhere they are the platform's own, or with
`--channel s3` really objects, and the plan says so.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np

from lamella.errors import InfeasiblePlan
from lamella.plan.choice import Choice
from lamella.plan.planners.milp import Arcs, Solved, cheapest, solver_name
from lamella.plan.planners.options import Options
from lamella.plan.planners.pareto import falling
from lamella.plan.planners.plain import singles
from lamella.plan.planners.planner import Candidate, Decision
from lamella.plan.planners.route import Sums
from lamella.plan.planners.routes import Routes
from lamella.plan.planners.verdicts import LATENCY_MARGIN, cheapest_of, infeasible, lost
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.units import MB

STORAGE = "s3"
"""The channel of the catalogue that it asks for."""
OBJECTS = frozenset({STORAGE, "object-store"})
"""Channels that are object storage."""
BLOCK_MB = 64
"""How far sizes are apart at least, as on the paper's Lambda: 46 of them."""


@dataclass(frozen=True, slots=True)
class AmpsInf:
    """Cuts and sizes at least cost within the SLO, by HiGHS."""

    name: str = "amps-inf"
    shards: bool = False
    codes: bool = False
    holds: bool = False

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The cheapest plan that was found within the SLO; without one as `exact` has it."""
        alone = singles(model)
        cap, said = math.inf, "any latency (no SLO given, and no single function holds the model)"
        if request.slo_ms is not None:
            cap, said = request.slo_ms, request.bound
        elif alone:
            cap = cheapest_of(alone).latency_ms * LATENCY_MARGIN
            said = f"{cap:.1f} ms ({LATENCY_MARGIN - 1:.2%} above the single function, no SLO given)"
        program = Program(model, request)
        quickest = program.quickest()
        if not quickest:
            raise program.too_little_storage() or infeasible(model, [], request)
        if program.latency_ms(quickest) > cap:
            raise infeasible(model, [program.candidate("fastest", quickest)], request)
        solved = program.solve(cap, quickest)
        chosen = program.candidate(self.name, solved.arcs)
        losers = tuple((c, lost(c, chosen, Request(cap))) for c in alone if c.choices != chosen.choices)[:3]
        found = "the cheapest" if solved.proven else "the cheapest that was found in time"
        why = (
            f"{found} of AMPS-Inf's program within {said}: {len(solved.arcs)} of at most {request.max_stages} "
            f"partitions over {model.units} units, "
            f"{program.said(solved)}"
        )
        return Decision(chosen, why, losers, codings={})


class _Partitions(NamedTuple):
    """Runs of units with a block of memory each, one row each, those left out that another of the same run beats."""

    cell: np.ndarray
    """Row of the space's table of slices,"""
    size: np.ndarray
    """and index of the size."""
    usd: np.ndarray
    """The fee, run and transfers by the block, and what storage asks for the input."""
    ms: np.ndarray
    """Run, and the hop before it beyond the runs on both sides."""


class _Hops(NamedTuple):
    """What it takes to divide, [units + 1]."""

    ms: np.ndarray
    usd: np.ndarray
    mb: np.ndarray
    """In temporary storage, on either side."""


class Program:
    """The mixed-integer program of a model on a platform."""

    def __init__(self, model: SliceModel, request: Request) -> None:
        """Price all partitions.

        Args:
            model: prices; hops are taken as they are.
            request: how many partitions, and how long the solver may take.
        """
        channel = model.platform.hop.channel  # hops have no choice of another
        self.request = request._replace(codec=False, shards=False, channel=channel)
        self.model = SliceModel(model.graph, model.profile, model.platform, self.request, model.lossy)
        self.options = Options(self.model, self.request)

    # ------------------------------------------------------------------------------------------------- questions

    def quickest(self) -> tuple[int, ...]:
        """The partitions of least latency; none where there is no plan at all."""
        found = self.routes.fastest()
        return found.arcs if found else ()

    def solve(self, cap_ms: float, known: tuple[int, ...]) -> Solved:
        """The cheapest partitions within a latency.

        Args:
            cap_ms: of the plan.
            known: partitions that keep it: the answer where the solver has none in time.
        """
        most_ms, begun = cap_ms - self.model.entry_ms, time.monotonic()
        bounds = self.routes.bounds(most_ms)
        assert bounds, "there is a plan, and it has no bounds"
        left = np.flatnonzero(self.routes.within(most_ms, bounds.upper_usd, bounds.multiplier))
        part = Arcs(self.arcs.states, *(column[left] for column in self.arcs[1:]))
        most, seconds = self.request.max_stages, self.request.solver_s
        found = cheapest(part, most_ms, most_stages=most, seconds=seconds)
        taken = time.monotonic() - begun
        if not found:
            return Solved(known, math.fsum(self.arcs.usd[list(known)]), bounds.lower_usd, taken, False, len(left))
        bound = max(found.bound_usd, min(bounds.lower_usd, found.usd))
        return found._replace(arcs=tuple(left[list(found.arcs)].tolist()), bound_usd=bound, seconds=taken)

    def too_little_storage(self) -> InfeasiblePlan | None:
        """The error where temporary storage is what no plan keeps within; None where it is something else."""
        platform = self.model.platform
        disk = platform.limits.disk_mb
        if disk is None:
            return None
        roomy = msgspec.structs.replace(platform, limits=msgspec.structs.replace(platform.limits, disk_mb=None))
        model = SliceModel(self.model.graph, self.model.profile, roomy, self.request, self.model.lossy)
        program = Program(model, self.request)
        chosen = program.quickest()
        if not chosen:
            return None
        size = program.hops.mb
        most = max(float(size[program.arcs.tail[k]] + size[program.arcs.head[k]]) for k in chosen)
        return InfeasiblePlan(
            f"temporary storage: a partition takes and gives up to {most:.0f} MB in objects, {platform.name} has "
            f"{disk.value:g} MB, and no division keeps within it",
            try_="--planner exact",
        )

    def latency_ms(self, chosen: tuple[int, ...]) -> float:
        """Of a plan."""
        return self.model.entry_ms + math.fsum(self.arcs.ms[list(chosen)])

    def candidate(self, name: str, chosen: tuple[int, ...]) -> Candidate:
        """The partitions as a division, by the measure of all plans."""
        choices = tuple(self._choice(k) for k in chosen)
        hops = [self.model.hop(c.first) for c in choices[1:]]
        latency = self.model.entry_ms + math.fsum(c.run_ms for c in choices) + math.fsum(ms for ms, _, _ in hops)
        cost = math.fsum(c.cost_usd for c in choices) + math.fsum(usd for _, usd, _ in hops)
        return Candidate(name, choices, latency, cost)

    def said(self, solved: Solved) -> str:
        """How it was solved, and what its hops are."""
        platform = self.model.platform
        apart = "" if self.options.sold.free else f" at least {BLOCK_MB} MB apart"
        said = [
            f"of {len(self.arcs.tail)} partitions with a size ({len(self.sizes)} sizes{apart}) bounds left "
            f"{solved.considered}; {solver_name()} took {solved.seconds:.2f} s, gap {solved.gap:.2%}"
        ]
        if not solved.proven:
            said[0] += f" at its limit: --solver-s {self.request.solver_s * 4:g} may find a cheaper one"
        if platform.hop.channel in OBJECTS:
            said.append(f"hops through object storage ({platform.hop.channel})")
        else:
            or_else = "" if platform.hop.emulated else ", or --channel s3"
            said.append(f"the catalogue has no object storage: hops through {platform.hop.channel}{or_else}")
        return "; ".join(said)

    # ------------------------------------------------------------------------------------------------ the program

    @cached_property
    def routes(self) -> Routes:
        """The same as a graph, for what shortest distances say: if there is a plan, and what no good one can hold."""
        arcs = self.arcs
        sums, ones = Sums(arcs.usd, arcs.ms, np.zeros(len(arcs.ms))), np.ones(len(arcs.ms), int)
        return Routes(arcs.states, arcs.tail, arcs.head, sums, stages=ones, most_stages=self.request.max_stages)

    @cached_property
    def arcs(self) -> Arcs:
        """Each partition from the unit it begins with to the one after it."""
        kept, cells = self.partitions, self.options.cells
        first, last = cells.first[kept.cell], cells.last[kept.cell]
        return Arcs(self.model.units + 1, first, last, kept.usd, kept.ms)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Blocks of memory, as indices into the sizes that are sold.

        Where memory buys no CPU all that are sold: of them a partition has the smallest that holds it, for no other is
        quicker.
        """
        if self.options.sold.free:
            return np.arange(len(self.options.sold.mb) - len(self.options.sold.by_share[-1]), len(self.options.sold.mb))
        kept = [0]
        for k, size in enumerate(self.options.sold.mb.tolist()):
            if size >= self.options.sold.mb[kept[-1]] + BLOCK_MB:
                kept.append(k)
        return np.array(kept)

    @cached_property
    def partitions(self) -> _Partitions:
        """Within memory, temporary storage and timeout; package and payload are heeded by the options."""
        cells, sizes = self.options.cells, self.options.sold.mb[self.sizes]
        mine = np.flatnonzero(cells.share == cells.share.max(initial=0))  # of CPU what is asked for, and no less
        need = np.maximum(cells.peak_mb, cells.floor_mb)[mine]
        if self.options.sold.free:
            least = np.searchsorted(sizes, need - 1e-9)
            row = np.flatnonzero(least < len(sizes))
            at = least[row]
        else:
            row, at = np.nonzero(sizes >= need[:, None] - 1e-9)
        cell, size = mine[row], self.sizes[at]
        hops = self.hops
        first, last = cells.first[cell], cells.last[cell]
        run = self.options.sold.run_ms(cells.work_ms[:, cell], size)
        billed = run + cells.wait_ms[cell]
        limits, ok = self.model.platform.limits, np.ones(len(cell), bool)
        ok &= billed / 1000 <= limits.timeout_s.value
        if limits.disk_mb:
            ok &= hops.mb[first] + hops.mb[last] <= limits.disk_mb.value
        usd = self.options.sold.cost_usd(size, billed) + hops.usd[first]
        found = _Partitions(*(x[ok] for x in (cell, size, usd, billed + hops.ms[first])))
        kept = _kept(first[ok], last[ok], found)
        return _Partitions(*(x[kept] for x in found))

    @cached_property
    def hops(self) -> _Hops:
        """Of what crosses before each unit; nothing at the ends, which are request and answer."""
        inner = [self.model.hop(unit) for unit in range(1, self.model.units)]
        ms, usd, size = np.array([(0.0, 0.0, 0.0), *inner, (0.0, 0.0, 0.0)]).T
        return _Hops(ms, usd, size / MB)

    def _choice(self, arc: int) -> Choice:
        """A partition as a choice."""
        return self.options.choice(int(self.partitions.cell[arc]), int(self.partitions.size[arc]))


def _kept(first: np.ndarray, last: np.ndarray, found: _Partitions) -> np.ndarray:
    """Of partitions of equal runs those that no other beats in cost and time; of equal ones the first."""
    order = np.lexsort((found.usd, found.ms, last, first))
    run = (first * (last.max(initial=0) + 1) + last)[order]
    rank = np.unique(found.usd[order], return_inverse=True)[1]
    kept: np.ndarray = order[falling(rank - run * len(order))]  # every run begins below all before it
    return kept
