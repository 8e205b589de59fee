"""When parallel runs end: the same law for plans, for profiles, and for runs that are emulated."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def makespan(times: Sequence[float], at_once: int) -> float:
    """When the last of several runs ends, if at most `at_once` go at a time, each begun as soon as one ends."""
    lanes = [0.0] * max(1, at_once)
    for time in times:
        heapq.heapreplace(lanes, lanes[0] + time)
    return max(lanes)
