"""Pages of plans that were made: geometry in range, words that agree, markup that is closed; in a real browser, too."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.errors import InfeasiblePlan, PlatformLimit
from lamella.plan.explanation.front import Front, front
from lamella.plan.explanation.places import Places, survey
from lamella.plan.request import Request
from lamella.report import front_page, places_page, write_page
from lamella.report.frontier import frontier
from lamella.report.planned import standing, where
from lamella.report.timeline import money, timeline
from tests.unit.plan.explanation.test_explain import FEW, asked, planned
from tests.unit.plan.synthetic import CHAINS, Made
from tests.unit.report.parsed import Page
from tests.unit.report.test_browser import look

UNITS = tuple(Made(weights_mb=mb, time_ms=50, out_mb=0.01) for mb in (300, 60, 60, 60, 60))
"""The first breaks the package limit of 2021."""
NAMES = ("openfaas", "aws-lambda", "azure-flex", "cloud-run", "aws-lambda-2021")


def made(units: tuple[Made, ...] = UNITS, slo: float | None = None, names: tuple[str, ...] = NAMES) -> Places:
    return survey([asked(units, name, Request(slo_ms=slo)) for name in names], "exact")


def fronted(where: str = "aws-lambda", slo: float | None = None, planner: str = "exact") -> Front:
    question = asked(UNITS, where, Request(slo_ms=slo))
    return front(question, planned(question, planner))


def test_the_page_of_platforms_shows_each_and_why_some_cannot() -> None:
    found = made(slo=253.0)
    possible = [p.platform for p, _ in found.possible]
    assert 0 < len(possible) < len(NAMES)
    page = Page(places_page(found, ("plan", "zoo:x", "--platforms", "a,b")))
    rows = [e.text for e in page.all("tr")]
    assert len(rows) == 1 + len(NAMES)
    assert all(any(r.startswith(name) or name in r for r in rows) for name in NAMES)
    assert page.all("code")[0].text == "lamella plan zoo:x --platforms a,b"
    assert [e.text for e in page.all("dt")][: len(NAMES) - len(possible)] == [
        p.platform for p in found.places if not p.plan
    ]
    said = " ".join(where(found))
    assert said.startswith(f"{possible[0]} is cheapest, as ")
    assert "cannot serve it as asked" in said
    assert "253" in page.all("header")[0].text


def test_a_page_without_any_plan_says_so() -> None:
    found = made(slo=0.001)
    page = Page(places_page(found))
    assert where(found) == ["No platform can serve it as asked."]
    assert not page.all("svg")
    assert len(page.all("tr")) == 1 + len(NAMES)


def test_functions_lie_one_behind_the_other_on_one_scale_of_time() -> None:
    found = made()
    plans = [plan for _, plan in found.possible]
    most = max(p.predicted.latency_ms for p in plans)
    figure = timeline(found)
    for plan, lane in zip(plans, figure.lanes, strict=True):
        assert len(lane.bars) == len(plan.functions)
        for bar, f in zip(lane.bars, plan.functions, strict=True):
            assert bar.width == pytest.approx(100 * f.run_ms / most)
        ends = [(b.left, b.left + b.width) for b in lane.bars]
        assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(ends))
        assert ends[0][0] >= 0
        assert ends[-1][1] <= 100 * plan.predicted.latency_ms / most + 1e-9
    assert all(0 <= label.x <= 100 for label in figure.across)


def test_costs_lie_on_a_scale_of_powers_of_ten() -> None:
    figure = money(made())
    assert figure
    costs = [plan.predicted.cost_usd_per_million for _, plan in made().possible]
    places = [d.x for d in figure.dots]
    assert places == sorted(places)
    assert [d.best for d in figure.dots] == [True, *[False] * (len(costs) - 1)]
    assert all(0 <= x <= 100 for x in [*places, *(label.x for label in figure.across)])
    assert money(made(names=("openfaas",))) is None


@settings(max_examples=25)
@given(CHAINS, FEW, st.sampled_from([None, 100.0]))
def test_the_front_falls_from_left_to_right_and_every_name_is_on_it(
    units: tuple[Made, ...], name: str, slo: float | None
) -> None:
    question = asked(units, name, Request(slo_ms=slo))
    try:
        found = front(question, planned(question))
    except (InfeasiblePlan, PlatformLimit):
        return
    figure = frontier(found)
    numbers = [float(n) for n in re.findall(r"-?[0-9.]+", figure.line)]
    assert numbers[2::2] == sorted(numbers[2::2])
    assert numbers[3::2] == sorted(numbers[3::2])
    plot = figure.plot
    for mark in figure.marks:
        assert plot.left <= mark.x <= plot.right
        assert plot.top <= mark.y <= plot.bottom
    assert figure.marks[-1].kind == "chosen"
    Page(front_page(found))


def test_the_page_of_a_front_tells_where_the_plan_stands() -> None:
    found = fronted(slo=230.0)
    said = standing(found)
    assert said[1] == "No plan beats it in both."
    page = Page(front_page(found, ("plan", "zoo:x", "--front")))
    assert len(page.all("tr")) == 1 + 3 + 1 + len(found.points)
    assert "at percentile 95" in page.all("caption")[0].text + page.all("thead")[0].text
    beaten = standing(fronted("aws-lambda", planner="uniform-2"))
    assert re.fullmatch(r"One as quick costs \d+\.\d% less\.", beaten[1])


def test_names_are_escaped() -> None:
    found = made(slo=253.0)
    name = "<b>&" + "x" * 150
    places = replace(found, model=replace(found.model, name=name, given=name), planner=name)
    assert Page(places_page(places)).all("b")[0].text != "&"
    whole = fronted()
    other = replace(whole, plan=replace(whole.plan, planner=name, model=replace(whole.plan.model, name=name)))
    assert name in Page(front_page(other)).all("h1")[0].text


@pytest.mark.parametrize("kind", ["places", "front"])
def test_a_browser_finds_no_fault_and_nothing_wider_than_its_window(
    kind: str,
    browser: str,
    tmp_path: Path,
) -> None:
    name = "x" * 150
    command = ("plan", name, "--front")
    if kind == "places":
        found = made(slo=253.0)
        text = places_page(replace(found, model=replace(found.model, name=name, given=name)), command)
    else:
        whole = fronted()
        plan = replace(whole.plan, planner="mopar-no-shards-no-codec@2", model=replace(whole.plan.model, name=name))
        text = front_page(replace(whole, plan=plan), command)
    write_page(tmp_path / "page.html", text)
    for scroll, client, drawings, flat in look(tmp_path, browser):
        assert scroll <= client
        assert drawings >= 1
        assert flat == 0
