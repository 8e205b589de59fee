"""What a slice takes, against sums by hand on synthetic profiles."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.graph.model import Tensor
from lamella.plan.choice import Choice
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.throttle import throttled_ms
from lamella.platforms import platform
from lamella.profile.document import HopCost
from lamella.runtime.function import LOSSLESS
from lamella.units import MB
from tests.unit.plan.synthetic import CHAINS, CORES, PLATFORMS, SPEEDUP, THREE, VCPUS, Made, model_of, spans

TINY = Tensor("y", "float32", (1, 1))


def run(model: SliceModel, first: int, last: int) -> float:
    return model.run_ms(first, last, layout="plain", vcpu=1.0)


def beats(a: Choice, b: Choice) -> bool:
    return a.run_ms <= b.run_ms and a.cost_usd <= b.cost_usd


def test_a_run_is_the_computation_and_the_call_stretched_by_the_share() -> None:
    hop = HopCost(0.1, 0.5, 0.2, 0.05)
    busy = 4.0 + 0.05
    model = model_of(THREE, hop=hop)
    assert model.run_ms(0, 1, layout="plain", vcpu=1.0) == pytest.approx(busy)
    assert model.run_ms(0, 1, layout="plain", vcpu=0.5) == throttled_ms(busy, 0.5, 100.0)
    assert model.run_ms(0, 1, layout="plain", vcpu=2.0) == pytest.approx(4.0 / SPEEDUP[2] + 0.05)
    # Two threads in one and a half vCPU: no faster than the share allows, no slower than one thread.
    assert 4.0 / SPEEDUP[2] <= model.run_ms(0, 1, layout="plain", vcpu=1.5) <= busy


def test_every_tensor_of_a_request_beyond_the_first_has_its_price() -> None:
    hop = HopCost(0.1, 0.5, 0.2, 0.05, entry_tensor_ms=0.01, call_tensor_ms=0.003)
    one = model_of(THREE, hop=hop)
    inputs = ("x", "y", "z")
    graph = replace(one.graph, inputs=inputs, tensors={**one.graph.tensors, **dict.fromkeys("yz", TINY)})
    three = SliceModel(graph, one.profile, one.platform)
    assert three.entry_ms == pytest.approx(one.entry_ms + 2 * 0.01, abs=1e-4)
    assert run(three, 0, 1) == pytest.approx(run(one, 0, 1) + 2 * 0.003)
    assert run(three, 1, 3) == run(one, 1, 3)  # it takes nothing of the request


@given(CHAINS, PLATFORMS)
def test_more_cpu_never_makes_a_run_slower(units: tuple[Made, ...], where: str) -> None:
    model = model_of(units, where)
    shares = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)
    for layout in LOSSLESS:
        runs = [model.run_ms(0, model.units, layout=layout, vcpu=v) for v in shares]
        # Under a quota whole microseconds are counted.
        assert all(later <= earlier + 1e-3 for earlier, later in pairwise(runs))


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
            assert rules.allocation_mb(choice.memory_mb, 1.0) == choice.memory_mb
            assert choice.vcpu == rules.vcpu(choice.memory_mb, vcpu)
            assert choice.cost_usd == rules.cost_usd(choice.memory_mb, choice.run_ms, choice.vcpu)
            assert 1 <= choice.threads <= CORES
        assert not [(a, b) for a in found for b in found if a is not b and beats(a, b)]


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
    assert model_of((Made(weights_mb=20_000),)).choices(0, 1) == ()


def test_a_slice_that_runs_beyond_the_timeout_has_no_choice() -> None:
    assert model_of((Made(time_ms=301_000),)).choices(0, 1) == ()


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


def test_a_package_has_to_fit_with_its_graph() -> None:
    where = "azure-consumption"
    assert model_of((Made(weights_mb=1022.5),), where).choices(0, 1)
    assert not model_of((Made(weights_mb=1023.5),), where).choices(0, 1)
