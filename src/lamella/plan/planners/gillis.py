"""The planner `gillis`: fork-join over groups of layers in functions of one size (Yu et al., ICDCS 2021).

Re-implemented from facts about its published code. A chain of layers is divided into groups; a group runs as one
function or as tiles side by side, all functions have the same memory, and after a group its parts are gathered. A
dynamic program finds the division of least latency; under an SLO a policy learned by REINFORCE (`planners.reinforce`)
looks for a cheap one that keeps it.

What is Gillis' here: the groups, equal sizes explored in steps, tensors that travel as they are, the program
with its ties (within 0.001 ms the cheaper), the policy with its rewards. What is ours: its layers are our units, its
tiles the shards that were measured, its master is the driver, which runs no layers: what Gillis' master would run
between two forks is a function of its own here, so that the budget of its memory counts for each of them instead of
for their sum, and no function is paid for waiting. Latency, memory, limits and prices are the ones all planners have.
Gillis' own (weights count for memory and activations do not; a hop takes as long for a MB as for none; a bill without
memory) would make plans that do not fit, or seem quick. Among functions of one size ours rank plans as its bill does.

Gillis is given its size. Here every size is tried with the dynamic program, and the policy learns at the size of the
cheapest plan of those within the SLO: learning at each takes so many times as long. Single functions are candidates, so
that under an SLO it is never dearer than one (law 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lamella.plan.choice import Choice, Join
from lamella.plan.planners import reinforce
from lamella.plan.planners.plain import singles
from lamella.plan.planners.planner import Candidate, Decision
from lamella.plan.planners.search import Step
from lamella.plan.planners.verdicts import infeasible, lost, refuse_too_many
from lamella.plan.pricing.fan_out import behind, stages, step, ways_to_run
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request

SIZES = 16
"""Steps from the runtime's own memory to the whole model's. Gillis has 14, of 100 MB, on the way to its 1,400 MB."""
TIE_MS = 0.001
BUDGET = 10.0
"""What a plan within the SLO may cost before its reward is below zero, in costs of the quickest plan."""


@dataclass(frozen=True, slots=True)
class Gillis:
    """The least latency there is in functions of one size; with an SLO a cheap plan within it."""

    name: str = "gillis"
    shards: bool = True
    codes: bool = True
    holds: bool = False
    seed: int = 0
    """Of the policy."""

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """By dynamic program without an SLO; with one the cheapest of what program, policy and one function offer."""
        refuse_too_many(model, model.units * (model.units + 1) // 2 * len(sizes(model)), "groups of each size")
        program = _program(model, request.shards, request.max_stages)
        model, quickest = program.model, program.quickest
        alone = [Candidate("one function", c.choices, c.latency_ms, c.cost_usd) for c in singles(model)]
        if not quickest and not alone:
            raise infeasible(model, [], request)
        if request.slo_ms is None:
            chosen = _first(quickest, alone)
            why = f"the least latency of all divisions into functions of one size, of {len(sizes(model))} sizes tried"
            return Decision(chosen, why, _losers([*quickest, *alone], chosen, request), {}, size_mb=_size(chosen))
        offered = [c for c in (*quickest, *alone) if c.latency_ms <= request.slo_ms]
        if not offered:
            fastest = _first(quickest, alone)
            raise infeasible(model, [fastest], request, "no division into functions of one size")
        told = "no division was within the SLO at any size, so that nothing was learned"
        within = [c for c in quickest if c.latency_ms <= request.slo_ms]
        if within:
            start = min(within, key=lambda c: (c.cost_usd, c.latency_ms))
            learned, found = self.learn(program.groups(_size(start)), start, request.slo_ms)
            offered += learned
            told = (
                f"a policy at {_size(start)} MB drew {found.drawn} divisions, {found.different} of them different, "
                f"with seed {self.seed}"
            )
        chosen = min(offered, key=lambda c: (c.cost_usd, c.latency_ms))
        why = f"the cheapest offered within {request.bound}, by {chosen.name}; {told}"
        losers = _losers([*offered, *quickest, *alone], chosen, request)
        return Decision(chosen, why, losers, {}, size_mb=_size(chosen))

    def learn(self, groups: Groups, start: Candidate, slo_ms: float) -> tuple[list[Candidate], reinforce.Found]:
        """What the policy finds within the SLO, if anything, given no more of a first plan than its price."""
        budget_usd, most = BUDGET * start.cost_usd, groups.request.max_stages

        def reward(division: tuple[reinforce.Group, ...]) -> float:
            made = groups.made("policy", division)
            if made is None:
                return -BUDGET
            late = max(0.0, made.latency_ms / slo_ms - 1)
            if (count := stages(made.choices)) > most:
                return -late - count / most
            return -late if late or not budget_usd else 1 - made.cost_usd / budget_usd

        found = reinforce.search(groups.legal, groups.shares, reward, seed=self.seed)
        best = groups.made("the policy", found.groups)
        kept = best and best.latency_ms <= slo_ms and stages(best.choices) <= most
        return [best] if best and kept else [], found


def sizes(model: SliceModel) -> list[int]:
    """Sizes that are tried, MB: by steps to what the whole model needs, and where memory buys CPU the marks above."""
    platform = model.platform
    least = platform.allocation_mb(model.profile.floor.resident_mb, model.vcpu)
    if least is None:
        return []
    needs = [max(model.memory_mb(0, model.units, layout=way)) for way in model.layouts]
    most = int(platform.most_mb(model.vcpu))
    ends = sorted(platform.allocation_mb(n, model.vcpu) or most for n in needs)
    marks = np.linspace(least, ends[-1], SIZES + 1).tolist()
    steps = {s for mb in marks if (s := platform.allocation_mb(mb, model.vcpu))}
    return sorted({*steps, *ends, *model.sizes(least)})


class Program:
    """The quickest division at each size, which is the same whatever the bound."""

    def __init__(self, model: SliceModel, request: Request) -> None:
        """Of a model, whose hops go as they are here; of the request it heeds shards and stages."""
        self.model, self.request = model.with_codings({}), request
        self._groups: dict[int, Groups] = {}

    def groups(self, size_mb: int) -> Groups:
        """Those of a size."""
        if size_mb not in self._groups:
            self._groups[size_mb] = Groups(self.model, size_mb, self.request)
        return self._groups[size_mb]

    @cached_property
    def quickest(self) -> list[Candidate]:
        """Each once; where memory buys no CPU the size taken down to what it needs."""
        tried: dict[int, Candidate | None] = {}
        for size in sizes(self.model):
            found = tried[size] = self.groups(size).quickest()
            if found and self.model.platform.cpu.mb_per_vcpu is None:
                del tried[size]
                enough = _needed(self.model, found)
                if enough not in tried:
                    tried[enough] = self.groups(enough).quickest()
        return [found for found in tried.values() if found]


@lru_cache(maxsize=1)
def _program(model: SliceModel, shards: bool, max_stages: int) -> Program:
    """That of the model that was asked about last: `plan.held` asks again and again, within other bounds."""
    return Program(model, Request(shards=shards, max_stages=max_stages))


def _needed(model: SliceModel, plan: Candidate) -> int:
    """The least size that all its functions fit, joins that stand alone left out, MB."""
    needs = []
    for before, choice in pairwise([None, *plan.choices]):
        assert choice
        joined = before.join.mb if before and before.join and not choice.shards else 0.0
        needs += [max(part.peak_mb, part.floor_mb) + joined for part in choice.shards or (choice,)]
    enough = model.platform.allocation_mb(max(needs), model.vcpu)
    assert enough
    return enough


def _first(quickest: Sequence[Candidate], alone: Sequence[Candidate]) -> Candidate:
    """The quickest, of those within a tie the cheapest."""
    least = min(c.latency_ms for c in (*quickest, *alone))
    ties = [c for c in (*quickest, *alone) if c.latency_ms <= least + TIE_MS]
    return min(ties, key=lambda c: (c.cost_usd, c.latency_ms))


def _size(candidate: Candidate) -> int:
    """Of all its functions; a join that stands alone may be larger."""
    return candidate.choices[0].memory_mb


def _losers(candidates: Sequence[Candidate], chosen: Candidate, request: Request) -> tuple[tuple[Candidate, str], ...]:
    """The quickest few that were not chosen, each division once."""
    others = {c.choices: c for c in sorted(candidates, key=lambda c: c.latency_ms) if c.choices != chosen.choices}
    if request.slo_ms is not None:
        return tuple((c, lost(c, chosen, request)) for c in list(others.values())[:3])
    slower = [(c, c.latency_ms - chosen.latency_ms) for c in list(others.values())[:3]]
    return tuple((c, f"{ms:.2f} ms slower" if ms > TIE_MS else "as quick and dearer") for c, ms in slower)


class _Label(NamedTuple):
    """The best way to a state: ms, USD, the label before and what was added to it."""

    ms: float
    usd: float
    before: _Label | None
    choice: Choice | None

    def beats(self, other: _Label | None) -> bool:
        """Whether it is quicker by more than a tie, or as quick and cheaper."""
        if other is None or self.ms < other.ms - TIE_MS:
            return True
        return self.ms <= other.ms + TIE_MS and self.usd < other.usd

    def chain(self) -> tuple[Choice, ...]:
        """The choices from the first on."""
        before = self.before.chain() if self.before else ()
        return (*before, self.choice) if self.choice else before


class Groups:
    """Ways to run groups of units as functions of one size, what they take, and the quickest division into them."""

    def __init__(self, model: SliceModel, size_mb: int, request: Request) -> None:
        """Price the groups that the size holds."""
        self.model, self.size_mb, self.request = model.with_size(size_mb), size_mb, request
        units = model.units
        self.borders = [0, *(u for u in range(1, units) if model.fits_payload(u)), units]
        self.ways: dict[tuple[int, int], list[Choice]] = {}
        for at, first in enumerate(self.borders):
            for last in self.borders[at + 1 :]:
                if found := [c for c in ways_to_run(self.model, first, last, request) if self._fits(c)]:
                    self.ways[first, last] = found
        self._steps: dict[tuple[Join | None, int, int, int], Step | None] = {}

    def _fits(self, choice: Choice) -> bool:
        return all(part.memory_mb == self.size_mb for part in choice.shards or (choice,))

    def step(self, join: Join | None, way: tuple[int, int, int] | None) -> Step | None:
        """What a group takes, its `way` given as first, last and number; None where it outgrows the size by a join."""
        key = join, *(way or (-1, -1, -1))
        if key not in self._steps:
            choice = self.ways[way[:2]][way[2]] if way else None
            found = step(self.model, join, choice)
            if found and join and choice and not choice.shards:
                grown = behind(self.model, join, choice)
                found = found if grown and self._fits(grown) else None
            self._steps[key] = found
        return self._steps[key]

    def quickest(self) -> Candidate | None:
        """The division of least latency, within ties the cheapest; None where the size holds none.

        By states: a border, the parts that wait to be joined there, and how many stages stand before it.
        """
        units, most = self.model.units, self.request.max_stages
        at: dict[int, dict[tuple[Join | None, int], _Label]] = {b: {} for b in self.borders}
        at[0][None, 0] = _Label(self.model.entry_ms, 0.0, None, None)
        ends: dict[int, list[int]] = {}
        for first, last in self.ways:
            ends.setdefault(first, []).append(last)
        for first in self.borders[:-1]:
            for (join, count), label in _useful(at[first]).items():
                for last in ends.get(first, ()):
                    for k, choice in enumerate(self.ways[first, last]):
                        made = self.step(join, (first, last, k))
                        if made and count + made.stages <= most:
                            longer = _longer(label, made, choice)
                            key = choice.join, count + made.stages
                            if longer.beats(at[last].get(key)):
                                at[last][key] = longer
        best: _Label | None = None
        for (join, count), label in at[units].items():
            made = self.step(join, None) if join else None
            if join is None or (made and count + made.stages <= most):
                whole = _longer(label, made, None) if made else label
                best = whole if whole.beats(best) else best
        return Candidate(f"the program at {self.size_mb} MB", best.chain(), best.ms, best.usd) if best else None

    # ------------------------------------------------------------------------------------- for the policy

    @cached_property
    def actions(self) -> dict[tuple[int, int, int], int]:
        """Of a group's ways the quickest by fan-out: first, last and action to its number. Action 1 is one function."""
        fan_outs = sorted({max(1, len(c.shards)) for ways in self.ways.values() for c in ways})
        found = {}
        for (first, last), ways in self.ways.items():
            for k in sorted(range(len(ways)), key=lambda k: -ways[k].run_ms):
                found[first, last, 1 + fan_outs.index(max(1, len(ways[k].shards)))] = k
        return found

    @cached_property
    def legal(self) -> np.ndarray:
        """What the policy may do; see `reinforce.search`. A group may only end where the rest can be divided."""
        units = self.model.units
        count = 1 + max((action for _, _, action in self.actions), default=0)
        allowed = np.zeros((units, units, count), bool)
        alive = np.zeros(units + 1, bool)
        alive[units] = True
        for first, last, action in sorted(self.actions, reverse=True):  # the last groups first
            if alive[last]:
                allowed[first, last - 1, action] = alive[first] = True
        can_end = allowed[:, :, 1:].any(axis=2)
        later = np.flip(np.logical_or.accumulate(np.flip(can_end, axis=1), axis=1), axis=1)
        allowed[:, :-1, 0] = later[:, 1:]
        return allowed

    @property
    def shares(self) -> np.ndarray:
        """Of each unit in the weights."""
        weights = np.array([float(u.weight_bytes) for u in self.model.profile.units])
        shares: np.ndarray = weights / max(1.0, weights.sum())
        return shares

    def made(self, name: str, division: Sequence[reinforce.Group]) -> Candidate | None:
        """What a division takes, however many stages; None where a function outgrows its size."""
        ms, usd = self.model.entry_ms, 0.0
        join: Join | None = None
        chain = []
        for group in (*division, None):
            if group or join:
                way = (group[0], group[1], self.actions[group]) if group else None
                taken = self.step(join, way)
                if taken is None:
                    return None
                ms, usd = ms + taken.hop_ms + taken.run_ms, usd + taken.hop_usd + taken.run_usd
                chain += [self.ways[way[:2]][way[2]]] if way else []
            join = chain[-1].join
        return Candidate(name, tuple(chain), ms, usd)


def _longer(label: _Label, made: Step, choice: Choice | None) -> _Label:
    return _Label(label.ms + made.hop_ms + made.run_ms, label.usd + made.hop_usd + made.run_usd, label, choice)


def _useful(labels: dict[tuple[Join | None, int], _Label]) -> dict[tuple[Join | None, int], _Label]:
    """Without those that take as many stages and more and are no better."""
    kept: dict[tuple[Join | None, int], _Label] = {}
    for key in sorted(labels, key=lambda key: key[1]):
        if not any(join == key[0] and not labels[key].beats(label) for (join, _), label in kept.items()):
            kept[key] = labels[key]
    return kept
