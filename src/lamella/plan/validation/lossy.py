"""What a plan loses, codecs of hops and precisions of units: the planner proposes it, the user's data disposes.

The planner first takes the quickest codec of every hop, whatever it loses. What the hops of its plan do to the output
is measured; where it breaks the bound, `select` finds codecs that keep it, the cuts of this plan are held to those, and
the planner is asked again, since another division may now be better. Each time at least one cut allows less, so it
ends, with nothing lossy at the latest. Only cuts that a plan wants are ever measured. Rejected: measuring each codec at
each cut beforehand, which takes a hundred runs over the data and still says nothing of two hops together.

Precisions come first (`validation.precision` says which units may), and hops are judged beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import msgspec

from lamella.codecs import is_fitted, lossless
from lamella.codecs.linear import Linear
from lamella.plan.document import FittedCodec, Hop, Loss, Plan, Tried, Validation
from lamella.plan.pricing.coding import Coding, channel_ms, coding_of
from lamella.plan.pricing.hops import Lossy
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.validation.judge import Coded, Judge, Span, Trial, Verdict
from lamella.plan.validation.precision import admitted, chosen_units, spans_of, worst
from lamella.profile.codecs import codec_result
from lamella.profile.document import CutProfile
from lamella.profile.fitting import RATIOS, activations, keep


class Option(NamedTuple):
    """A lossy codec of a hop that is quicker than every lossless one, by so much."""

    codec: str
    saved_ms: float


Chosen = tuple[str | None, ...]
"""A lossy codec for each hop, or none."""


def select(hops: Sequence[Sequence[Option]], keeps: Callable[[Chosen], bool]) -> Chosen:
    """Codecs for hops that keep the bound together.

    The best of all hops first, which often is within it. Else hop after hop, the one that saves most by a codec that
    keeps the bound alone first, each with the quickest that keeps it alone and beside those before it.

    The result keeps the bound, and each of its codecs keeps it alone. If less loss never breaks what more loss kept, no
    hop of it can be given a quicker codec; and it saves at least one nth of what the best combination of n hops would,
    which is no more than n times the best hop alone, with which the selection begins.

    Args:
        hops: the options of each, most saved first.
        keeps: whether a combination is within the bound.
    """
    best = tuple(options[0].codec if options else None for options in hops)
    nothing: Chosen = (None,) * len(hops)

    def alone(hop: int, option: Option) -> bool:
        return keeps(_with(nothing, hop, option.codec))

    if not any(best) or (keeps(best) and all(alone(k, o[0]) for k, o in enumerate(hops) if o)):
        return best
    kept = [next((o.saved_ms for o in options if alone(k, o)), 0.0) for k, options in enumerate(hops)]
    chosen = nothing
    for k in sorted(range(len(hops)), key=lambda k: -kept[k]):
        tries = (_with(chosen, k, o.codec) for o in hops[k] if o.saved_ms <= kept[k] and alone(k, o))
        chosen = next(filter(keeps, tries), chosen)
    return chosen


def _with(chosen: Chosen, hop: int, codec: str) -> Chosen:
    return (*chosen[:hop], codec, *chosen[hop + 1 :])


class _Place(NamedTuple):
    """A hop that may be lossy: its number in the plan, the unit behind it, what the stage before gives to others."""

    number: int
    unit: int
    position: int
    tensors: tuple[str, ...]


def judged(judge: Judge, model_of: Callable[[Lossy], SliceModel], plan_of: Callable[[SliceModel], Plan]) -> Plan:
    """The plan with every lossy codec that pays and that the user's data allow.

    Args:
        judge: by the user's data.
        model_of: prices slices, where hops may lose so much.
        plan_of: decides by them.

    Raises:
        ConfigError: the user's metric failed.
        InputRefused: the model cannot take one of the user's requests.
        InfeasiblePlan: there is no plan.
    """
    bare = model_of(Lossy())
    may = Lossy(allowed=_everything(bare), fitted={}, int8=frozenset(order := admitted(judge, bare)))
    if bare.platform.moves_bytes and bare.request.codec:  # in shared memory no byte saved is worth any work
        fitted = dict(_fitted(judge, bare))
        may = replace(
            may,
            allowed={u: names | {c.codec for c in fitted.get(u, ())} for u, names in may.allowed.items()},
            fitted=fitted,
        )
    tried: dict[Trial, Verdict] = {}
    while True:
        model = model_of(may)
        plan = plan_of(model)
        units = chosen_units(plan, model)
        int8 = spans_of(model, units)
        if units:
            tried[Trial((), int8)] = verdict = judge.verdict(Trial((), int8))
            if not verdict.kept:
                may = replace(may, int8=may.int8 - worst(units, order))
                continue
        places = list(_places(plan, model))
        options = [_options(model, place.unit, plan.hops[place.number].codec) for place in places]

        def keeps(chosen: Chosen, places: Sequence[_Place] = places, int8: tuple[Span, ...] = int8) -> bool:
            trial = _trial(places, chosen, int8)
            tried[trial] = judge.verdict(trial)
            return tried[trial].kept

        taken = select(options, keeps)
        if all(taken[k] == (o[0].codec if o else None) for k, o in enumerate(options)):
            break
        held = {p.unit: frozenset({c} if c else ()) for p, c in zip(places, taken, strict=True)}
        may = replace(may, allowed={**may.allowed, **held})
    for place, codec in zip(places, taken, strict=True):
        if codec:
            trial = _trial([place], (codec,), int8)
            tried[trial] = judge.verdict(trial)
    said = {p.unit: dict(_said(judge, tried, p, c)) for p, c in zip(places, taken, strict=True)}
    plan = plan_of(model_of(replace(may, said=said)))
    return _recorded(plan, judge, places, taken, int8, tried)


def _everything(model: SliceModel) -> dict[int, frozenset[str]]:
    """Every lossy codec that was measured, by unit."""
    return {unit: frozenset(c.codec for c in model.codings(unit) if not c.lossless) for unit in range(1, model.units)}


def _fitted(judge: Judge, model: SliceModel) -> Iterator[tuple[int, tuple[Coding, ...]]]:
    """The learned codec at each cut where the user's data give one, measured on a request of theirs."""
    names = {u: (*model.profile.cuts[u - 1].tensors, *model.profile.cuts[u - 1].side) for u in range(1, model.units)}
    crossing = dict.fromkeys(n for some in names.values() for n in some)
    bases = judge.bases(crossing, model.batch)
    if not bases:
        return
    (values,) = activations(model.graph, [n for n in crossing if n not in model.graph.inputs], judge.asked.fitted[:1])
    values |= judge.asked.fitted[0]
    for unit, crosses in names.items():
        if not any(n in bases for n in crosses):
            continue
        cut: CutProfile = model.profile.cuts[unit - 1]
        plain = codec_result("none", cut, values, model.batch)
        size = cut.bytes * model.batch
        found = []
        for ratio in RATIOS:
            codecs = judge.codecs(Coded(unit, f"pca-{ratio}", crosses))
            result = codec_result(f"pca-{ratio}", cut, values, model.batch, codecs)
            held = sum(c.parameters().nbytes for c in codecs.fitted.values() if isinstance(c, Linear))
            found.append(coding_of(result, plain, size, held))
        yield unit, tuple(found)


def _places(plan: Plan, model: SliceModel) -> Iterator[_Place]:
    """The hops that a lossy codec may serve: between two stages of one function each, with all that the first gives."""
    graph = plan.graph(model.graph)
    borders = [[graph.border(f.first, f.last) for f in stage] for stage in plan.by_stage()]
    read = {n for stage in borders for takes, _ in stage for n in takes}
    units = {frozenset((*c.tensors, *c.side)): u for u, c in enumerate(model.profile.cuts, 1)}
    for number, (hop, (before, after)) in enumerate(zip(plan.hops, pairwise(borders), strict=True)):
        unit = units.get(frozenset((*hop.tensors, *hop.side)))
        if unit is None or max(len(before), len(after)) > 1:
            continue
        gives = tuple(n for n in before[0][1] if n in read)
        yield _Place(number, unit, model.profile.units[unit].first, gives)


def _options(model: SliceModel, unit: int, planned: str) -> list[Option]:
    """The lossy codecs that may serve a hop, none where the plan has none there.

    The one that the plan has comes first, which a planner may have taken for its cost; then those that are quicker than
    what the hop has without, most saved first.
    """
    if lossless(planned):
        return []
    allowed = model.lossy.allowed.get(unit, frozenset())

    def time(coding: Coding) -> float:
        return channel_ms(coding, model.platform, model.hops.share)

    found = {c.codec: c for c in model.codings(unit)}
    without = min(time(c) for c in found.values() if c.lossless)
    others = [c for name, c in found.items() if name in allowed and name != planned and time(c) < without]
    quicker = [Option(c.codec, without - time(c)) for c in sorted(others, key=time)]
    saved_ms = max([without - time(found[planned]), *(o.saved_ms for o in quicker)])  # the first one, whatever it saves
    return [Option(planned, saved_ms), *quicker]


def _trial(places: Sequence[_Place], chosen: Chosen, int8: tuple[Span, ...]) -> Trial:
    return Trial(tuple(Coded(p.position, c, p.tensors) for p, c in zip(places, chosen, strict=True) if c), int8)


def _said(judge: Judge, tried: Mapping[Trial, Verdict], place: _Place, chosen: str | None) -> Iterator[tuple[str, str]]:
    """What the user's data say of the codecs of a hop that were judged alone."""
    for trial, verdict in tried.items():
        if len(trial.hops) == 1 and (trial.hops[0].position, trial.hops[0].tensors) == (place.position, place.tensors):
            codec = trial.hops[0].codec
            yield codec, _sentence(judge, verdict, codec == chosen)


def _sentence(judge: Judge, verdict: Verdict, chosen: bool) -> str:
    asked, metric = judge.asked, judge.metric
    measured = f"{verdict.value:{'.5g' if metric.more_is_better else '.2g'}}"
    if chosen:
        limit = f"{metric.limit} {asked.bound:g}"
        return f"{metric.name} {measured} of {limit} on {verdict.requests} requests of {asked.source}"
    value = f"and is lossy: its {metric.name} of {measured}"
    if verdict.kept:
        return f"{value} is within the bound of {asked.bound:g}, but not beside other hops"
    return f"{value} breaks the bound of {asked.bound:g}"


def _recorded(
    plan: Plan,
    judge: Judge,
    places: Sequence[_Place],
    chosen: Chosen,
    int8: tuple[Span, ...],
    tried: Mapping[Trial, Verdict],
) -> Plan:
    """The plan with what was measured."""
    hops: list[Hop] = list(plan.hops)
    fitted: dict[str, FittedCodec] = {}
    asked = judge.asked
    for place, name in zip(places, chosen, strict=True):
        if name is None:
            continue
        assert hops[place.number].codec == name, "what was judged is what is planned"
        loss = Loss(judge.metric.name, tried[_trial([place], (name,), int8)].value, asked.bound)
        hops[place.number] = msgspec.structs.replace(hops[place.number], loss=loss)
        if is_fitted(name):
            codecs = judge.codecs(Coded(place.position, name, place.tensors))
            for tensor, codec in codecs.fitted.items():
                assert isinstance(codec, Linear)
                components, channels = codec.components.shape
                fitted[tensor] = FittedCodec(tensor, name, channels, components, keep(codec))
    validation = Validation(
        data=asked.source,
        sha256=asked.sha256,
        metric=judge.metric.name,
        bound=asked.bound,
        more_is_better=judge.metric.more_is_better,
        requests=len(asked.judged),
        fitted_on=asked.fitted_source,
        fitted_requests=len(asked.fitted),
        measured=tried[_trial(places, chosen, int8)].value if any(chosen) or int8 else None,
        tried=tuple(
            Tried({c.position: c.codec for c in trial.hops}, *verdict, tuple(first for first, _ in trial.int8))
            for trial, verdict in tried.items()
        ),
        int8=tuple(name for f in plan.functions for name in f.int8),
    )
    return msgspec.structs.replace(plan, hops=tuple(hops), fitted=tuple(fitted.values()), validation=validation)
