"""A profile that nobody measured: of the same form as one that was, and every planner takes it."""

from __future__ import annotations

import msgspec
import pytest

from lamella.errors import ConfigError
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.machine import this_machine
from lamella.plan.make import make_plan
from lamella.plan.request import Request
from lamella.platforms import platform
from lamella.predictor.predict import predict
from lamella.profile.document import Profile
from lamella.profile.measure import units_of
from tests.unit.predictor.conftest import Calibrated


@pytest.fixture(scope="module")
def graph(calibrated: Calibrated) -> Graph:
    return import_model("zoo:cnn-tiny")


@pytest.fixture(scope="module")
def profile(graph: Graph, calibrated: Calibrated) -> Profile:
    return predict(graph, calibrated.calibration, batches=(1, 4), threads=(1, this_machine().cores))


def test_it_has_the_units_and_cuts_that_measuring_would_have(graph: Graph, profile: Profile) -> None:
    units, cuts = units_of(graph)
    assert [(u.first, u.last) for u in profile.units] == units
    assert [c.position for c in profile.cuts] == [c.position for c in cuts]
    assert {v.layout for v in profile.variants} == {"plain", "prepacked"}
    assert {v.batch for v in profile.variants} == {1, 4}
    for unit in profile.units:
        times = {t.variant: t.median_ms for t in unit.times}
        assert all(ms > 0 for ms in times.values())
        assert [live.batch for live in unit.lives] == [4]
        assert unit.memory[0].weights_mb == pytest.approx(unit.weight_bytes / 2**20, abs=0.5)


def test_it_says_that_it_is_predicted_and_so_does_a_plan(graph: Graph, profile: Profile) -> None:
    assert profile.predicted
    assert "not measured" in profile.predicted.said
    for name in ("mopar", "exact", "single", "uniform-2"):
        plan = make_plan(graph, profile, platform("openfaas"), name, given="zoo:cnn-tiny", request=Request())
        assert profile.predicted.said in plan.why, name


def test_a_profile_from_before_reads_as_measured(profile: Profile) -> None:
    held = msgspec.json.decode(msgspec.json.encode(profile))
    del held["predicted"]
    assert msgspec.convert(held, Profile).predicted is None


def test_the_calibration_of_another_machine_is_refused(graph: Graph, calibrated: Calibrated) -> None:
    other = msgspec.structs.replace(calibrated.calibration.machine, cpu="another")
    with pytest.raises(ConfigError, match="the calibration is of another"):
        predict(graph, msgspec.structs.replace(calibrated.calibration, machine=other))


def test_thread_counts_between_the_measured_ones_lie_between(graph: Graph, calibrated: Calibrated) -> None:
    machine = msgspec.structs.replace(calibrated.calibration.machine)
    if machine.cores < 2:
        pytest.skip("one core has no threads to scale")
    made = predict(graph, calibrated.calibration, threads=range(1, machine.cores + 1))
    for unit in made.units:
        by = {t.variant.threads: t.median_ms for t in unit.times if t.variant.layout == "plain"}
        assert set(by) == set(range(1, machine.cores + 1))
        low, high = sorted((by[1], by[machine.cores]))
        assert all(low * 0.999 <= ms <= high * 1.001 for ms in by.values())
