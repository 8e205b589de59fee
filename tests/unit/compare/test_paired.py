"""Two plans of a comparison against each other, round by round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.compare.paired import difference
from lamella.compare.record import PlanRecord, Turn
from tests.docs.records import plan

COSTS = st.lists(st.floats(0.1, 10.0), min_size=3, max_size=12)


def taken(name: str, costs: list[float]) -> PlanRecord:
    return plan(name, [100], 10.0, float(np.mean(costs)), turns=tuple(Turn(c, 10.0) for c in costs))


@given(COSTS)
def test_a_plan_does_not_differ_from_itself(costs: list[float]) -> None:
    found = difference(taken("exact", costs), taken("single", costs))
    assert found == (0.0, 0.0, 0.0)
    assert not found.loses


@given(COSTS, st.floats(0.01, 0.5))
def test_what_a_round_does_to_both_leaves_their_difference_alone(noise: list[float], more: float) -> None:
    mean = float(np.mean(noise))
    found = difference(taken("exact", [c + more * mean for c in noise]), taken("single", noise))
    assert found == pytest.approx((more, more, more))
    assert found.loses, "every round says the same, however loud they are"


def test_a_difference_within_the_noise_is_no_loss_and_one_beyond_it_is() -> None:
    other = [10.0] * 12
    within = difference(taken("exact", [9.0, 11.5] * 6), taken("single", other))
    assert within.share == pytest.approx(0.025)
    assert within.low < 0 < within.high
    assert not within.loses
    beyond = difference(taken("exact", [10.5, 11.5] * 6), taken("single", other))
    assert beyond.low > 0.05
    assert beyond.loses
    assert not difference(taken("exact", [8.0, 9.0] * 6), taken("single", other)).loses


def test_rounds_that_are_not_the_same_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        difference(taken("exact", [1.0, 1.0]), taken("single", [1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="exact and single have no rounds"):
        difference(plan("exact", [1], 1.0, 1.0), plan("single", [1], 1.0, 1.0))
