"""What is timed while the machine is busy is timed again, and the quietest time counts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lamella.profile import quiet


def taken(
    monkeypatch: pytest.MonkeyPatch, loads: Sequence[float], seen: Sequence[float] = (), retakes: int = quiet.RETAKES
) -> tuple[int, tuple[float, ...]]:
    """Which run counts, beside these known loads, and the loads that are remembered."""
    left, runs = iter(loads), iter(range(9))
    monkeypatch.setattr(quiet, "known_load", lambda: next(left))
    return quiet.quietly(lambda: next(runs), seen, retakes)


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
