"""Time of operators, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.spread import variances
from lamella.platforms import platform
from lamella.profile.document import Variant
from lamella.runtime.function import LOSSLESS, Layout
from tests.unit.plan.synthetic import CHAINS, SPEEDUP, THREE, Made, graph_of, model_of, profile_of, spans

LAYOUT = st.sampled_from(LOSSLESS)


def test_a_slice_takes_its_units_less_the_savings_at_inner_cuts() -> None:
    model = model_of(THREE)
    assert model.compute_ms(0, 3, layout="plain", threads=1) == pytest.approx(4 + 6 + 8 - 0.5 - 0.25)
    assert model.compute_ms(0, 2, layout="plain", threads=1) == pytest.approx(4 + 6 - 0.5)
    assert model.compute_ms(1, 2, layout="plain", threads=1) == pytest.approx(6)
    assert model.compute_ms(1, 3, layout="prepacked", threads=1) == pytest.approx(3 + 4 - 0.25)
    assert model.compute_ms(1, 3, layout="prepacked", threads=2) == pytest.approx((3 + 4) / SPEEDUP[2] - 0.25)


@given(CHAINS, LAYOUT, st.sampled_from([1, 2]))
def test_compute_time_is_the_sum_by_hand(units: tuple[Made, ...], layout: Layout, threads: int) -> None:
    model = model_of(units)
    times = []
    for unit in units:
        off, on = unit.time_ms / SPEEDUP[threads], unit.time_ms / SPEEDUP[threads] / unit.packed_speedup
        if unit.packed_mb == 0:  # the same thing measured twice: its mean
            off = on = (off + on) / 2
        blocked = unit.time_ms / SPEEDUP[threads] / unit.blocked_speedup if unit.blocked_speedup else off
        times.append({"plain": off, "prepacked": on, "blocked": blocked}[layout])
    for first, last in spans(model):
        saved = sum(max(0.0, u.saving_ms) for u in units[first : last - 1])
        want = max(0.001, sum(times[first:last]) - saved)
        assert model.compute_ms(first, last, layout=layout, threads=threads) == pytest.approx(want)


def test_threads_that_use_more_cpu_together_are_held_back_by_a_quota_that_covers_one_alone() -> None:
    idle, waiting = (model_of((Made(time_ms=600.0, more_cpu=more),), vcpu=1.7) for more in (1.0, 1.5))
    assert (idle.times.more_cpu(1), idle.times.more_cpu(2), waiting.times.more_cpu(2)) == (1.0, 1.0, 1.5)
    free, held = (model.run_ms(0, 1, layout="plain", vcpu=1.7) for model in (idle, waiting))
    assert free == pytest.approx(600 / SPEEDUP[2], abs=3)  # 1.6 cores are busy
    assert free < held < 600  # one thread would do as well
    quickest = idle.run_ms(0, 1, layout="plain", vcpu=2.0)
    assert waiting.run_ms(0, 1, layout="plain", vcpu=2.0) == quickest


def test_cpu_time_that_was_not_measured_is_that_of_one_thread() -> None:
    graph = graph_of(THREE)
    made = profile_of(graph, THREE)
    unknown = replace(
        made, units=tuple(replace(u, times=tuple(replace(t, cpu_ms=None) for t in u.times)) for u in made.units)
    )
    assert SliceModel(graph, unknown, platform("openfaas")).times.more_cpu(2) == 1.0


def test_behind_a_pause_units_take_what_was_measured_so_where_requests_come_one_by_one() -> None:
    graph = graph_of(THREE)
    made = profile_of(graph, THREE)
    paused = replace(
        made,
        units=tuple(
            replace(u, times=tuple(replace(t, paused_ms=t.median_ms + 1, paused_p95_ms=t.p95_ms + 3) for t in u.times))
            for u in made.units
        ),
    )
    one_by_one, at_once = (SliceModel(graph, paused, platform(name)) for name in ("aws-lambda", "openfaas"))
    alone = at_once.compute_ms(0, 3, layout="plain", threads=1)
    assert one_by_one.compute_ms(0, 3, layout="plain", threads=1) == pytest.approx(alone + 3)
    variant = Variant(1, "plain", 1)
    assert (variances(one_by_one, variant) > variances(at_once, variant)).all()
    assert at_once.compute_ms(0, 3, layout="plain", threads=1) == model_of(THREE).compute_ms(
        0, 3, layout="plain", threads=1
    )


def test_larger_batches_scale_with_threads_as_one_row_does() -> None:
    graph = graph_of(THREE)
    profile = profile_of(graph, THREE)
    assert all(v.batch == 1 for v in profile.variants)
    model = model_of(THREE)
    half = model.compute_ms(0, 1, layout="plain", threads=2) / model.compute_ms(0, 1, layout="plain", threads=1)
    assert half == pytest.approx(1 / SPEEDUP[2])
