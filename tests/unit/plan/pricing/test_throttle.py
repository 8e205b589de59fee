"""The CPU quota's effect against an event-by-event simulation in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.plan.pricing.throttle import shared_ms, throttled_ms

HUNDREDTHS = st.integers(3, 99)
CPU_US = st.one_of(st.integers(1, 400_000), st.integers(1, 400).map(lambda ms: ms * 1000))
PERIODS = st.sampled_from([10, 100])


def simulated_ms(cpu_ms: Fraction, grant_ms: Fraction, period_ms: Fraction) -> Fraction:
    """Wall time averaged over the phases: run until the work, the grant or the period ends; wait; get a new grant.

    It is linear in the phase but where what is left of the period just takes a grant, or all but whole grants of the
    work: between these the middle stands for all.
    """
    total = Fraction(0)
    marks = sorted({Fraction(0), period_ms - grant_ms, period_ms - cpu_ms % grant_ms, period_ms})
    for low, high in pairwise(marks):
        now = begun = (low + high) / 2
        period_ends, budget, work = period_ms, grant_ms, cpu_ms
        while True:
            step = min(work, budget, period_ends - now)
            now, work, budget = now + step, work - step, budget - step
            if not work:
                break
            if not budget or now == period_ends:
                now, period_ends, budget = period_ends, period_ends + period_ms, grant_ms
        total += (now - begun) * (high - low)
    return total / period_ms


@given(CPU_US, HUNDREDTHS, PERIODS)
def test_throttled_time_is_that_of_a_simulated_quota(cpu_us: int, hundredths: int, period: int) -> None:
    vcpu = Fraction(hundredths, 100)
    exact = simulated_ms(Fraction(cpu_us, 1000), vcpu * period, Fraction(period))
    assert throttled_ms(cpu_us / 1000, hundredths / 100, float(period)) == pytest.approx(float(exact), rel=1e-9)


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


@given(CPU_US, st.floats(0.03, 4), PERIODS)
def test_a_quota_never_makes_faster_and_from_one_vcpu_nothing_is_lost(cpu_us: int, vcpu: float, period: int) -> None:
    cpu_ms = cpu_us / 1000
    took = throttled_ms(cpu_ms, vcpu, float(period))
    assert took >= cpu_ms * (1 - 1e-9)
    if vcpu >= 1:
        assert took == cpu_ms


def test_half_a_vcpu_by_hand() -> None:
    # 10 ms of work, 5 ms of CPU in each 10 ms. With 5 ms or more of the period left: 5 ms, a wait until its end, 5 ms.
    # With less left: what is left, a whole period, and the rest of the work.
    # On average 7.5 + 5 ms and 15 ms.
    assert throttled_ms(10.0, 0.5, 10.0) == pytest.approx((12.5 + 15) / 2)


def test_long_work_takes_its_time_over_the_share() -> None:
    assert throttled_ms(60_000.0, 0.3, 10.0) == pytest.approx(200_000, rel=1e-3)


@given(CPU_US, st.integers(101, 200), HUNDREDTHS, PERIODS)
def test_threads_that_share_a_quota_are_held_back_as_one_is_by_its_share_of_it(
    busy_us: int, cores: int, hundredths: int, period: int
) -> None:
    busy_ms, alone_ms, vcpu = busy_us / 1000, busy_us * cores / 100_000, 1 + hundredths / 100
    took = shared_ms(busy_ms, alone_ms, vcpu, float(period))
    if 100 + hundredths >= cores:
        assert took == busy_ms  # never more than granted
        return
    grant = Fraction(100 + hundredths, cores) * period
    exact = simulated_ms(Fraction(busy_us, 1000), grant, Fraction(period))
    assert took == pytest.approx(float(exact), rel=1e-6)
    assert busy_ms * (1 - 1e-9) <= took <= alone_ms / vcpu + period
