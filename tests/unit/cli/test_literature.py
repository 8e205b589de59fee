"""The planners that others are compared with, from the command line: plans, their documents, and a comparison."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from lamella.graph.model import Graph
from tests.unit.cli.conftest import MODEL, Lamella

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guide.md"


@pytest.mark.parametrize("where", ["openfaas", "aws-lambda"])
@pytest.mark.parametrize("slo", [(), ("--slo-ms", "500")])
@pytest.mark.parametrize("planner", ["gillis", "latency-greedy", "random", "random-7"])
def test_the_literature_s_planners_divide_at_hops_that_go_plain_and_the_same_again(
    lamella: Lamella, graph: Graph, where: str, slo: tuple[str, ...], planner: str
) -> None:
    asked = ("plan", MODEL, "--platform", where, "--planner", planner, *slo, "--json")
    plan = lamella(*asked).document
    assert plan["planner"] == planner
    assert {hop["codec"] for hop in plan["hops"]} <= {"none"}
    assert plan["slo_ms"] is None or plan["predicted"]["latency_ms"] <= 500
    if planner == "gillis":
        joins = {f["name"] for f in plan["functions"] if f["name"].endswith("-join")}
        assert len({f["memory_mb"] for f in plan["functions"] if f["name"] not in joins}) == 1
    assert lamella(*asked).document == plan


def test_the_guide_s_commands_plan_and_compare_them(lamella: Lamella, graph: Graph, tmp_path: Path) -> None:
    block = next(b for b in re.findall(r"```console\n(.*?)```", GUIDE.read_text(), re.S) if "--planner gillis" in b)
    commands = [shlex.split(line)[2:] for line in block.splitlines()]
    assert [command[0] for command in commands] == ["plan", "plan", "compare"]
    for command in commands:
        shorter = {"zoo:resnet50": MODEL, "12": "1"}
        argv = [shorter.get(part, part).removeprefix("exact-no-codec,") for part in command]
        more = ("-o", tmp_path / "record.json") if command[0] == "compare" else ()
        assert lamella(*argv, *more).code == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["failed"] == {}
    assert [p["planner"] for p in record["plans"]] == ["gillis", "latency-greedy", "random"]
    assert all(p["output_error"]["within_tolerance"] for p in record["plans"])
    assert all(p["predicted"]["latency_ms"] > 0 and p["latency_ms"]["p50"] > 0 for p in record["plans"])


def test_stages_of_shards_that_were_drawn_answer_as_the_model(lamella: Lamella, graph: Graph, tmp_path: Path) -> None:
    for seed in range(40):
        path = tmp_path / "plan.json"
        assert lamella("plan", MODEL, "--platform", "openfaas", "--planner", f"random-{seed}", "-o", path).code == 0
        if json.loads(path.read_text())["shards"]:
            done = lamella("check", path)
            assert done.code == 0
            return
    pytest.fail("no seed drew shards")
