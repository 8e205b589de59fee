"""Packages to break, built once; after each test nothing may be left of its instances."""

from tests.faults.fixtures import (
    cnn,
    enforced,
    greedy,
    greedy_package,
    limiter,
    nothing_left,
    rng,
    slow,
    slow_package,
    three_slices,
)

__all__ = [
    "cnn",
    "enforced",
    "greedy",
    "greedy_package",
    "limiter",
    "nothing_left",
    "rng",
    "slow",
    "slow_package",
    "three_slices",
]
