"""Blocks of sizes: what cells take in them, and the arcs that come of it.

A block is as quick as its quickest size, and costs no more than any of its sizes does: none of them beats it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lamella.plan.planners.options import Options
from lamella.plan.planners.route import Sums
from lamella.plan.pricing.spread import beside
from lamella.plan.pricing.throttle import throttled

BLOCKS = 4
"""What is left of a block of sizes is divided into so many."""
NEVER = 1e12
"""Milliseconds, and dollars: no plan takes as much."""


class Blocks(NamedTuple):
    """Sizes `low` to `high` (indices of what is sold) of cells."""

    cell: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, kept: np.ndarray) -> Blocks:
        """Some of them, by a mask that may be longer: of arcs, of which blocks are the first."""
        return Blocks(*(b[kept[: len(self.cell)]] for b in self))

    def divided(self) -> Blocks:
        """Each in parts of about the same ratio of sizes, of at least one."""
        count = np.minimum(self.high - self.low + 1, BLOCKS)
        parts = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(parts)) - np.repeat(np.cumsum(count) - count, count)
        width = (self.high - self.low + 1)[parts]
        low = self.low[parts] + number * width // count[parts]
        high = self.low[parts] + (number + 1) * width // count[parts] - 1
        return Blocks(self.cell[parts], low, high)


class Arcs(NamedTuple):
    """Of a graph of choices: where each arc leads, and what it adds. Blocks come first, then the fixed ones."""

    cell: np.ndarray
    """Of the blocks."""
    tail: np.ndarray
    head: np.ndarray
    sums: Sums
    stages: np.ndarray


def whole_cells(options: Options) -> Blocks:
    """Each cell with all sizes that hold it; where memory buys nothing but room, with the smallest."""
    need = np.maximum(options.cells.peak_mb, options.cells.floor_mb)
    ends = np.cumsum([len(sizes) for sizes in options.sold.by_share])
    low = np.empty(len(need), int)
    for share, (sizes, end) in enumerate(zip(options.sold.by_share, ends, strict=True)):
        here = options.cells.share == share
        low[here] = end - len(sizes) + np.searchsorted(sizes, need[here] - 1e-9)
    begins = ends - [len(sizes) for sizes in options.sold.by_share]
    cell = np.flatnonzero(low < ends[options.cells.share])
    quickest = (begins + options.sold.measured - 1)[options.cells.share[cell]]
    return Blocks(cell, low[cell], low[cell] if options.sold.free else np.maximum(low[cell], quickest))


def run_ms(options: Options, blocks: Blocks) -> np.ndarray:
    """Of each at its largest size: how long it is billed."""
    run = options.sold.run_ms(options.cells.work_ms[:, blocks.cell], blocks.high)
    whole: np.ndarray = run + options.cells.wait_ms[blocks.cell]
    return whole


def quickest_ms(options: Options, blocks: Blocks, run_ms: np.ndarray) -> np.ndarray:
    """Of each at any of its sizes, at least; at the largest it is `run_ms`."""
    wait = options.cells.wait_ms[blocks.cell]
    run = options.sold.quickest_ms(run_ms - wait, options.cells.work_ms[:, blocks.cell], blocks.low, blocks.high)
    whole: np.ndarray = run + wait
    return whole


def least_of(options: Options, blocks: Blocks, quickest_ms: np.ndarray) -> Sums:
    """What arcs add at least: as quick and as cheap as any size of a block."""
    sums = sums_of(options, blocks, quickest_ms, blocks.low)
    wide = np.flatnonzero(blocks.low < blocks.high)
    cell, low, high = (column[wide] for column in blocks)
    work = options.cells.work_ms[:, cell]
    least = options.sold.least_usd(work, options.cells.wait_ms[cell], low, high)
    usd = options.cells.hop_usd[cell] + options.model.platform.billing.usd_per_request.value + least
    if options.starts_billed:
        init = np.broadcast_to(options.cells.init_ms[cell], work.shape)
        usd += options.cold_share * options.sold.least_usd(init, np.zeros(len(cell)), low, high)
    sums.usd[wide] = np.maximum(sums.usd[wide], usd)
    return sums


def real_of(options: Options, blocks: Blocks, run_ms: np.ndarray) -> Sums:
    """What arcs add at the largest size of each block, as good as none where that does not end before the timeout."""
    sums = sums_of(options, blocks, run_ms, blocks.high)
    late = np.flatnonzero(run_ms / 1000 > options.model.platform.limits.timeout_s.value)
    sums.usd[late] = sums.ms[late] = NEVER
    return sums


def sums_of(options: Options, blocks: Blocks, run_ms: np.ndarray, size: np.ndarray) -> Sums:
    """What arcs add, blocks first, then the fixed ones: at their quickest (`run_ms`), by the price of a size."""
    cell, fixed = blocks.cell, options.fixed_sums
    usd = _cost_usd(options, blocks, size, run_ms)
    varied = options.cells.variance[cell] * run_ms**2
    varied = varied + beside(options.model, run_ms, options.sold.vcpu[blocks.high])
    return Sums(
        np.concatenate([usd + options.cells.hop_usd[cell], fixed[:, 2]]),
        np.concatenate([run_ms + options.cells.hop_ms[cell], fixed[:, 3]]) * options.stretch,
        np.concatenate([varied, fixed[:, 4]]),
    )


def _cost_usd(options: Options, blocks: Blocks, size: np.ndarray, run_ms: np.ndarray) -> np.ndarray:
    """Of runs, and their share of starts."""
    cost = options.sold.cost_usd(size, run_ms)
    if options.starts_billed:
        vcpu, period_ms = options.sold.vcpu[blocks.high], options.model.platform.cpu.period_ms.value
        init_ms = throttled(options.cells.init_ms[blocks.cell], vcpu, period_ms)
        cost = cost + options.cold_share * init_ms * options.sold.usd_per_ms[size]
    return cost


def arcs_of(options: Options, blocks: Blocks, sums: Sums) -> Arcs:
    """Each block as one arc, and the fixed ones."""
    cell, fixed = blocks.cell, options.fixed_sums
    tail = np.concatenate([options.cells.tail[cell], fixed[:, 0].astype(int)])
    head = np.concatenate([options.cells.head[cell], fixed[:, 1].astype(int)])
    stages = np.concatenate([np.ones(len(cell), int), fixed[:, 5].astype(int)])
    return Arcs(cell, tail, head, sums, stages)
