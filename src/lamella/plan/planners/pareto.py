"""Which of many points no other is at least as good as."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np


def undominated(usd: np.ndarray, ms: np.ndarray, third: np.ndarray | None = None) -> np.ndarray:
    """Indices of points that no other is at most as large as in all respects, of equal ones the first; by ms."""
    if third is not None:
        order = np.lexsort((third, usd, ms))
        order = order[_likely(usd[order], third[order])]
        return np.array(_skyline(usd[order].tolist(), third[order].tolist(), order.tolist()), int)
    order = np.lexsort((usd, ms))
    kept: np.ndarray = order[falling(usd[order])]
    return kept


def falling(values: np.ndarray) -> np.ndarray:
    """Which of them are below all before them."""
    below = np.ones(len(values), bool)
    below[1:] = values[1:] < np.minimum.accumulate(values)[:-1]
    return below


def _likely(usd: np.ndarray, third: np.ndarray) -> np.ndarray:
    """Of points by their first coordinate those that the cheapest before them and the least in the third leave."""
    likely = np.ones(len(usd), bool)
    for measure in (usd, third):
        best = np.maximum.accumulate(np.where(falling(measure), np.arange(len(usd)), 0))[:-1]
        likely[1:] &= (usd[best] > usd[1:]) | (third[best] > third[1:])
    return likely


def _skyline(usd: list[float], variance: list[float], order: list[int]) -> list[int]:
    """Of points by their first coordinate those that no earlier one is at most as large as in the other two.

    The earlier ones' two coordinates make a staircase, kept by the first with the second falling.
    """
    steps: list[float] = []
    heights: list[float] = []
    kept = []
    for u, v, index in zip(usd, variance, order, strict=True):
        at = bisect_right(steps, u)
        if at and heights[at - 1] <= v:
            continue
        kept.append(index)
        low = bisect_left(steps, u)
        high = low
        while high < len(steps) and heights[high] >= v:
            high += 1
        steps[low:high] = [u]
        heights[low:high] = [v]
    return kept
