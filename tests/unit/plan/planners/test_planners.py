"""What planners choose, against brute force; what they say when nothing is feasible."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations, pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import ConfigError, InfeasiblePlan
from lamella.plan.choice import Choice
from lamella.plan.planners.planners import BAND, LATENCY_MARGIN, WORTH, Mopar, Single, Uniform
from lamella.plan.planners.registry import planner
from lamella.plan.planners.search import NEAR
from lamella.plan.planners.simplify import merge_similar
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.runtime.function import Layout
from tests.unit.plan.synthetic import CHAINS, PLATFORMS, VCPUS, Made, model_of

HEAVY_TAIL = (
    Made(weights_mb=20, time_ms=200, out_mb=0.1),
    Made(weights_mb=20, time_ms=200, out_mb=0.1),
    Made(weights_mb=900, time_ms=20),
)
"""Where dividing pays: nearly all the time before nearly all the weights."""


def total(model: SliceModel, chosen: tuple[Choice, ...]) -> tuple[float, float]:
    """Latency and cost of a chain of choices without shards, added up in the order of the chain."""
    latency, cost = model.entry_ms, 0.0
    for k, choice in enumerate(chosen):
        hop = model.hop(choice.first)[:2] if k else (0.0, 0.0)
        latency = latency + hop[0] + choice.run_ms
        cost = cost + hop[1] + choice.cost_usd
    return latency, cost


def every(model: SliceModel, marks: list[int], stages: range) -> list[tuple[float, float]]:
    """Latency and cost of every division at some of the marks, with every choice."""
    found = []
    inner = [m for m in marks[1:-1] if model.fits_payload(m)]
    for k in stages:
        for cuts in combinations(inner, k - 1):
            edges = [marks[0], *cuts, marks[-1]]
            ways = [model.choices(i, j) for i, j in pairwise(edges)]
            found += [total(model, chosen) for chosen in product(*ways)]
    return found


def best(points: list[tuple[float, float]], cap_ms: float, near: float = NEAR) -> tuple[float, float] | None:
    """Of those within a share of the least cost under the cap the one with the least cost x latency."""
    within = [p for p in points if p[0] <= cap_ms]
    least = min((p[1] for p in within), default=0.0)
    return min((p for p in within if p[1] <= least * (1 + near)), key=lambda p: (p[0] * p[1], p), default=None)


SLOS = st.sampled_from([None, 1.0, 30.0, 100.0, 400.0])


@given(CHAINS, PLATFORMS, VCPUS, SLOS)
def test_single_chooses_as_brute_force(units: tuple[Made, ...], where: str, vcpu: float, slo: float | None) -> None:
    model = model_of(units, where, vcpu=vcpu)
    want = best(every(model, [0, model.units], range(1, 2)), slo or float("inf"))
    try:
        chosen = Single().decide(model, Request(slo)).chosen
    except InfeasiblePlan:
        assert want is None
    else:
        assert (chosen.latency_ms, chosen.cost_usd) == want
        assert total(model, chosen.choices) == want


@given(CHAINS, PLATFORMS, VCPUS, SLOS, st.integers(1, 4))
def test_uniform_chooses_the_sizes_of_equal_slices_as_brute_force(
    units: tuple[Made, ...], where: str, vcpu: float, slo: float | None, stages: int
) -> None:
    model = model_of(units, where, vcpu=vcpu)
    if stages > model.units:
        with pytest.raises(InfeasiblePlan, match=f"uniform-{stages} needs {stages} units"):
            Uniform(stages).decide(model, Request(slo))
        return
    marks = [round(i * model.units / stages) for i in range(stages + 1)]
    want = best(every(model, marks, range(stages, stages + 1)), slo or float("inf"))
    try:
        chosen = Uniform(stages).decide(model, Request(slo)).chosen
    except InfeasiblePlan:
        assert want is None
    else:
        assert (chosen.latency_ms, chosen.cost_usd) == want
        lengths = [c.last - c.first for c in chosen.choices]
        assert len(lengths) == stages
        assert max(lengths) - min(lengths) <= 1


@given(CHAINS, PLATFORMS, VCPUS, SLOS, st.integers(1, 5))
def test_mopar_chooses_as_brute_force_over_runs_of_similar_units(
    units: tuple[Made, ...], where: str, vcpu: float, slo: float | None, max_stages: int
) -> None:
    model = model_of(units, where, vcpu=vcpu)
    alone = best(every(model, [0, model.units], range(1, 2)), float("inf"))
    cap = slo if slo is not None else alone[0] * LATENCY_MARGIN if alone else float("inf")
    divided = every(model, merge_similar(model), range(1, max_stages + 1))
    want: tuple[float, float] | None
    if slo is None and alone:
        want = best([p for p in divided if p[1] <= alone[1] * (1 - WORTH)], cap, BAND) or alone
    else:
        want = best(divided, cap, BAND if slo is None else NEAR)
    try:
        chosen = Mopar().decide(model, Request(slo, max_stages)).chosen
    except InfeasiblePlan:
        assert want is None
    else:
        assert (chosen.latency_ms, chosen.cost_usd) == want
        assert len(chosen.choices) <= max_stages


def test_mopar_divides_where_it_pays_and_says_so() -> None:
    decision = Mopar().decide(model_of(HEAVY_TAIL), Request())
    alone = Single().decide(model_of(HEAVY_TAIL), Request())
    assert [(c.first, c.last) for c in decision.chosen.choices] == [(0, 1), (1, 2), (2, 3)]
    assert decision.chosen.cost_usd < 0.5 * alone.chosen.cost_usd
    assert decision.chosen.latency_ms <= alone.chosen.latency_ms * LATENCY_MARGIN
    assert "3 of at most 16 stages" in decision.why


def test_mopar_keeps_one_function_where_no_division_pays() -> None:
    decision = Mopar().decide(model_of((Made(weights_mb=1, time_ms=0.5), Made(weights_mb=1, time_ms=0.5))), Request())
    assert len(decision.chosen.choices) == 1
    assert decision.why.startswith("one function")


@pytest.mark.parametrize("name", ["single", "mopar", "uniform-2"])
@pytest.mark.parametrize(
    ("packed", "blocked", "layout"), [(1.2, 1.3, "blocked"), (1.3, 1.1, "prepacked"), (0.9, 0.9, "plain")]
)
def test_planners_take_the_layout_that_is_cheapest(name: str, packed: float, blocked: float, layout: Layout) -> None:
    units = (Made(time_ms=50.0, packed_mb=0.6, packed_speedup=packed, blocked_speedup=blocked),) * 2
    chosen = planner(name).decide(model_of(units), Request()).chosen
    assert {c.layout for c in chosen.choices} == {layout}


def test_a_slice_in_which_nothing_runs_blocked_is_never_called_blocked() -> None:
    units = (Made(blocked_speedup=2.0, time_ms=100.0), Made(weights_mb=300.0, time_ms=90.0))
    chosen = planner("uniform-2").decide(model_of(units), Request()).chosen
    assert [c.layout for c in chosen.choices] == ["blocked", "plain"]


@given(CHAINS, PLATFORMS, SLOS)
def test_knowing_the_blocked_layout_never_worsens_the_optimum(
    units: tuple[Made, ...], where: str, slo: float | None
) -> None:
    bare = tuple(replace(u, blocked_speedup=0.0) for u in units)
    try:
        least = Single().decide(model_of(bare, where), Request(slo)).chosen
    except InfeasiblePlan:
        return
    chosen = Single().decide(model_of(units, where), Request(slo)).chosen
    assert chosen.cost_usd <= least.cost_usd * (1 + NEAR)


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


def test_a_model_above_every_size_is_divided_by_mopar_and_refused_by_single() -> None:
    model = model_of((Made(weights_mb=9_000),) * 3)
    with pytest.raises(InfeasiblePlan, match="memory"):
        Single().decide(model, Request())
    assert len(Mopar().decide(model, Request()).chosen.choices) == 3


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


def test_uniform_slices_whose_hop_exceeds_the_payload_are_not_blamed_on_sizes() -> None:
    with pytest.raises(InfeasiblePlan) as caught:
        Uniform(2).decide(model_of((Made(out_mb=12), Made()), "aws-lambda"), Request())
    assert "payload" in caught.value.message
    assert "16.0 MB" in caught.value.message


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


def test_a_model_of_one_unit_has_no_uniform_division() -> None:
    with pytest.raises(InfeasiblePlan, match="uniform-3 needs 3 units, made-up divides into 1") as caught:
        Uniform(3).decide(model_of((Made(),)), Request())
    assert caught.value.try_ == "--planner uniform-1"
    assert len(Uniform(1).decide(model_of((Made(),)), Request()).chosen.choices) == 1


def test_more_uniform_slices_than_units_names_the_most_there_can_be() -> None:
    with pytest.raises(InfeasiblePlan) as caught:
        Uniform(4).decide(model_of((Made(), Made())), Request())
    assert caught.value.try_ == "--planner uniform-2"


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
