"""Slices in the layout int8: which of their units are, and what that takes, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella.plan.choice import Choice
from lamella.plan.pricing.cold import starts
from lamella.plan.pricing.memory import GRAPH_MB
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from tests.unit.plan.synthetic import Made, model_of

MADE = Made(weights_mb=40.0, time_ms=8.0, int8_speedup=4.0, saving_ms=0.0)


def test_on_integers_only_units_that_may_change() -> None:
    """Time, memory and package of a slice: three units, of which the second may not and the third cannot."""
    model = model_of((MADE, replace(MADE, admitted=False), replace(MADE, int8_speedup=0.0)))
    assert model.compute_ms(0, 3, layout="int8", threads=1) == pytest.approx(8.0 / 4 + 8.0 + 8.0)
    assert model.quantised.units == [True, False, False]
    assert model.quantised.products(0, 3) == ("t0",)
    assert model.more_mb(0, 3, "int8") == pytest.approx(GRAPH_MB - 30.0)
    (peak, law), (plain_peak, plain_law) = (model.memory_mb(0, 3, layout=way) for way in ("int8", "plain"))
    assert plain_peak - peak == pytest.approx(30.0)
    assert plain_law - law == pytest.approx(30.0)
    assert "int8" in model.layouts_of(0, 2)
    assert "int8" not in model.layouts_of(1, 3)
    assert "int8" not in SliceModel(model.graph, model.profile, model.platform).layouts


def test_a_weight_that_two_units_have_on_integers_is_held_once_and_one_that_either_has_otherwise_twice() -> None:
    def tied(units: tuple[Made, ...]) -> SliceModel:
        model = model_of(units)
        same = tuple(replace(op, weights=("w0",)) for op in model.graph.operators)
        return SliceModel(replace(model.graph, operators=same), model.profile, model.platform, lossy=model.lossy)

    def held(model: SliceModel, first: int, last: int) -> tuple[float, float]:
        """MB in the package, and in memory beside what the plain layout takes there."""
        resident = (model.memory_mb(first, last, layout=way)[0] for way in ("int8", "plain"))
        return 40.0 - model.quantised.spared_mb(first, last, "int8"), next(resident) - next(resident)

    assert held(tied((MADE, MADE)), 0, 2) == pytest.approx((10.0, -30.0))
    mixed = tied((replace(MADE, admitted=False), MADE))
    assert held(mixed, 0, 2) == pytest.approx((50.0, 10.0))
    assert held(mixed, 1, 2) == pytest.approx((10.0, -30.0))
    assert held(mixed, 0, 1) == pytest.approx((40.0, 0.0))


def test_a_start_fetches_what_the_package_holds() -> None:
    model = model_of((MADE, replace(MADE, admitted=False)))

    def fetched(choice: Choice) -> float:
        return sum(one.package_mb for one in starts(model, [choice]))

    ways = {choice.layout: choice for choice in model.choices(0, 2)}
    assert fetched(ways["int8"]) == pytest.approx(80.0 - 30.0)
    assert fetched(replace(ways["int8"], layout="plain")) == pytest.approx(80.0)


def test_another_request_keeps_what_may_be() -> None:
    model = model_of((MADE, MADE))
    assert model.asking(Request(slo_ms=5.0)).quantised.units == [True, True]
    assert model.bare.layouts == model.layouts
