"""The staircase: memory allocated, and billed, while one request runs; and of it what is used.

Functions follow each other without the hops between them, which nobody is billed for. Shards of a stage that run at a
time are stacked: the area of a plan's steps is its billed memory-time (before the platform's rounding), and the
area of its uses its used memory-time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lamella.compare.record import Comparison, FunctionRecord, PlanRecord
from lamella.report.scales import NARROW_PX, Label, inside, number, tick, ticks
from lamella.report.strip import by_stage, function_title, shape

PANEL_PX = 120
TOP_PX = 16
"""Above the highest step, for the highest tick's number."""
AXIS_PX = 18
"""Under the steps, for the numbers of time."""


@dataclass(frozen=True, slots=True)
class Block:
    """Memory over a while: from `begin_ms` for `ms`, from `base_mb` up for `mb`."""

    begin_ms: float
    ms: float
    base_mb: float
    mb: float

    @property
    def mb_s(self) -> float:
        """Its area, MB-s."""
        return self.ms * self.mb / 1000


@dataclass(frozen=True, slots=True)
class Step:
    """A function's run: what it is allocated, and what it uses meanwhile."""

    function: FunctionRecord
    allocated: Block
    used: tuple[Block, ...]


def steps(plan: PlanRecord, floor_mb: float) -> list[Step]:
    """Every run of a request; of a stage's shards at most `at_once` at a time, each begun as soon as one ends."""
    found: list[Step] = []
    begin = 0.0
    for k, stage in enumerate(by_stage(plan)):
        lanes = _lanes(stage, plan.at_once[k] if k < len(plan.at_once) else len(stage))
        base = 0.0
        for lane in lanes:
            at = begin
            for f in lane:
                block = Block(at, f.run_ms, base, f.memory_mb)
                found.append(Step(f, block, _used(f, block, floor_mb)))
                at += f.run_ms
            base += max((f.memory_mb for f in lane), default=0)
        begin += max(sum(f.run_ms for f in lane) for lane in lanes)
    return found


def _lanes(stage: Sequence[FunctionRecord], at_once: int) -> list[list[FunctionRecord]]:
    """The functions of a stage by who follows whom."""
    lanes: list[list[FunctionRecord]] = [[] for _ in range(max(1, min(at_once, len(stage))))]
    for f in stage:
        min(lanes, key=lambda lane: sum(g.run_ms for g in lane)).append(f)
    return lanes


def _used(f: FunctionRecord, block: Block, floor_mb: float) -> tuple[Block, ...]:
    found, at = [], block.begin_ms
    for use in f.uses:
        found.append(Block(at, use.share * block.ms, block.base_mb, floor_mb + use.mb))
        at += use.share * block.ms
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Rect:
    """Percent across, pixels down."""

    left: float
    top: float
    width: float
    height: float
    title: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One plan's steps."""

    planner: str
    about: str
    best: bool
    allocated: tuple[Rect, ...]
    used: tuple[Rect, ...]
    labels: tuple[Label, ...]
    answer: float
    """The median latency, percent."""
    answer_text: str


@dataclass(frozen=True, slots=True)
class Staircase:
    """The figure: panels of one scale under each other."""

    panels: tuple[Panel, ...]
    across: tuple[Label, ...]
    up: tuple[Label, ...]
    height: int
    ground: float
    """Where memory is nought, pixels down."""
    has_used: bool


def staircase(record: Comparison, planners: Sequence[str] = ()) -> Staircase:
    """The figure of a comparison, or of those of its plans that are named."""
    plans = [p for p in record.plans if not planners or p.planner in planners]
    runs = {p.planner: steps(p, record.floor_mb) for p in plans}
    ends = [s.allocated.begin_ms + s.allocated.ms for run in runs.values() for s in run]
    most_ms = max(*ends, *(p.latency_ms.p50 for p in plans)) * 1.02
    most_mb = max(s.allocated.base_mb + s.allocated.mb for run in runs.values() for s in run)
    ground = TOP_PX + PANEL_PX
    best = min(record.plans, key=lambda p: p.cost_usd_per_million).planner

    def x(ms: float) -> float:
        return 100 * ms / most_ms

    def y(mb: float) -> float:
        return ground - PANEL_PX * mb / most_mb

    def rect(block: Block, title: str = "") -> Rect:
        return Rect(x(block.begin_ms), y(block.base_mb + block.mb), x(block.ms), y(0) - y(block.mb), title)

    def panel(plan: PlanRecord) -> Panel:
        run = runs[plan.planner]
        return Panel(
            planner=plan.planner,
            about=f"{shape(plan)}: {number(plan.memory_time_mb_s.billed)} MB-s billed, "
            f"{plan.efficiency.billed:.0%} of it used",
            best=plan.planner == best,
            allocated=tuple(rect(s.allocated, function_title(s.function)) for s in run),
            used=tuple(rect(b) for s in run for b in s.used),
            labels=tuple(label for s in run for label in _size(s, rect(s.allocated))),
            answer=x(plan.latency_ms.p50),
            answer_text=f"p50 {number(plan.latency_ms.p50)} ms",
        )

    return Staircase(
        panels=tuple(panel(p) for p in plans),
        across=tuple(_time(ms, x(ms), ground) for ms in ticks(0, most_ms, NARROW_PX // 60)),
        up=tuple(Label(0, y(mb), f"{tick(mb)} MB", anchor="start") for mb in ticks(0, most_mb, 3) if mb),
        height=ground + AXIS_PX,
        ground=ground,
        has_used=any(s.used for run in runs.values() for s in run),
    )


def _size(of: Step, at: Rect) -> tuple[Label, ...]:
    """A function's size above its step; the first one's has to be clear of the axis' numbers at the left."""
    text = f"{of.function.memory_mb} MB"
    room = text if of.allocated.begin_ms else text.center(len(text) + 2 * len("1000 MB "))
    return tuple(replace(label, text=text) for label in inside(at.left, at.width, max(12.0, at.top - 4), room))


def _time(ms: float, x: float, ground: float) -> Label:
    anchor = "start" if x < 2 else "end" if x > 96 else "middle"
    return Label(x, ground + 14, tick(ms) + (" ms" if anchor == "start" else ""), anchor=anchor)
