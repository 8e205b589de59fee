"""What a slice takes, against sums by hand on synthetic profiles."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.plan.choice import Choice
from lamella.plan.pricing.predict import EDGE_MB, GRAPH_MB, SliceModel, throttled_ms
from lamella.platforms import platform
from lamella.profile.document import HopCost
from lamella.runtime.function import LOSSLESS, Layout
from lamella.units import MB
from tests.unit.plan.synthetic import (
    CHAINS,
    CORES,
    FLOOR_MB,
    PLATFORMS,
    SPEEDUP,
    VCPUS,
    Made,
    graph_of,
    model_of,
    profile_of,
)

LAYOUT = st.sampled_from(LOSSLESS)
THREE = (
    Made(time_ms=4.0, saving_ms=0.5, packed_mb=10.0, packed_speedup=2.0),
    Made(time_ms=6.0, saving_ms=0.25, packed_mb=10.0, packed_speedup=2.0),
    Made(time_ms=8.0, packed_mb=10.0, packed_speedup=2.0),
)


def spans(model: SliceModel) -> list[tuple[int, int]]:
    return list(combinations(range(model.units + 1), 2))


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


def test_larger_batches_scale_with_threads_as_one_row_does() -> None:
    graph = graph_of(THREE)
    profile = profile_of(graph, THREE)
    assert all(v.batch == 1 for v in profile.variants)
    model = model_of(THREE)
    half = model.compute_ms(0, 1, layout="plain", threads=2) / model.compute_ms(0, 1, layout="plain", threads=1)
    assert half == pytest.approx(1 / SPEEDUP[2])


def test_a_run_is_the_computation_and_the_call_stretched_by_the_share() -> None:
    hop = HopCost(0.1, 0.5, 0.2, 0.05)
    busy = 4.0 + 0.05
    model = model_of(THREE, hop=hop)
    assert model.run_ms(0, 1, layout="plain", vcpu=1.0) == pytest.approx(busy)
    assert model.run_ms(0, 1, layout="plain", vcpu=0.5) == throttled_ms(busy, 0.5, 100.0)
    assert model.run_ms(0, 1, layout="plain", vcpu=2.0) == pytest.approx(4.0 / SPEEDUP[2] + 0.05)
    # Two threads in one and a half vCPU: no faster than the share allows, no slower than one thread.
    assert 4.0 / SPEEDUP[2] <= model.run_ms(0, 1, layout="plain", vcpu=1.5) <= busy


@given(CHAINS, PLATFORMS)
def test_more_cpu_never_makes_a_run_slower(units: tuple[Made, ...], where: str) -> None:
    model = model_of(units, where)
    shares = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)
    for layout in LOSSLESS:
        runs = [model.run_ms(0, model.units, layout=layout, vcpu=v) for v in shares]
        # Under a quota whole microseconds are counted.
        assert all(later <= earlier + 1e-3 for earlier, later in pairwise(runs))


def test_memory_of_a_slice_by_hand() -> None:
    units = (
        Made(weights_mb=10, out_mb=1, live_mb=4, private_mb=2, load_extra_mb=6),
        Made(weights_mb=20, out_mb=3, live_mb=9, private_mb=5, load_extra_mb=90),
        Made(weights_mb=30, out_mb=2, live_mb=4, private_mb=2, load_extra_mb=6),
    )
    model = model_of(units)
    # Unit 1 alone: floor, weights, private, its live peak; but its load peak is higher.
    peak, law = model.memory_mb(1, 2, layout="plain")
    assert peak == pytest.approx(max(FLOOR_MB + 20 + 5 + 9, FLOOR_MB + 5 + 90) + EDGE_MB)
    assert law == pytest.approx(FLOOR_MB + 20 + 1 + 3)
    # All: sessions share what the smallest of them holds; unit 1 runs beside the request and the answer's buffers.
    peak, _ = model.memory_mb(0, 3, layout="plain")
    private = 2 + 0 + 3 + 0
    x = 1024 * 4 / MB
    assert peak == pytest.approx(max(FLOOR_MB + 60 + private + 9 + x + 2, FLOOR_MB + private + 90) + EDGE_MB)


@given(CHAINS, LAYOUT)
def test_law_4_counts_every_weight_in_full_and_all_live_activations(units: tuple[Made, ...], layout: Layout) -> None:
    model = model_of(units)
    for first, last in spans(model):
        peak, law = model.memory_mb(first, last, layout=layout)
        weights = sum(u.weights_mb for u in units[first:last])
        live = model.graph.live_bytes(first, last) / MB
        assert law >= FLOOR_MB + weights + live - 1e-3
        assert peak >= FLOOR_MB + weights - 1e-3


@given(CHAINS, PLATFORMS, VCPUS)
def test_no_choice_of_a_slice_beats_another_and_each_holds_its_need(
    units: tuple[Made, ...], where: str, vcpu: float
) -> None:
    model = model_of(units, where, vcpu=vcpu)
    rules = platform(where)
    for span in spans(model):
        found = model.choices(*span)
        for choice in found:
            assert choice.memory_mb >= max(choice.peak_mb, choice.floor_mb) - 1e-6
            assert rules.allocation_mb(choice.memory_mb) == choice.memory_mb
            assert choice.vcpu == rules.vcpu(choice.memory_mb, vcpu)
            assert choice.cost_usd == rules.cost_usd(choice.memory_mb, choice.run_ms, choice.vcpu)
            assert 1 <= choice.threads <= CORES
        assert not [(a, b) for a in found for b in found if a is not b and beats(a, b)]


def beats(a: Choice, b: Choice) -> bool:
    return a.run_ms <= b.run_ms and a.cost_usd <= b.cost_usd


@given(st.integers(128, 10240))
def test_sizes_tried_on_lambda_hold_the_need_and_buy_no_cpu_beyond_this_machine(need: int) -> None:
    sizes = model_of(THREE, "aws-lambda").sizes(need)
    assert sizes[0] == need
    assert sizes == sorted(set(sizes))
    assert all(need < size <= 1769 * CORES + 1 for size in sizes[1:])
    assert need >= 1769 or 1769 in sizes  # exactly one vCPU


def test_where_cpu_is_free_only_the_smallest_size_is_tried() -> None:
    assert model_of(THREE).sizes(208) == [208]


def test_a_slice_that_fits_no_size_has_no_choice() -> None:
    assert model_of((Made(weights_mb=20_000),)).choices(0, 1) == []


def test_a_slice_that_runs_beyond_the_timeout_has_no_choice() -> None:
    assert model_of((Made(time_ms=301_000),)).choices(0, 1) == []


def test_a_hop_is_what_was_measured_and_on_lambda_the_catalogue_s_besides() -> None:
    cut_mb = 3.0
    here = model_of((Made(out_mb=cut_mb), Made()), hop=HopCost(0.1, 0.5, 0.2, 0.05))
    assert here.hop(1)[0] == pytest.approx(0.2)
    assert here.hop(1)[1:] == (0.0, 3 * MB)
    there = model_of((Made(out_mb=cut_mb), Made()), "aws-lambda", hop=HopCost(0.1, 0.5, 0.2, 0.05))
    emulated = 31.6 + cut_mb * 4 / 3 / 90 * 1000
    assert there.hop(1)[0] == pytest.approx(emulated + 0.2)


def test_what_crosses_must_fit_the_payload_in_base64() -> None:
    for cut_mb, fits in ((4.5, True), (4.51, False)):
        assert model_of((Made(out_mb=cut_mb), Made()), "aws-lambda").fits_payload(1) is fits


def test_a_weight_that_is_read_blocked_and_plain_is_in_memory_twice() -> None:
    units = (Made(weights_mb=40.0), *[Made(weights_mb=40.0, blocked_speedup=2.0)] * 2)
    model = model_of(units)
    graph = model.graph
    tied = tuple(replace(op, weights=("w0",)) for op in graph.operators)
    tied_model = SliceModel(replace(graph, operators=tied), model.profile, model.platform, model.request)
    plain, blocked = (tied_model.memory_mb(0, 3, layout=way)[0] for way in ("plain", "blocked"))
    assert blocked - plain == pytest.approx(40.0)  # once plain for the first unit, once blocked for the other two
    pair = [tied_model.memory_mb(1, 3, layout=way)[0] for way in ("plain", "blocked")]
    assert pair[0] == pytest.approx(pair[1])


def test_a_package_ships_a_weight_twice_that_is_read_blocked_and_plain() -> None:
    units = (Made(weights_mb=300.0), Made(weights_mb=300.0, blocked_speedup=9.0))
    model = model_of(units, "azure-consumption")
    assert [model.more_mb(0, 2, way) for way in LOSSLESS] == [GRAPH_MB] * 3
    tied = replace(model.graph, operators=tuple(replace(op, weights=("w0",)) for op in model.graph.operators))
    twice = SliceModel(tied, model.profile, model.platform, model.request)
    assert [twice.more_mb(0, 2, way) for way in LOSSLESS] == [GRAPH_MB, GRAPH_MB, pytest.approx(300.0 + GRAPH_MB)]


def test_a_package_has_to_fit_with_its_graph() -> None:
    where = "azure-consumption"
    assert model_of((Made(weights_mb=1022.5),), where).choices(0, 1)
    assert not model_of((Made(weights_mb=1023.5),), where).choices(0, 1)


def test_on_integers_only_units_that_may_change() -> None:
    """Time, memory and package of a slice by hand: three units, of which the last may not."""
    made = Made(weights_mb=40.0, time_ms=8.0, int8_speedup=4.0, saving_ms=0.0)
    model = model_of((made, replace(made, admitted=False), replace(made, int8_speedup=0.0)))
    assert model.compute_ms(0, 3, layout="int8", threads=1) == pytest.approx(8.0 / 4 + 8.0 + 8.0)
    assert model.int8(0, 3) == ("t0",)
    assert model.more_mb(0, 3, "int8") == pytest.approx(GRAPH_MB - 30.0)
    (peak, law), (plain_peak, plain_law) = (model.memory_mb(0, 3, layout=way) for way in ("int8", "plain"))
    assert plain_peak - peak == pytest.approx(30.0)
    assert plain_law - law == pytest.approx(30.0)
    assert "int8" in model.layouts_of(0, 2)
    assert "int8" not in model.layouts_of(1, 3)
    assert "int8" not in SliceModel(model.graph, model.profile, model.platform).layouts
