"""Pages of plans that were made and not measured: one model on several platforms, and the front of one platform."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lamella.documents import replacing
from lamella.plan.explanation.document import Outline
from lamella.plan.explanation.front import Front
from lamella.plan.explanation.places import Places, held_back
from lamella.report.frontier import frontier
from lamella.report.page import templates
from lamella.report.scales import number
from lamella.report.timeline import money, said, timeline


def places_page(places: Places, command: Sequence[str] = ()) -> str:
    """One model on several platforms, as HTML.

    Args:
        places: what was planned.
        command: the command line that asked for it.
    """
    possible = places.possible
    return (
        templates()
        .get_template("places.html.j2")
        .render(
            places=places,
            model=places.model.name,
            best=possible[0][0].platform if possible else "",
            finding=where(places),
            timeline=timeline(places) if possible else None,
            money=money(places),
            rows=[(p, said(p.plan) if p.plan else "") for p in places.places],
            held=[held_back(p) for p in places.places],
            refused=[p for p in places.places if not p.plan],
            machine=possible[0][1].machine if possible else None,
            command=_shell(command),
        )
    )


def front_page(front: Front, command: Sequence[str] = ()) -> str:
    """The front around a plan, as HTML."""
    plan = (f"chosen, by {front.plan.planner}", front.chosen, True)
    around = [("next quicker", front.quicker, False), plan, ("next cheaper", front.cheaper, False)]
    return (
        templates()
        .get_template("front.html.j2")
        .render(
            front=front,
            model=front.plan.model.name,
            finding=standing(front),
            figure=frontier(front),
            neighbours=[row for row in around if row[1]],
            command=_shell(command),
        )
    )


def write_page(path: Path, text: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        StorageError: the disk is full or refuses; an older file at `path` is kept.
    """
    with replacing(path) as file:
        file.write(text.encode())


def _shell(command: Sequence[str]) -> str:
    return shlex.join(("lamella", *command)) if command else ""


# ----------------------------------------------------------------------------------------------------------- words


def where(places: Places) -> list[str]:
    """Where the model should run, and divided how, as sentences."""
    possible = places.possible
    if not possible:
        return ["No platform can serve it as asked."]
    (best, plan), others = possible[0], possible[1:]
    usd = plan.request_usd
    found = [
        f"{best.platform} is cheapest, as {said(plan)}: ${number(usd)} per million requests, "
        f"{number(plan.predicted.latency_ms)} ms each."
    ]
    if others and usd:
        times = others[0][1].request_usd / usd
        found.append(f"Next is {others[0][0].platform}, {number(times)} times as dear.")
    quickest, quick = min(possible, key=lambda x: x[1].predicted.latency_ms)
    if quickest is not best and quick.predicted.latency_ms < plan.predicted.latency_ms:
        found.append(f"{quickest.platform} is quickest, {number(quick.predicted.latency_ms)} ms.")
    cannot = [p.platform for p in places.places if not p.plan]
    if cannot:
        found.append(f"{', '.join(cannot)} cannot serve it as asked.")
    return found


def standing(front: Front) -> list[str]:
    """Where the plan stands on the front, and what its neighbours would bring."""
    p = front.chosen
    found = [
        f"{front.plan.planner}'s plan takes {number(p.bounded_ms)} ms{front.plan.at} and costs "
        f"${number(p.cost_usd_per_million)} per million requests."
    ]
    if front.on_front:
        found.append("No plan beats it in both.")
    elif front.dearer > 0:
        found.append(f"One as quick costs {front.dearer / (1 + front.dearer):.1%} less.")
    if front.said:
        found.append(f"{front.said[0].upper()}{front.said[1:]}.")
    if front.plan.lossy:
        found.append("The plan loses something, as its validation allows; the others here lose nothing.")
    for words, other in (("The next quicker plan", front.quicker), ("The next cheaper plan", front.cheaper)):
        if other:
            found.append(f"{words} {_beside(p, other)}.")
    return found


def _beside(p: Outline, other: Outline) -> str:
    """Another plan against the chosen one: how much quicker or slower, dearer or cheaper."""
    ms = other.bounded_ms - p.bounded_ms
    time = f"is {number(abs(ms))} ms {'quicker' if ms < 0 else 'slower'}"
    if not p.cost_usd_per_million:
        return time
    more = other.cost_usd_per_million / p.cost_usd_per_million - 1
    return f"{time} and {number(100 * abs(more))} % {'dearer' if more > 0 else 'cheaper'}"
