"""Measuring a real small model: interrupted, gone on with, found again, extended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lamella import documents
from lamella.codecs import codec, installed
from lamella.errors import ConfigError
from lamella.graph.blocked import block
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.limits import detect
from lamella.machine import this_machine
from lamella.plan.pricing.predict import SliceModel
from lamella.platforms import platform
from lamella.profile.document import Profile, Variant
from lamella.profile.measure import (
    cache_path,
    measure,
    threads_needed,
    units_of,
    variants_for,
)
from lamella.profile.pace import Watch
from lamella.profile.steps import Progress, State, Timed
from lamella.profile.timing import time_units
from lamella.runtime.function import LOSSLESS

BUDGET_S = 0.2
HERE = LOSSLESS if block() else LOSSLESS[:2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh cache, so that nothing is measured yet."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMELLA_CACHE", str(path))
        yield path


@pytest.fixture(scope="module")
def graph(cache: Path) -> Graph:
    return import_model("zoo:cnn-tiny")


@dataclass
class Log:
    """What progress was told; interrupts as Ctrl-C does when `stop` is seen for the `at`-th time."""

    stop: str = ""
    at: int = 1
    shares: list[float] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def __call__(self, share: float, what: str) -> None:
        self.shares.append(share)
        what = what.rpartition(" of ")[2]  # "memory ... of unit 4" is known by its unit
        if what not in self.steps:
            self.steps.append(what)
        self.at -= what == self.stop
        if what == self.stop and self.at == 0:
            raise KeyboardInterrupt


def run(graph: Graph, progress: Progress, *, batches: tuple[int, ...] = (1,)) -> Profile:
    return measure(graph, batches=batches, budget_s=BUDGET_S, progress=progress)


def state(graph: Graph) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(cache_path(graph).read_bytes())
    return found


@dataclass
class Story:
    """Three runs of one measurement, two of them interrupted, and the state each left."""

    logs: list[Log]
    states: list[dict[str, Any]]
    leftovers: list[Path]
    profile: Profile


@pytest.fixture(scope="module")
def story(graph: Graph) -> Story:
    first, last = units_of(graph)[0][2]
    assert last > first
    logs = [Log("times, batch 1, 1 thread", at=3), Log(f"unit {first}"), Log()]
    states = []
    for log in logs[:2]:
        with pytest.raises(KeyboardInterrupt):
            run(graph, log)
        states.append(state(graph))
    leftovers = list(graph.directory.glob(".profile-*"))
    profile = run(graph, logs[2])
    states.append(state(graph))
    return Story(logs, states, leftovers, profile)


def test_what_was_done_before_an_interruption_is_not_done_again(story: Story, graph: Graph) -> None:
    units = [f"unit {first}" for first, _ in units_of(graph)[0]]
    times = "times, batch 1, 1 thread"
    assert [log.steps for log in story.logs] == [
        ["runtime floor and hops", times],
        [times, *units[:3]],
        [*units[2:], "codecs", "done"],
    ]


def test_what_was_measured_before_an_interruption_is_kept_to_the_bit(story: Story) -> None:
    floor, more, whole = story.states
    assert floor["floor"] == more["floor"] == whole["floor"]
    assert floor["hop"] == more["hop"] == whole["hop"]
    assert floor["timed"] == []
    assert more["timed"] == whole["timed"]
    assert len(more["memory"]) == 2
    assert more["memory"].items() <= whole["memory"].items()
    assert more["quotas"].items() <= whole["quotas"].items()


def test_an_interrupted_run_leaves_no_scratch_files(story: Story, cache: Path) -> None:
    assert story.leftovers == []
    assert not [p for p in cache.rglob(".*") if p.is_dir()]


def test_progress_goes_from_nought_to_one(story: Story) -> None:
    # It may go back within a timed step, which is taken again where the machine was busy meanwhile.
    for log in story.logs:
        assert log.shares[0] == 0.0
        assert all(0 <= share <= 1 for share in log.shares)
    assert story.logs[-1].shares[-1] == 1.0


def test_asked_again_it_measures_nothing_and_answers_the_same(story: Story, graph: Graph) -> None:
    log = Log()
    before = cache_path(graph).read_bytes()
    begun = time.monotonic()
    again = run(graph, log)
    assert time.monotonic() - begun < 1
    assert again == story.profile
    assert log.steps == ["done"]
    assert cache_path(graph).read_bytes() == before


def test_the_profile_covers_every_operator_once_and_every_cut(story: Story, graph: Graph) -> None:
    profile = story.profile
    assert profile.units[0].first == 0
    assert profile.units[-1].last == len(graph.operators)
    marks = [u.first for u in profile.units[1:]]
    assert marks == [u.last for u in profile.units[:-1]] == [c.position for c in profile.cuts]
    assert profile.model_hash == graph.hash
    assert profile.machine == this_machine()
    assert sum(u.flops for u in profile.units) == sum(op.flops for op in graph.operators)


def test_figures_are_in_their_ranges(story: Story) -> None:
    profile = story.profile
    assert 30 < profile.floor.resident_mb < 120
    assert 0 < profile.floor.anonymous_mb < profile.floor.resident_mb
    assert profile.floor.start_ms > 0
    for cost in (profile.hop.warm, profile.hop.cold, profile.hop.paused):
        assert min(cost.entry_ms, cost.fixed_ms, cost.entry_mb_ms, cost.call_ms) >= 0
    assert profile.hop.warm.call_ms > 0  # the cold one is a difference, and may be none on a busy machine
    assert profile.hop.at(0) == profile.hop.warm
    assert profile.hop.at(1e6) == profile.hop.cold
    assert profile.noise.worst >= 1
    for unit in profile.units:
        assert all(0 < t.median_ms <= t.p95_ms for t in unit.times)
        assert [m.layout for m in unit.memory] == ["plain", "prepacked"]  # its products are small
        for memory in unit.memory:
            assert memory.weights_mb <= unit.weight_bytes / 2**20 + 0.1
            assert 0 < memory.private_mb < 50
            assert 0 <= memory.live_mb < 50
        assert bool(unit.quotas) == detect().enforced
        assert all(q.vcpu < 1 and q.free_ms > 0 and q.throttled_ms > 0 for q in unit.quotas)


def test_codecs_are_measured_on_every_cut(story: Story) -> None:
    for cut in story.profile.cuts:
        found = {c.codec: c for c in cut.codecs}
        assert tuple(found) == installed()
        assert (found["none"].ratio, found["none"].max_rel) == (1.0, 0.0)
        assert found["bf16"].ratio == pytest.approx(2.0)
        assert 1 <= found["fp16"].ratio <= 2.0
        assert all(c.encode_ms > 0 and c.decode_ms > 0 for c in cut.codecs)
        for name, one in found.items():
            assert one.max_rel <= codec(name).bound * 1.01


def kept(graph: Graph) -> tuple[Timed, ...]:
    """Times as they were measured."""
    return documents.read(cache_path(graph), State, made_by="").timed


def test_another_batch_adds_only_what_is_missing(story: Story, graph: Graph) -> None:
    log = Log()
    held = kept(graph)
    more = run(graph, log, batches=(1, 2))
    assert kept(graph)[: len(held)] == held  # and profiles are of the usual pace, which is known better each time
    units = [f"unit {first}, batch 2" for first, _ in units_of(graph)[0]]
    assert log.steps == ["times, batch 2, 1 thread", *units, "codecs, batch 2", "done"]
    assert more.variants == (*story.profile.variants, *(Variant(2, layout, 1) for layout in HERE))
    for old, new in zip(story.profile.units, more.units, strict=True):
        assert (new.memory, new.quotas) == (old.memory, old.quotas)
        assert [live.batch for live in new.lives] == [2]
        assert all(live.live_mb >= 0 for live in new.lives)
    for cut in more.cuts:
        assert [(c.codec, c.batch) for c in cut.codecs] == [(n, batch) for batch in (1, 2) for n in installed()]
    log = Log()
    assert run(graph, log) == more
    assert log.steps == ["done"]


def test_a_batch_of_a_model_whose_batch_axis_is_bound_is_refused_before_anything_is_measured(cache: Path) -> None:
    bound = import_model("zoo:cnn-tiny", {"x": (1, 3, 32, 32)})
    log = Log()
    with pytest.raises(ConfigError, match="batch 2 needs a free batch axis, cnn-tiny has none") as caught:
        run(bound, log, batches=(1, 2))
    assert "--shape" in caught.value.try_
    assert log.steps == []
    assert not cache_path(bound).exists()


def test_another_shape_is_another_profile(graph: Graph) -> None:
    assert cache_path(import_model("zoo:cnn-tiny", {"x": (1, 3, 32, 32)})) != cache_path(graph)


def test_units_less_savings_are_about_the_whole(story: Story, graph: Graph, tmp_path: Path) -> None:
    # Both taken now and by one method, so that what the machine does meanwhile is done to both: see benchmarks for
    # figures on real models.

    from lamella.graph.requests import request

    variant = Variant(1, "plain", 1)
    inputs = request(graph, np.random.default_rng(0))
    off = []
    for _ in range(5):
        parts = time_units(
            graph, units_of(graph)[0], [variant], lambda: inputs, tmp_path, watch=Watch(), budget_s=0.3
        ).variants[0]
        span = [(0, len(graph.operators))]
        whole = time_units(graph, span, [variant], lambda: inputs, tmp_path, watch=Watch(), budget_s=0.3).variants[0]
        predicted = float(np.median(parts.alone, axis=0).sum() - np.maximum(np.median(parts.savings, axis=0), 0).sum())
        off.append(abs(predicted / float(np.median(whole.alone)) - 1))
    assert min(off) < 0.4


@pytest.mark.parametrize("short_ms", [1e6, 0.0])
def test_every_pass_has_its_own_request_and_short_models_are_timed_behind_pauses(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_ms: float
) -> None:
    from lamella.graph.requests import request
    from lamella.profile import timing

    monkeypatch.setattr(timing, "SHORT_MS", short_ms)
    asked = []
    rng = np.random.default_rng(0)

    def fresh() -> dict[str, np.ndarray]:
        asked.append(request(graph, rng))
        return asked[-1]

    units = units_of(graph)[0]
    found = time_units(graph, units, [Variant(1, "plain", 1)], fresh, tmp_path, watch=Watch(), budget_s=0.001).variants[
        0
    ]
    rounds = len(found.alone)
    warm = rounds  # behind each look at the machine's pace but the first
    assert len(asked) == 1 + 3 * (rounds + 1) + warm + (rounds if short_ms else 0)
    assert not np.array_equal(asked[-1]["x"], asked[-2]["x"])
    assert (found.paused is not None) == bool(short_ms)


def test_rounds_of_a_longer_model_go_on_until_they_settle(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamella.graph.requests import request
    from lamella.profile import timing

    monkeypatch.setattr(timing, "SHORT_MS", 0.0)
    monkeypatch.setattr(timing, "PATIENCE", 1e6)
    monkeypatch.setattr(timing, "standard_error", lambda rounds: float("inf") if len(rounds) < 40 else 0.0)
    inputs = request(graph, np.random.default_rng(0))
    units = units_of(graph)[0]
    found, paces = time_units(
        graph, units, [Variant(1, "plain", 1)], lambda: inputs, tmp_path, watch=Watch(), budget_s=0.001
    )
    assert len(found[0].alone) == len(paces) == 40


def test_one_row_and_one_thread_are_always_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    found = measure(import_model("zoo:cnn-tiny"), batches=(2,), threads=(2,), budget_s=0.01, shards=True)
    assert {Variant(1, "plain", 1), Variant(2, "plain", 1)} <= set(found.variants)


def test_a_real_profile_prices_every_slice(story: Story, graph: Graph) -> None:
    model = SliceModel(graph, story.profile, platform("openfaas"))
    for first in range(model.units):
        for last in range(first + 1, model.units + 1):
            assert model.choices(first, last)


def test_larger_batches_are_measured_on_one_thread_only(graph: Graph) -> None:
    variants = variants_for(graph, (1, 4), (1, 2, 99))
    assert [v for v in variants if v.batch == 4] == [Variant(4, layout, 1) for layout in HERE]
    assert all(v.threads <= this_machine().cores for v in variants)


def test_threads_follow_the_vcpu_asked_or_all_cores_where_memory_buys_cpu() -> None:
    cores = this_machine().cores
    assert threads_needed("free", 0.5) == (1,)
    assert threads_needed("free", 1.0) == (1,)
    assert threads_needed("free", 64.0) == tuple(range(1, cores + 1))
    assert threads_needed("memory", 1.0) == tuple(range(1, cores + 1))
