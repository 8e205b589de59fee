"""Cost against latency: a point per plan with its 95 % intervals, and names that keep out of each other's way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lamella.compare.record import Comparison
from lamella.report.scales import LETTER_PX, Label, number, tick, ticks

WIDTH, HEIGHT = 340, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 40
LINE_PX, DOT_PX = 14, 5
AROUND = ((9, 4, "start"), (-9, 4, "end"), (0, -10, "middle"), (0, 19, "middle"))
AWAY = (0, -14, 14, -28, 28, -42, 42, -56, 56)
"""How far a name may move up or down from its point, pixels: the nearest free place is taken."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether they overlap."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass(frozen=True, slots=True)
class Point:
    """A plan, and where its name stands; pixels."""

    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    name: Label
    best: bool
    title: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """The figure."""

    points: tuple[Point, ...]
    across: tuple[Label, ...]
    up: tuple[Label, ...]
    plot: Box


def scatter(record: Comparison) -> Scatter:
    """The figure of a comparison. Axes begin at nought where the lowest value is below half of the highest."""
    plans = record.plans
    plot = Box(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    low_ms, high_ms = spread(v for p in plans for v in (p.latency_ms.p50_low, p.latency_ms.p50, p.latency_ms.p50_high))
    low_usd, high_usd = spread(v for p in plans for v in (p.cost_low, p.cost_usd_per_million, p.cost_high))
    x = onto(low_ms, high_ms, plot.left, plot.right)
    y = onto(low_usd, high_usd, plot.bottom, plot.top)
    places = [(x(p.latency_ms.p50), y(p.cost_usd_per_million)) for p in plans]
    whiskers = [
        Box(x(p.latency_ms.p50_low), at[1] - 1, x(p.latency_ms.p50_high), at[1] + 1)
        for p, at in zip(plans, places, strict=True)
    ] + [Box(at[0] - 1, y(p.cost_high), at[0] + 1, y(p.cost_low)) for p, at in zip(plans, places, strict=True)]
    names = name_places(places, [p.planner for p in plans], plot, whiskers)
    best = min(plans, key=lambda p: p.cost_usd_per_million).planner
    points = tuple(
        Point(
            x=at[0],
            y=at[1],
            x_low=x(p.latency_ms.p50_low),
            x_high=x(p.latency_ms.p50_high),
            y_low=y(p.cost_low),
            y_high=y(p.cost_high),
            name=name,
            best=p.planner == best,
            title=f"{p.planner}: p50 {number(p.latency_ms.p50)} ms ({number(p.latency_ms.p50_low)} to "
            f"{number(p.latency_ms.p50_high)}), ${number(p.cost_usd_per_million)} per million requests "
            f"({number(p.cost_low)} to {number(p.cost_high)})",
        )
        for p, at, name in zip(plans, places, names, strict=True)
    )
    return Scatter(
        points=points,
        across=tuple(Label(x(v), plot.bottom + 15, tick(v)) for v in ticks(low_ms, high_ms, 5)),
        up=tuple(Label(plot.left - 6, y(v) + 4, tick(v), anchor="end") for v in ticks(low_usd, high_usd, 5)),
        plot=plot,
    )


def spread(values: Iterable[float]) -> tuple[float, float]:
    """What an axis shows: all values and some room, from nought where that costs less than half of it."""
    known = list(values)
    low, high = min(known), max(known)
    room = max(0.12 * (high - low), 0.04 * high) or 1.0
    return (0.0 if low < high / 2 else max(0.0, low - room)), high + room


def onto(low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    """From values to pixels, evenly."""
    return lambda value: begin + (value - low) / (high - low) * (end - begin)


def name_places(
    points: Sequence[tuple[float, float]], names: Sequence[str], plot: Box, lines: Sequence[Box] = ()
) -> list[Label]:
    """For each point where its name stands: near it, and off every point, line and other name, if there is a place."""
    taken = [*lines, *(Box(x - DOT_PX, y - DOT_PX, x + DOT_PX, y + DOT_PX) for x, y in points)]
    found = []
    for (x, y), name in zip(points, names, strict=True):
        tried = [Label(x + dx, y + dy + away, name, anchor=side) for away in AWAY for dx, dy, side in AROUND]
        within = [t for t in tried if _box(t).left >= plot.left and _box(t).right <= WIDTH]
        free = (t for t in within if not any(_box(t).meets(other) for other in taken))
        chosen = next(free, (within or tried)[0])
        taken.append(_box(chosen))
        found.append(chosen)
    return found


def _box(label: Label) -> Box:
    wide = len(label.text) * LETTER_PX
    left = {"start": label.x, "end": label.x - wide, "middle": label.x - wide / 2}[label.anchor]
    return Box(left, label.y - LINE_PX + 3, left + wide, label.y + 3)
