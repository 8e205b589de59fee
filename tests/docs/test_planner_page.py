"""The benchmark of planning: its instances are fixed, its page and picture come from the results alone."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from benchmarks import planner_speed as speed
from benchmarks.planner_growth import Line, growth_svg
from benchmarks.planner_instances import chain, instance, profiled, routes
from benchmarks.planner_speed import Results, Row
from lamella.machine import Machine
from lamella.plan.planners.exact import Exact
from lamella.plan.planners.milp import cheapest

MACHINE = Machine(cpu="made up", isa="x86_64-avx2", cores=2, memory_mb=4096, onnxruntime="1.0")


def test_the_two_instances_are_what_they_were_and_their_slo_binds() -> None:
    for units, arcs, stages in ((60, 11_155, 2), (100, 28_690, 3)):
        made = instance(units, 10)
        assert len(made.arcs.tail) == arcs
        found, free = routes(made.arcs).cheapest(made.slo_ms), routes(made.arcs).cheapest()
        assert len(found.routes[0].arcs) == stages
        assert free.routes[0].latency_ms > made.slo_ms >= found.routes[0].latency_ms
        assert free.routes[0].usd < found.routes[0].usd
    assert (chain(9, 3).usd == chain(9, 3).usd).all()
    assert chain(9, 3, seed=1).usd.sum() != chain(9, 3).usd.sum()


def test_a_case_measures_what_it_says() -> None:
    row = speed.alone(12)
    made = instance(12, 10)
    solved = cheapest(made.arcs, made.slo_ms)
    assert solved
    assert row.usd_per_million == pytest.approx(solved.usd * 1e6)
    assert row.solver_usd_per_million == pytest.approx(row.usd_per_million)
    assert row.considered == len(made.arcs.tail)
    assert min(row.seconds, row.solver_s) > 0
    model, request = profiled(6, speed.WHERE, shards=True, codecs=True)
    assert len(model.codings(1)) == 4
    assert {len(s.parts) for s in model.profile.shards} == {2, 3, 4}
    assert len(model.platform.sizes_mb(1.0)) == speed.SIZES
    row = speed.run_case("choices 6")
    slo = speed.SLO * sum(u.times[0].median_ms for u in model.profile.units)
    assert row.usd_per_million == pytest.approx(
        Exact().decide(model, request._replace(slo_ms=slo)).chosen.cost_usd * 1e6
    )


def results(*rows: Row) -> Results:
    return Results("2026-11-22", MACHINE, "HiGHS 1", {r.case: r for r in rows})


def test_the_page_says_of_every_claim_whether_it_was_kept() -> None:
    fine = Row(case="alone 60", units=60, seconds=0.01, solver_s=5.0, usd_per_million=1.0, solver_usd_per_million=1.0)
    page = speed.page(
        results(fine, Row(case="choices 100", units=100, seconds=0.5), Row(case="chain 1000", seconds=21.0))
    )
    assert "| 60 | 0 | 10.0 | 5.00 | 500x | 50x | 0 |" in page
    assert "- 60 units by ten sizes 50x as fast as the solver: kept." in page
    assert "- `choices 100` within 1 s: kept." in page
    assert "- `chain 1000` within 20 s: NOT kept." in page
    refused = Row(case="chain 10000", refused="MemoryError: no room")
    assert "| chain 10000 |  | MemoryError: no room |" in speed.page(results(fine, refused))


def test_another_optimum_or_an_unfinished_proof_is_told() -> None:
    other = Row(case="alone 60", units=60, seconds=0.01, solver_s=5.0, usd_per_million=1.0, solver_usd_per_million=1.1)
    assert "500x, but it says $1.1" in speed.page(results(other))
    assert "50x as fast as the solver: NOT kept" in speed.page(results(other))
    stopped = Row(case="alone 60", units=60, seconds=0.1, solver_s=900.0, usd_per_million=1.0, solver_gap=0.02)
    assert "more than 9,000x: stopped with a gap of 2.0%" in speed.page(results(stopped))


def test_the_page_in_the_docs_is_that_of_the_results() -> None:
    assert speed.PAGE.read_text() == speed.page(speed.load())


def test_the_picture_is_an_image_with_a_point_for_each_measurement() -> None:
    lines = (
        Line("slow", ((10, 0.5), (100, 90.0))),
        Line("quick", ((10, 0.001), (1000, 2.0)), best=True),
        Line("none", ()),
    )
    drawn = ET.fromstring(growth_svg("Time", lines))
    space = {"s": "http://www.w3.org/2000/svg"}
    dots = drawn.findall(".//s:circle", space)
    assert [dot.find("s:title", space).text for dot in dots] == [  # type: ignore[union-attr]
        "10 units: 500 ms",
        "100 units: 90 s",
        "10 units: 1 ms",
        "1,000 units: 2 s",
    ]
    assert all(0 < float(dot.get("cx", math.nan)) <= 760 and 0 < float(dot.get("cy", math.nan)) < 420 for dot in dots)
    across = [float(dot.get("cx", math.nan)) for dot in dots]
    assert across[1] - across[0] == pytest.approx((across[3] - across[2]) / 2, abs=0.2), "logarithmic"
    assert "slow" in "".join(drawn.itertext())
