"""The front of cost and latency: a step where the next cheaper plan begins, the chosen plan, the SLO."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.plan.explanation.front import Front
from lamella.report.scales import Label, number, tick, ticks
from lamella.report.scatter import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Box, name_places, onto, spread

FEW = 60
"""Points beyond which dots are left out: the line shows them."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A plan that is named, pixels. `kind`: chosen, quicker or cheaper."""

    x: float
    y: float
    kind: str
    name: Label
    title: str


@dataclass(frozen=True, slots=True)
class Frontier:
    """The figure. `line` is a path: no plan lies below it."""

    line: str
    dots: tuple[tuple[float, float, str], ...]
    marks: tuple[Mark, ...]
    slo: float | None
    across: tuple[Label, ...]
    up: tuple[Label, ...]
    plot: Box


def frontier(front: Front) -> Frontier:
    """The figure. Axes begin at nought where the lowest value is below half of the highest."""
    p = front.chosen
    slo = None if front.plan.slo_ms is None else front.plan.slo_ms - front.plan.wait_ms
    points = [(q.bounded_ms, q.cost_usd_per_million) for q in front.points]
    plot = Box(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    low_ms, high_ms = spread([*(ms for ms, _ in points), p.bounded_ms])
    low_usd, high_usd = spread([*(usd for _, usd in points), p.cost_usd_per_million])
    x, y = onto(low_ms, high_ms, plot.left, plot.right), onto(low_usd, high_usd, plot.bottom, plot.top)
    named = _named(front)
    places = [(x(ms), y(usd)) for _, _, ms, usd in named]
    names = name_places(places, [name for name, _, _, _ in named], plot)
    steps = [f"M{x(points[0][0]):.1f} {plot.top:.1f}"]
    ends = [*(ms for ms, _ in points[1:]), high_ms]
    steps += [f"V{y(usd):.1f}H{x(end):.1f}" for (_, usd), end in zip(points, ends, strict=True)]
    return Frontier(
        line="".join(steps),
        dots=tuple((x(ms), y(usd), _said(ms, usd)) for ms, usd in points) if len(points) <= FEW else (),
        marks=tuple(
            Mark(at[0], at[1], kind, label, f"{name}: {_said(ms, usd)}")
            for (name, kind, ms, usd), at, label in zip(named, places, names, strict=True)
        ),
        slo=x(slo) if slo is not None and low_ms <= slo <= high_ms else None,
        across=tuple(Label(x(v), plot.bottom + 15, tick(v)) for v in ticks(low_ms, high_ms, 5)),
        up=tuple(Label(plot.left - 6, y(v) + 4, tick(v), anchor="end") for v in ticks(low_usd, high_usd, 5)),
        plot=plot,
    )


def _named(front: Front) -> list[tuple[str, str, float, float]]:
    """The plan and its neighbours, the plan last, on top: name, kind, ms, USD per million."""
    p, found = front.chosen, []
    for kind, other in (("quicker", front.quicker), ("cheaper", front.cheaper)):
        if other:
            found.append((kind, kind, other.bounded_ms, other.cost_usd_per_million))
    return [*found, (front.plan.planner, "chosen", p.bounded_ms, p.cost_usd_per_million)]


def _said(ms: float, usd: float) -> str:
    return f"{number(ms)} ms, ${number(usd)} per million requests"
