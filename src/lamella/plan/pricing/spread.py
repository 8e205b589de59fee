"""How far latencies spread: what a percentile of them is beyond their mean.

Functions vary independently, so their variances add: that of each unit's own time, stretched as CPU stretches the time;
the phase of a period that a request meets, where a quota holds a function below one vCPU; and what serving takes beyond
the work, which for a model of a fraction of a millisecond is most of it. A stage of shards was measured as a stage, so
that its slowest counts. What all functions of a request share evens out over no number of them: the machine's noise,
and how far a prediction is off, also since the machine drifts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from lamella.plan.choice import Choice
from lamella.plan.document import deviations
from lamella.plan.pricing.fan_out import stages
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.throttle import phase_deviation_ms
from lamella.profile.document import Variant
from lamella.profile.hops import P95

PREDICTION_ERROR = 0.04
"""Of the mean latency of plans, beside what the machine drifts: of 41 plans of a calm day (decision 21)."""


def variances(model: SliceModel, variant: Variant) -> np.ndarray:
    """Of each unit's own time, ms squared, from its median and 95th percentile, without what all units share.

    0 where the variant was not measured.
    """
    try:
        at = model.profile.variants.index(variant)
    except ValueError:
        return np.zeros(model.units)
    plainly = model.profile.variants.index(msgspec.structs.replace(variant, layout="plain"))
    held = model.quantised.units if variant.layout == "int8" else [True] * model.units
    found = [unit.times[at if own else plainly] for unit, own in zip(model.profile.units, held, strict=True)]
    times = np.array([t.behind(pause=model.platform.paused) for t in found])
    spread = (np.maximum(0.0, times[:, 1] - times[:, 0]) / P95) ** 2
    own: np.ndarray = np.maximum(0.0, spread - (model.profile.noise.common * times[:, 0]) ** 2)
    return own


def beside(model: SliceModel, run_ms: np.ndarray, vcpu: np.ndarray) -> np.ndarray:
    """Variance of runs beside that of the operators, ms squared: serving's, and a quota's phase."""
    phase_ms = phase_deviation_ms(run_ms, vcpu, model.platform.cpu.period_ms.value)
    found: np.ndarray = model.hops.cost.deviation_ms**2 + phase_ms**2
    return found


def variance_ms2(model: SliceModel, choice: Choice) -> float:
    """Variance of a slice's or a sharded stage's time, without what joins its parts, ms squared."""
    more = float(beside(model, np.array(choice.run_ms), np.array(choice.vcpu)))
    if choice.shards:
        return choice.deviation_ms**2 + more
    units = variances(model, Variant(model.batch, choice.layout, 1))[choice.first : choice.last]
    alone = model.compute_ms(choice.first, choice.last, layout=choice.layout, threads=1)
    return float(units.sum()) * (choice.run_ms / alone) ** 2 + more


def deviation_ms(model: SliceModel, choices: Sequence[Choice]) -> float:
    """Standard deviation of a plan's latency, ms, beside what its functions share."""
    joined = stages(choices) - len(choices)  # by functions of their own
    total = joined * model.hops.cost.deviation_ms**2
    return math.sqrt(total + sum(variance_ms2(model, choice) for choice in choices if choice.first < choice.last))


def common_spread(model: SliceModel) -> float:
    """Relative deviation that all functions of a request share, so that no number of them evens it out.

    The machine's own noise, which makes a whole request slow, by the rounds of the profile. And what predictions are
    off: much more where nothing of the model was run, or where the machine is not as fast in one minute as in the next.
    The two add up, since a plan that is slower than predicted is so for every request, and a percentile is promised
    with the confidence that it has itself.
    """
    predicted = model.profile.predicted
    error = max(PREDICTION_ERROR, predicted.error) if predicted else PREDICTION_ERROR
    return model.profile.noise.common + math.hypot(error, model.profile.noise.drift)


def stretch(model: SliceModel, percentile: float | None) -> float:
    """What a percentile makes of means by the deviation that all functions of a request share."""
    return 1 + deviations(percentile) * common_spread(model)


def bounded_ms(model: SliceModel, choices: Sequence[Choice], latency_ms: float, percentile: float | None) -> float:
    """A plan's latency at a percentile, by its mean, ms: what bounds are on."""
    beyond = deviations(percentile) * deviation_ms(model, choices) if percentile else 0.0
    return latency_ms * stretch(model, percentile) + beyond
