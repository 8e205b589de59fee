"""Planners by name, and what they have in common."""

from __future__ import annotations

import pytest

from lamella.errors import ConfigError
from lamella.plan.planners.registry import planner
from lamella.plan.request import Request
from lamella.runtime.function import Layout
from tests.unit.plan.synthetic import Made, model_of


@pytest.mark.parametrize(
    "name",
    [
        "",
        "mopra",
        "uniform",
        "uniform-",
        "uniform-0",
        "uniform--1",
        "uniform-x",
        "ort",
        "random-",
        "random-x",
        "random--1",
    ],
)
def test_an_unknown_planner_is_a_config_error_with_the_names_there_are(name: str) -> None:
    with pytest.raises(
        ConfigError, match="single, uniform-K, mopar, exact, amps-inf, gillis, latency-greedy, random and"
    ):
        planner(name)


@pytest.mark.parametrize(
    "name",
    [
        "single",
        "mopar",
        "exact",
        "amps-inf",
        "uniform-1",
        "uniform-12",
        "gillis",
        "latency-greedy",
        "random",
        "random-7",
    ],
)
def test_a_planner_is_found_by_its_own_name(name: str) -> None:
    assert planner(name).name == name


@pytest.mark.parametrize("name", ["single", "mopar", "uniform-2"])
@pytest.mark.parametrize(
    ("packed", "blocked", "layout"), [(1.2, 1.3, "blocked"), (1.3, 1.1, "prepacked"), (0.9, 0.9, "plain")]
)
def test_planners_take_the_layout_that_is_cheapest(name: str, packed: float, blocked: float, layout: Layout) -> None:
    units = (Made(time_ms=50.0, packed_mb=0.6, packed_speedup=packed, blocked_speedup=blocked),) * 2
    chosen = planner(name).decide(model_of(units), Request()).chosen
    assert {c.layout for c in chosen.choices} == {layout}
