"""Predicted against measured: for each plan where the two lie on one scale, and how far apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lamella.compare.record import Comparison, PlanRecord
from lamella.report.scales import Label, number, tick, ticks

ROW_PX = 34
AXIS_PX = 20


@dataclass(frozen=True, slots=True)
class Pair:
    """A plan: both figures in percent across, `y` pixels down."""

    planner: str
    y: float
    predicted: float
    measured: float
    text: str
    title: str


@dataclass(frozen=True, slots=True)
class Versus:
    """One figure's pairs."""

    name: str
    pairs: tuple[Pair, ...]
    across: tuple[Label, ...]
    height: float


Figure = Callable[[PlanRecord], float]
FIGURES: tuple[tuple[str, str, Figure, Figure], ...] = (
    ("Latency", "ms", lambda p: p.predicted.latency_ms, lambda p: p.latency_ms.p50),
    ("Memory allocated", "MB", lambda p: p.predicted.memory_mb, lambda p: sum(f.memory_mb for f in p.functions)),
    ("Cost", "$/million", lambda p: p.predicted.cost_usd_per_million, lambda p: p.cost_usd_per_million),
)


def versus(record: Comparison) -> list[Versus]:
    """Latency, memory and cost, each on a scale of its own from nought."""
    return [_versus(record, *figure) for figure in FIGURES]


def _versus(record: Comparison, name: str, unit: str, predicted: Figure, measured: Figure) -> Versus:
    most = max(max(predicted(p), measured(p)) for p in record.plans) * 1.05 or 1.0
    pairs = tuple(
        Pair(
            planner=p.planner,
            y=k * ROW_PX + 26,
            predicted=100 * predicted(p) / most,
            measured=100 * measured(p) / most,
            text=f"{off(predicted(p), measured(p))}",
            title=f"{p.planner}: predicted {number(predicted(p))} {unit}, measured {number(measured(p))} {unit}",
        )
        for k, p in enumerate(record.plans)
    )
    height = len(pairs) * ROW_PX + AXIS_PX
    across = tuple(
        Label(100 * v / most, height - 4, tick(v), anchor="middle" if v else "start") for v in ticks(0, most, 4)
    )
    return Versus(f"{name}, {unit}", pairs, across, height)


def off(predicted: float, measured: float) -> str:
    """How far a prediction is from what was measured, of that."""
    return f"{predicted / measured - 1:+.0%}" if measured else "no measure"
