"""The account of whose weights are in memory: its laws, for any packages, budget, policy and requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.deploy.residency import GRAIN, HIDDEN, Residency
from lamella.store.policies import POLICIES

MB = 1 << 20
NAMES = "abcde"
REQUESTS = st.lists(st.tuples(st.sampled_from(NAMES), st.floats(0.001, 1.0)), max_size=40)


def of(megabytes: dict[str, int], policy: str = "lru") -> Residency:
    """Packages of one function with two blobs each."""
    residency = Residency(POLICIES[policy])
    for name, size in megabytes.items():
        halves = (size // 2 * MB, (size - size // 2) * MB)
        residency.know(name, {"f": [(f"{name}{k}", half) for k, half in enumerate(halves)]})
    return residency


def held(residency: Residency, name: str) -> int:
    """MB."""
    return (residency.own(name) - residency.missing(name)) // MB


@given(
    st.lists(st.integers(1, 60), min_size=5, max_size=5),
    st.integers(1, 150),
    st.sampled_from(["lru", "lfu", "cost-aware"]),
    REQUESTS,
)
def test_who_is_asked_for_is_there_whole_and_all_others_within_the_budget(
    sizes: list[int], budget: int, policy: str, requests: list[tuple[str, float]]
) -> None:
    residency = of(dict(zip(NAMES, sizes, strict=True)), policy)
    for at, (name, seconds) in enumerate(requests):
        before = {other: held(residency, other) for other in NAMES}
        missing = residency.missing(name)
        fits = residency.used + missing <= budget * MB
        leaving = residency.use(name, budget * MB, float(at))
        assert residency.missing(name) == 0
        assert residency.used <= max(budget * MB, residency.own(name))
        assert not (fits and leaving), "who fits sends nobody away"
        for other, keep in leaving:
            assert other != name
            assert keep["f"] == (residency.own(other) - residency.missing(other))
            assert held(residency, other) < before[other]
        residency.learn(name, missing, seconds)
        assert all(0 <= residency.tail(other) <= residency.own(other) for other in NAMES)


def test_tails_that_reading_hides_leave_before_any_head_does() -> None:
    residency = of({"a": 100, "b": 100, "c": 100})
    for name in "ab":
        residency.use(name, 200 * MB, 0.0)
    residency.learn("a", 0, 0.04)
    residency.learn("b", 0, 0.04)
    assert residency.tail("a") == 0, "what the device reads is not known yet"
    residency.learn("a", 100 * MB, 0.1)
    tail = int(HIDDEN * 1000 * MB * 0.04)
    assert residency.tail("a") == pytest.approx(tail, abs=1)
    assert [leave.name for leave in residency.use("c", 200 * MB, 1.0)] == ["a", "b"]
    assert held(residency, "a") == pytest.approx(100 - 28 - (100 - 2 * 28), abs=2 * GRAIN / MB)
    assert held(residency, "b") == pytest.approx(100 - 28, abs=2 * GRAIN / MB)


def test_what_several_packages_use_counts_once_and_is_nobodys_to_let_go() -> None:
    residency = Residency(POLICIES["lru"])
    for name in "ab":
        residency.know(name, {"f": [("common", 100 * MB), (name, 20 * MB)], "g": [(f"{name}g", 10 * MB)]})
    assert residency.own("a") == 30 * MB
    residency.use("a", 150 * MB, 0.0)
    assert residency.use("b", 150 * MB, 1.0) == [("a", {"f": 120 * MB, "g": 0})]
    assert residency.used == 150 * MB
    residency.forget("a")
    assert residency.own("b") == 130 * MB


def test_a_policy_that_keeps_all_sends_nobody_away() -> None:
    residency = of({"a": 100, "b": 100}, "never")
    residency.use("a", 100 * MB, 0.0)
    assert residency.use("b", 100 * MB, 1.0) == []


def test_who_is_asked_for_often_stays_where_the_policy_counts_and_goes_where_it_does_not() -> None:
    for policy, stays in [("lru", False), ("cost-aware", True)]:
        residency = of({"a": 100, "b": 100, "c": 100}, policy)
        for at, name in enumerate("aaaabcb"):
            residency.use(name, 200 * MB, float(at))
        assert ("a" in residency) is stays, policy
        assert "b" in residency
        residency.drop("b")
        assert "b" not in residency
