"""What was found, in a sentence or three; and the command that found it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lamella.compare.record import Comparison, PlanRecord
from lamella.compare.table import money
from lamella.report.scales import number

BASELINES = ("ort", "ort-default", "single")
"""What others do: the finding is told against these."""
SAME_LATENCY = 0.0005


def cheapest(record: Comparison) -> PlanRecord:
    """The plan whose mean cost is the least."""
    return min(record.plans, key=lambda p: p.cost_usd_per_million)


def alone_cheapest(record: Comparison) -> bool:
    """Whether every other plan costs more beyond the noise."""
    best = cheapest(record)
    return all(clearly_cheaper(best, p) for p in record.plans if p is not best)


def finding(record: Comparison) -> list[str]:
    """What the comparison says, as sentences. One plan beats another only beyond their 95 % intervals."""
    best = cheapest(record)
    others = [p for p in record.plans if p is not best]
    if not others:
        return [
            f"{best.planner} costs ${money(best.cost_usd_per_million)} per million requests; nothing to compare with."
        ]
    equal = [p for p in others if not clearly_cheaper(best, p)]
    beaten = [p for p in others if p not in equal]
    return [s for s in (_first(best, equal), _against(best, _told(beaten)), _latency(best, others)) if s]


def clearly_cheaper(one: PlanRecord, other: PlanRecord) -> bool:
    """Whether the intervals of their costs are apart."""
    return one.cost_high < other.cost_low


def _first(best: PlanRecord, equal: Sequence[PlanRecord]) -> str:
    count = len(best.functions)
    price = f"${money(best.cost_usd_per_million)} per million requests"
    if not equal:
        if count == 1:
            return f"One function is cheapest: {best.planner}, {price}."
        return f"{best.planner} is cheapest: {count} functions, {price}."
    names = _list([best.planner, *(p.planner for p in equal)])
    many = "none of them is" if len(equal) > 1 else "neither is"
    return f"{names} cost the same within their noise, {price}: {many} cheaper."


def _told(beaten: Sequence[PlanRecord]) -> list[PlanRecord]:
    """The baselines among them; all of them where none is."""
    return [p for p in beaten if p.planner in BASELINES] or list(beaten)


def _against(best: PlanRecord, beaten: Sequence[PlanRecord]) -> str:
    if not beaten or not best.cost_usd_per_million:
        return ""
    times = [f"{p.cost_usd_per_million / best.cost_usd_per_million:.2f} times less than {p.planner}" for p in beaten]
    return f"{best.planner} costs {_list(times)}."


def _latency(best: PlanRecord, others: Sequence[PlanRecord]) -> str:
    against = next((p for p in others if p.planner == "single"), next(iter(_told(others))))
    change = best.latency_ms.p50 / against.latency_ms.p50 - 1
    if abs(change) < SAME_LATENCY:
        return f"Its median latency is that of {against.planner}, {number(best.latency_ms.p50)} ms."
    apart = (
        best.latency_ms.p50_high < against.latency_ms.p50_low or against.latency_ms.p50_high < best.latency_ms.p50_low
    )
    within = "" if apart else ", which is within the noise"
    word = "longer" if change > 0 else "shorter"
    return (
        f"The median latency of {best.planner} is {number(best.latency_ms.p50)} ms, {abs(change):.1%} {word} than "
        f"that of {against.planner}{within}."
    )


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def command(record: Comparison) -> str:
    """The command that measured it, for a shell; empty where none is known."""
    return shlex.join(("lamella", *record.command)) if record.command else ""
