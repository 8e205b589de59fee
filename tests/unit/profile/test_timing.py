"""What rounds of a profile say about the machine."""

import numpy as np
import pytest

from lamella.profile.timing import BLOCKS, SETTLED, common_deviation, standard_error, told_by


@pytest.mark.parametrize("shared", [0.0, 0.05, 0.15])
@pytest.mark.parametrize("own", [0.0, 0.05])
def test_what_units_share_is_told_from_what_each_has_for_itself(shared: float, own: float) -> None:
    rng = np.random.default_rng(0)
    means = rng.uniform(1.0, 3.0, 12)
    rounds = 4000
    times = means * (1 + shared * rng.standard_normal((rounds, 1)) + own * rng.standard_normal((rounds, 12)))
    assert common_deviation(times) == pytest.approx(shared, abs=0.012)


def test_of_one_unit_nothing_is_known_to_be_shared() -> None:
    assert common_deviation(np.array([[1.0], [2.0], [1.5]])) == 0.0
    assert common_deviation(np.ones((5, 3))) == 0.0


def test_a_small_noisy_unit_does_not_speak_for_a_large_one() -> None:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((25, 1))
    times = np.array([[100.0, 0.02]]) * (1 + shared * np.array([[0.01, 0.9]]))
    assert common_deviation(times) <= 0.0121  # what the sum varies by


def test_few_rounds_have_not_settled_and_a_drift_is_seen() -> None:
    assert standard_error([1.0] * (2 * BLOCKS - 1)) == float("inf")
    assert standard_error([1.0] * 40) == 0.0
    drifting = [1.0] * 20 + [1.2] * 20
    mixed = [1.0, 1.2] * 20
    assert standard_error(mixed) == 0.0
    assert standard_error(drifting) > 0.04


def test_rounds_tell_of_drift_and_never_of_less_than_they_end_at() -> None:
    still = told_by(np.ones((40, 3)))
    assert still.drift(0.0) == pytest.approx(SETTLED * 2**0.5)  # of the rounds and of any others
    assert still.drift(0.08) == pytest.approx(np.hypot(SETTLED, 0.08))
    assert told_by(np.repeat([[1.0, 1.0], [1.2, 1.2]], 20, axis=0)).drift(0.0) > 0.04
    few = np.array([[1.0], [1.1], [1.2], [1.3], [1.4]])
    assert told_by(few).drift(0.0) == pytest.approx(2**0.5 * 1.2533 * few.std() / (5**0.5 * 1.2), rel=1e-3)
