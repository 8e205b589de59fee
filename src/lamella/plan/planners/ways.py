"""Shortest ways through a graph of choices, with at most so many stages: from the begin, to the end, over an arc."""

from __future__ import annotations

import math

import numpy as np


class Ways:
    """Arcs in the order of the states they reach. Weights are given by arc, in that order."""

    def __init__(self, states: int, tail: np.ndarray, head: np.ndarray, stages: np.ndarray, most: int) -> None:
        """Put arcs in order.

        Args:
            states: how many; ways lead from the first to the last.
            tail: of each arc, the state it leaves.
            head: the state it reaches, always a later one.
            stages: how many each arc adds.
            most: stages of a way.
        """
        self.states, self.most = states, most
        self.order = _ordered(head, stages, states)
        self.tail, self.head, self.stages = tail[self.order], head[self.order], stages[self.order]
        self._into = _groups(self.head, self.stages)
        self._by_tail = _ordered(self.tail, self.stages, states)
        self._from = _groups(self.tail[self._by_tail], self.stages[self._by_tail])

    def forward(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least weight from the begin to each state with at most 0, 1, ... stages, and the last arc to it."""
        if not self.most:
            return self._forward(weight)
        width = self.most + 1
        least, by = np.full((self.states, width), math.inf), np.full((self.states, width), -1)
        least[0] = 0.0
        for state, count, low, high in self._into:
            if count < width:
                values = least[self.tail[low:high], : width - count] + weight[low:high, None]
                at = np.argmin(values, axis=0)
                found = values[at, np.arange(width - count)]
                better = found < least[state, count:]
                least[state, count:][better] = found[better]
                by[state, count:][better] = low + at[better]
        return least, by

    def _forward(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where stages do not count: the same in a third of the time."""
        least, by = np.full(self.states, math.inf), np.full(self.states, -1)
        least[0] = 0.0
        for state, _, low, high in self._into:
            values = least[self.tail[low:high]] + weight[low:high]
            at = values.argmin()
            if (found := values[at]) < least[state]:
                least[state], by[state] = found, low + at
        return least[:, None], by[:, None]

    def backward(self, weight: np.ndarray) -> np.ndarray:
        """The least weight from each state to the end with at most 0, 1, ... stages."""
        width = self.most + 1
        least = np.full((self.states, width), math.inf)
        least[-1] = 0.0
        heads, weights = self.head[self._by_tail], weight[self._by_tail]
        for state, count, low, high in reversed(self._from):
            if count < width:
                values = least[heads[low:high], : width - count] + weights[low:high, None]
                least[state, count:] = np.minimum(least[state, count:], values.min(axis=0))
        return least

    def through(self, weight: np.ndarray, adds: np.ndarray) -> np.ndarray:
        """What a way over each arc adds up to, of ways of any number of stages the one of least weight.

        Args:
            weight: by which ways are chosen, [arcs].
            adds: what is added up, [arcs, any].

        Returns:
            Sums, [arcs, any]; infinite where no way takes the arc.
        """
        before = np.full((self.states, adds.shape[1]), math.inf)
        after, least = before.copy(), np.full(self.states, math.inf)
        before[0] = after[-1] = least[-1] = 0.0
        by = self._forward(weight)[1][:, 0]
        for state in np.flatnonzero(by >= 0).tolist():
            before[state] = before[self.tail[by[state]]] + adds[by[state]]
        heads, weights = self.head[self._by_tail], weight[self._by_tail]
        for state, _, low, high in reversed(self._from):
            values = least[heads[low:high]] + weights[low:high]
            at = values.argmin()
            if (found := values[at]) < least[state]:
                least[state] = found
                after[state] = after[heads[low + at]] + adds[self._by_tail[low + at]]
        over: np.ndarray = before[self.tail] + adds + after[self.head]
        return over

    def farthest(self, weight: np.ndarray) -> np.ndarray:
        """The greatest weight from each state to the end, of however many stages; -inf where no way leads there."""
        most = np.full(self.states, -math.inf)
        most[-1] = 0.0
        heads, weights = self.head[self._by_tail], weight[self._by_tail]
        for state, _, low, high in reversed(self._from):
            most[state] = max(most[state], (most[heads[low:high]] + weights[low:high]).max())
        return most

    def route(self, found: tuple[np.ndarray, np.ndarray]) -> list[int] | None:
        """The arcs to the end, of what `forward` found; None where no way leads there."""
        least, by = found
        if not math.isfinite(least[-1, -1]):
            return None
        arcs, state, stages = [], self.states - 1, self.most
        while state:
            arcs.append(int(by[state, stages]))
            state, stages = int(self.tail[arcs[-1]]), stages - int(self.stages[arcs[-1]])
        return arcs[::-1]

    def over(self, weight: np.ndarray) -> np.ndarray:
        """Of each arc the least weight of a way that takes it."""
        before, after = self.forward(weight)[0], self.backward(weight)
        if not self.most:
            over: np.ndarray = before[self.tail, 0] + weight + after[self.head, 0]
            return over
        found = np.full(len(weight), math.inf)
        for state, count, low, high in self._into:
            left = self.most - count
            if left >= 0:
                rest = after[state, left::-1] if left < self.most else after[state, ::-1]
                found[low:high] = weight[low:high] + (before[self.tail[low:high], : left + 1] + rest).min(axis=1)
        return found


def _ordered(state: np.ndarray, stages: np.ndarray, states: int) -> np.ndarray:
    """Indices by state, then stages. Small numbers are sorted by their digits, in a tenth of the time."""
    width = int(stages.max(initial=0)) + 1
    small = states * width <= np.iinfo(np.uint16).max
    key = (state * width + stages).astype(np.uint16 if small else np.int64)
    return np.argsort(key, kind="stable")


def _groups(state: np.ndarray, stages: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Runs of equal state and stages: those, the first index, and one past the last."""
    if not len(state):
        return []
    begins = np.flatnonzero(np.r_[True, (state[1:] != state[:-1]) | (stages[1:] != stages[:-1])])
    ends = np.r_[begins[1:], len(state)]
    return list(zip(state[begins].tolist(), stages[begins].tolist(), begins.tolist(), ends.tolist(), strict=True))
