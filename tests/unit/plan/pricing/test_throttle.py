"""The CPU quota's effect against a simulation of the kernel's rules, event by event and one process at a time."""

from __future__ import annotations

import random
import statistics

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.plan.pricing import quota
from lamella.plan.pricing.quota import EXACT_MS, SLICE_MS, TICK_MS
from lamella.plan.pricing.throttle import least_bill_ms, phase_deviation_ms, shared_ms, throttled, throttled_ms

HUNDREDTHS = st.integers(3, 99)
CPU_US = st.one_of(st.integers(1, 400_000), st.integers(1, 400).map(lambda ms: ms * 1000))
PERIODS = st.sampled_from([10, 100])


def simulated_ms(cpu_ms: float, share: float, period_ms: float, requests: int = 1500) -> list[float]:
    """Wall times of runs one after the other, each behind a pause of two to three periods."""
    rng = random.Random(1)
    grant = share * period_ms
    tick, refill = rng.random() * TICK_MS, rng.random() * period_ms
    now, own, pool, walls = 0.0, 0.0, grant, []

    def taken(own: float, pool: float) -> tuple[float, float]:
        if own > 0:
            return own, pool
        more = min(SLICE_MS - own, pool)
        return own + more, pool - more

    for number in range(requests):
        now += (2 + rng.random()) * period_ms
        tick += rng.random() * 0.1  # clocks that are not locked to each other
        while refill <= now:
            refill += period_ms
        while tick <= now:
            tick += TICK_MS
        pool, left, begun = grant, cpu_ms, now
        own, pool = taken(own, pool)
        while left > 1e-9:
            if own <= 0:  # held back until the next period pays
                now, refill, pool = refill, refill + period_ms, grant
                paid = min(EXACT_MS - own, pool)
                own, pool = own + paid, pool - paid
                while tick <= now:
                    tick += TICK_MS
                continue
            while left > 1e-9:
                step = min(left, tick - now, refill - now)
                now, left, own = now + step, left - step, own - step
                if now >= refill:
                    pool, refill = grant, refill + period_ms
                if now >= tick:
                    tick += TICK_MS
                    own, pool = taken(own, pool)
                    if own <= 0:
                        break
        back = max(0.0, own - 1)
        own, pool = own - back, min(grant, pool + back)
        if number > 50:
            walls.append(now - begun)
    return walls


@pytest.mark.parametrize("period", [10.0, 100.0])
@pytest.mark.parametrize("share", [0.07, 0.25, 0.5, 0.67, 0.75, 0.93])
@pytest.mark.parametrize("grants", [0.6, 1.7, 4.0, 6.3, 15.0])
def test_throttled_time_is_that_of_a_simulated_quota(grants: float, share: float, period: float) -> None:
    cpu_ms = grants * share * period
    exact = statistics.fmean(simulated_ms(cpu_ms, share, period))
    assert throttled_ms(cpu_ms, share, period) == pytest.approx(exact, rel=0.065, abs=0.05 * period)


def test_between_the_points_of_the_grid_it_is_as_right() -> None:
    rng = random.Random(0)
    off = []
    for _ in range(60):
        share, cpu_ms = rng.uniform(0.2, 0.95), rng.uniform(10, 120)
        exact = statistics.fmean(simulated_ms(cpu_ms, share, 10.0, 600))
        off.append(abs(throttled_ms(cpu_ms, share, 10.0) / exact - 1))
    assert statistics.fmean(off) < 0.015
    assert max(off) < 0.06


@pytest.mark.parametrize("share", [0.25, 0.5, 0.67, 0.9])
@pytest.mark.parametrize("grants", [3.3, 10.1])
def test_the_spread_is_that_of_a_simulated_quota(grants: float, share: float) -> None:
    walls = simulated_ms(grants * share * 10.0, share, 10.0)
    found = phase_deviation_ms(np.array([statistics.fmean(walls)]), np.array([share]), 10.0)[0]
    assert found == pytest.approx(statistics.pstdev(walls), rel=0.3, abs=0.4)


def test_nothing_spreads_what_is_not_held_back() -> None:
    found = phase_deviation_ms(np.array([4.9, 5.1, 50.0]), np.array([0.5, 0.5, 1.0]), 10.0)
    assert (found > 0).tolist() == [False, True, False]


def test_what_ships_is_what_the_simulation_gives() -> None:
    known = msgspec.json.decode(quota.SIMULATED.read_bytes(), type=dict[str, quota.Grid])
    assert [float(p) for p in known] == list(quota.PERIODS_MS)
    for period, grid in known.items():
        assert grid == quota.simulated(float(period))
        walls = np.array(grid.wall_ms)
        assert walls.shape == (quota.SHARES, len(quota.works_ms(float(period))))
        assert (np.diff(walls, axis=0) <= 0).all()
        assert (np.diff(walls, axis=1) >= 0).all()
        assert (np.diff(grid.spread_ms) <= 0).all()
        assert (walls[-1] == np.round(quota.works_ms(float(period)), 3)).all()


def test_a_period_of_no_platform_is_simulated() -> None:
    assert quota.simulated(5.0).wall_ms[15][-1] == pytest.approx(2 * 30.0, rel=0.2)


@given(CPU_US, HUNDREDTHS, HUNDREDTHS, PERIODS)
def test_more_quota_never_takes_longer(cpu_us: int, a: int, b: int, period: int) -> None:
    low, high = sorted((a, b))
    less = throttled_ms(cpu_us / 1000, low / 100, float(period))
    assert throttled_ms(cpu_us / 1000, high / 100, float(period)) <= less * (1 + 1e-9)


@given(CPU_US, CPU_US, HUNDREDTHS, PERIODS)
def test_more_work_never_takes_less(a: int, b: int, hundredths: int, period: int) -> None:
    low, high = sorted((a, b))
    more = throttled_ms(high / 1000, hundredths / 100, float(period))
    assert throttled_ms(low / 1000, hundredths / 100, float(period)) <= more * (1 + 1e-9)


@given(CPU_US, HUNDREDTHS, HUNDREDTHS)
def test_more_quota_never_spreads_wider(cpu_us: int, a: int, b: int) -> None:
    low, high = sorted((a, b))
    walls = np.array([throttled_ms(cpu_us / 1000, share / 100, 10.0) for share in (low, high)])
    narrow, wide = phase_deviation_ms(walls, np.array([low, high]) / 100, 10.0)[::-1]
    assert narrow <= wide + 1e-12


@given(CPU_US, st.floats(0.03, 4), PERIODS)
def test_a_quota_never_makes_faster_and_from_one_vcpu_nothing_is_lost(cpu_us: int, vcpu: float, period: int) -> None:
    cpu_ms = cpu_us / 1000
    took = throttled_ms(cpu_ms, vcpu, float(period))
    assert took >= cpu_ms * (1 - 1e-9)
    if vcpu >= 1 or cpu_ms <= vcpu * period:
        assert took == cpu_ms


@given(st.lists(st.tuples(CPU_US, HUNDREDTHS), min_size=1), PERIODS)
def test_many_at_once_take_what_each_takes(runs: list[tuple[int, int]], period: int) -> None:
    cpu_ms, vcpu = np.array(runs, float).T / [[1000], [100]]
    found = throttled(cpu_ms, vcpu, float(period))
    assert found == pytest.approx([throttled_ms(*one, float(period)) for one in zip(cpu_ms, vcpu, strict=True)])


def test_long_work_takes_its_time_over_the_share() -> None:
    assert throttled_ms(60_000.0, 0.3, 10.0) == pytest.approx(200_000, rel=1e-3)


@given(CPU_US, st.integers(101, 200), HUNDREDTHS, PERIODS)
def test_threads_that_share_a_quota_are_held_back_as_one_is_by_its_share_of_it(
    busy_us: int, cores: int, hundredths: int, period: int
) -> None:
    busy_ms, cpu_ms, vcpu = busy_us / 1000, busy_us * cores / 100_000, 1 + hundredths / 100
    took = shared_ms(busy_ms, cpu_ms, vcpu, float(period))
    if 100 + hundredths >= cores:
        assert took == pytest.approx(busy_ms)  # never more than granted
        return
    assert took == pytest.approx(throttled_ms(busy_ms, vcpu * busy_ms / cpu_ms, float(period)))
    assert busy_ms * (1 - 1e-9) <= took <= cpu_ms / vcpu + period


@given(CPU_US, st.floats(0.005, 1.5), st.floats(0.0, 1.0), PERIODS)
def test_no_share_of_a_range_is_billed_less_than_its_least(cpu_us: int, low: float, wide: float, period: int) -> None:
    cpu_ms, high = cpu_us / 1000, low + wide
    shares = np.unique(np.concatenate([np.linspace(low, high, 500), np.linspace(0, cpu_ms / period * 2, 41)]))
    shares = shares[(low <= shares) & (shares <= high)]
    least = float(least_bill_ms(np.array([cpu_ms]), np.array([low]), np.array([high]), float(period))[0])
    billed = shares * throttled(np.full(len(shares), cpu_ms), shares, float(period))
    assert least <= billed.min() * (1 + 1e-9)
    assert least >= billed.min() * 0.9  # and so near that it says something: between these shares, too
