"""Tables of several plans at once: platforms beside each other, the front, the plan among others of its kind."""

from __future__ import annotations

from rich.markup import escape

from lamella.cli.show import console, kept_for, table
from lamella.plan.explanation.document import Explanation, Outline, Price, Refusal, outline
from lamella.plan.explanation.front import Front, FrontPoint, shown
from lamella.plan.explanation.places import Place, Places, held_back
from lamella.units import digits

FIGURES = ["stages", "functions", "MB", "ms", "bounded ms", "$ per million"]
POINTS = 12
"""Of a front that are shown, about."""


def figures(plan: Outline | None) -> list[str]:
    """A plan in cells under `FIGURES`."""
    if plan is None:
        return [""] * len(FIGURES)
    return [
        str(plan.stages),
        str(plan.functions),
        f"{plan.memory_mb:.0f}",
        f"{plan.latency_ms:.1f}",
        f"{plan.bounded_ms:.1f}",
        digits(plan.cost_usd_per_million, 3),
    ]


def show_explanation(said: Explanation) -> None:
    """The plan against others, and the price of what holds it back."""
    out = console()
    out.print(f"[bold]{escape(said.model.name)} on {said.platform} by {escape(said.planner)}[/bold]")
    out.print(f"why: {said.why}", markup=False)
    rows = [["this plan", *figures(said.chosen), ""]]
    rows += [[o.kind, *figures(o.plan), o.why] for o in said.others]
    out.print(table(["best plan of a kind", *FIGURES, "against this plan "], rows))
    columns = ["constraint", "limit", "used", "slack", "unit ", "1 step more", "least that saves", "saves", "no limit"]
    out.print(table([*columns, "by "], [_price_row(p) for p in said.prices]))
    out.print("savings: $ per million requests, of the cheapest plan, one constraint at a time")
    if said.orders:
        out.print(f"of the cheapest plan's cost: {said.orders.sentence}", markup=False)


def _price_row(p: Price) -> list[str]:
    least = "" if p.next_limit is None else f"{p.next_limit:.1f}" if p.unit == "ms" else f"{p.next_limit:g}"
    return [
        p.constraint,
        f"{p.limit:.1f}" if p.unit == "ms" else f"{p.limit:g}",
        f"{p.used:.2f}" if p.unit == "s" else f"{p.used:.1f}" if p.unit else f"{p.used:g}",
        f"{p.limit - p.used:.1f}" if p.unit else f"{p.limit - p.used:g}",
        p.unit,
        _money(p.one_saves),
        least,
        _money(p.next_saves) if p.next_limit is not None else "",
        _money(p.most_saves),
        p.how,
    ]


def _money(usd: float) -> str:
    return f"{usd:.3g}" if usd else "0"


def show_refusal(said: Refusal) -> None:
    """What would have to give way, and the plan there is then."""
    out = console()
    out.print(f"[bold]{escape(said.model.name)} on {said.platform}[/bold]: no plan satisfies the request")
    if not said.ways:
        out.print("no constraint of these, however loose, makes it feasible")
        return
    together = len(said.ways) > 1 and said.together
    out.print(
        "all of these would have to give way" if together else "the nearest feasible plan, by what gives way alone"
    )
    rows = [
        [w.constraint, f"{w.limit:g}", f"{w.needed:.1f}", f"{w.needed - w.limit:.1f}", w.unit, *figures(w.plan)]
        for w in said.ways
    ]
    out.print(table(["constraint", "limit", "needed", "by", "unit ", *FIGURES], rows))


def show_places(found: Places) -> None:
    """Platforms beside each other, the cheapest first; in rows without a plan what stands in the way."""
    out = console()
    slo = "no SLO" if found.slo_ms is None else f"SLO {found.slo_ms:g} ms"
    out.print(f"[bold]{escape(found.model.name)} by {escape(found.planner)}[/bold], {slo}, predicted")
    rows = [
        [
            p.platform,
            *figures(outline(p.plan, p.plan.percentile) if p.plan else None),
            p.price,
            held_back(p),
            _instead(p),
        ]
        for p in found.places
    ]
    out.print(table(["platform", *FIGURES, "price is ", "held back by ", "then "], rows))
    for p in found.places:
        for said in kept_for(p.plan) if p.plan else [p.refused]:
            out.print(f"{p.platform}: {said}", markup=False)


def _instead(place: Place) -> str:
    """The plan there is when the constraint that stands in the way gives way."""
    if not place.binding:
        return ""
    plan = place.binding.plan
    return f"{plan.functions} function(s), ${digits(plan.cost_usd_per_million, 3)}"


def show_front(found: Front) -> None:
    """The chosen plan among those that no other beats in both cost and latency."""
    out, plan, p = console(), found.plan, found.chosen
    out.print(
        f"[bold]{escape(plan.model.name)} on {plan.platform} by {escape(plan.planner)}[/bold]: "
        f"{p.bounded_ms:.1f} ms{plan.at}, ${digits(p.cost_usd_per_million, 4)} per million requests (predicted)"
    )
    where = "no plan beats it in both" if found.on_front else f"{found.dearer:.1%} dearer than one as quick"
    if found.dearer < 0 and not found.on_front:  # what loses is not on the front
        where = f"{-found.dearer:.1%} cheaper than every plan without loss that is as quick"
    out.print(where if found.at is not None else "quicker than every plan without loss")
    if plan.lossy:
        out.print("the plan loses something, as its validation allows; those of the front lose nothing")
    if found.said:
        out.print(found.said)
    rows, before = [], None
    for k in shown(found, POINTS):
        at = found.points[k]
        rows.append(
            [
                f"{at.bounded_ms:.2f}",
                digits(at.cost_usd_per_million, 4),
                str(at.stages),
                str(at.functions),
                "" if before is None else _worth(before, at),
                _mark(found, k),
            ]
        )
        before = at
    out.print(table([f"ms{plan.at}", "$ per million", "stages", "functions", "a ms more saves $", ""], rows))
    out.print(f"{len(rows)} of {len(found.points)} plans that no other beats in both; --report FILE.html draws all")


def _worth(before: FrontPoint, at: FrontPoint) -> str:
    """What a ms is worth from one shown point to the next, $ per million."""
    return f"{(before.cost_usd_per_million - at.cost_usd_per_million) / (at.bounded_ms - before.bounded_ms):.4g}"


def _mark(found: Front, k: int) -> str:
    if found.at is None:
        return ""
    name = found.plan.planner
    here = f"<- {name}" if found.on_front else f"<- as quick as {name}"
    return {found.at - 1: "next quicker", found.at: here, found.at + 1: "next cheaper"}.get(k, "")
