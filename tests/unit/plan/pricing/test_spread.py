"""How far latencies spread, against a simulation and against arithmetic by hand."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from lamella.graph.divide import ShardSpan
from lamella.plan.pricing.fan_out import sharded
from lamella.plan.pricing.spread import PREDICTION_ERROR, beside, common_spread, deviation_ms, variance_ms2, variances
from lamella.plan.pricing.throttle import phase_deviation_ms
from lamella.profile.document import Noise, ShardPart, ShardProfile, Variant
from lamella.profile.quiet import Load
from tests.unit.plan.pricing.test_shards import HEAVY, sharded_model
from tests.unit.plan.synthetic import SERVING_MS, Made, model_of

SPAN = ShardSpan(1, 2, 2, "channels")


def test_a_quota_spreads_what_it_holds_back_and_nothing_else() -> None:
    model = model_of((Made(time_ms=5.0),), "aws-lambda")
    period = model.platform.cpu.period_ms.value
    run_ms, vcpu = np.array([0.4 * period, 50.0, 50.0, 50.0]), np.array([0.5, 0.5, 0.8, 1.0])
    held = phase_deviation_ms(run_ms, vcpu, period)
    assert ((held > 0) == [False, True, True, False]).all()
    assert beside(model, run_ms, vcpu) == pytest.approx(SERVING_MS**2 + held**2)


def test_variances_of_functions_add_and_serving_is_in_each() -> None:
    model = model_of((Made(time_ms=5.0, spread=0.1), Made(time_ms=7.0)))
    one, two = (min(model.choices(u, u + 1), key=lambda c: c.layout != "plain") for u in (0, 1))
    assert variance_ms2(model, two) == pytest.approx(SERVING_MS**2)
    assert variance_ms2(model, one) > SERVING_MS**2
    assert deviation_ms(model, [one, two]) ** 2 == pytest.approx(variance_ms2(model, one) + variance_ms2(model, two))


def test_a_stage_of_shards_spreads_as_it_was_measured_to_and_its_join_as_a_function_does() -> None:
    found = ShardProfile(1, 3, SPAN, 1, 1, (ShardPart(4.0, 60.0, 10.0),) * 2, 9.0, 0.0, 0.0, deviation_ms=1.5)
    model = sharded_model(HEAVY, [found])
    (stage,) = sharded(model, 1, 3)
    assert stage.deviation_ms == pytest.approx(1.5 * stage.run_ms / 9.0)
    assert variance_ms2(model, stage) == pytest.approx(stage.deviation_ms**2 + SERVING_MS**2)
    alone = deviation_ms(model, [stage])  # nobody comes behind to join its parts
    assert alone**2 == pytest.approx(stage.deviation_ms**2 + 2 * SERVING_MS**2)


def test_what_all_functions_share_is_the_machine_s_noise_and_what_predictions_are_off() -> None:
    model = model_of((Made(),))
    quiet = common_spread(model)
    model.profile = msgspec.structs.replace(model.profile, noise=Noise.of([Load(1.0, 1.0), Load(1.2, 1.0)]))
    assert common_spread(model) == pytest.approx(0.05 + quiet)


def test_what_rounds_share_is_no_unit_s_own() -> None:
    model = model_of((Made(spread=0.1), Made()))
    variant = Variant(1, "plain", 1)
    before = variances(model, variant)
    noise = msgspec.structs.replace(model.profile.noise, common=0.01)
    model.profile = msgspec.structs.replace(model.profile, noise=noise)
    times = np.array([unit.times[0].median_ms for unit in model.profile.units])
    after = variances(model, variant)
    assert after[0] == pytest.approx(before[0] - (0.01 * times[0]) ** 2)
    assert 0 < after[0] < before[0]
    assert after[1] == before[1] == 0


def test_a_machine_that_drifts_is_off_by_as_much() -> None:
    model = model_of((Made(),))
    noise = msgspec.structs.replace(model.profile.noise, common=0.02, drift=0.03)
    model.profile = msgspec.structs.replace(model.profile, noise=noise)
    assert common_spread(model) == pytest.approx(0.02 + np.hypot(PREDICTION_ERROR, 0.03))
