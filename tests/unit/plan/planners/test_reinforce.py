"""The policy: its gradient, its draws, what it finds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lamella.plan.planners.reinforce import Group, _play, _Policy, search

UNITS, ACTIONS = 7, 3
SHARES = np.linspace(0, 0.25, UNITS)


def free() -> np.ndarray:
    """Everything is legal, but to go on behind the last unit."""
    legal = np.ones((UNITS, UNITS, ACTIONS), bool)
    legal[:, -1, 0] = False
    return legal


def test_its_slopes_are_those_of_small_steps() -> None:
    rng = np.random.default_rng(3)
    policy = _Policy(SHARES, ACTIONS, rng)
    legal = free()
    seen = _play(policy, legal, rng)
    advantage = rng.normal(size=seen.actions.shape)

    def loss() -> float:
        total = 0.0
        for unit in range(UNITS):
            first = np.zeros(len(seen.actions), int)  # all rows of `legal` are alike
            odds = policy.odds(policy.hidden(seen.numbers[:, unit], unit), legal[first, unit])
            done = odds[np.arange(len(odds)), seen.actions[:, unit]]
            total -= float((np.log(done) * advantage[:, unit]).sum())
        return total / len(seen.actions)

    for layer, slope in zip(policy.layers, policy.slopes(seen, advantage), strict=True):
        for at in [(0, 0), (layer.shape[0] - 1, layer.shape[1] - 1), (layer.shape[0] // 2, layer.shape[1] // 2)]:
            kept, values = layer[at], []
            for shift in (1e-5, -1e-5):
                layer[at] = kept + shift
                values.append(loss())
            layer[at] = kept
            assert slope[at] == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-6)


def test_it_finds_what_it_is_rewarded_for_and_the_same_again_for_the_same_seed() -> None:
    want = ((0, 2, 2), (2, 3, 1), (3, 7, 2))

    def reward(groups: tuple[Group, ...]) -> float:
        return float(len(set(groups) & set(want)) - 0.1 * len(groups))

    found = search(free(), SHARES, reward, seed=0)
    assert found.groups == want
    assert search(free(), SHARES, reward, seed=0) == found
    assert search(free(), SHARES, reward, seed=1).drawn != found.drawn


def test_it_learns_rather_than_draws_blindly() -> None:
    seen: list[int] = []

    def reward(groups: tuple[Group, ...]) -> float:
        seen.append(len(groups))
        return -float(len(groups))

    found = search(free(), SHARES, reward, seed=0)
    assert found.groups in {((0, UNITS, 1),), ((0, UNITS, 2),)}
    assert found.different == len(seen) < 3 ** (UNITS - 1) * 2  # not all there are
    assert np.mean(seen[-50:]) < np.mean(seen[:50]) - 0.5
    assert found.drawn < 30_000  # it settled


def test_what_is_not_legal_is_never_drawn() -> None:
    legal = free()
    legal[:, :, 2] = False
    legal[:, 2, 1:] = False
    drawn: list[tuple[Group, ...]] = []

    def reward(groups: tuple[Group, ...]) -> float:
        drawn.append(groups)
        return 0.0

    search(legal, SHARES, reward, seed=5)
    assert len(drawn) == len(set(drawn)) == 2 ** (UNITS - 2)
    for groups in drawn:
        assert all(action == 1 and last != 3 for _, last, action in groups)
        assert [0, *(last for _, last, _ in groups)] == [*(first for first, _, _ in groups), UNITS]
        assert all(a[1] == b[0] for a, b in pairwise(groups))
