"""Times of units as they are kept: at the machine's usual pace, each by the load that is like it."""

from pathlib import Path

import numpy as np
import pytest

from lamella import documents
from lamella.profile import pace as module
from lamella.profile import steps
from lamella.profile.document import HopCost, HopCosts, Pace, Variant, Work
from lamella.profile.pace import Bucket, History
from lamella.profile.products import product_times
from lamella.profile.steps import State, take_times
from lamella.profile.timing import Timings, UnitTimes
from tests.unit.plan.synthetic import Made, graph_of

USUAL = Pace(4.0, 10.0, 1.0)


def timings(paces: list[Pace], ms: float = 10.0) -> Timings:
    """Of two units that took the same in every round."""
    shape = (len(paces), 2)
    times = UnitTimes(
        np.full(shape, ms), np.full(shape, ms), np.full((len(paces), 1), 2.0), (False, False), (False,), None
    )
    return Timings([times], paces)


def taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: Timings, variant: Variant, state: State | None = None
) -> State:
    """The state after rounds that found this, on a machine with a history."""
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    if not module._path().exists():
        buckets = tuple(Bucket(at, USUAL, threads) for threads in (1, 2) for at in range(9))
        documents.write(module._path(), History(buckets=buckets))
    monkeypatch.setattr(steps, "time_units", lambda *_, **__: found)
    likes = iter([Work(products=1.0), Work(streaming=1.0)])
    monkeypatch.setattr(steps, "unit_work", lambda *_: next(likes))
    cost = HopCost(entry_ms=0.0, entry_mb_ms=0.0, fixed_ms=0.0, call_ms=0.0)
    held = state or State(hop=HopCosts(warm=cost, cold=cost, cold_mb=64, paused=cost))
    graph, units = graph_of((Made(), Made())), [(0, 1), (1, 2)]
    return take_times(graph, units, [variant], dict, tmp_path, 0.1, product_times, held, lambda _: None)


def test_units_of_a_slow_minute_are_taken_to_the_usual_pace_by_what_is_like_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = [Pace(8.0, 12.5, 1.0)] * 9  # products half as fast, memory four fifths
    state = taken(monkeypatch, tmp_path, timings(slow), Variant(1, "plain", 1))
    assert state.timed[0].median_ms == pytest.approx((5.0, 8.0))
    assert state.timed[0].p95_ms == pytest.approx((5.0, 8.0))
    assert state.timed[0].saving_ms == pytest.approx((1.0,))
    assert state.pace == USUAL
    assert state.rounds


def test_each_round_has_its_own_pace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mixed = [Pace(4.0, 10.0, 1.0)] * 4 + [Pace(8.0, 10.0, 1.0)] * 5
    state = taken(monkeypatch, tmp_path, timings(mixed), Variant(1, "plain", 1))
    assert state.timed[0].median_ms == pytest.approx((5.0, 10.0))
    assert state.timed[0].p95_ms == pytest.approx((10.0, 10.0))


def test_two_threads_go_by_their_own_history_and_what_the_profile_is_scaled_to_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = taken(monkeypatch, tmp_path, timings([USUAL] * 9), Variant(1, "plain", 1))
    slow = [Pace(8.0, 10.0, 1.0)] * 9
    both = taken(monkeypatch, tmp_path, timings(slow), Variant(1, "plain", 2), first)
    assert both.timed[1].median_ms == pytest.approx((5.0, 10.0))
    assert both.timed[1].cpu_ms == pytest.approx((5.0, 10.0))
    assert (both.pace, both.rounds) == (first.pace, first.rounds)


def test_other_layouts_measured_later_are_scaled_by_the_plain_one_beside_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = taken(monkeypatch, tmp_path, timings([USUAL] * 9), Variant(1, "plain", 1))
    twice = Timings([timings([USUAL] * 9, 20.0).variants[0], timings([USUAL] * 9, 14.0).variants[0]], [USUAL] * 9)
    monkeypatch.setattr(steps, "unit_work", lambda *_: Work(products=1.0))
    monkeypatch.setattr(steps, "time_units", lambda *_, **__: twice)
    variants = [Variant(1, "plain", 1), Variant(1, "prepacked", 1)]
    graph, units = graph_of((Made(), Made())), [(0, 1), (1, 2)]
    state = take_times(graph, units, variants, dict, tmp_path, 0.1, product_times, first, lambda _: None)
    assert [t.variant for t in state.timed] == variants
    assert state.timed[1].median_ms == pytest.approx((7.0, 7.0))  # the machine was half as fast as then
