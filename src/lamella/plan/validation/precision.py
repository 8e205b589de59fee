"""Which units may run on 8-bit integers: by the user's requests that are kept apart for fitting.

What a unit's products answer on integers depends on nothing but what they are given, wherever the slice is cut. So a
precision is judged of sets of units, not of slices, and any slice may be made of the units that may.

All of them together first, which often is within the bound. A set that is not is halved: the half that does less to the
output first, then what of the other half keeps the bound beside it, down to single units. So one unit that spoils it
among n is found with about 2 log n judgements, and their number is bounded. The planner chooses among what is left;
what it chose is judged on the requests that nothing was chosen by, and where that breaks the bound the worst quarter of
it may no more. So it ends, with none at the latest, and no plan is given that was not judged as it is.

Rejected: each unit alone and then one after the other, which takes two judgements per unit, minutes for a transformer,
to rank units that mostly go in by dozens; an error per unit and their sum as a bound, which no network is linear enough
for; every set, of which there are two to the power of units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from lamella.plan.document import Plan
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.validation.judge import Judge, Span, Trial, Verdict

MOST_JUDGED = 64
"""Sets of units that are judged before planning; what is undecided then keeps its precision."""
DROPPED = 0.25
"""Of the units that a plan has on integers, where these together break the bound on the requests that judge."""


def admitted(judge: Judge, model: SliceModel) -> tuple[int, ...]:
    """Units whose products may run on 8-bit integers, as `within` finds them.

    Args:
        judge: by the user's data; those kept apart for fitting are what is looked at here.
        model: of the plan, nothing lost.

    Raises:
        ConfigError: the user's metric failed.
        InputRefused: the model cannot take one of the user's requests.
    """
    found = [k for k, unit in enumerate(model.profile.units) if unit.int8]
    if not found:
        return ()
    apart = Judge(judge.graph, replace(judge.asked, judged=judge.asked.fitted, source=judge.asked.fitted_source))

    def verdict(units: Iterable[int]) -> Verdict:
        return apart.verdict(Trial((), spans_of(model, units)))

    return within(found, verdict, more_is_better=judge.metric.more_is_better)


def within(
    units: Sequence[int],
    verdict: Callable[[Iterable[int]], Verdict],
    *,
    more_is_better: bool,
    most: int = MOST_JUDGED,
) -> tuple[int, ...]:
    """Units that keep the bound together; of sets that do not, what does less to the output goes in first.

    If less never breaks what more kept, and judgements do not run out, no other unit keeps the bound beside them.

    Args:
        units: at least one.
        verdict: what some of them do together.
        more_is_better: of what it measures.
        most: so many sets are judged.
    """
    seen: dict[frozenset[int], Verdict] = {}

    def look(group: tuple[int, ...], beside: tuple[int, ...]) -> Verdict | None:
        key = frozenset((*beside, *group))
        if key not in seen and len(seen) < most:
            seen[key] = verdict(key)
        return seen.get(key)

    def harm(group: tuple[int, ...], beside: tuple[int, ...]) -> float:
        found = look(group, beside)
        if found is None:
            return math.inf
        return -found.value if more_is_better else found.value

    def admit(group: tuple[int, ...], beside: tuple[int, ...]) -> tuple[int, ...]:
        found = look(group, beside)
        if found and found.kept:
            return group
        if not found or len(group) == 1:
            return ()
        middle = len(group) // 2
        first, other = sorted((group[:middle], group[middle:]), key=lambda half: harm(half, beside))
        taken = admit(first, beside)
        return taken + admit(other, (*beside, *taken))

    return admit(tuple(units), ())


def spans_of(model: SliceModel, units: Iterable[int]) -> tuple[Span, ...]:
    """The operators of each unit."""
    return tuple(model.span(unit, unit + 1) for unit in sorted(units))


def chosen_units(plan: Plan, model: SliceModel) -> frozenset[int]:
    """Units that a plan has on 8-bit integers."""
    names = {name for function in plan.functions for name in function.int8}
    return frozenset(k for k, unit in enumerate(model.profile.units) if names.intersection(unit.int8))


def worst(units: Iterable[int], order: Sequence[int]) -> frozenset[int]:
    """The quarter of some units that went in last, at least one: what does more to the output, as far as is known.

    Args:
        units: some of `order`.
        order: all that may, as they went in.
    """
    ranked = sorted(units, key=order.index)
    return frozenset(ranked[-math.ceil(DROPPED * len(ranked)) :])
