"""What is timed while the machine is busy is timed again, and the quietest time counts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lamella.profile import quiet
from lamella.profile.quiet import Load


def taken(
    monkeypatch: pytest.MonkeyPatch,
    loads: Sequence[float],
    seen: Sequence[float] = (),
    retakes: int = quiet.RETAKES,
    memory: Sequence[float] = (),
) -> tuple[int, tuple[float, ...]]:
    """Which run counts, beside these known loads, and the loads of the core that are remembered."""
    left, runs = iter([Load(*both) for both in zip(loads, memory or loads, strict=True)]), iter(range(9))
    monkeypatch.setattr(quiet, "known_load", lambda: next(left))
    run, known = quiet.quietly(lambda: next(runs), [Load(ms, ms) for ms in seen], retakes)
    return run, tuple(load.core_ms for load in known)


def test_a_quiet_run_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(monkeypatch, [1.0, 1.1]) == (0, (1.0, 1.1))


def test_a_noisy_run_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(monkeypatch, [1.0, 2.0, 1.0, 1.1])[0] == 1


def test_what_was_seen_before_says_how_quick_an_idle_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(monkeypatch, [2.0, 2.0, 1.0, 1.0], seen=[1.0]) == (1, (1.0, 1.0, 1.0))


def test_of_runs_that_are_all_noisy_the_quietest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(monkeypatch, [3.0, 3.0, 2.0, 2.0, 4.0, 4.0], seen=[1.0])[0] == 1


def test_it_ends_after_the_retakes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(monkeypatch, [3.0, 3.0], seen=[1.0], retakes=0)[0] == 0


def test_so_many_loads_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(taken(monkeypatch, [1.0, 1.0], seen=[1.0] * 1000)[1]) == quiet.LOADS


def test_a_busy_memory_is_noise_beside_an_idle_core(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(monkeypatch, [1.0, 1.0, 1.0, 1.0], memory=[9.0, 18.0, 9.0, 9.1])[0] == 1


def test_a_known_load_is_larger_than_no_time_at_all() -> None:
    load = quiet.known_load()
    assert min(load) > 0
    assert quiet.slowdown([load], [load]) == 1


def test_what_memory_drifts_on_an_idle_machine_is_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(monkeypatch, [1.0, 1.0], memory=[9.0, 12.0])[0] == 0
