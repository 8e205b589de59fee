"""Timing beside a known load: what was measured while the machine was busy is measured again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

RETAKES = 2
NOISY = 1.25
"""What is timed is taken again while the known load beside it took this much longer than the fastest seen."""
LOADS = 400
"""So many of the last known loads are remembered."""

T = TypeVar("T")


def quietly(run: Callable[[], T], seen: Sequence[float], retakes: int = RETAKES) -> tuple[T, tuple[float, ...]]:
    """What `run` gives beside the quietest known load, and the loads seen with those beside it, ms.

    Args:
        run: measures.
        seen: known loads of before, which say how quick one is on an idle machine.
        retakes: how often it may be run again while the load says that the machine is busy.
    """
    best: tuple[float, T, tuple[float, ...]] | None = None
    for _ in range(1 + retakes):
        before = known_load()
        found = run()
        loads = (*seen, before, known_load())
        noise = max(loads[-2:]) / min(loads)
        if best is None or noise < best[0]:
            best = noise, found, loads[-LOADS:]
        if noise < NOISY:
            break
    assert best
    return best[1], best[2]


def known_load() -> float:
    """A fixed piece of work for one core, ms: slower than before means the machine is busy.

    Rejected: matrix products, whose library has threads of its own that wait for each other on a busy machine.
    """
    a = np.full(1 << 15, 0.5, np.float32)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(80):
            np.sqrt(a, out=a)
        best = min(best, (time.perf_counter() - start) * 1000)
    return best
