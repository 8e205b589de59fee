"""Stages of several functions: their answers, their loss, their refusals."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from lamella.deploy.local import Channel, Deployment
from lamella.errors import InputRefused
from lamella.graph.divide import ShardSpan
from lamella.graph.extract import Extractor
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits import Limiter
from lamella.package import build
from lamella.plan.document import read_plan
from lamella.plan.laws import structure
from lamella.plan.manual import plan_by_hand
from lamella.platforms import platform
from lamella.runtime.function import open_session
from lamella.runtime.instance import State

ATTENTION = ShardSpan(10, 31, 2, "channels")
"""Of bert-tiny's first layer, by heads."""
FEED_FORWARD = ShardSpan(33, 41, 4, "channels")


@pytest.fixture(scope="module")
def bert(cache_dir: Path) -> Graph:
    return import_model("zoo:bert-tiny")


@pytest.fixture(scope="module")
def package(bert: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shards") / "package"
    plan = plan_by_hand(bert, [], platform("openfaas"), given="zoo:bert-tiny", shards=[ATTENTION, FEED_FORWARD])
    build(plan, bert, directory)
    return directory


def answer(graph: Graph, feeds: dict[str, np.ndarray], directory: Path) -> dict[str, np.ndarray]:
    whole = Extractor(graph).write(0, len(graph.operators), directory)
    outputs = open_session(whole, "reference", threads=1, prepack=False).run(list(graph.outputs), feeds)
    return dict(zip(graph.outputs, outputs, strict=True))


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5 * float(np.ptp(array)))


@pytest.mark.parametrize("channel", ["shared-memory", "socket"])
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_shards_answer_as_the_whole_model(
    bert: Graph, rng: np.random.Generator, tmp_path: Path, channel: Channel, at_once: int
) -> None:
    spans = [ATTENTION, FEED_FORWARD]
    plan = plan_by_hand(bert, [], platform("openfaas"), given="zoo:bert-tiny", shards=spans, at_once=at_once)
    build(plan, bert, tmp_path / "package")
    with Deployment(tmp_path / "package", channel=channel, cpus=frozenset(os.sched_getaffinity(0))) as served:
        for _ in range(3):
            feeds = request(bert, rng)
            got = served.infer(feeds)
            assert_close(got.outputs, answer(bert, feeds, tmp_path))
        assert len(got.stages) == len(plan.functions) == 9
        assert {i.state for i in served.instances.values()} == {State.READY}


def test_shards_hold_their_share_of_the_weights(bert: Graph, package: Path) -> None:
    plan = read_plan(package / "plan.json")
    assert [len(stage) for stage in plan.by_stage()] == [1, 2, 1, 4, 1]
    whole = bert.weight_bytes(FEED_FORWARD.first, FEED_FORWARD.last) / 2**20
    for function in plan.by_stage()[3]:
        assert function.package_mb == pytest.approx(whole / 4, rel=0.05)


def test_a_shard_lost_before_or_in_a_request_is_started_again(
    bert: Graph, package: Path, rng: np.random.Generator, tmp_path: Path
) -> None:
    with Deployment(package) as served:
        feeds = request(bert, rng)
        want = answer(bert, feeds, tmp_path)
        served.infer(feeds)
        for name in ("stage-2-shard-1", "stage-4-shard-3"):
            os.kill(served.instances[name].pid, signal.SIGKILL)
        got = served.infer(feeds)
        assert_close(got.outputs, want)
        assert got.cold_ms > 0
        assert_close(served.infer(feeds).outputs, want)


def test_a_request_that_one_shard_refuses_leaves_the_others_in_step(tmp_path: Path, rng: np.random.Generator) -> None:
    """A table divided by columns: every shard refuses an id that is none."""
    bert = import_model("zoo:bert-tiny")
    span = ShardSpan(5, 6, 2, "channels")
    plan = plan_by_hand(bert, [], platform("openfaas"), given="zoo:bert-tiny", shards=[span], at_once=2)
    build(plan, bert, tmp_path / "package")
    with Deployment(tmp_path / "package") as served:
        feeds = request(bert, rng)
        want = answer(bert, feeds, tmp_path)
        assert_close(served.infer(feeds).outputs, want)
        bad = {**feeds, "input_ids": np.full_like(feeds["input_ids"], 10**6)}
        with pytest.raises(InputRefused):
            served.infer(bad)
        assert {i.state for i in served.instances.values()} == {State.READY}
        assert_close(served.infer(feeds).outputs, want)


def test_shards_are_kept_to_different_cores(package: Path, bert: Graph, limiter: Limiter) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    plan = read_plan(package / "plan.json")
    assert plan.at_once == (1, 1, 1, 1, 1)
    with Deployment(package, cpus=frozenset(cores[-2:])) as served:
        served.start()
        found = {name: os.sched_getaffinity(i.pid) for name, i in served.instances.items()}
    assert all(on == {cores[-1]} for on in found.values())  # one at a time: all where the driver is


def test_a_shard_on_the_drivers_core_is_asked_last(bert: Graph, tmp_path: Path, rng: np.random.Generator) -> None:
    """The driver sits on the last core: whoever it wakes there may hold it off before it has asked the others."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    plan = plan_by_hand(bert, [], platform("openfaas"), given="zoo:bert-tiny", shards=[FEED_FORWARD], at_once=2)
    build(plan, bert, tmp_path / "package")
    with Deployment(tmp_path / "package", cpus=frozenset(cores[-2:])) as served:
        served.start()
        (stage,) = [names for names in plan.by_stage() if len(names) > 1]
        on = [os.sched_getaffinity(served.instances[f.name].pid) for f in stage]
    assert on == [{cores[-2]}, {cores[-1]}] * 2


def test_more_shards_at_once_than_cores_are_emulated(bert: Graph, tmp_path: Path, rng: np.random.Generator) -> None:
    plan = plan_by_hand(bert, [], platform("openfaas"), given="zoo:bert-tiny", shards=[FEED_FORWARD], at_once=4)
    build(plan, bert, tmp_path / "package")
    core = frozenset(sorted(os.sched_getaffinity(0))[-1:])
    with Deployment(tmp_path / "package", cpus=core) as served:
        feeds = request(bert, rng)
        served.infer(feeds)
        begun = time.monotonic()
        got = served.infer(feeds)
        wall_ms = (time.monotonic() - begun) * 1000
        assert_close(got.outputs, answer(bert, feeds, tmp_path))
    runs = [got.stages[k].run_ms for k, f in enumerate(plan.functions) if "shard" in f.name]
    assert len(runs) == 4
    assert got.emulated_ms == pytest.approx(sum(runs) - max(runs))
    assert got.latency_ms + got.emulated_ms <= wall_ms
    assert got.latency_ms >= sum(s.run_ms for s in got.stages) - got.emulated_ms - 1e-6


def test_plans_with_shards_keep_the_laws(bert: Graph, package: Path) -> None:
    plan = read_plan(package / "plan.json")
    assert structure(plan, bert) == []
