"""The planners: pure functions of a priced model, each a frozen value with a name.

`mopar` re-implements MOPAR (arXiv 2404.02445): similar units merged, measured shards, then dynamic programming over
the remaining cuts on memory-time plus hops, under the caller's SLO or, without one, 2.5 % above the single function's
latency. `single` is a candidate of every planner that divides, so no plan is worse than it by the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from lamella.errors import InfeasiblePlan
from lamella.plan.choice import Choice, Join
from lamella.plan.planners.search import NEAR, Front, Label, Step, cheapest, divide
from lamella.plan.planners.simplify import merge_similar
from lamella.plan.pricing.coding import Coding
from lamella.plan.pricing.fan_out import step, ways_to_run
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.units import MB

LATENCY_MARGIN = 1.025
"""Without an SLO a divided plan may take this much of the single function's predicted latency."""
BAND = 0.05
"""Without an SLO latency counts, too: of the plans within this share of the least cost that of least cost x latency."""
WORTH = 0.10
"""Without an SLO a division has to save this share of the single function's cost: less is within prediction's error."""
LOOK = 1.25
"""Divisions that cost this much more than the single function are not looked at."""


class Candidate(NamedTuple):
    """A division with its total by the model."""

    name: str
    choices: tuple[Choice, ...]
    latency_ms: float
    cost_usd: float


class Decision(NamedTuple):
    """What a planner chose, why, and what it turned down with the reason."""

    chosen: Candidate
    why: str
    losers: tuple[tuple[Candidate, str], ...]
    codings: Mapping[int, Coding] | None = None
    """Codecs of the hops, by the unit behind them, where the planner chose them; else the quickest of each hop."""
    percentile: float | None = None
    """Of latency, that was held to the bound; none: its mean."""
    size_mb: int | None = None
    """Of every function, where they are all of one size."""


class Planner(Protocol):
    """Decides how to divide."""

    @property
    def name(self) -> str:
        """What the command line and the plan call it."""

    @property
    def shards(self) -> bool:
        """Whether it takes stages of parallel shards."""

    @property
    def codes(self) -> bool:
        """Whether it chooses the codec of each hop, and between shards and codecs: else each hop gets its quickest."""

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The division to use; InfeasiblePlan with the nearest feasible one where the request cannot be met."""


@dataclass(frozen=True, slots=True)
class Single:
    """One function of our own package, the cheapest size and layout for it."""

    name: str = "single"
    shards: bool = False
    codes: bool = False

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The cheapest single function within the SLO."""
        candidates = singles(model)
        chosen = _within(candidates, request, model)
        losers = tuple((c, lost(c, chosen, request)) for c in candidates if c is not chosen)
        return Decision(chosen, "the cheapest way to serve the model as one function", losers)


@dataclass(frozen=True, slots=True)
class Uniform:
    """As many slices as asked, each with the same number of units: what one does without a profile."""

    stages: int
    shards: bool = False
    codes: bool = False

    @property
    def name(self) -> str:
        """`uniform-K`."""
        return f"uniform-{self.stages}"

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The cheapest sizes for equal slices."""
        if self.stages > model.units:
            raise InfeasiblePlan(
                f"{self.name} needs {self.stages} units, {model.graph.name} divides into {model.units}",
                try_=f"--planner uniform-{model.units}",
            )
        marks = [round(i * model.units / self.stages) for i in range(self.stages + 1)]
        where = model.platform.name
        for unit in marks[1:-1]:
            if not model.fits_payload(unit):
                raise InfeasiblePlan(
                    f"payload: {self.name} divides before unit {unit}, where "
                    f"{model.platform.hop_mb(model.hop(unit)[2]):.1f} MB go over the wire; the limit of {where} is "
                    f"{model.platform.hop_limit_mb:g} MB",
                    try_="--planner mopar",
                )
        fronts = _Space(model, marks, Request(max_stages=self.stages, shards=False)).divide()
        candidates = [_candidate(self.name, x) for x in fronts[self.stages].labels] if self.stages in fronts else []
        if not candidates:
            worst = next(ends for ends in pairwise(marks) if not model.choices(*ends))
            raise InfeasiblePlan(
                f"{self.name}: {_unfit(model, *worst)}",
                where=f"units {worst[0]} to {worst[1] - 1}",
                try_="--planner mopar",
            )
        chosen = _within(candidates, request, model)
        return Decision(chosen, f"{self.stages} slices of equal numbers of units", ())


@dataclass(frozen=True, slots=True)
class Mopar:
    """Slices of similar units, shards where they pay, by dynamic programming on memory-time plus hops."""

    name: str = "mopar"
    shards: bool = True
    codes: bool = False

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The cheapest division within the SLO, `single` among the candidates."""
        alone = singles(model)
        cap, said = self._cap(model, alone, request)
        marks = merge_similar(model) if request.similarity else list(range(model.units + 1))
        if request.shards:
            ends = {end for s in model.profile.shards for end in (s.first, s.last)}
            marks = sorted({*marks, *ends})
        whole = [c for c in alone if c.latency_ms <= cap or request.slo_ms is None]
        least = cheapest_of(whole).cost_usd if whole else math.inf
        space = _Space(model, marks, request)
        fronts = space.divide(cap_ms=cap, cap_usd=least * LOOK)
        within = {label: k for k, front in fronts.items() for label in front.labels}
        worth, near = WORTH if request.slo_ms is None else 0.0, band(request)
        label = cheapest((x for x in within if x.cost_usd <= least * (1 - worth)), near)
        if label is None and not whole:
            raise infeasible(model, space.fastest(self.name), request)
        chosen = _candidate(self.name, label) if label else cheapest_of(whole)  # just what `single` says
        losers = []
        for k in fronts:
            best = cheapest((x for x in within if within[x] == k), near)
            if best and best.chain() != list(chosen.choices):
                loser = _candidate(f"best with {k} stage{'s' * (k > 1)}", best)
                losers.append((loser, lost(loser, chosen, request)))
        losers += [(c, lost(c, chosen, Request(cap))) for c in alone if c.choices != chosen.choices][:3]
        if request.slo_ms is None:
            losers += self._beyond(space.cheapest("cheapest at any latency"), chosen, cap)
        why = f"one function: no division is {f'more than {worth:.0%} ' if worth else ''}cheaper with {said}"
        if label and len(chosen.choices) > 1:
            runs = "runs of similar units" if request.similarity else "units"
            why = (
                f"{within[label]} of at most {request.max_stages} stages over {len(marks) - 1} {runs} "
                f"({model.units} units); with {said} the least cost x latency within {near:.0%} of the least cost"
            )
        return Decision(chosen, why, tuple(losers))

    @staticmethod
    def _beyond(free: list[Candidate], chosen: Candidate, cap: float) -> list[tuple[Candidate, str]]:
        """The cheapest division at any latency, where it is worth asking for."""
        worth = [c for c in free if c.latency_ms > cap and c.cost_usd <= chosen.cost_usd * (1 - WORTH)]
        return [
            (
                c,
                f"{1 - c.cost_usd / chosen.cost_usd:.0%} cheaper, {c.latency_ms - cap:.1f} ms over the cap of "
                f"{cap:.1f} ms: --slo-ms {math.ceil(c.latency_ms)} allows it",
            )
            for c in worth
        ]

    @staticmethod
    def _cap(model: SliceModel, alone: list[Candidate], request: Request) -> tuple[float, str]:
        if request.slo_ms is not None:
            return request.slo_ms, f"latency at most the SLO of {request.slo_ms:g} ms"
        if not alone:
            return math.inf, "no SLO"
        cap = cheapest_of(alone).latency_ms * LATENCY_MARGIN
        return cap, f"latency at most {cap:.1f} ms ({LATENCY_MARGIN - 1:.2%} above the single function, no SLO given)"


def band(request: Request) -> float:
    """Within what share of the least cost latency counts: hardly under an SLO, or law 8 would break."""
    return BAND if request.slo_ms is None else NEAR


def singles(model: SliceModel) -> list[Candidate]:
    """The model as one function, every size that is not dominated; empty where none fits."""
    return [Candidate("single", (c,), model.entry_ms + c.run_ms, c.cost_usd) for c in model.choices(0, model.units)]


def cheapest_of(candidates: list[Candidate]) -> Candidate:
    """Of those within 1 % of the least cost the one with the least cost x latency."""
    best = cheapest(candidates)
    assert best is not None
    return best


@dataclass(frozen=True, slots=True)
class _Space:
    """Where a planner looks: divisions at some of the unit borders."""

    model: SliceModel
    marks: list[int]
    request: Request

    def divide(
        self, cap_ms: float = math.inf, cap_usd: float = math.inf, *, take: Callable[[Step], Step] = lambda step: step
    ) -> dict[int, Front]:
        """The best of them by number of stages, by prices that `take` may change."""
        model = self.model

        def ways(first: int, last: int) -> list[Choice]:
            return ways_to_run(model, first, last, self.request)

        def priced(join: Join | None, choice: Choice | None) -> Step | None:
            found = step(model, join, choice)
            return take(found) if found else None

        return divide(
            [m for m in self.marks if m in (0, model.units) or model.fits_payload(m)],
            ways,
            priced,
            entry_ms=model.entry_ms,
            max_stages=self.request.max_stages,
            cap_ms=cap_ms,
            cap_usd=cap_usd,
        )

    def cheapest(self, name: str) -> list[Candidate]:
        """The cheapest division whatever its latency, if there is any: quickly found, since time does not count."""
        return self._only(name, lambda s: s._replace(hop_ms=0.0, run_ms=0.0))

    def fastest(self, name: str) -> list[Candidate]:
        """The fastest division whatever its cost, if there is any."""
        return self._only(name, lambda s: s._replace(hop_usd=0.0, run_usd=0.0))

    def _only(self, name: str, take: Callable[[Step], Step]) -> list[Candidate]:
        found = cheapest((x for front in self.divide(take=take).values() for x in front.labels), 0.0)
        total = added_up(self.model, name, found.chain()) if found else None
        return [total] if total else []


def _candidate(name: str, label: Label) -> Candidate:
    return Candidate(name, tuple(label.chain()), label.latency_ms, label.cost_usd)


def added_up(model: SliceModel, name: str, chain: Sequence[Choice]) -> Candidate | None:
    """What a chain of choices takes, joins and hops included; None where no size holds a function with its join."""
    ms, usd = model.entry_ms, 0.0
    join: Join | None = None
    for choice in (*chain, None):
        if choice or join:
            taken = step(model, join, choice)
            if taken is None:
                return None
            ms, usd = ms + taken.hop_ms + taken.run_ms, usd + taken.hop_usd + taken.run_usd
        join = choice.join if choice else None
    return Candidate(name, tuple(chain), ms, usd)


def _within(candidates: list[Candidate], request: Request, model: SliceModel) -> Candidate:
    feasible = [c for c in candidates if request.slo_ms is None or c.latency_ms <= request.slo_ms]
    if not feasible:
        raise infeasible(model, candidates, request)
    return cheapest_of(feasible)


def infeasible(
    model: SliceModel, candidates: list[Candidate], request: Request, looked_at: str = "no plan"
) -> InfeasiblePlan:
    """Which constraint binds, by how much, and the nearest feasible plan.

    Args:
        model: prices.
        candidates: plans that break the SLO; none where no plan is legal.
        request: what was asked.
        looked_at: what does not answer in time, where that is not every plan there is.
    """
    if not candidates:
        peak, law = model.memory_mb(0, model.units, layout="plain")
        worst = max((max(model.memory_mb(u, u + 1, layout="plain")), u) for u in range(model.units))
        unit = model.profile.units[worst[1]]
        most, package = model.platform.most_mb(), model.platform.limits.package_mb.value
        shipped = [model.graph.weight_bytes(*model.span(u, u + 1)) / MB for u in range(model.units)]
        whole = model.graph.weight_bytes(*model.span(0, model.units)) / MB  # less than the sum where units share some
        divided = worst[0] <= most and max(shipped) <= package
        hint = "--planner mopar, or more --max-stages" if divided else "another --platform"
        if model.platform.allocation_mb(max(peak, law)):
            if whole > package:
                return InfeasiblePlan(
                    f"package: {model.graph.name} ships {whole:.0f} MB of weights as one function and "
                    f"{max(shipped):.0f} MB for its largest unit; the limit of {model.platform.name} is "
                    f"{package:.0f} MB",
                    try_=hint,
                )
            vcpu = model.platform.vcpu(most, model.vcpu)
            run = min(model.run_ms(0, model.units, layout=way, vcpu=vcpu) for way in model.layouts)
            return InfeasiblePlan(
                f"timeout: {model.graph.name} runs {run / 1000:.0f} s at best as one function, the timeout of "
                f"{model.platform.name} is {model.platform.limits.timeout_s.value:g} s, and no division keeps it",
                try_="another --platform" + ("" if model.platform.cpu.mb_per_vcpu else ", or more --vcpu"),
            )
        return InfeasiblePlan(
            f"memory: {model.graph.name} needs {max(peak, law):.0f} MB as one function and {worst[0]:.0f} MB for its "
            f"largest unit, the largest size of {model.platform.name} is {most:.0f} MB",
            where=f"unit {worst[1]} ({unit.kinds}, operators {unit.first} to {unit.last - 1})",
            try_=hint,
        )
    nearest = min(candidates, key=lambda c: c.latency_ms)
    assert request.slo_ms is not None
    return InfeasiblePlan(
        f"latency: {looked_at} on {model.platform.name} answers within {request.slo_ms:g} ms; the fastest takes "
        f"{nearest.latency_ms:.1f} ms ({nearest.latency_ms - request.slo_ms:.1f} ms too long) with "
        f"{len(nearest.choices)} function(s) for ${nearest.cost_usd * 1e6:.2f} per million",
        where="--slo-ms",
        try_=f"--slo-ms {math.ceil(nearest.latency_ms + 0.5)}"
        + ("" if model.platform.cpu.mb_per_vcpu else ", or more --vcpu"),
    )


def _unfit(model: SliceModel, first: int, last: int) -> str:
    """Why no function of the platform can be units `first` to `last - 1`: which limit, by how much."""
    platform, limits = model.platform, model.platform.limits
    need = min(max(model.memory_mb(first, last, layout=way)) for way in model.layouts)
    if platform.allocation_mb(need) is None:
        return (
            f"memory: a slice needs {need:.0f} MB, the largest size of {platform.name} is {platform.most_mb():.0f} MB"
        )
    shipped = model.graph.weight_bytes(*model.span(first, last)) / MB
    if shipped + model.more_mb(first, last, "plain") > limits.package_mb.value:
        package = limits.package_mb.value
        return f"package: a slice ships {shipped:.0f} MB of weights, the limit of {platform.name} is {package:.0f} MB"
    return f"timeout: a slice runs beyond the timeout of {platform.name}, {limits.timeout_s.value:g} s"


def lost(candidate: Candidate, chosen: Candidate, request: Request) -> str:
    """Why a candidate was not chosen."""
    if request.slo_ms is not None and candidate.latency_ms > request.slo_ms:
        return f"{candidate.latency_ms - request.slo_ms:.1f} ms over the latency cap of {request.slo_ms:.1f} ms"
    more = candidate.cost_usd / chosen.cost_usd - 1
    if more > 0.0005:
        return f"{more:.1%} dearer"
    slower = candidate.latency_ms - chosen.latency_ms
    if more < -NEAR:
        if len(chosen.choices) == 1:
            return f"{-more:.1%} cheaper, less than the {WORTH:.0%} that a division has to save without an SLO"
        return f"{-more:.1%} cheaper, {slower:.1f} ms slower: not worth it, a percent for a percent"
    return f"as cheap, {slower:.1f} ms slower" if slower > 0 else "as cheap, with more functions"
