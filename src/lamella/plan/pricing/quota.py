"""A CPU quota of the kernel's, simulated: what a process waits, by its work and its share of a core.

The kernel grants `share * period` of CPU time in each period. A core takes of it in slices, and looks at what is left
only at its ticks; so a run goes past its grant by up to a tick, and pays for that from the next ones, or the next run
does. What a core took and did not use stays its own. Which pauses that saves or adds depends on how ticks, periods and
arrivals fall.

`quotas.json` holds the grids of the catalogue's periods, for simulating one takes seconds: `python -m
lamella.plan.pricing.quota` writes it anew. Other periods are simulated when they are first asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

TICK_MS = 4.0
"""Between two looks of the kernel: CONFIG_HZ=250."""
SLICE_MS = 5.0
"""What a core takes of the grant at a time: sched_cfs_bandwidth_slice_us."""
EXACT_MS = 1e-6
"""Work that ends with its grant to this much needs no further period: sums of floats miss by less."""
SHARES = 32
"""Of a core, evenly spaced: rows of the grid."""
GRANTS = 6
"""Behind so many whole periods' work every further grant takes a period."""
FINE_MS = 16.0
"""Up to here columns lie close: ticks matter."""
LANES = 32
"""Ways in which ticks, periods and arrivals may fall, per point of the grid."""
REQUESTS = 4
"""One after the other: what a run overdrew the next one pays. The first half only warms up."""
SIMULATED = Path(__file__).with_name("quotas.json")
PERIODS_MS = (10.0, 100.0)
"""Of the catalogue's platforms."""


class Grid(msgspec.Struct, frozen=True):
    """Runs under quotas of one period; row k is the share `(k + 1) / SHARES` of a core."""

    wall_ms: list[list[float]]
    """[shares, works]: mean wall time of the `works_ms`. More work or a smaller share never makes it less."""
    spread_ms: list[float]
    """[shares]: standard deviation of runs of many grants; shorter ones have about the same once they are held."""


def works_ms(period_ms: float) -> np.ndarray:
    """Of each column."""
    most = GRANTS * period_ms
    coarse = np.arange(FINE_MS, most, 0.08 * period_ms)
    return np.concatenate([np.arange(0.0, min(FINE_MS, most), 0.5), coarse, [most]])


class Quota:
    """Mean and deviation of the wall time of runs under quotas of one period, between the points of a grid."""

    def __init__(self, grid: Grid, period_ms: float) -> None:
        """Of that period."""
        self._works_ms = works_ms(period_ms)
        self._wall_ms, self._spread_ms = np.array(grid.wall_ms), np.array(grid.spread_ms)
        self._columns: list[float] = self._works_ms.tolist()
        self._rows = grid.wall_ms
        bill = self._wall_ms * (np.arange(1, SHARES + 1) / SHARES)[:, None]
        self._least_bill_ms = np.array([np.minimum.accumulate(np.roll(bill, -row, axis=0)) for row in range(SHARES)])
        """[rows, how many behind it, works]: the least of share times wall time, of a row and those."""

    def wall_ms(self, cpu_ms: np.ndarray, vcpu: np.ndarray) -> np.ndarray:
        """Of works that a first grant does not cover: never less for more work or a smaller share."""
        row, weight = self._row(vcpu)
        held, column, part = self._column(cpu_ms)
        low, high = (
            (1 - part) * self._wall_ms[r, column] + part * self._wall_ms[r, column + 1] for r in (row, row + 1)
        )
        found: np.ndarray = np.maximum(cpu_ms, weight * low + (1 - weight) * high + (cpu_ms - held) / vcpu)
        return found

    def least_bill_ms(self, cpu_ms: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Of shares between rows of the grid what share times wall time is at least; infinite where no row is.

        Between two rows it is a line over the share, so it is never below the least of rows and the range's ends.
        """
        first = np.maximum(np.ceil(low * SHARES - 1e-9).astype(int) - 1, 0)
        more = np.minimum(np.floor(high * SHARES + 1e-9).astype(int), SHARES) - 1 - first
        found = np.full(len(cpu_ms), np.inf)
        some = np.flatnonzero(more >= 0)
        held, column, part = self._column(cpu_ms[some])
        rows = first[some], more[some]
        least = (1 - part) * self._least_bill_ms[(*rows, column)] + part * self._least_bill_ms[(*rows, column + 1)]
        found[some] = least + (cpu_ms[some] - held)
        return found

    def one_ms(self, cpu_ms: float, vcpu: float) -> float:
        """`wall_ms` of one: arrays of one number take ten times as long."""
        row = min(max(int(vcpu * SHARES) - 1, 0), SHARES - 2)
        low, high = SHARES / (row + 1), SHARES / (row + 2)
        weight = (1 / vcpu - high) / (low - high)
        held = min(cpu_ms, self._columns[-1])
        column = min(max(bisect_left(self._columns, held) - 1, 0), len(self._columns) - 2)
        begin, end = self._columns[column : column + 2]
        part = (held - begin) / (end - begin)
        slow, fast = ((1 - part) * wall[column] + part * wall[column + 1] for wall in self._rows[row : row + 2])
        return max(cpu_ms, weight * slow + (1 - weight) * fast + (cpu_ms - held) / vcpu)

    def deviation_ms(self, vcpu: np.ndarray) -> np.ndarray:
        """Of works that a first grant does not cover."""
        row, weight = self._row(vcpu)
        found: np.ndarray = weight * self._spread_ms[row] + (1 - weight) * self._spread_ms[row + 1]
        return found

    def _column(self, cpu_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Works as far as the grid goes, the column below each, and how far it is to the next one."""
        held = np.minimum(cpu_ms, self._works_ms[-1])
        column = np.clip(np.searchsorted(self._works_ms, held) - 1, 0, len(self._works_ms) - 2)
        begin, end = self._works_ms[column], self._works_ms[column + 1]
        return held, column, (held - begin) / (end - begin)

    @staticmethod
    def _row(vcpu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row below shares, and its weight beside the next one: wall time is nearly a line over `1 / share`."""
        row = np.clip((vcpu * SHARES).astype(int) - 1, 0, SHARES - 2)
        low, high = SHARES / (row + 1), SHARES / (row + 2)
        return row, (1 / vcpu - high) / (low - high)


@cache
def quota(period_ms: float) -> Quota:
    """The law of a period."""
    return Quota(_known().get(f"{period_ms:g}") or simulated(period_ms), period_ms)


@cache
def _known() -> dict[str, Grid]:
    return msgspec.json.decode(SIMULATED.read_bytes(), type=dict[str, Grid])


def simulated(period_ms: float) -> Grid:
    """The grid of a period; some seconds."""
    share = np.arange(1, SHARES + 1)[:, None] / SHARES
    wall = np.broadcast_to(works_ms(period_ms), (SHARES, len(works_ms(period_ms)))).copy()
    spread = np.zeros_like(wall)
    held = np.nonzero((wall > share * period_ms + EXACT_MS) & (share < 1))
    walls = _simulate(wall[held], share[held[0], 0], period_ms)
    wall[held], spread[held] = walls.mean(axis=1), walls.std(axis=1)
    wall = np.maximum.accumulate(wall, axis=1)  # these are means of a few lanes
    wall = np.minimum.accumulate(wall, axis=0)
    late = np.maximum.accumulate(spread[::-1, -8:].mean(axis=1))[::-1]
    return Grid(np.round(wall, 3).tolist(), np.round(late, 3).tolist())


def _simulate(cpu_ms: np.ndarray, share: np.ndarray, period_ms: float) -> np.ndarray:
    """Wall times of works under shares of a period, ms: [works, ways to fall]."""
    shape = (len(cpu_ms), LANES)
    grid = (np.arange(LANES) + 0.5) / LANES
    golden = np.modf(np.arange(LANES) * 0.618033988749895)[0]
    rng = np.random.default_rng(0)
    lanes = _Lanes(
        np.repeat(cpu_ms, LANES),
        np.repeat(share * period_ms, LANES),
        period_ms,
        tick=np.tile(grid * TICK_MS, len(cpu_ms)),
        refill=np.tile(golden * period_ms, len(cpu_ms)),
    )
    walls = [lanes.request(rng.permuted(np.tile(grid, (len(cpu_ms), 1)), axis=1).ravel()) for _ in range(REQUESTS)]
    return np.concatenate([w.reshape(shape) for w in walls[REQUESTS // 2 :]], axis=1)


class _Lanes:
    """Cores, each with one process under a quota, and when each next looks and is granted; ms."""

    def __init__(
        self, work: np.ndarray, grant: np.ndarray, period_ms: float, *, tick: np.ndarray, refill: np.ndarray
    ) -> None:
        """All idle, with nothing overdrawn."""
        self.work, self.grant, self.period_ms = work, grant, period_ms
        self.now = np.zeros(len(work))
        self.tick, self.refill = tick, refill
        self.pool, self.own = grant.copy(), np.zeros(len(work))

    def request(self, phase: np.ndarray) -> np.ndarray:
        """Wall times of a run each, behind a pause of two periods and a share of one."""
        begun = self.now + (2 + phase) * self.period_ms
        self.now = begun.copy()
        self.refill += np.ceil((begun - self.refill) / self.period_ms) * self.period_ms
        self.tick += np.ceil((begun - self.tick) / TICK_MS) * TICK_MS
        self.pool = self.grant.copy()
        left = self.work.copy()
        waits = self._take(np.arange(len(left)))
        wall = np.zeros(len(left))
        busy = np.arange(len(left))
        while len(busy):
            held = waits[busy]
            woken, runs = busy[held], busy[~held]
            self._wake(woken, waits)
            end = np.minimum(np.minimum(self.refill[runs], self.tick[runs]), self.now[runs] + left[runs])
            ran = end - self.now[runs]
            left[runs] -= ran
            self.own[runs] -= ran
            self.now[runs] = end
            done = left[runs] <= EXACT_MS / 1000
            wall[runs[done]] = end[done] - begun[runs[done]]
            self._give_back(runs[done])
            on = runs[~done]
            filled = on[self.refill[on] <= self.now[on]]
            self.pool[filled] = self.grant[filled]
            self.refill[filled] += self.period_ms
            looked = on[self.tick[on] <= self.now[on]]
            self.tick[looked] += TICK_MS
            waits[looked] = self._take(looked)
            busy = np.concatenate([woken, on])
        return wall

    def _take(self, lanes: np.ndarray) -> np.ndarray:
        """A slice of what is granted, where one has nothing left; whether that does not do."""
        need: np.ndarray = np.where(self.own[lanes] <= 0, np.minimum(SLICE_MS - self.own[lanes], self.pool[lanes]), 0.0)
        self.pool[lanes] -= need
        self.own[lanes] += need
        lacking: np.ndarray = self.own[lanes] <= 0
        return lacking

    def _wake(self, lanes: np.ndarray, waits: np.ndarray) -> None:
        """On to the next period, whose grant pays first what was overdrawn."""
        self.now[lanes] = self.refill[lanes]
        self.refill[lanes] += self.period_ms
        paid = np.minimum(EXACT_MS - self.own[lanes], self.grant[lanes])
        self.pool[lanes] = self.grant[lanes] - paid
        self.own[lanes] += paid
        waits[lanes] = self.own[lanes] <= 0
        self.tick[lanes] += np.ceil(np.maximum(self.now[lanes] - self.tick[lanes], 0) / TICK_MS) * TICK_MS

    def _give_back(self, lanes: np.ndarray) -> None:
        """What a core took and did not use, but for a millisecond."""
        more = np.maximum(self.own[lanes] - 1, 0.0)
        self.pool[lanes] = np.minimum(self.pool[lanes] + more, self.grant[lanes])
        self.own[lanes] -= more


if __name__ == "__main__":
    SIMULATED.write_bytes(
        msgspec.json.format(msgspec.json.encode({f"{p:g}": simulated(p) for p in PERIODS_MS}), indent=0)
    )
