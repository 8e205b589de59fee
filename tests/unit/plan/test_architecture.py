"""Functions on arm: at its price, and said to be unmeasured."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from lamella.errors import ConfigError
from lamella.plan.laws import broken_laws
from lamella.plan.make import make_plan
from lamella.plan.request import Request
from lamella.platforms import platform
from tests.unit.plan.synthetic import Made, graph_of, profile_of

UNITS = (Made(60.0, 0.01, 10.0), Made(200.0, 0.01, 20.0))
GRAPH = graph_of(UNITS)


def test_any_takes_the_lower_price_and_says_that_it_is_unmeasured() -> None:
    where, profile = platform("aws-lambda"), profile_of(GRAPH, UNITS)
    on = {
        name: make_plan(GRAPH, profile, where, "exact", given="made-up", request=Request(architecture=name))
        for name in ("x86", "arm", "any")
    }
    fee = where.billing.usd_per_request.value * 1e6
    runs = {name: plan.predicted.cost_usd_per_million - fee for name, plan in on.items()}
    assert runs["arm"] == pytest.approx(runs["x86"] * 1.33334 / 1.66667, rel=1e-4)
    assert runs["any"] == runs["arm"]
    assert (on["x86"].architecture, on["any"].architecture) == ("x86", "arm")
    assert on["any"].why.endswith("arm is unmeasured")
    assert broken_laws(on["arm"], GRAPH, where) == []
    assert broken_laws(replace(on["arm"], architecture="x86"), GRAPH, where), "the price is not x86's"


def test_without_a_price_there_is_no_arm() -> None:
    with pytest.raises(ConfigError, match="openfaas has no price for arm"):
        platform("openfaas").on("arm")
    assert platform("openfaas").cheapest_architecture == "x86"
