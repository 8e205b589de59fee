"""`explain`, `diff`, `plan --platforms` and `plan --front` as they are called, and everything that can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lamella.graph.model import Graph
from lamella.profile.measure import measure
from tests.unit.cli.conftest import MODEL, Lamella
from tests.unit.report.parsed import Page


def changed(path: Path, **fields: object) -> Path:
    """A copy of a document beside it, with other fields."""
    document = json.loads(path.read_text()) | fields
    copy = path.with_name("changed.json")
    copy.write_text(json.dumps(document))
    return copy


def test_explain_holds_a_plan_against_every_other_kind(lamella: Lamella, plan_file: Path) -> None:
    found = lamella("explain", plan_file, "--planners", "single,exact", "--json").document
    plan = json.loads(plan_file.read_text())
    assert found["planner"] == "uniform-3"
    assert found["chosen"]["cost_usd_per_million"] == pytest.approx(plan["predicted"]["cost_usd_per_million"])
    kinds = {o["kind"]: o for o in found["others"]}
    assert {"one function", "2 stages", "3 stages", "without shards", "with codecs", "single", "exact"} <= set(kinds)
    assert kinds["3 stages"]["plan"]["stages"] == 3
    assert {"largest memory", "package", "payload of a hop", "timeout", "stages"} <= {
        p["constraint"] for p in found["prices"]
    }
    table = lamella("explain", plan_file).out
    assert "uniform-3's plan" in table
    assert "best plan of a kind" in table
    assert "no plan could use more" in table
    assert found["orders"]["one"]
    assert "of the cheapest plan's cost: one order only: each of the" in table


def test_explain_of_a_model_plans_first(lamella: Lamella, graph: Graph) -> None:
    done = lamella("explain", MODEL, "--platform", "aws-lambda", "--slo-ms", "1000", "--planner", "single", "--json")
    assert done.code == 0
    assert (done.document["planner"], done.document["slo_ms"]) == ("single", 1000)
    assert done.document["prices"][0]["constraint"] == "latency SLO"


def test_explain_tells_what_would_make_a_request_feasible(lamella: Lamella, graph: Graph) -> None:
    asked = ("explain", MODEL, "--platform", "aws-lambda", "--slo-ms", "0.01")
    done = lamella(*asked, "--json")
    assert done.code == 3
    way = done.document["ways"][0]
    assert (way["constraint"], way["limit"]) == ("latency SLO", 0.01)
    assert f"--slo-ms {int(way['needed']) + 1}" in done.err
    assert "no plan satisfies the request" in lamella(*asked).out
    again = lamella("plan", MODEL, "--platform", "aws-lambda", "--slo-ms", int(way["needed"]) + 1)
    assert again.code == 0


def test_a_plan_says_what_it_was_asked(lamella: Lamella, graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    lamella("plan", MODEL, "--platform", "openfaas", "--slo-ms", "500", "--percentile", "90", "-o", path)
    found = lamella("explain", path, "--json").document
    assert (found["slo_ms"], found["percentile"], found["cap_ms"]) == (500, 90, 500)
    done = lamella("explain", path, "--slo-ms", "5")
    assert done.code == 2
    assert f"--slo-ms: {path} says that itself" in done.err
    assert lamella("explain", path, "--planner", "single").code == 2
    assert lamella("explain", MODEL).code == 2
    assert lamella("explain", path, "--planners", "nobody").code == 2


@pytest.mark.parametrize(
    "options", [("--max-batch", "2", "--rate-per-s", "500", "--slo-ms", "500"), ("--architecture", "arm")]
)
def test_rows_that_share_a_run_and_another_price_are_explained_as_planned(
    lamella: Lamella, graph: Graph, tmp_path: Path, options: tuple[str, ...]
) -> None:
    measure(graph, threads=(1, 2), batches=(1, 2), budget_s=0.2, shards=False)  # as the fixture does, with two rows
    path, asked = tmp_path / "plan.json", (MODEL, "--platform", "aws-lambda", "--no-shards", *options)
    plan = lamella("plan", *asked, "-o", path, "--json").document
    for found in (
        lamella("explain", path, "--no-shards", "--json").document,
        lamella("explain", *asked, "--json").document,
    ):
        assert found["batch"] == plan["batch"]
        by = {o["kind"]: o["plan"] for o in found["others"]}
        assert by["exact"]["cost_usd_per_million"] == pytest.approx(found["chosen"]["cost_usd_per_million"])
        if plan["slo_ms"]:
            assert found["cap_ms"] == pytest.approx(plan["slo_ms"] - plan["wait_ms"])
            assert found["cheapest"]["cost_usd_per_million"] == pytest.approx(by["exact"]["cost_usd_per_million"])
    front = lamella("plan", *asked, "--front", "--json").document
    assert front["plan"] == plan
    assert front["chosen"]["bounded_ms"] > 0


@pytest.mark.parametrize("verb", ["explain", "diff"])
def test_documents_that_are_no_plans_are_told(lamella: Lamella, plan_file: Path, verb: str) -> None:
    half = plan_file.with_name("half.json")
    half.write_text(plan_file.read_text()[: len(plan_file.read_text()) // 2])
    for bad, said in (
        (half, "half.json is not a plan document"),
        (changed(plan_file, lamella=2), "schema version 2"),
        (plan_file.with_name("none.json"), "cannot read"),
    ):
        done = lamella(verb, bad, *((plan_file,) if verb == "diff" else ()))
        assert done.code == 2
        assert said in done.err
        assert "lamella plan MODEL --platform openfaas -o plan.json" in done.err


def test_explain_refuses_a_plan_of_another_model_machine_or_price(lamella: Lamella, plan_file: Path) -> None:
    plan = json.loads(plan_file.read_text())
    other = changed(plan_file, model=plan["model"] | {"hash": "0" * 24})
    assert lamella("explain", other).code == 4
    gone = changed(plan_file, model=plan["model"] | {"given": "/nowhere/model.onnx"})
    assert lamella("explain", gone).code == 1
    elsewhere = lamella("explain", changed(plan_file, machine=plan["machine"] | {"cpu": "another one"}))
    assert elsewhere.code == 2
    assert "measured on another machine (another one)" in elsewhere.err
    dear = [f | {"cost_usd": 2 * f["cost_usd"]} for f in plan["functions"]]
    assert lamella("explain", changed(plan_file, functions=dear)).code == 4


def test_diff_tells_what_changed_and_what_it_does(lamella: Lamella, plan_file: Path, tmp_path: Path) -> None:
    same = lamella("diff", plan_file, plan_file)
    assert same.code == 0
    assert "the plans do not differ" in same.out
    other = tmp_path / "other.json"
    assert lamella("plan", MODEL, "--platform", "aws-lambda", "--planner", "single", "-o", other).code == 0
    found = lamella("diff", plan_file, other, "--json").document
    assert {c["what"] for c in found["changes"]} >= {"platform", "planner", "channel"}
    assert not found["same"]
    assert found["segments"][0]["changes"][0].startswith("no longer divided at")
    assert "in all" in lamella("diff", plan_file, other).out


def test_diff_needs_no_model_but_for_shards(lamella: Lamella, plan_file: Path, tmp_path: Path) -> None:
    plan = json.loads(plan_file.read_text())
    gone = changed(plan_file, model=plan["model"] | {"given": "/nowhere/model.onnx"})
    assert "the plans do not differ" in lamella("diff", plan_file, gone).out
    kept = tmp_path / "kept.json"
    shutil.copy(gone, kept)
    first, last = plan["functions"][0]["first"], plan["functions"][0]["last"]
    sharded = changed(kept, shards=[{"first": first, "last": last, "shards": 2, "way": "channels"}])
    done = lamella("diff", kept, sharded)
    assert done.code == 0
    assert "shards differ, and where they lie only the model tells" in done.out


def test_platforms_are_compared_in_one_table_and_page(lamella: Lamella, graph: Graph, tmp_path: Path) -> None:
    page, plan = tmp_path / "page.html", tmp_path / "plan.json"
    done = lamella("plan", MODEL, "--platforms", "aws-lambda, openfaas", "--report", page, "-o", plan, "--json")
    assert done.code == 0
    places = done.document["places"]
    costs = [p["plan"]["predicted"]["cost_usd_per_million"] for p in places]
    assert costs == sorted(costs)
    assert json.loads(plan.read_text()) == places[0]["plan"]
    assert len(Page(page.read_text()).all("tr")) == 3
    alone = lamella("plan", MODEL, "--platform", "aws-lambda", "--json").document
    assert alone == next(p["plan"] for p in places if p["platform"] == "aws-lambda")
    shown = lamella("plan", MODEL, "--platforms", "openfaas,aws-lambda", "--slo-ms", "0.01")
    assert shown.code == 3
    assert "latency SLO: " in shown.out
    assert "none of openfaas, aws-lambda can serve cnn-tiny as asked" in shown.err
    seldom = lamella("plan", MODEL, "--platforms", "aws-lambda", "--slo-ms", "1000", "--rate-per-s", "0.001").out
    assert "aws-lambda: the SLO holds for at least " in seldom


def test_the_front_is_shown_around_the_plan(lamella: Lamella, graph: Graph, tmp_path: Path) -> None:
    page = tmp_path / "front.html"
    done = lamella("plan", MODEL, "--platform", "aws-lambda", "--front", "--report", page, "--json")
    found = done.document
    assert found["on_front"]
    assert found["points"][found["at"]]["bounded_ms"] == pytest.approx(found["chosen"]["bounded_ms"])
    assert len(Page(page.read_text()).all("path")) == 1
    shown = lamella("plan", MODEL, "--platform", "aws-lambda", "--front").out
    assert "<- exact" in shown
    assert f"of {len(found['points'])} plans" in shown


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--platform", "openfaas", "--platforms", "openfaas"),
        ("--platforms", "openfaas", "--front"),
        ("--platforms", " , "),
        ("--platforms", "openfaas,nowhere"),
        ("--platforms", "openfaas,hosted"),
        ("--platform", "openfaas", "--report", "page.html"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(
    lamella: Lamella, graph: Graph, options: tuple[str, ...]
) -> None:
    done = lamella("plan", MODEL, *options)
    assert done.code == 2
    assert "try:" in done.err
