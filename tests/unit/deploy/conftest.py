"""A chain of three functions, built once; after each test nothing may be left of its instances."""

from tests.faults.fixtures import cnn, enforced, limiter, nothing_left, rng, slow, three_slices

__all__ = ["cnn", "enforced", "limiter", "nothing_left", "rng", "slow", "three_slices"]
