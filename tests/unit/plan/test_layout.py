"""From choices with shards to a plan that runs: a transformer, measured, planned by force, served."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from lamella.deploy.local import Deployment
from lamella.errors import LawBroken
from lamella.graph.extract import Extractor
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.package import build
from lamella.plan.choice import Choice
from lamella.plan.document import Plan
from lamella.plan.laws import broken_laws, check
from lamella.plan.make import document, make_plan
from lamella.plan.planners.planner import Candidate, Decision
from lamella.plan.pricing.fan_out import sharded
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.profile.document import Profile
from lamella.profile.measure import measure
from lamella.runtime.function import open_session


@pytest.fixture(scope="module")
def bert(cache_dir: Path) -> Graph:
    return import_model("zoo:bert-tiny")


@pytest.fixture(scope="module")
def profile(bert: Graph) -> Profile:
    return measure(bert, budget_s=0.1, shards=True)


@pytest.fixture(scope="module")
def model(bert: Graph, profile: Profile) -> SliceModel:
    return SliceModel(bert, profile, platform("openfaas"))


def plan_of(model: SliceModel, choices: list[Choice]) -> Plan:
    chosen = Candidate("by force", tuple(choices), 0.0, 0.0)
    return document(model, Decision(chosen, "a test", ()), "mopar", "zoo:bert-tiny", Request())


def forced(model: SliceModel) -> list[Choice]:
    """Every unit as shards where it was measured so, with what lies between as it is."""
    choices: list[Choice] = []
    at = 0
    for first, last in sorted({(s.first, s.last) for s in model.profile.shards if s.last - s.first == 1}):
        if first > at:
            choices.append(model.choices(at, first)[0])
        choices.append(sharded(model, first, last)[-1])
        at = last
    return [*choices, *([model.choices(at, model.units)[0]] if at < model.units else [])]


def test_attention_and_feed_forward_blocks_are_measured_as_shards(profile: Profile) -> None:
    assert profile.shards
    for found in profile.shards:
        assert len(found.parts) == found.span.shards
        assert 1 <= found.at_once <= found.span.shards
        assert found.join_ms >= 0
        assert all(p.run_ms > 0 and p.peak_mb > 30 for p in found.parts)
        first, last = profile.units[found.first].first, profile.units[found.last - 1].last
        assert first == found.span.first < found.span.last <= last


def test_some_of_them_leave_a_tail_to_the_function_after_them(profile: Profile) -> None:
    assert any(s.span.last < profile.units[s.last - 1].last for s in profile.shards)


def test_equal_layers_have_the_figures_of_one_measurement(profile: Profile) -> None:
    by_figures: dict[tuple[float, ...], set[tuple[int, int]]] = {}
    for s in profile.shards:
        by_figures.setdefault(tuple(p.run_ms for p in s.parts), set()).add((s.first, s.last))
    assert any(len(spans) > 1 for spans in by_figures.values())


def test_a_plan_full_of_shards_keeps_the_laws_and_answers_the_same(
    bert: Graph, model: SliceModel, tmp_path: Path
) -> None:
    plan = plan_of(model, forced(model))
    assert plan.shards
    assert any(len(stage) > 1 for stage in plan.by_stage())
    check(plan, bert, platform("openfaas"))
    build(plan, bert, tmp_path / "package")
    feeds = request(bert, np.random.default_rng(3))
    whole = Extractor(bert).write(0, len(bert.operators), tmp_path)
    want = open_session(whole, "reference", threads=1, prepack=False).run(list(bert.outputs), feeds)
    with Deployment(tmp_path / "package") as served:
        got = served.infer(feeds).outputs
    for name, array in zip(bert.outputs, want, strict=True):
        np.testing.assert_allclose(got[name], array, atol=1e-5 * float(np.ptp(array)))


def test_predicted_latency_is_the_critical_path(model: SliceModel) -> None:
    chosen = forced(model)
    plan = plan_of(model, chosen)
    least = sum(max(f.run_ms for f in stage) for stage in plan.by_stage())
    most = sum(f.run_ms for f in plan.functions) + sum(c.fan_out_ms for c in chosen)
    assert least < plan.predicted.latency_ms < most + 5
    assert plan.predicted.cost_usd_per_million == pytest.approx(
        1e6 * (sum(f.cost_usd for f in plan.functions) + sum(h.cost_usd for h in plan.hops))
    )


def test_shards_of_one_stage_that_need_each_other_break_law_2(bert: Graph, model: SliceModel) -> None:
    plan = plan_of(model, forced(model))
    number = next(k for k, stage in enumerate(plan.by_stage()) if len(stage) > 1)
    merged = [msgspec.structs.replace(f, stage=f.stage - (f.stage > number)) for f in plan.functions]
    at_once = (*plan.at_once[:number], *plan.at_once[number + 1 :])
    wrong = msgspec.structs.replace(plan, functions=tuple(merged), at_once=at_once)
    assert "which no stage before it gives" in str(broken_laws(wrong, bert, platform("openfaas"))[0])
    assert isinstance(broken_laws(wrong, bert, platform("openfaas"))[0], LawBroken)


def test_a_plan_whose_shards_cannot_be_made_is_refused(bert: Graph, model: SliceModel) -> None:
    plan = plan_of(model, forced(model))
    impossible = msgspec.structs.replace(plan.shards[0], shards=10_000)
    wrong = msgspec.structs.replace(plan, shards=(impossible, *plan.shards[1:]))
    assert "shards cannot be made" in str(broken_laws(wrong, bert, platform("openfaas"))[0])


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8])
def test_joins_count_as_stages_of_the_plan(bert: Graph, profile: Profile, most: int) -> None:
    plan = make_plan(bert, profile, platform("openfaas"), "mopar", given="zoo:bert-tiny", request=Request(1000, most))
    assert plan.stages <= most
    assert plan.predicted.latency_ms <= 1000


def test_a_join_that_no_size_holds_is_in_no_plan(bert: Graph, profile: Profile) -> None:
    """Units are made slow and shards quick, so that shards are taken wherever the joins allow it."""
    replace = msgspec.structs.replace
    units = tuple(
        replace(u, times=tuple(replace(time, median_ms=100 * time.median_ms) for time in u.times))
        for u in profile.units
    )

    def planned(join_mb: float) -> Plan:
        shards = tuple(
            replace(s, join_mb=join_mb, stage_ms=0.01, parts=tuple(replace(p, run_ms=0.01) for p in s.parts))
            for s in profile.shards
        )
        given = replace(profile, units=units, shards=shards)
        return make_plan(bert, given, platform("openfaas"), "mopar", given="zoo:bert-tiny", request=Request(1000))

    assert planned(0.1).shards
    plan = planned(
        100_000.0
    )  # what it keeps of shards is joined by stages of their own, which hold no more than the parts
    assert all(platform("openfaas").allocation_mb(max(f.peak_mb, f.floor_mb), 1.0) for f in plan.functions)
