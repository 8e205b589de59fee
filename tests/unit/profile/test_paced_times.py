"""Times of units: kept at the pace of their rounds, told at the usual one, each by the load that is like it."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from lamella import documents
from lamella.graph.divide import ShardSpan
from lamella.profile import pace as module
from lamella.profile import steps
from lamella.profile.document import HopCost, HopCosts, Pace, ShardPart, ShardProfile, Variant, Work
from lamella.profile.pace import Bucket, History, known
from lamella.profile.products import product_times
from lamella.profile.quiet import Load
from lamella.profile.steps import State, take_times
from lamella.profile.timing import Timings, UnitTimes
from lamella.profile.usual import at_usual, noise, usual_pace
from tests.unit.plan.synthetic import Made, graph_of

USUAL = Pace(4.0, 10.0, 1.0)
LOAD = Load(1.0, 1.0)


def timings(paces: list[Pace], ms: float = 10.0) -> Timings:
    """Of two units that took the same in every round."""
    shape = (len(paces), 2)
    times = UnitTimes(
        np.full(shape, ms), np.full(shape, ms), np.full((len(paces), 1), 2.0), (False, False), (False,), None
    )
    return Timings([times], paces)


GRAPH, UNITS = graph_of((Made(), Made())), [(0, 1), (1, 2)]
LIKES = {(0, 1): Work(products=1.0), (1, 2): Work(streaming=1.0)}


def taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: Timings, *variants: Variant, state: State | None = None
) -> State:
    """The state after rounds that found this, on a machine with a history."""
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    if not module._path().exists():
        buckets = tuple(Bucket(at, USUAL, threads) for threads in (1, 2) for at in range(9))
        documents.write(module._path(), History(buckets=buckets))
    monkeypatch.setattr(steps, "time_units", lambda *_, **__: found)
    monkeypatch.setattr(module, "unit_work", lambda _, first, last, batch: LIKES[first, last])
    cost = HopCost(entry_ms=0.0, entry_mb_ms=0.0, fixed_ms=0.0, call_ms=0.0)
    held = state or State(hop=HopCosts(warm=cost, cold=cost, cold_mb=64, paused=cost), calls_ms=1.0, loads=(LOAD, LOAD))
    return take_times(GRAPH, UNITS, [*variants], dict, tmp_path, 0.1, product_times, held, lambda _: None)


def usually(state: State) -> State:
    return at_usual(GRAPH, UNITS, state, known())


def test_units_of_a_slow_minute_are_taken_to_the_usual_pace_by_what_is_like_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = [Pace(8.0, 12.5, 1.0)] * 9  # products half as fast, memory four fifths
    state = taken(monkeypatch, tmp_path, timings(slow), Variant(1, "plain", 1))
    assert state.timed[0].median_ms == pytest.approx((10.0, 10.0))  # kept as they were
    found = usually(state)
    assert found.timed[0].median_ms == pytest.approx((5.0, 8.0))
    assert found.timed[0].p95_ms == pytest.approx((5.0, 8.0))
    assert found.timed[0].saving_ms == pytest.approx((1.0,))
    assert usual_pace(state, known()) == USUAL


def test_a_history_that_grows_takes_what_was_measured_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = [Pace(8.0, 12.5, 1.0)] * 9
    state = taken(monkeypatch, tmp_path, timings(slow), Variant(1, "plain", 1))
    always = History(buckets=tuple(Bucket(at, slow[0]) for at in range(100)))
    assert at_usual(GRAPH, UNITS, state, always).timed == state.timed
    assert at_usual(GRAPH, UNITS, state, History()).timed == state.timed
    assert usual_pace(state, History()) == slow[0]
    assert noise(GRAPH, UNITS, state, History()).drift > 0
    apart = History(buckets=tuple(Bucket(at, Pace(4.0 + 4 * (at % 2), 10.0, 1.0)) for at in range(100)))
    assert noise(GRAPH, UNITS, state, apart).drift > noise(GRAPH, UNITS, state, always).drift + 0.05


def test_shards_go_by_the_units_that_they_divide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = taken(monkeypatch, tmp_path, timings([Pace(8.0, 12.5, 1.0)] * 9), Variant(1, "plain", 1))
    parts = (ShardPart(6.0, 10.0, 1.0), ShardPart(4.0, 10.0, 1.0))
    shard = ShardProfile(0, 2, ShardSpan(0, 2, 2, "channels"), 2, 1, parts, 7.0, 1.0, 1.0, deviation_ms=0.5)
    found = usually(msgspec.structs.replace(state, shards={"1": (shard,)})).shards["1"][0]
    factor = (5.0 + 8.0) / 20.0
    assert [part.run_ms for part in found.parts] == pytest.approx([6.0 * factor, 4.0 * factor])
    assert (found.stage_ms, found.deviation_ms) == pytest.approx((7.0 * factor, 0.5 * factor))
    assert found.join_ms == 1.0


def test_each_round_has_its_own_pace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mixed = [Pace(4.0, 10.0, 1.0)] * 4 + [Pace(8.0, 10.0, 1.0)] * 5
    state = taken(monkeypatch, tmp_path, timings(mixed), Variant(1, "plain", 1))
    found = usually(state)
    assert found.timed[0].median_ms == pytest.approx((5.0, 10.0))
    assert found.timed[0].p95_ms == pytest.approx((10.0, 10.0))


def test_two_threads_go_by_their_own_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = taken(monkeypatch, tmp_path, timings([USUAL] * 9), Variant(1, "plain", 1))
    slow = [Pace(8.0, 10.0, 1.0)] * 9
    both = taken(monkeypatch, tmp_path, timings(slow), Variant(1, "plain", 2), state=first)
    found = usually(both)
    assert found.timed[0].median_ms == pytest.approx((10.0, 10.0))
    assert found.timed[1].median_ms == pytest.approx((5.0, 10.0))
    assert found.timed[1].cpu_ms == pytest.approx((5.0, 10.0))
    assert both.rounds == first.rounds


def test_other_layouts_measured_later_are_scaled_by_the_plain_one_beside_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = taken(monkeypatch, tmp_path, timings([USUAL] * 9), Variant(1, "plain", 1))
    twice = Timings([timings([USUAL] * 9, 20.0).variants[0], timings([USUAL] * 9, 14.0).variants[0]], [USUAL] * 9)
    variants = (Variant(1, "plain", 1), Variant(1, "prepacked", 1))
    state = taken(monkeypatch, tmp_path, twice, *variants, state=first)
    assert [t.variant for t in state.timed] == [*variants]
    assert usually(state).timed[1].median_ms == pytest.approx((7.0, 7.0))  # the machine was half as fast as then
