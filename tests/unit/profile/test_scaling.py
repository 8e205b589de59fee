"""From measured thread counts and batches to others, by hand and by what must hold."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import ConfigError
from lamella.plan.make import make_plan
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.profile.document import BatchLive, Timing, Variant
from lamella.profile.scaling import amdahl, at, line
from tests.unit.plan.synthetic import CHAINS, Made, graph_of, profile_of

TIMES = st.floats(0.01, 1000)


def test_half_of_the_work_in_parallel_by_hand() -> None:
    assert amdahl(10.0, 7.5, 2, 2) == pytest.approx(7.5)
    assert amdahl(10.0, 6.25, 4, 2) == pytest.approx(7.5)  # 5 + 5 / 4 is 6.25, 5 + 5 / 2 is 7.5
    assert amdahl(10.0, 6.25, 4, 8) == pytest.approx(6.25)  # beyond what was measured nothing is gained
    assert amdahl(10.0, 11.0, 2, 2) == pytest.approx(10.0)


@given(TIMES, TIMES, st.integers(2, 64), st.integers(1, 128))
def test_more_threads_never_take_longer_nor_less_than_their_share(
    one: float, most: float, count: int, threads: int
) -> None:
    found = amdahl(one, most, count, threads)
    assert one / threads * (1 - 1e-9) <= found <= one
    assert amdahl(one, most, count, threads + 1) <= found * (1 + 1e-9)


@given(st.floats(0, 5), st.floats(0.01, 5), st.integers(1, 64))
def test_a_line_is_found_again_from_two_batches(fixed: float, each: float, batch: int) -> None:
    known = [(b, fixed + each * b) for b in (1, 8)]
    assert line(known, batch) == pytest.approx(fixed + each * batch)
    assert line(known[:1], batch) >= fixed + each * batch - 1e-9  # one batch alone: too much, never too little


@given(CHAINS, st.integers(2, 64))
def test_any_batch_can_be_planned_from_a_profile_of_one(units: tuple[Made, ...], batch: int) -> None:
    graph = graph_of(units)
    profile = at(profile_of(graph, units), graph, batch=batch, threads=1)
    model = SliceModel(graph, profile, platform("openfaas"), Request(batch=batch))
    whole = model.compute_ms(0, len(units), layout="plain", threads=1)
    one = SliceModel(graph, profile, platform("openfaas")).compute_ms(0, len(units), layout="plain", threads=1)
    assert whole == pytest.approx(batch * one, rel=1e-6, abs=1e-3 * batch)
    assert model.memory_mb(0, len(units), layout="plain")[0] >= 0


def test_a_plan_for_a_batch_that_was_not_measured() -> None:
    units = (Made(time_ms=4.0), Made(time_ms=6.0))
    graph = graph_of(units)
    asked = Request(batch=16)
    plan = make_plan(graph, profile_of(graph, units), platform("openfaas"), "single", given="made-up", request=asked)
    assert plan.predicted.latency_ms == pytest.approx(160, rel=0.3)


def test_a_plan_for_more_threads_than_were_measured_gains_nothing_by_them() -> None:
    units = (Made(time_ms=40.0),)
    graph = graph_of(units)
    profile = profile_of(graph, units)
    alone = tuple(t for t in profile.units[0].times if t.variant.threads == 1)
    profile = msgspec.structs.replace(profile, units=(msgspec.structs.replace(profile.units[0], times=alone),))
    asked = Request(vcpu=2.0)
    plan = make_plan(graph, profile, platform("openfaas"), "single", given="made-up", request=asked)
    assert plan.functions[0].threads == 1
    assert plan.functions[0].run_ms == pytest.approx(40, rel=0.01)


def test_a_measured_batch_lends_its_slope_and_its_memory() -> None:
    units = (Made(time_ms=4.0, live_mb=10.0),)
    graph = graph_of(units)
    profile = profile_of(graph, units)
    (unit,) = profile.units
    eight = tuple(Timing(msgspec.structs.replace(t.variant, batch=8), 11.0, 11.0) for t in unit.times)
    lives = (BatchLive(8, 31.0),)
    unit = msgspec.structs.replace(unit, times=(*unit.times, *eight), lives=lives)
    (made,) = at(msgspec.structs.replace(profile, units=(unit,)), graph, batch=16, threads=1).units
    times = {t.variant: t.median_ms for t in made.times}
    assert times[Variant(16, "plain", 1)] == pytest.approx(19.0)
    more = (graph.live_bytes(0, 1, 16) - graph.live_bytes(0, 1, 8)) / 2**20
    assert {live.batch: live.live_mb for live in made.lives}[16] == pytest.approx(31.0 + more)


def test_nothing_is_added_where_all_was_measured() -> None:
    units = (Made(),)
    graph = graph_of(units)
    profile = profile_of(graph, units)
    assert at(profile, graph, batch=1, threads=2) is profile


def test_a_bound_batch_axis_is_refused() -> None:
    units = (Made(),)
    graph = graph_of(units)
    graph.tensors["x"] = type(graph.tensors["x"])("x", "float32", (1, 1024))
    with pytest.raises(ConfigError, match="free batch axis"):
        at(profile_of(graph, units), graph, batch=2, threads=1)
