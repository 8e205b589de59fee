"""A start from the profile, by hand."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import ConfigError
from lamella.plan.pricing.cold import Started, init_ms, platform_ms, starts
from lamella.plan.pricing.predict import SliceModel
from lamella.platforms import Platform, platform
from lamella.platforms.figures import Figure
from lamella.runtime.function import Layout
from tests.unit.plan.synthetic import CHAINS, Made, graph_of, profile_of


def figure(value: float) -> Figure:
    """A number of one's own."""
    return Figure(number=value, source="made up", date="2026-11-22", confidence="assumed")


def made_up(spawn_ms: float = 40.0, mb_per_s: float = 100.0) -> Platform:
    """openfaas, with starts that are known."""
    rules = platform("openfaas")
    start = msgspec.structs.replace(rules.start, spawn_ms=figure(spawn_ms), fetch_mb_per_s=figure(mb_per_s))
    return msgspec.structs.replace(rules, start=start)


def model_of(units: tuple[Made, ...], loads: tuple[float, ...], rules: Platform, read_ms: float = 0.0) -> SliceModel:
    """A chain whose units load in so many ms, and read as many more where prepacked."""
    graph = graph_of(units)
    profile = profile_of(graph, units)
    changed = tuple(
        msgspec.structs.replace(
            u,
            memory=tuple(
                msgspec.structs.replace(m, load_ms=load, read_ms=read_ms * (m.layout == "prepacked")) for m in u.memory
            ),
        )
        for u, load in zip(profile.units, loads, strict=True)
    )
    return SliceModel(graph, msgspec.structs.replace(profile, units=changed), rules)


def started(model: SliceModel, first: int, last: int, layout: Layout = "plain", vcpu: float = 1.0) -> Started:
    """The start of a slice."""
    choice = replace(model.choices(first, last)[0], layout=layout, vcpu=vcpu)
    (one,) = starts(model, [choice])
    return one


def test_the_parts_by_hand() -> None:
    model = model_of((Made(time_ms=5.0), Made(40.0, 7.0), Made(10.0, 9.0)), (4.0, 6.0, 10.0), made_up())
    one = started(model, 1, 3)
    assert one.imports_ms == pytest.approx(100.0)  # the made-up floor's
    assert one.load_ms == pytest.approx(4.0 + 2.0 + 6.0)  # one empty session, and what each unit adds
    assert init_ms(model.platform, one) == pytest.approx(112.0)
    assert platform_ms(model.platform, [one]) == pytest.approx(40.0 + 500.0)


def test_weights_that_are_copied_are_read() -> None:
    model = model_of((Made(), Made()), (4.0, 4.0), made_up(), read_ms=30.0)
    assert started(model, 0, 2, "prepacked").load_ms - started(model, 0, 2).load_ms == pytest.approx(60.0)


def test_a_package_that_is_there_is_not_fetched() -> None:
    model = model_of((Made(500.0),), (4.0,), made_up(mb_per_s=0.0))
    assert platform_ms(model.platform, [started(model, 0, 1)]) == 40.0


@given(CHAINS, st.floats(0.1, 1.0))
def test_half_a_vcpu_takes_at_least_as_long_and_at_most_its_share(units: tuple[Made, ...], vcpu: float) -> None:
    model = model_of(units, (5.0,) * len(units), made_up())
    vcpu = round(vcpu, 4)
    one = started(model, 0, len(units), vcpu=vcpu)
    took, period = init_ms(model.platform, one), model.platform.cpu.period_ms.value
    assert one.cpu_ms * (1 - 1e-6) - 0.01 <= took <= one.cpu_ms / vcpu + 2 * period


def test_what_nobody_knows_is_said() -> None:
    unknown = Figure(number="unknown", source="nobody says", date="2026-11-22", confidence="unknown")
    rules = made_up()
    start = msgspec.structs.replace(rules.start, spawn_ms=unknown)
    model = model_of((Made(),), (4.0,), msgspec.structs.replace(rules, start=start))
    with pytest.raises(ConfigError, match="not known"):
        platform_ms(model.platform, [started(model, 0, 1)])
