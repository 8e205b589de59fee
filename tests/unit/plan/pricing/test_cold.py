"""A cold start from the profile, by hand and against real ones."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import ConfigError
from lamella.plan.pricing.cold import cold_ms, cold_parts
from lamella.plan.pricing.predict import SliceModel
from lamella.platforms import Platform, platform
from lamella.platforms.figures import Figure
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


def test_the_parts_by_hand() -> None:
    model = model_of((Made(time_ms=5.0), Made(time_ms=7.0), Made(time_ms=9.0)), (4.0, 6.0, 10.0), made_up())
    parts = cold_parts(model, 1, 3, layout="plain", vcpu=1.0, package_mb=50.0)
    assert parts.spawn == 40.0
    assert parts.fetch == pytest.approx(500.0)
    assert parts.imports == pytest.approx(100.0)  # the made-up floor's
    assert parts.load == pytest.approx(4.0 + 2.0 + 6.0)  # one empty session, and what each unit adds
    assert parts.first_run == pytest.approx(16.0)
    assert parts.total == pytest.approx(40 + 500 + 100 + 12 + 16)


def test_weights_that_are_copied_are_read() -> None:
    model = model_of((Made(), Made()), (4.0, 4.0), made_up(), read_ms=30.0)
    plain, packed = (cold_parts(model, 0, 2, layout=way, vcpu=1.0, package_mb=0.0) for way in ("plain", "prepacked"))
    assert packed.load - plain.load == pytest.approx(60.0)


def test_a_package_that_is_there_is_not_fetched() -> None:
    model = model_of((Made(),), (4.0,), made_up(mb_per_s=0.0))
    assert cold_parts(model, 0, 1, layout="plain", vcpu=1.0, package_mb=500.0).fetch == 0.0


@given(CHAINS, st.floats(0.1, 1.0))
def test_half_a_vcpu_takes_at_least_as_long_and_at_most_its_share(units: tuple[Made, ...], vcpu: float) -> None:
    model = model_of(units, (5.0,) * len(units), made_up())
    whole, held = (
        cold_parts(model, 0, len(units), layout="plain", vcpu=v, package_mb=10.0) for v in (1.0, round(vcpu, 4))
    )
    worked = whole.imports + whole.load + whole.first_run
    period = model.platform.cpu.period_ms.value
    assert (held.spawn, held.fetch) == (whole.spawn, whole.fetch)
    took = held.imports + held.load + held.first_run
    assert worked * (1 - 1e-6) - 0.01 <= took <= worked / round(vcpu, 4) + 2 * period
    assert min(held) >= 0


def test_what_nobody_knows_is_said() -> None:
    unknown = Figure(number="unknown", source="nobody says", date="2026-11-22", confidence="unknown")
    rules = made_up()
    start = msgspec.structs.replace(rules.start, spawn_ms=unknown)
    model = model_of((Made(),), (4.0,), msgspec.structs.replace(rules, start=start))
    with pytest.raises(ConfigError, match="not known"):
        cold_ms(model, 0, 1, layout="plain", vcpu=1.0, package_mb=1.0)
