"""Functions on nodes: against brute force on small cases, and by what must hold of any packing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.platforms import platform
from lamella.platforms.figures import Figure
from lamella.platforms.packing import Load, pack
from lamella.platforms.platform import Node


def figure(value: float) -> Figure:
    return Figure(number=value, source="test", date="2026-11-22", confidence="assumed")


def node(memory_mb: float, vcpu: float) -> Node:
    return Node(figure(memory_mb), figure(vcpu))


LOADS = st.lists(
    st.builds(
        Load,
        memory_mb=st.integers(64, 16384).map(float),
        vcpu=st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]),
        run_ms=st.floats(0.1, 1000.0),
    ),
    min_size=1,
    max_size=6,
)


def test_one_function_fits_as_often_as_its_larger_share_allows() -> None:
    found = pack([Load(1024, 1.0, 100.0)], node(16384, 4))
    assert found
    assert found.functions == 4
    assert found.requests_per_hour == pytest.approx(4 * 36_000)
    assert found.bound == "vcpu"
    found = pack([Load(6000, 1.0, 100.0)], node(16384, 4))
    assert found
    assert (found.functions, found.bound) == (2, "memory")


def test_what_is_larger_than_a_node_is_not_packed() -> None:
    assert pack([Load(20_000, 1.0, 1.0)], node(16384, 4)) is None
    assert pack([Load(100, 8.0, 1.0)], node(16384, 4)) is None


@given(LOADS)
def test_a_packing_stays_within_bounds(loads: list[Load]) -> None:
    found = pack(loads, node(16384, 4))
    assert found
    # no packing beats a fluid that fills every node
    per_request = max(sum(f.memory_mb * f.run_ms for f in loads) / 16384, sum(f.vcpu * f.run_ms for f in loads) / 4)
    assert found.requests_per_hour <= 3_600_000 / per_request * (1 + 1e-9)
    # first fit, largest first, in two dimensions: never more than three times the fluid's nodes, and one
    counts = [math.ceil(1000 / sum(g.run_ms for g in loads) * f.run_ms - 1e-9) for f in loads]
    fluid = max(
        sum(c * f.memory_mb for c, f in zip(counts, loads, strict=True)) / 16384,
        sum(c * f.vcpu for c, f in zip(counts, loads, strict=True)) / 4,
    )
    assert sum(counts) / found.functions <= 3 * fluid + 1 + 1e-6


def test_the_own_cluster_has_nodes_and_the_cloud_has_none() -> None:
    assert platform("openfaas").node
    assert platform("aws-lambda").node is None
