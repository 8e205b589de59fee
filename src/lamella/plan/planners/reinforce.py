"""A policy that learns to divide a chain: REINFORCE, as Gillis searches (ICDCS 2021; its code, head 2244da4).

An episode goes along the units. Behind each one the policy either goes on or ends the group there in one of several
ways; when the chain ends the division has a reward. The policy is one hidden layer, twice as wide as its input, with
ReLU, and a softmax over the actions; its input is the group's number, the unit's share of the weights and which unit it
is. After 20 episodes Adam follows the gradient of the expected reward, which is discounted towards the first units.

The figures are those of the paper's code: rate 1e-3, weight decay 1e-4, 20 episodes a step, 1,500 steps, discount 0.99.
Ours are the baseline (the batch's mean reward, since rewards here are mostly of one sign), that illegal actions have no
odds where Gillis' policy has to learn them, and that a policy which draws nothing new for 50 steps has settled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

STEPS = 1500
EPISODES = 20
"""In a step."""
SETTLED = 50
"""Steps without a division that was not seen before."""
RATE = 1e-3
DECAY = 1e-4
DISCOUNT = 0.99
MOMENTA = 0.9, 0.999
"""Adam's."""

Group = tuple[int, int, int]
"""First unit, one past the last, and by which action it ended."""


class Found(NamedTuple):
    """The division of the highest reward that was seen, and how many were drawn, and how many of them are different."""

    groups: tuple[Group, ...]
    reward: float
    drawn: int
    different: int


class _Episodes(NamedTuple):
    """What was seen and done: [episodes, units], and hidden values and odds of actions behind."""

    numbers: np.ndarray
    """Of the group that a unit is in, as a share of the units."""
    hidden: np.ndarray
    odds: np.ndarray
    actions: np.ndarray


class _Policy:
    """The network, and where Adam is.

    Products are sums by einsum: a library of linear algebra would spread them over cores, where they take longer, and
    give other last digits on another machine.
    """

    def __init__(self, shares: np.ndarray, actions: int, rng: np.random.Generator) -> None:
        width = 2 + len(shares)
        shapes = [
            (width, 2 * width, width),
            (1, 2 * width, width),
            (2 * width, actions, 2 * width),
            (1, actions, 2 * width),
        ]
        self.layers = [rng.uniform(-1, 1, (rows, cols)) / np.sqrt(fan_in) for rows, cols, fan_in in shapes]
        self.first = [np.zeros_like(layer) for layer in self.layers]
        self.second = [np.zeros_like(layer) for layer in self.layers]
        self.shares, self.steps = shares[:, None], 0

    def hidden(self, numbers: np.ndarray, unit: int) -> np.ndarray:
        """[episodes, hidden] at a unit. Which unit it is picks a row of the weights, as one of so many inputs would."""
        weights, bias = self.layers[0], self.layers[1][0]
        here = self.shares[unit] * weights[1] + weights[2 + unit] + bias
        values: np.ndarray = np.maximum(numbers[:, None] * weights[0] + here, 0.0)
        return values

    def odds(self, hidden: np.ndarray, legal: np.ndarray) -> np.ndarray:
        """[episodes, actions]; 0 where one is not legal."""
        scores = np.einsum("eh,ha->ea", hidden, self.layers[2]) + self.layers[3]
        scores = np.where(legal, scores, -np.inf)
        grown = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: np.ndarray = grown / grown.sum(axis=1, keepdims=True)
        return shares

    def slopes(self, seen: _Episodes, advantage: np.ndarray) -> list[np.ndarray]:
        """Of the loss in each layer: what was done, its log-odds times its advantage, is to become likelier."""
        chosen = np.eye(seen.odds.shape[2])[seen.actions]
        slope = (seen.odds - chosen) * advantage[:, :, None] / len(seen.odds)
        back = np.einsum("eua,ha->euh", slope, self.layers[2]) * (seen.hidden > 0)
        by_unit = back.sum(axis=0)
        numbers = np.einsum("eu,euh->h", seen.numbers, back)
        return [
            np.vstack([numbers, (self.shares * by_unit).sum(axis=0), by_unit]),
            by_unit.sum(axis=0, keepdims=True),
            np.einsum("euh,eua->ha", seen.hidden, slope),
            slope.sum(axis=(0, 1))[None],
        ]

    def follow(self, seen: _Episodes, advantage: np.ndarray) -> None:
        """One step of Adam down the slopes."""
        slopes = self.slopes(seen, advantage)
        self.steps += 1
        for layer, first, second, at in zip(self.layers, self.first, self.second, slopes, strict=True):
            decayed = at + DECAY * layer
            first += (1 - MOMENTA[0]) * (decayed - first)
            second += (1 - MOMENTA[1]) * (decayed * decayed - second)
            unbiased = np.sqrt(second / (1 - MOMENTA[1] ** self.steps))
            layer -= RATE * first / (1 - MOMENTA[0] ** self.steps) / (unbiased + 1e-8)


def search(legal: np.ndarray, shares: np.ndarray, reward: Callable[[tuple[Group, ...]], float], *, seed: int) -> Found:
    """The best division that a policy finds while it learns; the same for the same seed.

    Args:
        legal: [units, units, actions], bool: what may be done with the group that began at the first index behind the
            unit of the second. Action 0 goes on, any other ends the group. From the start on some action always is.
        shares: of each unit in the model's weights.
        reward: of a division.
        seed: of the first weights and of every draw.
    """
    rng = np.random.default_rng(seed)
    units, actions = legal.shape[1:]
    policy = _Policy(shares, actions, rng)
    known: dict[tuple[Group, ...], float] = {}
    fade = DISCOUNT ** np.arange(units - 1, -1, -1.0)
    drawn = quiet = 0
    for _ in range(STEPS):
        seen = _play(policy, legal, rng)
        divisions = [_groups(actions_of) for actions_of in seen.actions.tolist()]
        fresh = [d for d in dict.fromkeys(divisions) if d not in known]
        known.update((division, reward(division)) for division in fresh)
        drawn, quiet = drawn + EPISODES, 0 if fresh else quiet + 1
        if quiet == SETTLED:
            break
        rewards = np.array([known[d] for d in divisions])
        policy.follow(seen, (rewards - rewards.mean())[:, None] * fade)
    best = max(known, key=lambda d: known[d])  # the first of equals
    return Found(best, known[best], drawn, len(known))


def _play(policy: _Policy, legal: np.ndarray, rng: np.random.Generator) -> _Episodes:
    """A step's episodes, side by side."""
    units, actions = legal.shape[1:]
    numbers, hidden = np.zeros((EPISODES, units)), np.zeros((EPISODES, units, 2 * (2 + units)))
    odds, done = np.zeros((EPISODES, units, actions)), np.zeros((EPISODES, units), int)
    first, ended = np.zeros(EPISODES, int), np.zeros(EPISODES, bool)
    for unit in range(units):
        numbers[:, unit] = numbers[:, unit - 1] + ended / units if unit else 0.0
        hidden[:, unit] = policy.hidden(numbers[:, unit], unit)
        odds[:, unit] = policy.odds(hidden[:, unit], legal[first, unit])
        reached = odds[:, unit].cumsum(axis=1)
        done[:, unit] = np.argmax(reached > rng.random((EPISODES, 1)) * reached[:, -1:], axis=1)
        ended = done[:, unit] > 0
        first[ended] = unit + 1
    return _Episodes(numbers, hidden, odds, done)


def _groups(actions: list[int]) -> tuple[Group, ...]:
    """What a row of actions divides a chain into."""
    groups, first = [], 0
    for unit, action in enumerate(actions):
        if action:
            groups.append((first, unit + 1, action))
            first = unit + 1
    return tuple(groups)
