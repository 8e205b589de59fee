"""How long work takes under a CPU quota: what a CFS period grants, and what it holds back.

The law is the kernel's own (`pricing.quota`), averaged over how its ticks and periods fall, for runs that each begin
behind a pause. Read off a grid: it has no closed form.

Rejected: grants that end to the microsecond, for which there is a closed form. It is 3 to 6 % slow for works of a few
grants, and a fifth for those of one or two (docs/decisions/0029-quota.md).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lamella.plan.pricing.quota import EXACT_MS, quota


def throttled(cpu_ms: np.ndarray, vcpu: np.ndarray, period_ms: float) -> np.ndarray:
    """Mean wall time of one-thread runs of `cpu_ms` under quotas, each behind a pause; many at once.

    What the first grant covers is not held back, and nothing is from one vCPU on.
    """
    found = np.array(cpu_ms, float)
    held = (vcpu < 1) & (cpu_ms > vcpu * period_ms + EXACT_MS)
    if held.any():
        found[held] = quota(period_ms).wall_ms(found[held], np.broadcast_to(vcpu, found.shape)[held])
    return found


def phase_deviation_ms(run_ms: np.ndarray, vcpu: np.ndarray, period_ms: float) -> np.ndarray:
    """Standard deviation of such runs, by how long they take on average, ms; many at once."""
    run, share = np.broadcast_arrays(np.asarray(run_ms, float), vcpu)
    found = np.zeros(run.shape)
    held = (share < 1) & (run > share * period_ms + EXACT_MS)
    if held.any():
        found[held] = quota(period_ms).deviation_ms(share[held])
    return found


def shared(busy_ms: np.ndarray, cpu_ms: np.ndarray, vcpu: np.ndarray, period_ms: float) -> np.ndarray:
    """Wall time of runs on several threads under quotas that may grant less than these use; many at once.

    A run of `busy_ms` with a core for each thread, in which they use `cpu_ms` together, keeps `cpu_ms / busy_ms` cores
    busy on average. Of that many a quota grants a share, and what it does is what it does to one.
    """
    return throttled(busy_ms, vcpu * busy_ms / cpu_ms, period_ms)


def least_bill_ms(cpu_ms: np.ndarray, low: np.ndarray, high: np.ndarray, period_ms: float) -> np.ndarray:
    """What `vcpu` times wall time is at least for one-thread runs under quotas from `low` to `high`; many at once.

    From the share on that holds nothing back it is that share times the work; below, what the grid's lines end at.
    """
    free = np.clip((cpu_ms - EXACT_MS) / period_ms, low, np.maximum(low, 1.0))
    found = np.where(free <= high, free * cpu_ms, np.inf)
    for end in (low, np.minimum(high, 1.0)):
        found = np.minimum(found, np.where(end >= low, end * throttled(cpu_ms, end, period_ms), np.inf))
    held = np.flatnonzero(low < free)
    if len(held):
        least = quota(period_ms).least_bill_ms(cpu_ms[held], low[held], np.minimum(high, 1.0)[held])
        found[held] = np.minimum(found[held], least)
    return found


@lru_cache(maxsize=65536)
def shared_ms(busy_ms: float, cpu_ms: float, vcpu: float, period_ms: float) -> float:
    """`shared` of one run."""
    return throttled_ms(busy_ms, vcpu * busy_ms / cpu_ms, period_ms)


@lru_cache(maxsize=65536)
def throttled_ms(cpu_ms: float, vcpu: float, period_ms: float) -> float:
    """`throttled` of one run."""
    if vcpu >= 1 or cpu_ms <= vcpu * period_ms + EXACT_MS:
        return cpu_ms
    return quota(period_ms).one_ms(cpu_ms, vcpu)
