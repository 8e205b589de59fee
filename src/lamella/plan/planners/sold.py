"""What a function can be given on a platform: every size that is sold, its CPU and its price, as arrays.

`SliceModel` and `Platform` price one run; here many are priced at once, by the same rules.
"""

from __future__ import annotations

import math

import numpy as np

from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.throttle import least_bill_ms, shared, throttled
from lamella.platforms import Platform
from lamella.platforms.platform import threads as threads_for


class Sold:
    """Sizes by what is asked for of CPU, one after the other: an index into them is a size with its vCPU."""

    def __init__(self, model: SliceModel) -> None:
        """Read the platform, for functions of a model."""
        platform = self.platform = model.platform
        per_vcpu = platform.cpu.mb_per_vcpu
        most = per_vcpu.value * model.profile.machine.cores if per_vcpu else math.inf
        self.free = per_vcpu is None
        """Whether CPU has nothing to do with memory."""
        shares = _shares(platform, platform.vcpu(0, model.vcpu)) if self.free else [model.vcpu]
        self.by_share = [np.array(platform.sizes_mb(vcpu), float) for vcpu in shares]
        """Sizes by what is asked for of CPU, MB; below, all of them one after the other."""
        self.measured = np.array([max(1, int((sizes <= most).sum())) for sizes in self.by_share])
        """How many of them buy no more CPU than was measured: beyond, a slice gets the smallest that holds it."""
        self.mb = np.concatenate(self.by_share)
        self.vcpu = np.array(
            [platform.vcpu(size, v) for sizes, v in zip(self.by_share, shares, strict=True) for size in sizes]
        )
        self.threads = np.array([min(model.profile.machine.cores, threads_for(v)) for v in self.vcpu.tolist()])
        self.more_cpu = [model.times.more_cpu(count + 1) for count in range(int(self.threads.max()))]
        """By threads, from one."""
        self.usd_per_ms = np.array(
            [platform.usd_per_ms(mb, vcpu) for mb, vcpu in zip(self.mb.tolist(), self.vcpu.tolist(), strict=True)]
        )

    def run_ms(self, work_ms: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Of work [threads, any] at sizes (indices): `SliceModel.run_ms`, many at once."""
        one, vcpu = work_ms[0], self.vcpu[size]
        many = work_ms[self.threads[size] - 1, np.arange(len(size))]
        period_ms = self.platform.cpu.period_ms.value
        slow = throttled(one, vcpu, period_ms)
        held = shared(many, one * np.array(self.more_cpu)[self.threads[size] - 1], np.maximum(vcpu, 1.0), period_ms)
        several = np.where(vcpu < self.threads[size], held, many)
        return np.where(vcpu < 1, slow, np.minimum(one, several))

    def quickest_ms(self, run_ms: np.ndarray, work_ms: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Of work [threads, any] at any size from `low` to `high` (indices), at least; `run_ms` is that at `high`.

        It is that, or just before one thread more begins to share what two or more had alone.
        """
        found = run_ms
        for count in range(2, int(self.threads[high].max(initial=1))):
            inside = (self.vcpu[low] <= count) & (count < self.vcpu[high])
            found = np.where(inside, np.minimum(found, work_ms[count - 1]), found)
        return found

    def least_usd(self, work_ms: np.ndarray, wait_ms: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """What runs cost at any size from `low` to `high` at least, where memory buys CPU: billed to no step, no fee.

        Memory is sold by its share of a core there, so that what a run costs is vCPU times time.

        Args:
            work_ms: [threads, any].
            wait_ms: beside it, billed and in no work.
            low: the smallest size of each, an index.
            high: the largest.
        """
        begin, end = self.vcpu[low], self.vcpu[high]
        least = np.full(len(low), np.inf)
        here = np.flatnonzero(begin < 1)
        upto = np.minimum(end[here], 1.0)
        least[here] = least_bill_ms(work_ms[0, here], begin[here], upto, self.platform.cpu.period_ms.value)
        for count in range(2, int(self.threads[high].max(initial=1)) + 1):
            here = np.flatnonzero((begin <= count) & (end > count - 1))
            if len(here):
                at, until = np.maximum(begin[here], count - 1.0), np.minimum(end[here], float(count))
                least[here] = np.minimum(least[here], self._several_ms(work_ms[:, here], count, at, until))
        usd = np.minimum(self.usd_per_ms[low] / begin, self.usd_per_ms[high] / end)
        usd *= np.where(np.isfinite(least), least, 0.0)  # more vCPU than was measured: of one size, priced as it is
        found: np.ndarray = usd + self.usd_per_ms[low] * wait_ms
        return found

    def _several_ms(self, work_ms: np.ndarray, count: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The least of vCPU times time, from one vCPU on and of sizes with so many threads, or on one of them."""
        one, many = work_ms[0], work_ms[count - 1]
        used = one * self.more_cpu[count - 1] / many
        held = used * least_bill_ms(many, low / used, high / used, self.platform.cpu.period_ms.value)
        found: np.ndarray = np.minimum(low * one, np.minimum(held, np.where(high >= count, count * many, np.inf)))
        return found

    def cost_usd(self, size: np.ndarray, run_ms: np.ndarray) -> np.ndarray:
        """Of runs at sizes (indices): `Platform.cost_usd`, many at once."""
        billing = self.platform.billing
        step_ms = billing.granularity_ms.value
        billed = np.ceil(run_ms / step_ms - 1e-9) * step_ms if step_ms else run_ms
        if billing.min_ms:
            billed = np.maximum(billed, billing.min_ms.value)
        cost: np.ndarray = billed * self.usd_per_ms[size] + billing.usd_per_request.value
        return cost


def _shares(platform: Platform, most: float) -> list[float]:
    """How much CPU a function may have where that is free: what is asked for, and whole ones below it that are sold."""
    return [*(float(v) for v in range(1, math.ceil(most)) if platform.sells(v)), most]
