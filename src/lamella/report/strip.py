"""The model as a strip of units, and under it what each plan makes of it: where it cuts, and what it divides.

A unit is as wide as its operators are many, but never so narrow that it cannot be seen. A function's place follows
from the operators of the model it has a part in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from lamella.compare.record import Comparison, FunctionRecord, PlanRecord, UnitRecord
from lamella.report.scales import Label, inside, number, shade

CELL_PX = 30
BAR_PX = 22
SHARD_PX = 7
"""The least height of a shard's bar; those of a stage are stacked."""
LEAST = 0.5
"""A unit's least width, of the mean one's."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A unit: place and width in percent, class of colour."""

    left: float
    width: float
    shade: int
    labels: tuple[Label, ...]
    title: str


@dataclass(frozen=True, slots=True)
class Row:
    """The units coloured by one figure, `most` of which has the strongest colour."""

    name: str
    ramp: str
    most: str
    cells: tuple[Cell, ...]
    height: int = CELL_PX


@dataclass(frozen=True, slots=True)
class Bar:
    """A function: percent across, pixels down. `kind` is slice, shard or join (of no operators of the model)."""

    left: float
    width: float
    top: float
    height: float
    kind: str
    labels: tuple[Label, ...]
    title: str


@dataclass(frozen=True, slots=True)
class Lane:
    """A plan's functions under the strip."""

    planner: str
    about: str
    bars: tuple[Bar, ...]
    cuts: tuple[float, ...]
    """Where it cuts, percent."""
    height: float


@dataclass(frozen=True, slots=True)
class Strip:
    """The figure."""

    rows: tuple[Row, ...]
    lanes: tuple[Lane, ...]


def strip(record: Comparison) -> Strip | None:
    """The figure; None for a record without units (one older than they are)."""
    if not record.units:
        return None
    edges = places(record.units)
    ms = [u.ms for u in record.units]
    mb = [u.weight_mb + u.live_mb for u in record.units]
    return Strip(
        rows=(
            _row("memory: weights and live tensors", "memory", "MB", mb, record.units, edges),
            _row("time", "time", "ms", ms, record.units, edges),
        ),
        lanes=tuple(_lane(p, record.units, edges) for p in record.plans),
    )


def places(units: Sequence[UnitRecord]) -> list[float]:
    """Where units begin, percent, and at the end where the last one ends."""
    counts = [u.last - u.first for u in units]
    least = LEAST * sum(counts) / len(counts)
    widths = [max(c, least) for c in counts]
    return [100 * at / sum(widths) for at in accumulate(widths, initial=0.0)]


def place(operator: int, units: Sequence[UnitRecord], edges: Sequence[float]) -> float:
    """Where an operator begins, percent: units are divided evenly among theirs."""
    for unit, left, right in zip(units, edges, edges[1:], strict=False):
        if operator < unit.last:
            share = (operator - unit.first) / (unit.last - unit.first)
            return left + max(0.0, share) * (right - left)
    return edges[-1]


def _row(
    name: str, ramp: str, of: str, values: Sequence[float], units: Sequence[UnitRecord], edges: Sequence[float]
) -> Row:
    most = max(values)
    cells = []
    for k, (unit, value) in enumerate(zip(units, values, strict=True)):
        left, width = edges[k], edges[k + 1] - edges[k]
        cells.append(
            Cell(
                left=left,
                width=width,
                shade=shade(value, most),
                labels=inside(left, width, CELL_PX / 2 + 4, number(value)),
                title=f"unit {k}, {unit.kinds}, operators {unit.first} to {unit.last - 1}: weights "
                f"{number(unit.weight_mb)} MB, live {number(unit.live_mb)} MB, {number(unit.ms)} ms",
            )
        )
    return Row(name, ramp, f"{number(most)} {of}", tuple(cells))


def by_stage(plan: PlanRecord) -> list[list[FunctionRecord]]:
    """The functions of each stage; in records that do not say, each is one."""
    if any(f.stage < 0 for f in plan.functions):
        return [[f] for f in plan.functions]
    return [list(stage) for _, stage in groupby(plan.functions, lambda f: f.stage)]


def _lane(plan: PlanRecord, units: Sequence[UnitRecord], edges: Sequence[float]) -> Lane:
    stages = by_stage(plan)
    height = max(BAR_PX, max(len(s) for s in stages) * SHARD_PX)
    bars: list[Bar] = []
    for stage in stages:
        tall = height / len(stage)
        for k, f in enumerate(stage):
            left, right = place(f.first, units, edges), place(f.last, units, edges)
            kind = "shard" if len(stage) > 1 else "slice" if f.last > f.first else "join"
            text = inside(left, right - left, height / 2 + 4, f"{f.memory_mb} MB") if kind == "slice" else ()
            bars.append(Bar(left, right - left, k * tall, tall, kind, text, function_title(f)))
    cuts = sorted({b.left for b in bars if 0 < b.left < 100})
    return Lane(plan.planner, shape(plan), tuple(bars), tuple(cuts), height)


def function_title(f: FunctionRecord) -> str:
    """A function in a tooltip."""
    part = f"operators {f.first} to {f.last - 1}, " if f.last > f.first else ""
    return (
        f"{f.name}: {part}{f.memory_mb} MB allocated, peak {number(f.peak_mb)} MB, {f.cpu:g} vCPU, "
        f"{number(f.run_ms)} ms"
    )


def shape(plan: PlanRecord) -> str:
    """How many functions, and how many of their stages are divided among shards."""
    count = len(plan.functions)
    shards = sum(len(stage) > 1 for stage in by_stage(plan))
    said = "one function" if count == 1 else f"{count} functions"
    if shards:
        said += f" in {plan.stages} stages, {shards} of shards"
    return said
