"""Timing beside a known load: what was measured while the machine was busy is measured again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np

RETAKES = 2
NOISY = 1.25
"""What is timed is taken again while the known load beside it took this much longer than the fastest seen."""
LOADS = 400
"""So many of the last known loads are remembered."""
STREAM_MB = 64
"""More than the caches of a core and of most machines hold."""
DRIFT = 1.4
"""Streaming takes this much longer than its fastest run on an idle virtual machine (95 of 100 runs within 45 s; a core
1.14): only what is beyond it is noise."""

T = TypeVar("T")


class Load(NamedTuple):
    """What known pieces of work took, ms: one that stays in a core's cache, and one that streams through memory.

    Neighbours on a machine share its memory and not its cores: either may be busy without the other.
    """

    core_ms: float
    memory_ms: float


def slowdown(loads: Sequence[Load], among: Sequence[Load]) -> float:
    """How much longer the slowest of `loads` took than the fastest `among` these, beyond what memory drifts."""
    core, memory = (max(load[k] for load in loads) / min(load[k] for load in among) for k in (0, 1))
    return max(core, memory / DRIFT)


def quietly(run: Callable[[], T], seen: Sequence[Load], retakes: int = RETAKES) -> tuple[T, tuple[Load, ...]]:
    """What `run` gives beside the quietest known load, and the loads seen with those beside it.

    Args:
        run: measures.
        seen: known loads of before, which say how quick one is on an idle machine.
        retakes: how often it may be run again while the load says that the machine is busy.
    """
    best: tuple[float, T, tuple[Load, ...]] | None = None
    for _ in range(1 + retakes):
        before = known_load()
        found = run()
        loads = (*seen, before, known_load())
        noise = slowdown(loads[-2:], loads)
        if best is None or noise < best[0]:
            best = noise, found, loads[-LOADS:]
        if noise < NOISY:
            break
    assert best
    return best[1], best[2]


def known_load() -> Load:
    """Fixed pieces of work for one core: slower than before means that the machine is busy.

    Rejected: numpy's matrix products, whose library has threads of its own that wait for each other on a busy machine
    (`profile.pace` has onnxruntime's, on threads that are counted).
    """
    a = np.full(1 << 15, 0.5, np.float32)
    return Load(quickest(lambda: [np.sqrt(a, out=a) for _ in range(80)], 3), quickest(streaming, 2))


def quickest(work: Callable[[], object], runs: int) -> float:
    """Of several runs, ms."""
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        work()
        best = min(best, (time.perf_counter() - start) * 1000)
    return best


def streaming() -> object:
    """Stream through memory once."""
    return _stream().sum()


@cache
def _stream() -> np.ndarray:
    """What is streamed: made once, since its pages take longer to come by than to read."""
    return np.ones(STREAM_MB << 17, np.float64)
