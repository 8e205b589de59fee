"""How long work takes under a CPU quota: what a CFS period grants, and what it holds back."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

EXACT_MS = 1e-6
"""Work that ends with its grant to this much needs no further period: sums of floats miss by less."""


def throttled(cpu_ms: np.ndarray, vcpu: np.ndarray, period_ms: float) -> np.ndarray:
    """Wall time of one-thread runs of `cpu_ms` under quotas, on average over the phase in a period; many at once.

    The kernel grants `vcpu * period` of CPU time in each period and holds the process back when it is spent. An idle
    process starts with its grant unspent. So a run that its first grant does not cover pauses after each grant; how
    long at first depends on what was left of the period when it began, which is uniform. From one vCPU nothing is held.
    """
    found = np.array(cpu_ms, float)
    held = (vcpu < 1) & (cpu_ms > vcpu * period_ms + EXACT_MS)
    found[held] = _throttled(found[held], vcpu[held], period_ms)
    return found


def _throttled(cpu_ms: np.ndarray, vcpu: np.ndarray, period_ms: float) -> np.ndarray:
    """Those that their first grant does not cover."""
    grant = vcpu * period_ms
    idle = period_ms - grant
    work = np.maximum(cpu_ms - grant, 0.0)  # after the first grant
    whole = np.ceil(np.maximum(work - EXACT_MS, 0.0) / grant) - 1
    late = (
        (grant + period_ms) / 2 + whole * idle + work
    )  # began with more left than a grant takes: it waits for the rest
    periods = np.floor((cpu_ms + EXACT_MS) / grant)
    part = np.maximum(cpu_ms - periods * grant, 0.0)  # began so late that the next grant follows at once
    early = (part * (cpu_ms + periods * idle) + (grant - part) * (cpu_ms + (periods - 1) * idle)) / period_ms
    held: np.ndarray = (1 - grant / period_ms) * late + early
    return held


def shared(busy_ms: np.ndarray, cpu_ms: np.ndarray, vcpu: np.ndarray, period_ms: float) -> np.ndarray:
    """Wall time of runs on several threads under quotas that may grant less than these use; many at once.

    A run of `busy_ms` with a core for each thread, in which they use `cpu_ms` together, keeps `cpu_ms / busy_ms` cores
    busy on average. Of that many a quota grants a share, and what it does is what it does to one.
    """
    return throttled(busy_ms, vcpu * busy_ms / cpu_ms, period_ms)


@lru_cache(maxsize=65536)
def shared_ms(busy_ms: float, cpu_ms: float, vcpu: float, period_ms: float) -> float:
    """`shared` of one run."""
    return float(shared(np.array(busy_ms), np.array(cpu_ms), np.array(vcpu), period_ms))


@lru_cache(maxsize=65536)
def throttled_ms(cpu_ms: float, vcpu: float, period_ms: float) -> float:
    """`throttled` of one run."""
    return float(throttled(np.array(cpu_ms), np.array(vcpu), period_ms))
