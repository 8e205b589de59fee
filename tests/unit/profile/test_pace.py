"""The machine's pace: what known loads tell, what is kept of it, and which units go by which."""

from pathlib import Path

import pytest

from lamella import documents
from lamella.profile import pace as module
from lamella.profile.document import HopCost, HopCosts, Pace, Work
from lamella.profile.pace import (
    BUCKET_S,
    MOST_BUCKETS,
    Bucket,
    History,
    Watch,
    at_pace,
    median,
    mixed,
    waits_for_memory,
)
from lamella.profile.timing import around


def test_work_goes_by_the_load_that_is_like_it() -> None:
    usual, now = Pace(4.0, 10.0, 1.0), Pace(5.0, 8.0, 1.5)
    assert now.over(usual, Work(products=1.0)) == pytest.approx(1.25)
    assert now.over(usual, Work(streaming=1.0)) == pytest.approx(0.8)
    assert now.over(usual, Work(calls=1.0)) == pytest.approx(1.5)
    assert now.over(usual, Work(0.5, 0.5)) == pytest.approx((1.25 + 0.8) / 2)
    assert now.over(usual, Work(calls=0.2)) == pytest.approx(1.1)  # the rest is as long at any pace
    assert usual.over(usual, Work(0.3, 0.3, 0.4)) == pytest.approx(1.0)


def test_pieces_of_work_count_by_what_they_take() -> None:
    parts = [(3.0, Work(products=1.0)), (1.0, Work(streaming=1.0)), (4.0, Work())]
    assert mixed(parts) == pytest.approx((3 / 8, 1 / 8, 0.0))


def test_only_serving_in_a_closed_loop_goes_by_calls() -> None:
    warm = HopCost(entry_ms=0.1, entry_mb_ms=0.2, fixed_ms=0.03, call_ms=0.08, entry_tensor_ms=0.02, deviation_ms=0.2)
    cold = HopCost(entry_ms=0.3, entry_mb_ms=0.2, fixed_ms=0.1, call_ms=0.5, entry_tensor_ms=0.03, deviation_ms=0.1)
    hop = HopCosts(warm=warm, cold=cold, cold_mb=64, paused=cold)
    quicker = at_pace(hop, 2.0, Pace(1.0, 1.0, 1.0))
    assert (quicker.cold, quicker.paused) == (cold, cold)
    found = quicker.warm
    assert (found.entry_ms, found.fixed_ms, found.call_ms) == pytest.approx((0.05, 0.015, 0.04))
    assert found.entry_tensor_ms == pytest.approx(0.01)
    assert (found.entry_mb_ms, found.deviation_ms) == (0.2, 0.2)  # through memory, and behind what others left
    slower = at_pace(hop, 0.5, Pace(1.0, 1.0, 1.0)).warm
    assert (slower.entry_ms, slower.entry_tensor_ms) == pytest.approx((0.2, 0.03))  # never dearer than in cold caches


@pytest.mark.parametrize(
    ("kinds", "flops", "weights", "waits"),
    [
        ("Gemm", 2 * 100 << 20, 400 << 20, True),  # a dense layer, one row
        ("Conv", 100 * 9 << 20, 9 << 20, False),
        ("LSTM", 16 * 128 << 20, 128 << 20, True),
        ("GRU", 8 * 18 << 20, 18 << 20, False),  # in caches
        ("Gather", 0, 277 << 20, False),  # of which rows are read
        ("MatMul", 64 * 100 << 20, 100 << 20, False),
    ],
)
def test_large_weights_that_are_hardly_used_are_waited_for(kinds: str, flops: int, weights: int, waits: bool) -> None:
    assert waits_for_memory(kinds.split("+"), flops, weights) is waits


def test_what_was_seen_is_kept_by_ten_seconds_and_the_usual_pace_is_the_median(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    now = [0.0]
    seen = iter(
        [Pace(1.0, 5.0, 1.0), Pace(3.0, 5.0, 1.0), Pace(2.0, 5.0, 1.0), Pace(4.0, 5.0, 1.0), Pace(6.0, 5.0, 1.0)]
    )
    monkeypatch.setattr(module, "pace", lambda threads: next(seen))
    monkeypatch.setattr("time.time", lambda: now[0])
    first = Watch()
    for at in (0.0, 0.4 * BUCKET_S, 0.9 * BUCKET_S):  # one bucket, of which the median is 2
        now[0] = at
        first.look()
    assert first.keep().usual() == Pace(2.0, 5.0, 1.0)
    second = Watch()
    for at in (1.5 * BUCKET_S, 2.5 * BUCKET_S):
        now[0] = at
        second.look()
    history = second.keep()
    assert [b.pace.products_ms for b in history.buckets] == [2.0, 4.0, 6.0]
    assert history.usual() == Pace(4.0, 5.0, 1.0)
    assert history.spread(Work(products=1.0)) == pytest.approx(0.34)  # half of what lies within 16 and 84 %
    assert history.spread(Work(streaming=1.0)) == 0.0


def test_some_seconds_of_something_else_do_not_count_as_drift() -> None:
    seen = [Bucket(at, Pace(4.0 if at else 40.0, 1.0, 1.0)) for at in range(20)]
    assert History(buckets=tuple(seen)).spread(Work(products=1.0)) == 0


def test_threads_have_a_pace_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "pace", lambda threads: Pace(float(threads), 1.0, 1.0))
    for threads in (1, 2):
        watch = Watch(threads)
        watch.look()
        history = watch.keep()
    assert (history.usual(), history.usual(2)) == (Pace(1.0, 1.0, 1.0), Pace(2.0, 1.0, 1.0))


def test_a_history_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    documents.write(
        module._path(), History(buckets=tuple(Bucket(at, Pace(1.0, 1.0, 1.0)) for at in range(MOST_BUCKETS)))
    )
    watch = Watch()
    watch.look()
    kept = watch.keep().buckets
    assert len(kept) == MOST_BUCKETS
    assert kept[0].at == 1
    assert kept[-1].pace.products_ms > 0


def test_a_history_that_cannot_be_used_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    module._path().parent.mkdir(parents=True)
    module._path().write_text("not a document")
    watch = Watch()
    now = watch.look()
    assert watch.keep().usual() == now
    assert documents.read(module._path(), History, made_by="").usual() == now  # as it was written anew
    monkeypatch.setenv("LAMELLA_CACHE", "/proc/nowhere")
    assert watch.keep().usual() == now


def test_one_look_is_told_by_those_around_it() -> None:
    looks = [
        (0.0, Pace(1.0, 1.0, 1.0)),
        (1.0, Pace(9.0, 1.0, 1.0)),
        (2.0, Pace(2.0, 1.0, 1.0)),
        (100.0, Pace(5.0, 1.0, 1.0)),
    ]
    assert [at.products_ms for at in around(looks)] == [2.0, 2.0, 2.0, 5.0]
    assert median([Pace(1.0, 4.0, 1.0), Pace(3.0, 2.0, 1.0)]) == Pace(2.0, 3.0, 1.0)
