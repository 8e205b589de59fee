"""Memory of slices and packages, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.plan.pricing.memory import EDGE_MB, GRAPH_MB
from lamella.plan.pricing.predict import SliceModel
from lamella.runtime.function import LOSSLESS, Layout
from lamella.units import MB
from tests.unit.plan.synthetic import CHAINS, FLOOR_MB, Made, model_of, spans

LAYOUT = st.sampled_from(LOSSLESS)


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
