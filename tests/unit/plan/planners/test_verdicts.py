"""Why candidates lose, and what planners say where none will do."""

from __future__ import annotations

import re

import pytest

from lamella.errors import InfeasiblePlan
from lamella.plan.planners.mopar import Mopar
from lamella.plan.planners.plain import Single, Uniform
from lamella.plan.planners.registry import planner
from lamella.plan.request import Request
from tests.unit.plan.planners.brute_force import HEAVY_TAIL
from tests.unit.plan.synthetic import Made, model_of


def test_every_loser_says_why_it_lost() -> None:
    losers = Mopar().decide(model_of(HEAVY_TAIL), Request()).losers
    assert losers
    for candidate, why in losers:
        assert candidate.name
        assert re.search(r"% dearer|ms over the latency cap|slower", why)


@pytest.mark.parametrize("name", ["single", "uniform-2", "mopar"])
@pytest.mark.parametrize("where", ["openfaas", "aws-lambda"])
def test_an_slo_out_of_reach_names_the_gap_the_nearest_plan_and_an_slo_that_works(name: str, where: str) -> None:
    model = model_of(HEAVY_TAIL, where)
    with pytest.raises(InfeasiblePlan) as caught:
        planner(name).decide(model, Request(slo_ms=7.0))
    error = caught.value
    assert error.exit_code == 3
    assert error.where == "--slo-ms"
    said = re.fullmatch(
        rf"latency: no plan on {where} answers within 7 ms; the fastest takes ([\d.]+) ms \(([\d.]+) ms too long\) "
        r"with (\d) function\(s\) for \$([\d.]+) per million",
        error.message,
    )
    assert said
    fastest, gap = float(said[1]), float(said[2])
    assert gap == pytest.approx(fastest - 7, abs=0.11)
    hint = re.match(r"--slo-ms (\d+)", error.try_)
    assert hint
    assert planner(name).decide(model, Request(slo_ms=float(hint[1]))).chosen.latency_ms <= float(hint[1])
    assert float(hint[1]) <= fastest + 2


@pytest.mark.parametrize("name", ["single", "mopar"])
@pytest.mark.parametrize(("where", "largest"), [("openfaas", 16384), ("aws-lambda", 10240)])
def test_a_unit_above_every_size_is_infeasible_by_memory(name: str, where: str, largest: int) -> None:
    with pytest.raises(InfeasiblePlan) as caught:
        planner(name).decide(model_of((Made(), Made(weights_mb=20_000)), where), Request())
    assert caught.value.message.startswith("memory: ")
    assert f"the largest size of {where} is {largest} MB" in caught.value.message
    need = re.search(r"needs (\d+) MB as one function and (\d+) MB for its largest unit", caught.value.message)
    assert need
    assert int(need[1]) > int(need[2]) > 20_000
    assert caught.value.where.startswith("unit 1 ")


def test_a_package_above_the_limit_is_not_blamed_on_the_timeout() -> None:
    model = model_of((Made(weights_mb=600), Made(weights_mb=600)), "azure-consumption")
    with pytest.raises(InfeasiblePlan) as caught:
        Single().decide(model, Request())
    assert "package: " in caught.value.message
    assert "1200 MB of weights as one function and 600 MB for its largest unit" in caught.value.message
    assert "1024 MB" in caught.value.message
    assert "--planner mopar" in caught.value.try_
    assert len(Mopar().decide(model, Request()).chosen.choices) == 2


@pytest.mark.parametrize("name", ["single", "mopar", "uniform-1"])
def test_a_unit_beyond_the_timeout_is_not_blamed_on_memory(name: str) -> None:
    with pytest.raises(InfeasiblePlan) as caught:
        planner(name).decide(model_of((Made(time_ms=400_000),)), Request())
    assert "timeout" in caught.value.message
    assert "300 s" in caught.value.message


@pytest.mark.parametrize(
    ("units", "where", "said"),
    [
        ((Made(), Made(weights_mb=20_000)), "openfaas", r"memory: a slice needs 20\d\d\d MB, .* openfaas is 16384 MB"),
        ((Made(), Made(weights_mb=1_100)), "azure-consumption", "package: a slice ships 1100 MB .* is 1024 MB"),
        ((Made(), Made(time_ms=400_000.0)), "openfaas", "timeout: a slice runs beyond the timeout of openfaas, 300 s"),
    ],
)
def test_a_uniform_slice_that_fits_nowhere_names_its_limit(units: tuple[Made, ...], where: str, said: str) -> None:
    with pytest.raises(InfeasiblePlan, match=f"^uniform-2: {said}") as caught:
        Uniform(2).decide(model_of(units, where), Request())
    assert caught.value.where == "units 1 to 1"
