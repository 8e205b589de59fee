"""The cases of `benchmarks.quality`: which there are, how one is planned and measured, and the document it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from benchmarks.models import MODELS, Subject, decided, p95_ms
from lamella.compare.compare import Settings, compare
from lamella.compare.field import OWN_FAULTS
from lamella.compare.record import Comparison, PlanRecord
from lamella.documents import Document
from lamella.errors import LamellaError
from lamella.plan.document import Plan
from lamella.plan.make import make_plan
from lamella.plan.request import Request

SIX = ("vgg19", "resnet50", "bert-base", "lstm-2048", "gpt2-medium", "dlrm")
FACTORS = (0.7, 1.0, 1.5, 3.0)
"""SLOs over the p95 of `single`."""
OVER_S = 90.0
"""Of the rounds at least, so that plans of a millisecond meet the machine in more than ten seconds of its life."""
CONTENDERS: dict[str, tuple[str, ...]] = {
    "exact": ("exact",),
    "ort": ("ort",),
    "single": ("single",),
    "mopar": ("mopar",),
    "amps-inf": ("amps-inf",),
    "gillis": ("gillis",),
    "uniform": ("uniform-2", "uniform-4", "uniform-8", "uniform-16"),
}
"""Who takes part, and which planners may stand for it: the one whose plan is cheapest."""
ANYWAY = ("ort", "single")
"""Those that are deployed today, late or not: where they cannot keep the SLO they are planned without one."""
OTHERS = tuple(name for name in CONTENDERS if name != "exact")
LEAST_ROUNDS = 10
"""Fewer settle nothing."""


class Place(NamedTuple):
    """Which case: a model on a platform's rules at an SLO of so many times the p95 of `single`."""

    model: str
    platform: str
    factor: float

    def __str__(self) -> str:
        return f"{self.model}/{self.platform}/{self.factor:g}x"

    @property
    def file(self) -> str:
        """Where it is kept, in the folder of the results."""
        return f"{self}.json".replace("/", "-")

    def within(self, asked: str) -> bool:
        """Whether it is asked for by `MODEL`, `MODEL/PLATFORM` or `MODEL/PLATFORM/SLO`."""
        return f"{self}/".startswith(f"{asked.rstrip('/')}/") or str(self) == f"{asked}x"


def places() -> list[Place]:
    """All cases, the most telling first."""
    rest = [m for m in MODELS if m not in SIX]
    order = [Place(m, "openfaas", 1.0) for m in (*SIX, *rest)]
    order += [Place(m, "aws-lambda", 1.0) for m in SIX]
    order += [Place(m, rules, f) for f in (1.5, 0.7, 3.0) for rules in ("openfaas", "aws-lambda") for m in SIX]
    return order


def chosen(asked: Sequence[str]) -> list[Place]:
    """The cases that are asked for by model, platform and SLO, or less of it; all where nothing is asked.

    A model, platform and SLO that no set has is a case of its own.

    Raises:
        ValueError: what is asked for is no case.
    """
    known = places()
    if not asked:
        return known
    found = [p for p in known if any(p.within(one) for one in asked)]
    for one in asked:
        if any(p.within(one) for p in known):
            continue
        model, _, rest = one.partition("/")
        rules, _, factor = rest.partition("/")
        try:
            found.append(Place(model, rules, float(factor.removesuffix("x"))))
        except ValueError:
            raise ValueError(f"--only {one}: no such case; one is {known[0]}") from None
    return found


class Base(msgspec.Struct, frozen=True):
    """The p95 that the plan of `single` promises with no SLO."""

    ms: float


class Promise(msgspec.Struct, frozen=True):
    """What a plan promises."""

    stages: int
    functions: int
    latency_ms: float
    p95_ms: float
    cost_usd_per_million: float


class Case(Document, frozen=True, kw_only=True):
    """One case, planned, and measured where `measured` says so."""

    model: str
    platform: str
    factor: float
    base: Base
    slo_ms: float
    stands: dict[str, str] = msgspec.field(default_factory=dict)
    """For each contender the planner whose deployment stands for it: its own, or one with the same plan."""
    promised: dict[str, Promise] = msgspec.field(default_factory=dict)
    """By contender."""
    failed: dict[str, str] = msgspec.field(default_factory=dict)
    """Contenders that have no plan, or whose plan could not be deployed, and why."""
    measured: bool = False
    record: Comparison | None = None
    """None also where nobody had a plan."""

    @property
    def place(self) -> Place:
        """Which case it is."""
        return Place(self.model, self.platform, self.factor)

    def of(self, contender: str) -> PlanRecord | None:
        """What was measured of a contender."""
        if self.record is None or contender in self.failed or contender not in self.stands:
            return None
        return next((p for p in self.record.plans if p.planner == self.stands[contender]), None)


class Drawn(NamedTuple):
    """A case as it is planned, and the plans to deploy by planner."""

    case: Case
    plans: dict[str, Plan]


def draw_up(it: Subject, factor: float, base: Base) -> Drawn:
    """Every contender's plan; a planner that fails, however it does, is no reason to lose the others."""
    slo_ms = factor * base.ms
    stands: dict[str, str] = {}
    promised: dict[str, Promise] = {}
    failed: dict[str, str] = {}
    plans: dict[str, Plan] = {}
    for contender, planners in CONTENDERS.items():
        made: list[Plan] = []
        for request in [Request(slo_ms), *([Request()] if contender in ANYWAY else [])]:
            for planner in planners if not made else ():
                try:
                    made.append(make_plan(it.graph, it.profile, it.platform, planner, given=it.given, request=request))
                except LamellaError as error:
                    failed.setdefault(contender, str(error))
                except Exception as error:  # noqa: BLE001 - others' bugs must not lose the case; the page lists them
                    failed.setdefault(contender, f"{type(error).__name__}: {error}")
        if not made:
            continue
        failed.pop(contender, None)
        plan = min(made, key=lambda p: p.predicted.cost_usd_per_million)
        promised[contender] = _promise(plan)
        same = next((name for name, other in plans.items() if decided(other) == decided(plan)), plan.planner)
        stands[contender] = same
        plans.setdefault(same, plan)
    case = Case(
        model=it.name,
        platform=it.platform.name,
        factor=factor,
        base=base,
        slo_ms=slo_ms,
        stands=stands,
        promised=promised,
        failed=failed,
    )
    return Drawn(case, plans)


def _promise(plan: Plan) -> Promise:
    predicted = plan.predicted
    return Promise(
        plan.stages, len(plan.functions), predicted.latency_ms, p95_ms(predicted), predicted.cost_usd_per_million
    )


def measure_case(it: Subject, drawn: Drawn, requests: int) -> Case:
    """The case with all its plans deployed, in turns."""
    case, plans = drawn
    replaced = msgspec.structs.replace
    if not plans:
        return replaced(case, measured=True)
    settings = Settings(
        given=it.given,
        planners=tuple(plans),
        plans=plans,
        request=Request(case.slo_ms),
        requests=requests,
        over_s=OVER_S,
    )
    try:
        record = compare(it.graph, it.profile, it.platform, settings)
    except OWN_FAULTS as error:  # the last one's failure: none is left
        return replaced(case, measured=True, failed={**case.failed, **dict.fromkeys(case.stands, str(error))})
    lost = {c: record.failed[p] for c, p in case.stands.items() if p in record.failed}
    return replaced(case, measured=True, failed={**case.failed, **lost}, record=record)
