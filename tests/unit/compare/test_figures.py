"""Intervals, differences and used memory-time, by hand."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.compare.measures import plan_slowdown, used_memory_time
from lamella.compare.rounds import interval
from lamella.plan.make import make_plan
from lamella.plan.validation.metrics import difference
from lamella.platforms import platform
from lamella.profile.document import Pace, Timing, Variant
from lamella.units import MB
from tests.unit.plan.synthetic import FLOOR_MB, Made, graph_of, profile_of

VALUES = st.lists(st.floats(1, 1000), min_size=1, max_size=12)


@given(VALUES)
def test_an_interval_lies_within_the_values_and_below_three_rounds_is_the_value(values: list[float]) -> None:
    low, high = interval([[v] for v in values], mean)
    assert min(values) * (1 - 1e-9) <= low <= high <= max(values) * (1 + 1e-9)
    if len(values) < 3:
        assert low == high == mean(np.array(values))


def mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def test_an_interval_narrows_with_more_rounds_and_is_the_same_each_time() -> None:
    few = interval([[9.0, 9.0], [10.0], [11.0]] * 2, mean)
    many = interval([[9.0, 9.0], [10.0], [11.0]] * 20, mean)
    assert many[1] - many[0] < few[1] - few[0]
    assert many[0] < 9.75 < many[1]
    assert interval([[9.0, 9.0], [10.0], [11.0]] * 2, mean) == few


def test_rounds_all_alike_have_no_width() -> None:
    assert interval([[7.0]] * 5, mean) == (7.0, 7.0)


def test_a_difference_is_absolute_and_relative_to_the_range_of_what_is_wanted() -> None:
    want = np.array([0.0, 2.0, 4.0], np.float32)
    assert difference(want, want) == (0.0, 0.0)
    assert difference(want, want + np.float32(1)) == (1.0, 0.25)


def test_a_constant_output_is_judged_by_its_size_and_zeros_by_one() -> None:
    assert difference(np.full(3, 4.0), np.full(3, 5.0)) == (1.0, 0.25)
    assert difference(np.zeros(3), np.full(3, 0.5)) == (0.5, 0.5)


def test_another_shape_is_infinitely_different_and_nothing_equals_nothing() -> None:
    assert difference(np.zeros(3), np.zeros(4)) == (np.inf, np.inf)
    assert difference(np.zeros((0, 2)), np.zeros((0, 2))) == (0.0, 0.0)


def test_a_nan_where_a_number_is_wanted_is_not_small() -> None:
    absolute, relative = difference(np.array([1.0, 2.0]), np.array([1.0, np.nan]))
    assert not absolute < 1e-4
    assert not relative < 1e-4


def test_integers_and_booleans_are_compared_too() -> None:
    assert difference(np.array([1, 5]), np.array([1, 3])) == (2.0, 0.5)
    assert difference(np.array([True, False]), np.array([True, True])) == (1.0, 1.0)


def test_used_memory_time_is_what_each_unit_holds_while_it_runs() -> None:
    units = (
        Made(weights_mb=10, out_mb=1, time_ms=30),
        Made(weights_mb=20, out_mb=3, time_ms=10),
        Made(weights_mb=40, out_mb=2, time_ms=20),
    )
    graph = graph_of(units)
    profile = profile_of(graph, units)
    plan = make_plan(graph, profile, platform("openfaas"), "uniform-3", given="x")
    x = 1024 * 4 / MB
    held = [10 + x + 1, 20 + 1 + 3, 40 + 3 + 2]
    # Stages of 60, 10 and 20 ms.
    whole, bare = used_memory_time(plan, graph, profile, np.array([60.0, 10.0, 20.0]))
    assert bare == pytest.approx(held[0] * 0.060 + held[1] * 0.010 + held[2] * 0.020)
    assert whole == pytest.approx(bare + FLOOR_MB * 0.090)
    # As one function of 120 ms, shared among its units as they were measured: 60, 20 and 40 ms.
    alone = make_plan(graph, profile, platform("openfaas"), "single", given="x")
    whole, bare = used_memory_time(alone, graph, profile, np.array([120.0]))
    assert bare == pytest.approx(held[0] * 0.060 + held[1] * 0.020 + held[2] * 0.040)
    assert whole == pytest.approx(bare + FLOOR_MB * 0.120)


def test_used_memory_time_of_a_batch_is_of_its_own_tensors_and_times() -> None:
    units = (Made(weights_mb=10, out_mb=1, time_ms=30), Made(weights_mb=20, out_mb=3, time_ms=30))
    graph = graph_of(units)
    profile = profile_of(graph, units)
    plan = msgspec.structs.replace(make_plan(graph, profile, platform("openfaas"), "single", given="x"), batch=4)
    # Of four rows the second unit takes thrice the first's time; that was measured before batch 1 was.
    profile = msgspec.structs.replace(
        profile,
        units=tuple(
            msgspec.structs.replace(u, times=(Timing(Variant(4, "plain", 1), ms, ms), *u.times))
            for u, ms in zip(profile.units, (30.0, 90.0), strict=True)
        ),
    )
    x = 1024 * 4 / MB
    held = [10 + 4 * (x + 1), 20 + 4 * (1 + 3)]
    assert used_memory_time(plan, graph, profile, np.array([120.0]))[1] == pytest.approx(
        held[0] * 0.030 + held[1] * 0.090
    )
    alone = msgspec.structs.replace(plan, batch=1)
    held = [10 + x + 1, 20 + 1 + 3]
    assert used_memory_time(alone, graph, profile, np.array([120.0]))[1] == pytest.approx(sum(held) * 0.060)


def test_used_memory_time_counts_weights_on_integers_as_those() -> None:
    units = (Made(weights_mb=40, time_ms=30, int8_speedup=2.0), Made(weights_mb=20, time_ms=30, int8_speedup=2.0))
    graph = graph_of(units)
    profile = profile_of(graph, units)
    plan = make_plan(graph, profile, platform("openfaas"), "single", given="x")
    function = msgspec.structs.replace(plan.functions[0], layout="int8", int8=("t0",))
    integers = msgspec.structs.replace(plan, functions=(function,))
    plain, fewer = (used_memory_time(p, graph, profile, np.array([120.0]))[1] for p in (plan, integers))
    assert plain - fewer == pytest.approx(30 * 0.060)  # of the first unit, for half the time


def test_a_plan_takes_as_much_longer_as_its_operators_and_what_serves_it() -> None:
    units = (Made(weights_mb=1, time_ms=5), Made(weights_mb=1, time_ms=3))
    graph = graph_of(units)
    usual = Pace(4.0, 10.0, 1.0)
    profile = msgspec.structs.replace(profile_of(graph, units), pace=usual)
    hop = msgspec.structs.replace(profile.hop, cold_mb=1e9)  # nothing touches so much: serving stays in caches
    profile = msgspec.structs.replace(profile, hop=hop)
    rules = platform("openfaas")
    plan = make_plan(graph, profile, rules, "single", given="x")
    latency, run = plan.predicted.latency_ms, plan.functions[0].run_ms
    assert 0 < run < latency
    slow = plan_slowdown(plan, 0.0, Pace(5.0, 99.0, 2.0), graph, profile, rules)
    assert slow == pytest.approx((1.25 * run + 2 * (latency - run)) / latency)
    added = latency - run  # by a channel that is emulated
    slow = plan_slowdown(plan, added, Pace(5.0, 99.0, 2.0), graph, profile, rules)
    assert slow == pytest.approx((1.25 * run + added) / latency)
    assert plan_slowdown(plan, 0.0, usual, graph, profile, rules) == 1
    unpaced = msgspec.structs.replace(profile, pace=None)
    assert plan_slowdown(plan, 0.0, Pace(5.0, 99.0, 2.0), graph, unpaced, rules) is None


def test_shards_side_by_side_count_as_long_as_the_last_and_a_wait_for_a_channel_at_no_pace() -> None:
    units = (Made(weights_mb=1, time_ms=5), Made(weights_mb=1, time_ms=3))
    graph = graph_of(units)
    usual = Pace(4.0, 10.0, 1.0)
    profile = msgspec.structs.replace(profile_of(graph, units), pace=usual)
    rules = platform("aws-lambda-2021")
    plan = make_plan(graph, profile, rules, "uniform-2", given="x")
    added = sum(rules.through(h.channel).hop_ms(h.encoded_bytes) for h in plan.hops)
    waits = added if rules.through(plan.hops[0].channel).hop.billed else 0.0
    assert waits > 0  # half of it at either side of the hop, billed
    runs = sum(f.run_ms for f in plan.functions) - waits
    slow = plan_slowdown(plan, added, Pace(8.0, 10.0, 1.0), graph, profile, rules)
    assert slow == pytest.approx((plan.predicted.latency_ms + runs) / plan.predicted.latency_ms)
    together = msgspec.structs.replace(
        plan, functions=tuple(msgspec.structs.replace(f, stage=0) for f in plan.functions), hops=()
    )
    for many, held in ((1, sum), (2, max)):
        at_once = msgspec.structs.replace(together, at_once=(many,))
        slow = plan_slowdown(at_once, 0.0, Pace(8.0, 10.0, 1.0), graph, profile, rules)
        assert slow is not None
        assert slow - 1 == pytest.approx(held(f.run_ms for f in plan.functions) / plan.predicted.latency_ms, rel=0.02)
