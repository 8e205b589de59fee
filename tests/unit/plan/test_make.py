"""The plan document: what it says is what was decided."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from msgspec.structs import replace

from lamella import documents
from lamella.errors import ConfigError, InfeasiblePlan
from lamella.plan.document import Plan, read_plan
from lamella.plan.laws import broken_laws
from lamella.plan.make import make_plan
from lamella.plan.pricing.memory import GRAPH_MB
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.profile.document import PredictedBy
from tests.unit.plan.synthetic import FLOOR_MB, MACHINE, Made, graph_of, profile_of

UNITS = (
    Made(weights_mb=20, time_ms=200, out_mb=0.1),
    Made(weights_mb=20, time_ms=200, out_mb=0.2),
    Made(weights_mb=900, time_ms=20),
)


def make(planner: str = "mopar", where: str = "openfaas", slo_ms: float | None = None, **more: float) -> Plan:
    graph = graph_of(UNITS)
    return make_plan(
        graph,
        profile_of(graph, UNITS),
        platform(where),
        planner,
        given="zoo:made-up",
        request=Request(slo_ms, vcpu=more.get("vcpu", 1.0)),
    )


def test_functions_carry_the_figures_of_their_parts() -> None:
    plan = make()
    assert [(f.name, f.first, f.last) for f in plan.functions] == [
        ("stage-1", 0, 1),
        ("stage-2", 1, 2),
        ("stage-3", 2, 3),
    ]
    assert plan.stages == 3
    first = plan.functions[0]
    assert first.run_ms == pytest.approx(200.05)
    assert first.cost_usd == pytest.approx(first.memory_mb / 1024 * 0.20005 * 0.0000166667)
    assert first.package_mb == pytest.approx(20 + GRAPH_MB)
    assert first.floor_mb >= FLOOR_MB + 20
    assert f"{first.memory_mb} MB is the smallest size" in first.why
    assert plan.predicted.memory_mb == sum(f.memory_mb for f in plan.functions)
    assert plan.machine == MACHINE
    assert plan.model.given == "zoo:made-up"
    assert plan.model.shapes == {"x": ("N", 1024)}


def test_hops_list_what_crosses_and_why_no_codec() -> None:
    hops = make().hops
    assert [(h.position, h.tensors, h.channel, h.codec) for h in hops] == [
        (1, ("t0",), "shared-memory", "none"),
        (2, ("t1",), "shared-memory", "none"),
    ]
    assert all("bf16" in h.why for h in hops)
    assert all(h.encoded_bytes == h.bytes for h in hops)


def test_every_constraint_s_slack_is_listed() -> None:
    rows = {s.constraint: s for s in make(slo_ms=470.0).slack}
    assert set(rows) == {"latency SLO at percentile 95", "largest memory", "package", "payload of a hop", "timeout"}
    assert rows["latency SLO at percentile 95"].limit == 470.0
    assert all(0 <= s.used <= s.limit for s in rows.values())
    assert "payload of a hop" not in {s.constraint for s in make("single").slack}


def test_a_share_of_a_vcpu_is_carried_into_the_plan() -> None:
    plan = make("single", vcpu=0.5)
    assert plan.functions[0].vcpu == 0.5
    assert plan.functions[0].run_ms > 1.8 * make("single").functions[0].run_ms


def test_more_vcpu_than_the_platform_sells_is_what_it_sells() -> None:
    assert make("single", vcpu=64.0).functions[0].vcpu == 4.0


def test_on_lambda_the_memory_says_the_cpu() -> None:
    for function in make(where="aws-lambda").functions:
        assert function.vcpu == pytest.approx(min(function.memory_mb / 1769, 5.79))


def test_a_plan_reads_back_as_it_was_written(tmp_path: Path) -> None:
    plan = make()
    documents.write(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan


def test_a_profile_is_no_plan(tmp_path: Path) -> None:
    graph = graph_of(UNITS)
    documents.write(tmp_path / "profile.json", profile_of(graph, UNITS))
    with pytest.raises(ConfigError, match="is not a plan document"):
        read_plan(tmp_path / "profile.json")


@pytest.mark.parametrize(
    ("edited", "said"),
    [({"percentile": 100.0}, "percentile is 100"), ({"batch": 0}, "batch is 0"), ({"percentile": 0}, "is 0, it must")],
)
def test_a_plan_edited_to_what_nothing_can_be_reckoned_from_is_none(
    tmp_path: Path, edited: dict[str, float], said: str
) -> None:
    documents.write(tmp_path / "plan.json", make())
    text = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(text | edited))
    with pytest.raises(ConfigError, match=said):
        read_plan(tmp_path / "plan.json")


def test_losers_are_named_with_their_figures() -> None:
    losers = make().losers
    assert any(x.candidate.startswith("single, ") and ", plain" in x.candidate for x in losers)
    assert any(x.candidate == "best with 2 stages" and x.stages == 2 for x in losers)
    assert all(x.why for x in losers)


@pytest.mark.parametrize("name", ["nonsense", "uniform-x"])
def test_an_unknown_planner_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match="no planner"):
        make(name)


def test_an_infeasible_slo_says_the_slo_that_would_do() -> None:
    with pytest.raises(InfeasiblePlan) as caught:
        make(slo_ms=100.0)
    hint = float(caught.value.try_.split(",")[0].removeprefix("--slo-ms "))
    assert make(slo_ms=hint).predicted.latency_ms <= hint


@pytest.mark.parametrize("planner", ["exact", "single", "mopar", "gillis", "amps-inf", "latency-greedy"])
@pytest.mark.parametrize("what", ["median_ms", "weights_mb", "saving"])
def test_a_profile_with_a_figure_that_is_no_number_is_refused(planner: str, what: str) -> None:
    graph = graph_of(UNITS)
    profile = profile_of(graph, UNITS)
    if what == "saving":
        cut = profile.cuts[0]
        savings = (replace(cut.savings[0], ms=math.nan), *cut.savings[1:])
        profile = replace(profile, cuts=(replace(cut, savings=savings), *profile.cuts[1:]))
    else:
        unit = profile.units[1]
        side = "times" if what == "median_ms" else "memory"
        figures = (replace(getattr(unit, side)[0], **{what: math.nan}), *getattr(unit, side)[1:])
        profile = replace(profile, units=(profile.units[0], replace(unit, **{side: figures}), profile.units[2]))
    with pytest.raises(ConfigError, match="is no number") as error:
        make_plan(graph, profile, platform("openfaas"), planner, given="zoo:made-up")
    assert error.value.where.startswith("cut 1" if what == "saving" else "unit 1 (")


@pytest.mark.parametrize("planner", ["single", "uniform-2", "mopar", "exact", "gillis"])
def test_sizes_are_those_that_are_sold_with_so_much_cpu(planner: str) -> None:
    plan = make(planner, "cloud-run", vcpu=4.0)
    graph, rules = graph_of(UNITS), platform("cloud-run")
    least = {1.0: 128, 2.0: 128, 4.0: 2048}
    assert all(f.memory_mb >= least[f.vcpu] for f in plan.functions)
    small = replace(plan.functions[0], memory_mb=1100, vcpu=4.0)
    broken = broken_laws(replace(plan, functions=(small, *plan.functions[1:])), graph, rules)
    assert any("does not sell 1100 MB with 4 vCPU (from 2048 to 16384 MB" in str(e) for e in broken)


def test_more_cpu_comes_with_more_memory() -> None:
    units = (Made(weights_mb=5000, time_ms=20),)
    graph = graph_of(units)

    def planned(vcpu: float) -> Plan:
        rules, request = platform("cloud-run"), Request(vcpu=vcpu)
        return make_plan(graph, profile_of(graph, units), rules, "single", given="zoo:made-up", request=request)

    with pytest.raises(InfeasiblePlan, match="the largest size of cloud-run is 4096 MB"):
        planned(1.0)
    assert planned(2.0).functions[0].memory_mb > 5000


@pytest.mark.parametrize("vcpu", [1.5, 3.0])
def test_cpu_that_is_not_sold_is_refused_with_what_is(vcpu: float) -> None:
    with pytest.raises(ConfigError, match="sells 1, 2, 4, 6, 8 vCPU, or fractions of one") as error:
        make("single", "cloud-run", vcpu=vcpu)
    assert error.value.try_ == f"--vcpu {1 if vcpu < 2 else 2}"


def test_a_predicted_profile_is_held_to_its_own_error() -> None:
    graph = graph_of(UNITS)
    profile = profile_of(graph, UNITS)
    guessed = replace(profile, predicted=PredictedBy(60, 0.2))
    known, vague = (
        make_plan(graph, p, platform("openfaas"), "single", given="zoo:made-up").predicted for p in (profile, guessed)
    )
    assert vague.common == pytest.approx(0.2)
    assert vague.latency_ms == known.latency_ms
    assert vague.at(95.0) > known.at(95.0)
