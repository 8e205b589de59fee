"""The planners: pure functions of a priced model, each a frozen value with a name.

`mopar` re-implements MOPAR (arXiv 2404.02445): similar units merged, measured shards, then dynamic programming over
the remaining cuts on memory-time plus hops, under the caller's SLO or, without one, 0.75 % above the single function's
latency. `single` is a candidate of every planner that divides, so no plan is worse than it by the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lamella.errors import ConfigError, InfeasiblePlan
from lamella.plan.predict import Choice, SliceModel
from lamella.plan.request import Request
from lamella.plan.search import NEAR, Front, Label, cheapest, divide
from lamella.plan.simplify import merge_similar
from lamella.units import MB

LATENCY_MARGIN = 1.0075
"""Without an SLO a divided plan may take this much of the single function's predicted latency: measured, 2 % more."""


WORTH = 0.10
"""Without an SLO a division has to save this share of the single function's cost: less is within prediction's error."""


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


class Planner(Protocol):
    """Decides how to divide."""

    @property
    def name(self) -> str:
        """What the command line and the plan call it."""

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The division to use; InfeasiblePlan with the nearest feasible one where the request cannot be met."""


@dataclass(frozen=True, slots=True)
class Single:
    """One function of our own package, the cheapest size and prepacking for it."""

    name: str = "single"

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The cheapest single function within the SLO."""
        candidates = singles(model)
        chosen = _within(candidates, request, model)
        losers = tuple((c, _lost(c, chosen, request)) for c in candidates if c is not chosen)
        return Decision(chosen, "the cheapest way to serve the model as one function", losers)


@dataclass(frozen=True, slots=True)
class Uniform:
    """As many slices as asked, each with the same number of units: what one does without a profile."""

    stages: int

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
        limits, where = model.platform.limits, model.platform.name
        for unit in marks[1:-1]:
            if not model.fits_payload(unit):
                raise InfeasiblePlan(
                    f"payload: {self.name} divides before unit {unit}, where "
                    f"{model.platform.payload_mb(model.hop(unit)[2]):.1f} MB go over the wire; the limit of {where} is "
                    f"{limits.payload_mb.value:g} MB",
                    try_="--planner mopar",
                )
        fronts = _divide(model, marks, math.inf, self.stages)
        candidates = [_candidate(self.name, label) for label in fronts.get(self.stages, Front()).labels]
        if not candidates:
            raise InfeasiblePlan(
                f"{self.name}: a slice fits no size of {where}, or runs beyond its timeout of "
                f"{limits.timeout_s.value:g} s",
                try_="--planner mopar",
            )
        chosen = _within(candidates, request, model)
        return Decision(chosen, f"{self.stages} slices of equal numbers of units", ())


@dataclass(frozen=True, slots=True)
class Mopar:
    """Slices of similar units, shards where they pay, by dynamic programming on memory-time plus hops."""

    name: str = "mopar"

    def decide(self, model: SliceModel, request: Request) -> Decision:
        """The cheapest division within the SLO, `single` among the candidates."""
        alone = singles(model)
        cap, said = self._cap(model, alone, request)
        marks = merge_similar(model) if request.similarity else list(range(model.units + 1))
        if request.shards:
            ends = {end for s in model.profile.shards for end in (s.first, s.last)}
            marks = sorted({*marks, *ends})
        fronts = _divide(model, marks, cap, request.max_stages, shards=request.shards)
        label = cheapest(fronts)
        if label is None:
            free = _divide(model, marks, math.inf, request.max_stages, shards=request.shards)
            raise _infeasible(model, [_candidate(self.name, x) for f in free.values() for x in f.labels], request)
        chosen = _candidate(self.name, label)
        whole = [c for c in alone if request.slo_ms is None or c.latency_ms <= cap]
        worth = WORTH if request.slo_ms is None else 0.0  # under an SLO the least cost decides, or law 8 would break
        if whole and chosen.cost_usd > cheapest_of(whole).cost_usd * (1 - worth):
            chosen = cheapest_of(whole)  # without an SLO just what `single` says
        per_stage = [
            (_candidate(f"best with {k} stage{'s' * (k > 1)}", best), k)
            for k, front in fronts.items()
            if (best := cheapest({k: front})) is not None and k != len(chosen.choices)
        ]
        losers = [(c, _lost(c, chosen, request)) for c, _ in per_stage]
        losers += [(c, _lost(c, chosen, Request(cap))) for c in alone if c.choices != chosen.choices][:3]
        if request.slo_ms is None:
            losers += self._beyond(model, marks, request, chosen, cap)
        runs = "runs of similar units" if request.similarity else "units"
        why = (
            f"{len(chosen.choices)} of at most {request.max_stages} stages over {len(marks) - 1} {runs} "
            f"({model.units} units); least cost with {said}, the fastest within 1 % of it"
        )
        if len(chosen.choices) == 1:
            why = f"one function: no division is {f'more than {worth:.0%} ' if worth else ''}cheaper with {said}"
        return Decision(chosen, why, tuple(losers))

    def _beyond(
        self, model: SliceModel, marks: list[int], request: Request, chosen: Candidate, cap: float
    ) -> list[tuple[Candidate, str]]:
        """The cheapest division at any latency, where it is worth asking for."""
        free = cheapest(_divide(model, marks, math.inf, request.max_stages, shards=request.shards))
        if free is None or free.cost_usd > chosen.cost_usd * (1 - WORTH):
            return []
        found = _candidate("cheapest at any latency", free)
        saved, over = 1 - free.cost_usd / chosen.cost_usd, free.latency_ms - cap
        slo = math.ceil(free.latency_ms)
        return [(found, f"{saved:.0%} cheaper, {over:.1f} ms over the cap of {cap:.1f} ms: --slo-ms {slo} allows it")]

    @staticmethod
    def _cap(model: SliceModel, alone: list[Candidate], request: Request) -> tuple[float, str]:
        if request.slo_ms is not None:
            return request.slo_ms, f"latency at most the SLO of {request.slo_ms:g} ms"
        if not alone:
            return math.inf, "no SLO"
        cap = cheapest_of(alone).latency_ms * LATENCY_MARGIN
        return cap, f"latency at most {cap:.1f} ms ({LATENCY_MARGIN - 1:.2%} above the single function, no SLO given)"


def singles(model: SliceModel) -> list[Candidate]:
    """The model as one function, every size that is not dominated; empty where none fits."""
    return [Candidate("single", (c,), model.entry_ms + c.run_ms, c.cost_usd) for c in model.choices(0, model.units)]


def cheapest_of(candidates: list[Candidate]) -> Candidate:
    """The fastest of those within 1 % of the least cost."""
    front = Front()
    by_label = {}
    for candidate in candidates:
        label = Label(candidate.latency_ms, candidate.cost_usd, candidate.choices[0], None)
        by_label[label] = candidate
        front.add(label)
    best = cheapest({1: front})
    assert best is not None
    return by_label[best]


def _divide(
    model: SliceModel, marks: list[int], cap: float, max_stages: int, *, shards: bool = False
) -> dict[int, Front]:
    def ways(first: int, last: int) -> list[Choice]:
        return model.choices(first, last) + (model.sharded(first, last) if shards else [])

    fitting = [m for m in marks if m in (0, model.units) or model.fits_payload(m)]
    return divide(
        fitting,
        ways,
        lambda unit: model.hop(unit)[:2],
        entry_ms=model.entry_ms,
        cap_ms=cap,
        max_stages=max_stages,
    )


def _candidate(name: str, label: Label) -> Candidate:
    return Candidate(name, tuple(label.chain()), label.latency_ms, label.cost_usd)


def _within(candidates: list[Candidate], request: Request, model: SliceModel) -> Candidate:
    feasible = [c for c in candidates if request.slo_ms is None or c.latency_ms <= request.slo_ms]
    if not feasible:
        raise _infeasible(model, candidates, request)
    return cheapest_of(feasible)


def _infeasible(model: SliceModel, candidates: list[Candidate], request: Request) -> InfeasiblePlan:
    """Which constraint binds, by how much, and the nearest feasible plan."""
    if not candidates:
        peak, law = model.memory_mb(0, model.units, prepack=False)
        worst = max((max(model.memory_mb(u, u + 1, prepack=False)), u) for u in range(model.units))
        unit = model.profile.units[worst[1]]
        most, package = model.platform.memory.max_mb.value, model.platform.limits.package_mb.value
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
            run = min(model.run_ms(0, model.units, prepack=p, vcpu=vcpu) for p in (False, True))
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
        f"latency: no plan on {model.platform.name} answers within {request.slo_ms:g} ms; the fastest takes "
        f"{nearest.latency_ms:.1f} ms ({nearest.latency_ms - request.slo_ms:.1f} ms too long) with "
        f"{len(nearest.choices)} function(s) for ${nearest.cost_usd * 1e6:.2f} per million",
        where="--slo-ms",
        try_=f"--slo-ms {math.ceil(nearest.latency_ms + 0.5)}"
        + ("" if model.platform.cpu.mb_per_vcpu else ", or more --vcpu"),
    )


def _lost(candidate: Candidate, chosen: Candidate, request: Request) -> str:
    if request.slo_ms is not None and candidate.latency_ms > request.slo_ms:
        return f"{candidate.latency_ms - request.slo_ms:.1f} ms over the latency cap of {request.slo_ms:.1f} ms"
    more = candidate.cost_usd / chosen.cost_usd - 1
    if more > 0.0005:
        return f"{more:.1%} dearer"
    if more < -NEAR:
        return f"{-more:.1%} cheaper, less than the {WORTH:.0%} that a division has to save without an SLO"
    slower = candidate.latency_ms - chosen.latency_ms
    return f"as cheap, {slower:.1f} ms slower" if slower > 0 else "as cheap, with more functions"


def planner(name: str) -> Planner:
    """The planner of that name.

    Raises:
        ConfigError: there is none, with the names there are.
    """
    if name.startswith("uniform-") and name.removeprefix("uniform-").isdecimal():
        stages = int(name.removeprefix("uniform-"))
        if stages >= 1:
            return Uniform(stages)
    found: dict[str, Planner] = {p.name: p for p in (Single(), Mopar())}
    if name not in found:
        raise ConfigError(
            f"no planner {name!r}; there are ort, ort-default, single, uniform-K and mopar",
            try_="--planner mopar",
        )
    return found[name]
