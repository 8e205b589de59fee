"""Planners that look at every slice refuse a model of which that would take gigabytes and minutes."""

import pytest

from lamella.errors import ModelError
from lamella.plan.planners.gillis import Gillis
from lamella.plan.planners.greedy import LatencyGreedy
from lamella.plan.planners.mopar import Mopar
from lamella.plan.planners.planner import Planner
from lamella.plan.planners.verdicts import MOST_LOOKS
from lamella.plan.request import Request
from tests.unit.plan.synthetic import Made, model_of


@pytest.mark.parametrize("planner", [Mopar(), Gillis(), LatencyGreedy()], ids=lambda p: p.name)
def test_too_many_units_are_refused_with_what_divides_them(planner: Planner) -> None:
    units = 1100
    assert units * (units + 1) // 2 > MOST_LOOKS
    model = model_of((Made(),) * units)
    with pytest.raises(ModelError, match=r"has 1100 units, which are .*,.* to look at") as refused:
        planner.decide(model, Request(similarity=False))
    assert "uniform-8" in str(refused.value.try_)
    assert "exact" in str(refused.value.try_)  # which takes as many
