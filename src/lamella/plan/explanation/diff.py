"""What changed between two plans of a model, and what each change does to cost and latency.

Functions of two plans are not the same things, so they are not compared one by one. Borders that both plans have divide
the model into segments; in a segment both do the same work, each in its own way, and what that costs can be told apart
from the rest. A hop belongs to the stage it leads to. So the differences of the segments, and of what lies in none
(entering, and sending to several shards), add up to the difference of the plans.

Pure: from the documents alone. Operators are those of the model, which a sharded plan tells only with its graph at
hand: `spans`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby, pairwise

import msgspec

from lamella.documents import Document
from lamella.errors import LawBroken
from lamella.graph.divide import Range
from lamella.plan.document import FunctionPlan, Hop, Plan
from lamella.runtime.lanes import makespan

NOTHING = 1e-9


class Change(msgspec.Struct, frozen=True):
    """A field of the plans that is not the same."""

    what: str
    before: str
    after: str


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan does in a segment, the hops to its stages included."""

    stages: int
    functions: int
    memory_mb: int
    ms: float
    cost_usd_per_million: float
    said: str
    """Functions and hops, in short: a chain such as 512 MB > 2 x 80 MB."""


class Segment(msgspec.Struct, frozen=True):
    """Operators `first` to `last - 1`, which both plans run between the same borders."""

    first: int
    last: int
    before: Part
    after: Part
    changes: tuple[str, ...]
    """In words; none where nothing changed."""


class Totals(msgspec.Struct, frozen=True):
    """A plan in figures. `rest_ms` is in no segment: entering, and sending to several shards."""

    stages: int
    functions: int
    memory_mb: float
    latency_ms: float
    cost_usd_per_million: float
    rest_ms: float


class Difference(Document, frozen=True, kw_only=True):
    """`lamella diff --json`."""

    before: str
    after: str
    """What the plans were called."""
    same: bool
    """Whether nothing but reasons differs."""
    comparable: bool
    """Whether the segments are known: of one model, and with the graphs of sharded plans at hand."""
    changes: tuple[Change, ...]
    segments: tuple[Segment, ...]
    was: Totals
    now: Totals


class _Stage(msgspec.Struct, frozen=True):
    """A stage with the hop to it, none for the first."""

    span: Range
    functions: tuple[FunctionPlan, ...]
    at_once: int
    hop: Hop | None

    @property
    def run_ms(self) -> float:
        return makespan([f.run_ms for f in self.functions], self.at_once)

    @property
    def ms(self) -> float:
        return self.run_ms + (self.hop.time_ms if self.hop else 0.0)

    @property
    def usd(self) -> float:
        return sum(f.cost_usd for f in self.functions) + (self.hop.cost_usd if self.hop else 0.0)


def diff(
    before: Plan,
    after: Plan,
    names: tuple[str, str] = ("before", "after"),
    spans: tuple[Sequence[Range], Sequence[Range]] | None = None,
) -> Difference:
    """What changed from one plan to another.

    Args:
        before: a plan.
        after: another one.
        names: what they are called.
        spans: of each plan the operators of the model that each function has a part in; from the plans where they are
            not given, which needs equal shards.

    Raises:
        LawBroken: a plan contradicts itself.
    """
    for plan, name in zip((before, after), names, strict=True):
        _whole(plan, name)
    comparable = before.model.hash == after.model.hash and (spans is not None or before.shards == after.shards)
    own = spans or (_own(before), _own(after))
    stages = _stages(before, own[0]), _stages(after, own[1])
    segments = tuple(_segments(*stages)) if comparable else ()
    changes = tuple(_changes(before, after))
    return Difference(
        before=names[0],
        after=names[1],
        same=comparable and not changes and not any(s.changes for s in segments),
        comparable=comparable,
        changes=changes,
        segments=segments,
        was=_totals(before, stages[0]),
        now=_totals(after, stages[1]),
    )


def _own(plan: Plan) -> list[Range]:
    return [(f.first, f.last) for f in plan.functions]


def _whole(plan: Plan, name: str) -> None:
    """LawBroken where functions, stages and hops do not fit each other: nothing could be said of such a plan."""
    stages, at = plan.by_stage(), 0
    for f in plan.functions:
        if f.first != at or f.last < f.first:
            raise LawBroken(f"law 1: {f.name} of {name} begins at operator {f.first}, {at} is next", where=f.name)
        at = f.last
    if not stages or len(plan.hops) != len(stages) - 1 or len(plan.at_once) != len(stages) or min(plan.at_once) < 1:
        raise LawBroken(
            f"{name} has {len(stages)} stages, {len(plan.hops)} hops and {len(plan.at_once)} figures of shards at once",
            try_=f"lamella check {name}",
        )


def _stages(plan: Plan, spans: Sequence[Range]) -> list[_Stage]:
    """Stages by operators of the model; of no operators where one only joins parts."""
    found, at = [], 0
    for functions, many, hop in zip(plan.by_stage(), plan.at_once, (None, *plan.hops), strict=True):
        own = spans[at : at + len(functions)]
        at += len(functions)
        span = min(first for first, _ in own), max(last for _, last in own)
        found.append(_Stage(span, tuple(functions), many, hop))
    return found


def _totals(plan: Plan, stages: Sequence[_Stage]) -> Totals:
    """Per request: with what rows wait for each other, and their share of a run and of starts."""
    latency_ms = plan.wait_ms + plan.predicted.latency_ms
    rest = latency_ms - sum(s.ms for s in stages)
    return Totals(plan.stages, len(plan.functions), plan.predicted.memory_mb, latency_ms, plan.request_usd, rest)


# ---------------------------------------------------------------------------------------------------------- fields


def _changes(before: Plan, after: Plan) -> list[Change]:
    """What was asked, and of what: everything that is one field of a plan."""
    told = [
        ("model", before.model.name, after.model.name),
        ("model's hash", before.model.hash[:12], after.model.hash[:12]),
        ("profiled on", _machine(before), _machine(after)),
        ("platform", before.platform, after.platform),
        ("architecture", before.architecture, after.architecture),
        ("channel", before.channel, after.channel),
        ("planner", before.planner, after.planner),
        ("SLO", _slo(before), _slo(after)),
        ("requests", _rate(before), _rate(after)),
        ("batch", _rows(before), _rows(after)),
        ("loss", _judged(before), _judged(after)),
    ]
    return [Change(*row) for row in told if row[1] != row[2]]


def _machine(plan: Plan) -> str:
    m = plan.machine
    return f"{m.cpu}, {m.cores} cores, onnxruntime {m.onnxruntime}"


def _slo(plan: Plan) -> str:
    if plan.budget_usd is not None:
        return f"none, a budget of ${plan.budget_usd:g} per million"
    return "none" if plan.slo_ms is None else f"{plan.slo_ms:g} ms{plan.at}"


def _rate(plan: Plan) -> str:
    known = plan.cold is not None and plan.cold.rate_per_s is not None
    return f"{plan.cold.rate_per_s:g} a second" if plan.cold and known else "none"


def _rows(plan: Plan) -> str:
    return f"{plan.batch}, that wait {plan.wait_ms:g} ms for each other" if plan.requests > 1 else str(plan.batch)


def _judged(plan: Plan) -> str:
    return plan.validation.sentence() if plan.validation and plan.lossy else "none"


# -------------------------------------------------------------------------------------------------------- segments


def _segments(before: Sequence[_Stage], after: Sequence[_Stage]) -> list[Segment]:
    borders = sorted({s.span[1] for s in before} & {s.span[1] for s in after})
    parts = [_by_segment(stages, borders) for stages in (before, after)]
    spans = pairwise([0, *borders])
    return [
        Segment(first, last, _part(a), _part(b), tuple(_told(a, b)))
        for (first, last), a, b in zip(spans, *parts, strict=True)
    ]


def _by_segment(stages: Sequence[_Stage], borders: Sequence[int]) -> list[list[_Stage]]:
    """The stages that end in each segment; one that only joins belongs to the segment before."""
    found: list[list[_Stage]] = [[] for _ in borders]
    for number, group in groupby(stages, lambda s: bisect_left(borders, s.span[1])):
        found[number] += group
    return found


def _part(stages: Sequence[_Stage]) -> Part:
    return Part(
        stages=len(stages),
        functions=sum(len(s.functions) for s in stages),
        memory_mb=sum(f.memory_mb for s in stages for f in s.functions),
        ms=sum(s.ms for s in stages),
        cost_usd_per_million=sum(s.usd for s in stages) * 1e6,
        said=" > ".join(_said(s) for s in stages),
    )


def _said(stage: _Stage) -> str:
    """A stage in short: its codec, its size, how many shards."""
    sizes = [f.memory_mb for f in stage.functions]
    many = f"{len(sizes)} x " if len(sizes) > 1 else ""
    coded = f"{stage.hop.codec}: " if stage.hop and stage.hop.codec != "none" else ""
    return f"{coded}{many}{max(sizes)} MB"


def _told(before: Sequence[_Stage], after: Sequence[_Stage]) -> list[str]:
    """What is not the same, in words."""
    if [s.span for s in before] != [s.span for s in after]:
        return [_cut(before, after)]
    found = []
    for a, b in zip(before, after, strict=True):
        if len(a.functions) != len(b.functions):
            found.append(f"{_shards(b)} instead of {_shards(a)}")
        found += _sizes(a.functions, b.functions)
        if a.hop and b.hop:
            found += _hops(a.hop, b.hop)
        if not found and (abs(a.ms - b.ms) > NOTHING or abs(a.usd - b.usd) > NOTHING * 1e-6):
            found.append("predicted otherwise")
    return list(dict.fromkeys(found))


def _cut(before: Sequence[_Stage], after: Sequence[_Stage]) -> str:
    was, now = (sorted({s.span[1] for s in stages[:-1]}) for stages in (before, after))
    if len(before) == len(after):
        return f"cut at {_list(now)} instead of {_list(was)}"
    if not was:
        return f"divided at {_list(now)}"
    if not now:
        return f"no longer divided at {_list(was)}"
    return f"{len(after)} stages instead of {len(before)}: cut at {_list(now)}, not {_list(was)}"


def _shards(stage: _Stage) -> str:
    return f"{len(stage.functions)} shards" if len(stage.functions) > 1 else "one function"


def _sizes(before: Sequence[FunctionPlan], after: Sequence[FunctionPlan]) -> list[str]:
    """Resources, of the largest shard where there are several."""
    a, b = (max(functions, key=lambda f: f.memory_mb) for functions in (before, after))
    rows = [
        (f"{a.memory_mb} MB", f"{b.memory_mb} MB"),
        (f"{a.vcpu:.2f} vCPU", f"{b.vcpu:.2f} vCPU"),
        (f"{a.threads} threads", f"{b.threads} threads"),
        (f"weights {a.layout}", f"weights {b.layout}"),
        (f"a {a.kind} function", f"a {b.kind} function"),
    ]
    return [f"{now} instead of {was}" for was, now in rows if was != now]


def _hops(before: Hop, after: Hop) -> list[str]:
    rows = [(f"codec {before.codec}", f"codec {after.codec}"), (f"over {before.channel}", f"over {after.channel}")]
    return [f"{now} instead of {was}" for was, now in rows if was != now]


def _list(cuts: Sequence[int]) -> str:
    return ", ".join(map(str, cuts)) or "nothing"
