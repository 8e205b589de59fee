"""Which units may run on 8-bit integers: by the user's requests that are kept apart for fitting.

What a unit's products answer on integers depends on nothing but what they are given, wherever the slice is cut. So a
precision is judged of sets of units, not of slices, and any slice may be made of the units that may.

All of them together first, which often is within the bound. Else each alone, and then one after the other, the one
that does least to the output first, each if the bound holds with it. The planner chooses among these; what it chose is
judged on the requests that nothing was chosen by, and where that breaks the bound the worst quarter of it may no more.
So it ends, with none at the latest, and no plan is given that was not judged as it is.

Rejected: an error per unit and their sum as a bound, which no network is linear enough for; every set, of which there
are two to the power of units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lamella.plan.document import Plan
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.validation.judge import Judge, Span, Trial

DROPPED = 0.25
"""Of the units that a plan has on integers, where these together break the bound on the requests that judge."""


def admitted(judge: Judge, model: SliceModel) -> tuple[int, ...]:
    """Units whose products may run on 8-bit integers, those that do least to the output first.

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
    if apart.verdict(Trial((), spans_of(model, found))).kept:
        return tuple(found)
    alone = {k: apart.verdict(Trial((), spans_of(model, [k]))) for k in found}
    best = -1.0 if judge.metric.more_is_better else 1.0
    chosen: list[int] = []
    for k in sorted((k for k in found if alone[k].kept), key=lambda k: best * alone[k].value):
        if apart.verdict(Trial((), spans_of(model, [*chosen, k]))).kept:
            chosen.append(k)
    return tuple(chosen)


def spans_of(model: SliceModel, units: Iterable[int]) -> tuple[Span, ...]:
    """The operators of each unit."""
    return tuple(model.span(unit, unit + 1) for unit in sorted(units))


def chosen_units(plan: Plan, model: SliceModel) -> frozenset[int]:
    """Units that a plan has on 8-bit integers."""
    names = {name for function in plan.functions for name in function.int8}
    return frozenset(k for k, unit in enumerate(model.profile.units) if names.intersection(unit.int8))


def worst(units: Iterable[int], order: Sequence[int]) -> frozenset[int]:
    """The quarter of some units that does most to the output, at least one.

    Args:
        units: some of `order`.
        order: all that may, least first.
    """
    ranked = sorted(units, key=order.index)
    return frozenset(ranked[-math.ceil(DROPPED * len(ranked)) :])
